"""PPO on pictures: with the lab's own renderer, scorer and judge, and with a painter that fails."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("open_clip")
pytest.importorskip("diffusers")

from promptadapt_core import judging, runs
from promptadapt_core.images import DiffusersGenerator, ImageSettings
from promptadapt_core.lab.folders import WEIGHTS
from promptadapt_core.lab.plain_renderer import PlainRenderer
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import __main__ as command
from promptadapt_core.train import ppo, rendered_reward
from promptadapt_core.train.ppo_metrics import PPO_METRICS
from promptadapt_core.train.ppo_settings import PpoSettings
from promptadapt_core.train.rendered_reward import RenderedReward

INPUTS = (
    "a red cat by the sea", "a blue house in a forest", "a green boat by the sea",
    "a white dog in a forest", "a yellow fox in a desert",
)  # fmt: skip
TINY: dict[str, Any] = {
    "device": "cpu", "rollout_size": 8, "num_episodes": 16, "group_size": 2, "num_epochs": 1,
    "minibatch_size": 8, "micro_batch_size": 4, "lr": 1e-3, "value_lr": 1e-3, "tensorboard": False,
    "min_length_limit": 4, "max_length_limit": 10, "checkpoint_every": 1, "samples_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A folder with inputs.txt and policy/, an SFT policy that writes styles."""
    return policy_for(INPUTS)


def tiny(inputs: Path, out: Path, **changes: Any) -> PpoSettings:
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip
    return PpoSettings(**chosen)


def flags(inputs: Path, out: Path, *more: str) -> list[str]:
    return [
        "ppo", f"--policy={inputs / 'policy'}", f"--user-inputs={inputs / 'inputs.txt'}",
        f"--out={out}", *more,
    ]  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def saved(folder: Path) -> dict[str, bytes]:
    """The files whose bytes equal runs must share: the weights and the samples."""
    files = [path for kind in ("*.safetensors", "samples/*") for path in folder.rglob(kind)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every prompt and seed that the renderer draws."""
    drawn: list[tuple[str, int]] = []
    generate = PlainRenderer.generate

    def counted(self: Any, prompts: Any, seeds: Any, **options: Any) -> np.ndarray:
        drawn.extend(zip(prompts, seeds, strict=True))
        return generate(self, prompts, seeds, **options)

    monkeypatch.setattr(PlainRenderer, "generate", counted)
    return drawn


LAB_REWARD = RewardSettings(num_images=1)


def lab_run(settings: PpoSettings, should_stop: Any = None) -> ppo.PpoResult:
    reward, judge = rendered_reward.load_parts(settings, LAB_REWARD)
    return ppo.train_ppo(settings, reward=reward, judge=judge, should_stop=should_stop)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, PlainRenderer),
        ({"num_steps": 1, "download": True, "render_precision": "float32"}, PlainRenderer),
        ({"batch_size": 0}, PlainRenderer),
        ({"render_precision": "bfloat16"}, DiffusersGenerator),
        ({"attention_slicing": True}, DiffusersGenerator),
        ({"sampler": "euler"}, DiffusersGenerator),
    ],
)
def test_what_draws_the_labs_pictures(options: dict[str, Any], kind: type) -> None:
    """Plain torch on a CPU, unless something is asked of the pipeline; the pictures are alike."""
    generator = rendered_reward.load_renderer("lab", "cpu", **options)
    assert type(generator) is kind
    assert generator.batch_size == (options.get("batch_size") or 8)
    assert generator.settings.guidance_scale == 3.0


def test_a_run_in_the_lab_from_end_to_end(
    inputs: Path, tmp_path: Path, rendered: list[tuple[str, int]]
) -> None:
    """Whole, and stopped and resumed: equal bit for bit, and no plain picture drawn twice."""
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert lab_run(tiny(inputs, whole, num_steps=1)).status == "done"
    plain = [picture for picture in rendered if picture[0] in INPUTS]
    assert len(plain) == len(set(plain)) <= len(INPUTS)
    rows = rows_of(whole)
    table = {*PPO_METRICS, *rendered_reward.RenderedReward.metrics, *judging.LabJudge.metrics}
    assert {*rows[0]} == {"step", *(name for name in table if not name.startswith("time/"))}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for row in rows:
        assert row["reward/mean"] == pytest.approx(row["rollout/reward"], abs=1e-5)
        assert row["reward/num_failed"] == 0.0
        assert row["reward/num_rendered"] <= 8
        assert 1.0 < row["judge/taste"] < 10.0
        assert 0.0 <= row["judge/subject_accuracy"] <= 1.0
    assert rows[-1]["reward/num_baselines_rendered"] <= 1  # the probe has drawn four of the five
    for number in (1, 2):
        lines = (whole / "samples" / f"0000{number}.jsonl").read_text("utf-8").splitlines()
        samples = [json.loads(line) for line in lines]
        assert len(samples) == 8
        assert {*samples[0]["judge"]} == {*judging.LabJudge.metrics}
        with Image.open(whole / "samples" / f"0000{number}.png") as picture:
            assert picture.size == (64, 8 * 64)
            pixels = np.asarray(picture.convert("RGB")).reshape(8, 64, 64, 3)
        changed = [row["adapted_prompt"] != row["user_input"] for row in samples]
        assert all(
            shown.any() for shown, is_changed in zip(pixels, changed, strict=True) if is_changed
        )

    del rendered[:]
    stopped = lab_run(tiny(inputs, parts, num_steps=1), (parts / "metrics.jsonl").exists)
    assert (stopped.status, stopped.iteration) == ("stopped", 1)
    resumed = lab_run(tiny(inputs, parts, num_steps=1, resume=True))
    assert (resumed.status, resumed.iteration) == ("done", 2)
    again = [picture for picture in rendered if picture[0] in INPUTS]
    assert sorted(again) == sorted(plain)
    assert saved(parts) == saved(whole)
    assert [{**row, "reward/num_baselines_rendered": 0} for row in rows_of(parts)] == [
        {**row, "reward/num_baselines_rendered": 0} for row in rows
    ]

    shared = tiny(inputs, tmp_path / "other", num_steps=1, baselines=str(whole / "baselines"))
    del rendered[:]
    reward, _ = rendered_reward.load_parts(shared, LAB_REWARD)
    reward.reward(INPUTS, INPUTS, [reward.seeds_of(text) for text in INPUTS])
    assert len(reward.rewarder.baselines) == len(plain)
    assert [picture for picture in rendered if picture in plain] == []


def test_the_command_line_runs_and_tells_what_it_does(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = flags(
        inputs, out, "--num-episodes=4", "--rollout-size=4", "--num-epochs=1", "--num-images=1",
        "--num-steps=2", "--guidance-scale=1.5", "--size=32", "--max-length-limit=16",
        "--device=cpu", "--judge=none", "--no-tensorboard", "--alarm-window=20",
    )  # fmt: skip
    assert command.main(given) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("done: 1 iterations, best mean reward")
    assert "plan: 1 iterations, 4 episodes, at most 4 images of candidates and 4" in captured.err
    assert "pictures: 1 per candidate, 32 pixels, 2 steps, guidance 1.5; 0 scores" in captured.err
    assert "reward: 1 aesthetic_gain + 1 relevance + 0.05 length + 1 copy" in captured.err
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["settings"]["num_steps"] == config["reward"]["renderer"]["num_steps"] == 2
    assert config["reward"]["terms"]["num_images"] == 1
    assert config["judge"] == ""
    assert not any(name.startswith("judge/") for name in rows_of(out)[0])
    capsys.readouterr()
    for changed, told in (
        ("--num-steps=1", "--num-steps was 2 and is now 1"),
        ("--copy-weight=2", "--copy-weight was 1.0 and is now 2.0"),
    ):
        assert command.main([*given, "--resume", changed]) == 2
        assert told in capsys.readouterr().err


class Painter:
    """A renderer whose pictures are the brighter the longer the text. Its dogs are black, and at a
    fox it raises."""

    identity = "painter"
    settings = ImageSettings(size=8)

    def generate(self, prompts: Any, seeds: Any, *, should_stop: Any = None) -> np.ndarray:
        if any("fox" in text for text in prompts):
            raise RuntimeError("the fox has run away")
        shades = [0 if "dog" in text else min(20 + 2 * len(text), 255) for text in prompts]
        return np.stack([np.full((8, 8, 3), shade, dtype=np.uint8) for shade in shades])


class Critic:
    """A scorer that likes bright pictures and finds all of them relevant."""

    identity = "critic"
    relevance_knee, relevance_slope = 0.28, 20.0

    def score(self, user_inputs: Any, pixels: np.ndarray) -> Any:
        bright = torch.from_numpy(pixels.reshape(len(pixels), -1).mean(1)).float() / 25
        return Scores(bright, torch.full((len(pixels),), 0.3))


class Heard(runs.Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_prompts_that_cannot_be_drawn_are_dropped_and_told_of(inputs: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "run", Heard()
    reward = RenderedReward(Painter(), Critic(), RewardSettings(), tmp_path / "baselines")  # type: ignore[arg-type]
    judge = judging.ScorerJudge(Critic())  # type: ignore[arg-type]
    settings = tiny(inputs, out, num_episodes=40)
    assert ppo.train_ppo(settings, reward=reward, judge=judge, report=report).status == "done"
    rows = rows_of(out)
    assert {*rows[0]} == {
        "step",
        *(name for name in PPO_METRICS if not name.startswith("time/")),
        *reward.metrics,
        *judge.metrics,
    }
    # Five user inputs in five rollouts of four: each four times, with two candidates.
    assert sum(row["rollout/num_dropped"] for row in rows) == 16
    assert all(row["reward/num_failed"] == row["rollout/num_dropped"] for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    told = " ".join(report.said)
    assert "candidates are left out; " in told
    assert "could not be rendered: it is all black" in told or "the fox has run away" in told
    samples = [
        json.loads(line)
        for path in (out / "samples").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for row in samples:
        assert row["ok"] is not any(word in row["user_input"] for word in ("dog", "fox"))
        shown = row["ok"] and row["adapted_prompt"] != row["user_input"]  # else no new picture
        bright = pytest.approx(min(20 + 2 * len(row["adapted_prompt"]), 255) / 25, abs=1e-4)
        assert row["judge"]["judge/aesthetic"] == (bright if shown else None)


def test_a_rollout_of_one_prompt_that_cannot_be_drawn_is_passed_over(
    inputs: Path, tmp_path: Path
) -> None:
    """All eight candidates of an iteration are of one user input."""
    reward = RenderedReward(Painter(), Critic(), RewardSettings())  # type: ignore[arg-type]
    settings = tiny(inputs, tmp_path / "run", num_episodes=40, group_size=8)
    assert ppo.train_ppo(settings, reward=reward).status == "done"
    kept = [row["rollout/num_candidates"] for row in rows_of(tmp_path / "run")]
    assert sorted(kept) == [0, 0, 8, 8, 8]


def test_a_renderer_that_draws_nothing_is_found_out_at_once(inputs: Path, tmp_path: Path) -> None:
    text = tmp_path / "inputs.txt"
    text.write_text("a dog\na fox\n", encoding="utf-8")
    reward = RenderedReward(Painter(), Critic(), RewardSettings())  # type: ignore[arg-type]
    settings = tiny(inputs, tmp_path / "run", user_inputs=str(text))
    with pytest.raises(SettingsError, match="renderer: none of the first 2 user inputs .* black"):
        ppo.train_ppo(settings, reward=reward)


def test_terms_that_are_left_out_or_constant_do_no_harm(inputs: Path, tmp_path: Path) -> None:
    """The length and the copying of these candidates cost nothing: every reward is 0."""
    terms = RewardSettings(aesthetic_weight=0.0, relevance_weight=0.0)
    reward = RenderedReward(Painter(), Critic(), terms)  # type: ignore[arg-type]
    assert reward.spreads == (), "a term without weight may be constant, and no alarm"
    whole = RenderedReward(Painter(), Critic(), RewardSettings())  # type: ignore[arg-type]
    assert whole.spreads == ("reward/aesthetic_gain_std", "reward/relevance_std")
    assert set(whole.spreads) < set(whole.metrics)
    text = tmp_path / "inputs.txt"
    text.write_text("a cat\na house\n", encoding="utf-8")
    settings = tiny(inputs, tmp_path / "run", user_inputs=str(text))
    assert ppo.train_ppo(settings, reward=reward).status == "done"
    for row in rows_of(tmp_path / "run"):
        assert row["reward/aesthetic_gain_mean"] == row["reward/aesthetic_gain_correlation"] == 0.0
        assert row["reward/aesthetic_gain_raw_mean"] >= 0.0
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--policy="], "--policy: expected a folder"),
        (["--policy=nowhere"], "--policy: there is no policy 'nowhere'"),
        (["--user-inputs=nowhere"], "--user-inputs: there is no file nowhere"),
        (["--renderer=nowhere"], "--renderer: expected lab or a folder, or a .safetensors file"),
        (["--scorer=nowhere"], "--scorer: expected lab or a folder"),
        (["--resume"], "--resume: there is no run in"),
        (["--num-seeds=1", "--num-images=2"], "--num-seeds: expected 0 or at least"),
        (["--num-steps=0"], "--num-steps: expected a number from 1 to 1000"),
        (["--size=66"], "--size: expected a multiple of"),
        (["--render-offload=model"], "--render-offload: model needs a CUDA GPU"),
        (["--render-lora=a.safetensors=2"], "--render-lora: there is no .safetensors file a.safe"),
        (["--tiny-decoder=nowhere"], "--tiny-decoder: "),
        (["--sampler=lcm"], "--sampler: the StableDiffusion3Pipeline of this renderer takes euler"),
        (["--renderer=no/model"], "--renderer: there is no folder or file no/model; if it is a"),
        (["--judge=nowhere"], "--judge: expected none, lab or a folder with scorer.json"),
        ([f"--judge={WEIGHTS / 'scorer'}"], "--judge: this is the scorer of the reward"),
        (["--alarm-window=1"], "--alarm-window: expected a number from 6"),
        (
            [f"--{name}-weight=0" for name in ("aesthetic", "relevance", "length", "copy")],
            "--aesthetic-weight: all weights are 0",
        ),
    ],
)
def test_the_command_line_refuses_before_anything_is_written(
    inputs: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    few = ["--device=cpu", "--num-episodes=1", "--rollout-size=1", "--num-steps=1"]
    assert command.main(flags(inputs, out, *few, *more)) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_pipeline_without_diffusers_is_told_what_brings_it(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    out = tmp_path / "run"
    assert command.main(flags(inputs, out, "--device=cpu", "--attention-slicing")) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "diffusers" in told
    assert 'pip install "promptadapt[train]"' in told
    assert not out.exists()


def test_a_run_folder_that_cannot_be_made_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert command.main(flags(inputs, tmp_path / "file")) == 2
    assert "--out: " in capsys.readouterr().err
    assert command.main(flags(inputs, tmp_path / "file" / "run", "--device=cpu")) == 2
    assert "--out: " in capsys.readouterr().err


def test_a_scorer_without_an_aesthetic_head_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(WEIGHTS / "scorer", folder)
    told = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
    del told["head"]
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(SettingsError, match="scorer: .* has no aesthetic head"):
        rendered_reward.load_scorer(str(folder), "cpu")


def test_the_identity_names_what_pictures_depend_on() -> None:
    rewards = [
        RenderedReward(painter, Critic(), terms)  # type: ignore[arg-type]
        for painter in (Painter(), type("Other", (Painter,), {"identity": "other"})())
        for terms in (RewardSettings(), RewardSettings(num_images=3))
    ]
    assert len({reward.identity for reward in rewards}) == 4


@pytest.mark.parametrize("trainer", ["ppo", "sft"])
def test_help_loads_nothing_heavy(trainer: str) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "promptadapt_core.train", trainer, "--help"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert ("--alarm-window" in run.stdout) == (trainer == "ppo")
    assert "--lr" in run.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in loaded
    heavy = {"torch", "numpy", "transformers", "tokenizers", "open_clip", "diffusers", "PIL"}
    assert not loaded & heavy
