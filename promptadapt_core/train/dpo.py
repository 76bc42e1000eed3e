"""DPO: a policy learns to prefer the better of two adapted prompts of the same user input.

The loss is that of Rafailov et al. (arXiv 2305.18290, equation 7) against a frozen reference. Pairs
are mined: candidates of one user input with the same image seeds are rendered and rewarded as in
PPO, and paired where the rewards differ by --margin at least, where the better one keeps the floor
of each term beside the plain user input, and where both are of about the same length, so that
length is not what is learned (choosing.py). Or they come from a file of votes. Departures:
- Rounds: each mines from the policy as the last round left it, and its reference is that policy,
  unless --reference names one (as in arXiv 2404.19733; the paper has one round).
- What is learned is the adapted prompt that was rendered, with an end token, not the completion
  that it was made of.
- Where a policy is made to begin with the user's own text, these tokens count nothing.
- --sft-coef adds the likelihood of the chosen texts (as in arXiv 2404.19733): DPO alone lets both
  texts get less likely, and the policy drifts to texts that nobody compared.
- The worse text may be one that no rule of the adapter let through: it was worth the plain picture.

In the lab, with a diffusers pipeline, and from votes:

    python -m promptadapt_core.train dpo --policy FOLDER --renderer lab \
        --user-inputs inputs.txt --out runs/dpo --floor relevance=-0.5
    python -m promptadapt_core.train dpo --policy FOLDER --renderer FOLDER --scorer FOLDER \
        --user-inputs inputs.txt --out runs/dpo --num-rounds 2 --lora-rank 16 --lr 2e-4
    python -m promptadapt_core.train dpo --policy FOLDER --votes votes.jsonl --out runs/votes

A run that was stopped or killed goes on with the same command and --resume; on a CPU its weights
equal those of a run that was never stopped, bit for bit. The folder then holds config.json,
metrics.jsonl (one row a round, defined in mining_metrics.py and dpo_metrics.py), best/ (float16,
what `adapt --policy` reads), last/ (float32), state.pt, baselines/, and rounds/ with all
candidates, the pairs of each round and the run that learned them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import runs
from ..adapter import PromptAdapter
from ..judging import Judge
from ..manifest import Manifest
from ..policies import resolve_policy
from ..policy import Policy
from ..rollouts import RewardFunction
from ..settings import SettingsError
from .choosing import best_pairs
from .dpo_learning import DpoLearning, check_learning
from .dpo_metrics import DPO_ROUND_METRICS
from .dpo_pairs import check_same_tokens, read_rows
from .dpo_settings import DpoSettings
from .mined import Group
from .rounds import LEARNING_NAME, PAIRS_NAME, Learned, Lesson, Rounds, RoundsResult
from .rounds_preparing import Prepared, load_reference, prepare
from .votes import read_votes, vote_rows


def train_dpo(
    settings: DpoSettings,
    *,
    reward: RewardFunction | None,
    judge: Judge | None = None,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RoundsResult:
    """Train as the settings say; the run folder is settings.out.

    reward: None with a file of votes. judge: looks at the pictures and takes no part in the reward.
    should_stop: asked between tokens, between pictures and after every step. Raises SettingsError
    for bad input, a full disk, a loss that is not finite, and where floors, margins and lengths
    leave nothing to learn from; what was saved before stays whole.
    """
    report = report or runs.Silent()
    if (reward is None) != bool(settings.votes):
        raise SettingsError("votes", "expected either votes or a reward to mine pairs with")
    if settings.votes:
        read_votes(settings.votes)  # before anything is written
    if settings.policy:
        folder = resolve_policy(settings.policy)
        check_learning(settings, folder)
        if settings.reference:
            reference = load_reference(settings.reference)
            check_same_tokens(reference, Policy.load(folder), [])
    prepared = prepare(settings, "dpo", reward, judge, report)
    method = Dpo(settings, prepared, report)
    rounds = Rounds(prepared, method, reward, judge, report, settings.num_lessons)
    try:
        return rounds.run(should_stop or (lambda: False))
    finally:
        rounds.metrics.close()


class Dpo:
    """The Method (rounds.py)."""

    trainer = "dpo"
    metrics: Mapping[str, str] = DPO_ROUND_METRICS

    def __init__(self, settings: DpoSettings, prepared: Prepared, report: runs.Reporter):
        self.settings, self.prepared, self.report = settings, prepared, report
        self.texts_per_input = 2.0 * settings.pairs_per_input * settings.num_epochs

    def choose(self, groups: list[Group], policy: Policy | None) -> Lesson:
        settings = self.settings
        if policy is None:
            return self._votes()
        read = policy
        chosen = best_pairs(
            groups,
            floors=settings.floors(),
            plain_margin=settings.plain_margin,
            margin=settings.margin,
            length_gap=settings.length_gap,
            pairs_per_input=settings.pairs_per_input,
            count_tokens=lambda text: len(read.encode(f" {text}")),
        )
        rows = [
            {
                "user_input": pair.group.policy_text,
                "chosen": pair.chosen.target,
                "rejected": pair.rejected.target,
                "margin": pair.margin,
                "length_gap": pair.length_gap,
            }
            for pair in chosen
        ]
        worths = [pair.chosen.worth for pair in chosen]
        plains = [pair.group.plain for pair in chosen]
        rewards = [worth.reward for worth in worths if worth is not None]
        reward = math.fsum(rewards) / len(rewards)
        plain = math.fsum(one.reward for one in plains if one is not None) / len(plains)
        return Lesson(rows, reward, reward - plain)

    def learn(
        self,
        start: Path,
        manifest: Manifest,
        folder: Path,
        report: runs.Reporter,
        should_stop: Callable[[], bool],
    ) -> Learned:
        rows, out = read_rows(folder / PAIRS_NAME), folder / LEARNING_NAME
        learning = DpoLearning(
            self.settings,
            rows,
            Policy.load(start),
            manifest,
            self._load_reference(),
            out,
            self.prepared.device,
            report,
        )
        try:
            done = learning.run(should_stop)
        finally:
            learning.metrics.close()
        last = learning.progress["last"]
        metrics = {
            "learned/num_steps": float(learning.progress["step"]),
            "learned/loss": last.get("train/loss", math.nan),
            "learned/accuracy": last.get("train/accuracy", math.nan),
        }
        for name in ("margin", "length_gap"):
            found = [row[name] for row in rows if name in row]
            if found:
                metrics[f"learned/{name}"] = math.fsum(found) / len(found)
        if learning.valid:
            metrics["learned/valid_loss"] = learning.progress["best_loss"]
        return Learned("done" if done else "stopped", out / learning.best_name, metrics)

    def _votes(self) -> Lesson:
        votes, num_equal = read_votes(self.settings.votes)
        if num_equal:
            self.report.say(f"left out {num_equal:,} votes between equal texts")
        adapter = PromptAdapter(Policy.load(self.prepared.folder))
        return Lesson(vote_rows(votes, adapter, self.prepared.asked, self.report))

    def _load_reference(self) -> Policy | None:
        name = self.settings.reference
        return load_reference(name) if name else None
