"""PPO, GRPO, RLOO, rejection sampling and DPO in the lab, at an equal number of rendered images.

    python benchmarks/algorithms.py --out runs/algorithms [--num-images 4096] [--seeds 0,1,2]
        [--methods ppo,grpo,rloo,rejection,dpo] [--num-inputs 200] [--judged-images 2]
        [--device cpu]

Every method starts from `lab-sft` and may render as many pictures of candidates; those of plain
user inputs are common to all, in one folder, and are not counted. A picture that repeats another of
the same batch (PPO, GRPO, RLOO) or of the same run (rejection, DPO) is rendered once and counted
once. The methods of rollouts stop after the iteration that brings them nearest to the number, the
others below it; the table says how many it was. What is evaluated is last/: the weights after
these images; of a run that ended early because its policy collapsed, or because nothing that it
wrote was good enough to learn from, the last that were saved, and a note under the table says so.
Then `python -m promptadapt_core.evaluate` compares all of them with the SFT policy on
user inputs that no training saw; each row is one method with its training seeds.

The same command goes on with what was killed or stopped, and does nothing that is done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptadapt_core import runs
from promptadapt_core.command_line import interruptible, keep_freed_memory, run
from promptadapt_core.evaluate.evaluation import Evaluation
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.lab.writers import mixed_user_inputs
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.dpo import train_dpo
from promptadapt_core.train.dpo_settings import DpoSettings
from promptadapt_core.train.ppo import train_ppo
from promptadapt_core.train.ppo_settings import PpoSettings
from promptadapt_core.train.rejection import train_rejection
from promptadapt_core.train.rejection_settings import RejectionSettings
from promptadapt_core.train.rendered_reward import load_parts

METHODS = ("ppo", "grpo", "rloo", "rejection", "dpo")
INPUT_SEED = 0  # of the training's user inputs; docs/method.md's are made with it too
NUM_TRAINING_INPUTS = 1000
MOST_EPISODES_PER_IMAGE = 20  # a policy that says the same always renders little
# Settings whose limit ends a run that has gone wrong, once it has saved a policy.
LIMITS = {"max_ref_kl", "min_mean_tokens", "lr", "policy", "floor", "plain_margin", "margin",
          "length_gap"}  # fmt: skip
FINISHED = "finished"  # in a run's folder; says why it ended early, if it did
ROOM_FOR_REPEATS = 4  # times the user inputs of a round whose candidates were all different
COMMON: dict[str, Any] = {
    "policy": "lab-sft", "renderer": "lab", "scorer": "lab", "judge": "none",
    "num_steps": 5, "render_batch_size": 16, "min_length_limit": 15, "max_length_limit": 40,
    "tensorboard": False,
}  # fmt: skip
# docs/method.md, section 6: what is good in the lab.
ROLLOUTS: dict[str, Any] = {
    "rollout_size": 256, "group_size": 4, "minibatch_size": 64, "micro_batch_size": 64,
    "num_epochs": 2, "lr": 6e-4, "kl_target": 0.0, "kl_coef": 0.01, "entropy_coef": 0.01,
    "samples_every": 0, "checkpoint_every": 2,
}  # fmt: skip
PPO: dict[str, Any] = {"value_lr": 1e-3, "value_clip_range": 1.0, "group_baseline": True}
MINED: dict[str, Any] = {
    "group_size": 8, "mining_batch": 64, "measure_inputs": 0,
    "floor": ("relevance=-0.5",),
}  # fmt: skip
REJECTION: dict[str, Any] = {
    "num_rounds": 8, "best_per_input": 1, "num_epochs": 6.0, "batch_size": 16, "lr": 1e-3,
    "precision": "fp32",
}  # fmt: skip
DPO: dict[str, Any] = {
    "num_rounds": 8, "pairs_per_input": 8, "num_epochs": 4.0, "batch_size": 16, "lr": 6e-4,
    "margin": 0.3, "valid_share": 0.0, "precision": "fp32",
}  # fmt: skip


class Budget:
    """Says stop once as many pictures of candidates are rendered as a run of rollouts may: after
    the iteration that comes nearest. Read from metrics.jsonl, so that a resumed run counts on."""

    def __init__(self, out: Path, num_images: int, interrupted: Callable[[], bool]):
        self.path, self.num_images, self.interrupted = (
            out / runs.METRICS_NAME,
            num_images,
            interrupted,
        )
        self.size, self.spent = -1, False

    def __call__(self) -> bool:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            self.size = size
            rows = rendered_rows(self.path)
            self.spent = bool(rows) and sum(rows) + rows[-1] / 2 >= self.num_images
        return self.spent or self.interrupted()


def rendered_rows(path: Path) -> list[float]:
    """Pictures of candidates that each iteration rendered."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [float(row.get("reward/num_rendered") or 0.0) for row in rows]


def num_rendered(method: str, out: Path) -> int:
    """Pictures of candidates that a finished run rendered."""
    path = out / runs.METRICS_NAME
    if method in ("rejection", "dpo"):
        lines = path.read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["train/rendered"])
    return int(sum(rendered_rows(path)))


def train(method: str, seed: int, options: argparse.Namespace, interrupted: Any) -> bool:
    """One run, gone on with where it was begun; False when it was broken off."""
    out = options.out / f"{method}{seed}"
    if (out / FINISHED).exists():
        return True
    try:
        done = trained(method, seed, options, interrupted, out)
        why = ""
    except SettingsError as error:
        if error.name not in LIMITS or not (out / "last").is_dir():
            raise
        done, why = True, f"{error.name}: {error.reason}"
        print(f"{method}, seed {seed}, ended early: {why}", flush=True)
    if done:
        runs.write_text(out / FINISHED, why)
    return done


def trained(
    method: str, seed: int, options: argparse.Namespace, interrupted: Any, out: Path
) -> bool:
    """The training itself; False when it was broken off."""
    chosen = {
        **COMMON, "device": options.device, "seed": seed, "out": str(out), "resume": out.is_dir(),
        "user_inputs": str(options.out / "inputs.txt"),
        "baselines": str(options.out / "baselines"),
    }  # fmt: skip
    terms = RewardSettings(num_images=1, relevance_weight=3.0)
    report = runs.Progress()
    if method in ("rejection", "dpo"):
        kind, own = (RejectionSettings, REJECTION) if method == "rejection" else (DpoSettings, DPO)
        values = {**chosen, **MINED, **own, "max_images": options.num_images}
        settings = kind(**fitted(values, options))
        reward, _ = load_parts(settings, terms)  # type: ignore[arg-type]
        trainer: Any = train_rejection if method == "rejection" else train_dpo
        result = trainer(settings, reward=reward, report=report, should_stop=interrupted)
        return result.status == "done"
    own = {**ROLLOUTS, **(PPO if method == "ppo" else {}), "algorithm": method}
    values = {**chosen, **own, "num_episodes": MOST_EPISODES_PER_IMAGE * options.num_images}
    settings = PpoSettings(**fitted(values, options))
    reward, _ = load_parts(settings, terms)
    budget = Budget(out, options.num_images, interrupted)
    train_ppo(settings, reward=reward, report=report, should_stop=budget)
    return budget.spent or not interrupted()


def fitted(values: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds that the number of images fills; of few images, smaller iterations and rounds."""
    if "rollout_size" in values:
        while values["rollout_size"] > max(options.num_images // 8, values["group_size"]):
            values["rollout_size"] //= 2
        for name in ("minibatch_size", "micro_batch_size"):
            values[name] = min(values[name], values["rollout_size"])
    else:
        most = max(options.num_images // (4 * values["group_size"]), 1)
        values["num_rounds"] = min(values["num_rounds"], most)
        share = options.num_images // (values["num_rounds"] * values["group_size"])
        values["round_inputs"] = ROOM_FOR_REPEATS * max(share, 1)
    return values


def evaluate(options: argparse.Namespace, interrupted: Any) -> dict[str, Any]:
    rows = ["user_input", "sft=lab-sft"] + [
        f"{method}={options.out / f'{method}{seed}' / 'last'}"
        for method in options.methods
        for seed in options.seeds
    ]
    settings = EvaluateSettings(
        rows=",".join(rows),
        out=str(options.out / "report"),
        exclude=(str(options.out / "inputs.txt"),),
        num_inputs=options.num_inputs,
        num_shown=min(4, options.num_inputs),
        render_batch_size=16,
        device=options.device,
    )
    reward = EvaluationReward(num_images=options.judged_images, relevance_weight=3.0)
    return Evaluation(settings, reward, reporter=runs.Progress, should_stop=interrupted).run().found


def table(options: argparse.Namespace, found: dict[str, Any]) -> str:
    """Markdown: rewards, what each method adds to SFT and to PPO, the images that it rendered."""
    domains = list(dict.fromkeys(row["domain"] for row in found["differences"]))
    metric = "reward"
    lines = [
        f"{metric}, {options.num_inputs} user inputs of each domain, {len(options.seeds)} training "
        "seeds, 95% intervals",
        "",
        "| method | images | " + " | ".join(
            f"over SFT, {domain} | over PPO, {domain}" for domain in domains
        ) + " |",
        "| --- |" + " --- |" * (1 + 2 * len(domains)),
    ]  # fmt: skip
    for method in options.methods:
        images = [num_rendered(method, options.out / f"{method}{seed}") for seed in options.seeds]
        cells = [
            difference(found, method, other, domain, metric)
            for domain in domains
            for other in ("sft", "ppo")
        ]
        lines.append(f"| {method} | {sum(images) / len(images):,.0f} | {' | '.join(cells)} |")
    names = [f"{method}{seed}" for method in options.methods for seed in options.seeds]
    reasons = {name: (options.out / name / FINISHED).read_text("utf-8") for name in names}
    notes = [f"{name} ended early: {why}" for name, why in reasons.items() if why]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def difference(found: dict[str, Any], row: str, minus: str, domain: str, metric: str) -> str:
    for one in found["differences"]:
        pair, sign = (one["row"], one["minus"]), 1.0
        if pair == (minus, row):
            pair, sign = (row, minus), -1.0
        if (*pair, one["domain"], one["metric"]) == (row, minus, domain, metric):
            low, high = sorted((sign * one["low"], sign * one["high"]))
            return f"{sign * one['value']:+.2f} ({low:+.2f} to {high:+.2f})"
    return ""


def above_0(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seeds_of(text: str) -> list[int]:
    """Different ones of numbers with commas between them."""
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=above_0, default=4096)
    parser.add_argument("--seeds", type=seeds_of, default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--num-inputs", type=above_0, default=200)
    parser.add_argument("--judged-images", type=above_0, default=2)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda")
    options = parser.parse_args()
    options.methods = list(dict.fromkeys(options.methods.split(",")))
    if unknown := set(options.methods) - set(METHODS):
        parser.error(f"--methods: expected some of {', '.join(METHODS)}, got {sorted(unknown)}")
    return run("algorithms", lambda: compare(options), extra="train")


def compare(options: argparse.Namespace) -> int:
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    inputs = options.out / "inputs.txt"
    if not inputs.exists():
        runs.write_text(
            inputs, "\n".join(mixed_user_inputs(NUM_TRAINING_INPUTS, INPUT_SEED)) + "\n"
        )
    with interruptible() as interrupted:
        for seed in options.seeds:
            for method in options.methods:
                began = time.monotonic()
                print(f"{method}, seed {seed}", flush=True)
                if not train(method, seed, options, interrupted):
                    print("stopped; the same command goes on", file=sys.stderr)
                    return 130
                number = num_rendered(method, options.out / f"{method}{seed}")
                took = runs.duration(time.monotonic() - began)
                print(f"{method}, seed {seed}: {number:,} images, {took} now", flush=True)
        found = evaluate(options, interrupted)
    text = table(options, found)
    runs.write_text(options.out / "table.md", text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
