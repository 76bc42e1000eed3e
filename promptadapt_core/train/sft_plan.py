"""What a run of supervised fine-tuning will cost, from a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import runs
from ..decoding import Stopped
from .bases import Trainee
from .costs import Part, Plan, Probe
from .losses import validation_nll
from .preparing import prepare
from .probing import ADAM_BYTES, peak_bytes, wait_for
from .sft import Trainer
from .sft_settings import SftSettings

LEAST_STEPS, MOST_STEPS = 2, 50  # of the probe; the first is not counted, it warms up


def plan_sft(
    settings: SftSettings,
    num_done: int,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
    seconds: float,
) -> Plan:
    """The plan of the steps after the first `num_done`. settings.out: a folder that is used up.
    decoding.Stopped between two steps of the probe."""
    began = time.monotonic()
    trainer = Trainer(prepare(settings, report), runs.Silent())
    try:
        return _plan(trainer, num_done, should_stop, seconds, began)
    finally:
        trainer.metrics.close()


def _plan(
    trainer: Trainer,
    num_done: int,
    should_stop: Callable[[], bool],
    seconds: float,
    began: float,
) -> Plan:
    settings, device = trainer.settings, trainer.device
    trainer._train_step()
    wait_for(device)
    first_tokens, num_probed, started = trainer.progress["num_tokens"], 1, time.monotonic()
    while num_probed < min(MOST_STEPS, trainer.num_steps) and (
        num_probed < LEAST_STEPS or time.monotonic() - began < seconds
    ):
        if should_stop():
            raise Stopped
        trainer._train_step()
        num_probed += 1
    wait_for(device)
    tokens = trainer.progress["num_tokens"] - first_tokens
    each = (time.monotonic() - started) / tokens if tokens else 0.0
    if not tokens:  # a run of one step
        each = (started - began) / first_tokens
    num_steps = max(trainer.num_steps - num_done, 0)
    per_step = sum(trainer.lengths) / trainer.steps_per_epoch
    num_validations = num_steps // settings.validate_every + 1
    valid = _validation_seconds(trainer) if trainer.valid else 0.0
    parts = [Part("steps", num_steps * per_step, "token", each)]
    if trainer.valid:
        parts.append(Part("validations", num_validations, "validation", valid))
    sentence = (
        f"plan: {num_steps:,} steps of {settings.batch_size} pairs, {num_steps * per_step:,.0f} "
        f"tokens, {num_validations if trainer.valid else 0:,} validations"
    )
    counts = {"steps": num_steps, "tokens": round(num_steps * per_step)}
    return Plan(
        "sft", counts, sentence, tuple(parts), 1.0, peak_bytes(device),
        _disk(trainer.trainee), Probe(time.monotonic() - began),
    )  # fmt: skip


def _validation_seconds(trainer: Trainer) -> float:
    """Of a whole validation, from its shortest pairs: computed by their tokens."""
    batch = next(trainer._valid_batches())
    began = time.monotonic()
    validation_nll(trainer.model, trainer.valid, [batch], trainer.whole_logits, trainer._arithmetic)
    wait_for(trainer.device)
    seconds = time.monotonic() - began
    num_tokens = sum(len(trainer.valid[row].ids) for row in batch.rows)
    return seconds / num_tokens * sum(len(pair.ids) for pair in trainer.valid)


def _disk(trainee: Trainee) -> int:
    """Bytes: last/ twice while it is replaced, best/, and the state twice."""
    num_weights = sum(parameter.numel() for parameter in trainee.model.parameters())
    num_trained = sum(parameter.numel() for parameter in trainee.trained().values())
    return (2 * 4 + 2) * num_weights + 2 * (4 + ADAM_BYTES) * num_trained
