"""Rejection sampling: a policy is fine-tuned on the best of what it wrote itself, again and again.

The method is RAFT (Dong et al., arXiv 2304.06767, algorithm 1) with the reward of Promptist (Hao et
al. 2023, arXiv 2212.09611, section 2.2): of each user input many candidates are sampled and
rendered, the best are kept, and supervised fine-tuning (sft.py) goes on from the policy as it is.
Departures:
- What is kept must be better than the plain user input by plain_margin, and each term of the
  reward must keep its floor beside the plain user input: the best of bad candidates teaches
  nothing.
- The tokens that repeat the user input do not count in the loss where decoding writes them itself.

In the lab, and with a diffusers pipeline:

    python -m promptadapt_core.train rejection --policy FOLDER --renderer lab \
        --user-inputs inputs.txt --out runs/rejection --floor relevance=-0.5
    python -m promptadapt_core.train rejection --policy FOLDER --renderer FOLDER --scorer FOLDER \
        --user-inputs inputs.txt --out runs/rejection --num-rounds 3 --round-inputs 128

A run that was stopped or killed goes on with the same command and --resume; on a CPU its weights
equal those of a run that was never stopped, bit for bit. The folder then holds config.json,
metrics.jsonl (one row a round, defined in mining_metrics.py), best/ (float16, what `adapt --policy`
reads), last/ (float32), state.pt, baselines/, and rounds/ with all candidates, the pairs of each
round and the run that learned them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import runs
from ..decoding import context_length
from ..judging import Judge
from ..manifest import Manifest
from ..policies import resolve_policy
from ..policy import Policy
from ..rollouts import RewardFunction
from ..settings import SettingsError
from .bases import with_seeded_lora
from .choosing import best_candidates
from .mined import Group
from .rejection_settings import RejectionSettings
from .rounds import LEARNING_NAME, PAIRS_NAME, Learned, Lesson, Rounds, RoundsResult
from .rounds_preparing import prepare
from .sft import train_sft
from .sft_settings import SftSettings

NEVER = 10**9  # steps: there is nothing to validate on
REJECTION_METRICS: dict[str, str] = {
    "learned/num_steps": "optimizer steps of the round",
}


def train_rejection(
    settings: RejectionSettings,
    *,
    reward: RewardFunction,
    judge: Judge | None = None,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RoundsResult:
    """Train as the settings say; the run folder is settings.out.

    Meant for a process of its own, as sft.train_sft. judge: looks at the pictures and takes no part
    in the reward. should_stop: asked between tokens, between pictures and after every step. Raises
    SettingsError for bad input, a full disk, a loss that is not finite, and where floors and
    margins leave nothing to learn from; what was saved before stays whole.
    """
    report = report or runs.Silent()
    if settings.policy:
        _check_learning(settings)
    prepared = prepare(settings, "rejection", reward, judge, report)
    method = Rejection(settings)
    rounds = Rounds(prepared, method, reward, judge, report, settings.num_rounds)
    try:
        return rounds.run(should_stop or (lambda: False))
    finally:
        rounds.metrics.close()


def _check_learning(settings: RejectionSettings) -> None:
    """SettingsError for what learning needs and lacks, before pictures are rendered for it."""
    policy = Policy.load(resolve_policy(settings.policy))
    expected, template = Manifest().template, policy.manifest.template
    if template != expected:
        reason = f"supervised fine-tuning reads {expected!r}, and this policy {template!r}"
        raise SettingsError("policy", reason)
    if settings.lora_rank:
        with_seeded_lora(policy.model, settings.lora_rank, settings.seed)


class Rejection:
    """The Method (rounds.py)."""

    trainer = "rejection"
    metrics: Mapping[str, str] = REJECTION_METRICS

    def __init__(self, settings: RejectionSettings):
        self.settings = settings
        self.texts_per_input = settings.best_per_input * settings.num_epochs

    def choose(self, groups: list[Group], policy: Policy | None) -> Lesson:
        settings = self.settings
        chosen = best_candidates(
            groups,
            floors=settings.floors(),
            plain_margin=settings.plain_margin,
            best_per_input=settings.best_per_input,
        )
        gains = [one.reward - one.group.plain.reward for one in chosen if one.group.plain]
        rows = [
            {
                "user_input": one.group.policy_text,
                "target": one.candidate.target,
                "split": "train",
                "reward": one.reward,
                "gain": gain,
            }
            for one, gain in zip(chosen, gains, strict=True)
        ]
        reward = math.fsum(one.reward for one in chosen) / len(chosen)
        return Lesson(rows, reward, math.fsum(gains) / len(gains))

    def learn(
        self,
        start: Path,
        manifest: Manifest,
        folder: Path,
        report: runs.Reporter,
        should_stop: Callable[[], bool],
    ) -> Learned:
        settings, out = self.settings, folder / LEARNING_NAME
        context = context_length(Policy.load(start).decoder) or settings.max_length
        begins = manifest.start == "user_input"  # else the policy writes that text itself
        try:
            result = train_sft(
                SftSettings(
                    pairs=str(folder / PAIRS_NAME),
                    base=str(start),
                    out=str(out),
                    device=settings.device,
                    precision=settings.precision,
                    seed=settings.seed,
                    num_epochs=settings.num_epochs,
                    batch_size=settings.batch_size,
                    micro_batch_size=settings.micro_batch_size,
                    echo_weight=settings.echo_weight if begins else 1.0,
                    max_length=min(settings.max_length, context),
                    lr=settings.lr,
                    warmup_share=settings.warmup_share,
                    weight_decay=settings.weight_decay,
                    lora_rank=settings.lora_rank,
                    validate_every=NEVER,
                    resume=out.is_dir(),
                    tensorboard=False,
                ),
                report=report,
                should_stop=should_stop,
            )
        except SettingsError as error:
            # the names that fine-tuning has for what is called otherwise here
            told = {"base": "policy", "pairs": "out"}
            raise SettingsError(told.get(error.name, error.name), error.reason) from None
        metrics = {"learned/num_steps": float(result.step)}
        return Learned(result.status, out / "last", metrics)
