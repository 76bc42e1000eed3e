"""Supervised fine-tuning: a policy learns to continue a plain input as people would have.

The method is step one of Promptist (Hao et al. 2023, arXiv 2212.09611, section 2.1): the policy
reads `{user_input} Rephrase:` and learns the target and the end token by maximum likelihood.
Departures from the paper:
- The loss is on the completion only; the policy prompt is read, not learned.
- Padding is on the right and masked by length. The released code pads with the end token and
  masks by id, which also hides the end token that the policy has to learn.
- Batches hold pairs of similar length; each step's loss is the mean over all completion tokens of
  the whole batch, so that micro-batches give the same gradients as one pass.
- The learning rate warms up and falls along a cosine; AdamW's second-moment decay is 0.98. A small
  model from scratch wants 1e-3 and more; the paper's 5e-5 suits a pretrained one.
- Tokens that only repeat the user input can weigh less (--echo-weight): decoding writes them
  itself, and learning to copy would otherwise hide whether the additions get better.
- The best checkpoint is the one with the lowest validation loss, as in the paper.

A small policy from scratch, then one on a pretrained model, then LoRA:

    python -m promptadapt_core.train sft --pairs pairs.jsonl --base scratch --out runs/small
    python -m promptadapt_core.train sft --pairs pairs.jsonl --base FOLDER --out runs/large \
        --lr 5e-5
    python -m promptadapt_core.train sft --pairs pairs.jsonl --base FOLDER --out runs/lora \
        --lora-rank 16 --lr 2e-4

A run that was stopped or killed goes on with the same command and --resume; on a CPU its weights
equal those of a run that was never stopped, bit for bit. The folder then holds config.json,
metrics.jsonl (defined in metrics.py), best/ (float16, what `adapt --policy` reads), last/
(float32), lora/ and state.pt.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..settings import SettingsError
from .bases import Trainee
from .batches import Batch, EpochSteps, TokenPair, by_length, collate
from .losses import (
    arithmetic,
    completion_nll,
    needs_whole_logits,
    validation_metrics,
    validation_nll,
)
from .metrics import SFT_METRICS
from .preparing import Prepared, prepare
from .sft_settings import SftSettings

STATE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SftResult:
    """status: "done", "patience" (no better validation for that long) or "stopped" (asked to; it
    can be resumed). best: folder of the best checkpoint and its validation loss, nats a token."""

    status: str
    step: int
    num_steps: int
    best: Path
    best_loss: float


def train_sft(
    settings: SftSettings,
    *,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SftResult:
    """Train as the settings say; the run folder is settings.out.

    Meant for a process of its own: dropout draws from torch's global generator, which is seeded.
    report: gets lines for the user and every step. should_stop: asked after every step; when it
    says True the state is saved. Raises SettingsError for bad input, a full disk (what was saved
    before stays whole) and a loss that is no longer finite.
    """
    report = report or runs.Silent()
    prepared = prepare(settings, report)
    trainer = Trainer(prepared, report)
    try:
        return trainer.run(should_stop or (lambda: False))
    finally:
        trainer.metrics.close()


def lr_at(step: int, num_steps: int, settings: SftSettings) -> float:
    """The learning rate of step 0 .. num_steps - 1: a linear warm-up, then a cosine."""
    num_warmup = round(settings.warmup_share * num_steps)
    if step < num_warmup:
        return settings.lr * (step + 1) / num_warmup
    done = (step - num_warmup) / max(num_steps - 1 - num_warmup, 1)
    low = settings.final_lr_share
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def make_optimizer(trainee: Trainee, settings: SftSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices; fused where this torch has it for the device."""
    parameters = list(trainee.trained().values())
    groups = parameter_groups(parameters, settings.weight_decay)
    options: dict[str, Any] = {"lr": settings.lr, "betas": (0.9, settings.adam_beta2), "eps": 1e-8}
    options["fused"] = fused_works(parameters[0].device)
    return torch.optim.AdamW(groups, **options)


def parameter_groups(
    parameters: Sequence[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """For an optimizer: weight decay on matrices only."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def write_row(metrics: runs.Metrics, step: int, row: dict[str, float]) -> None:
    """Into metrics.jsonl and TensorBoard's files; SettingsError("out", ...) when the disk
    refuses."""
    try:
        metrics.write(step, row)
        if metrics.writer is not None:
            metrics.writer.flush()
    except OSError as error:
        raise SettingsError("out", f"{metrics.path}: {error.strerror}") from None


def fused_works(device: torch.device) -> bool:
    """Whether this torch has the fused AdamW for the device; torch before 2.4 lacks the CPU's and
    says so only at the first step."""
    weight = torch.zeros(1, device=device, requires_grad=True)
    weight.grad = torch.zeros(1, device=device)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


class Window:
    """Sums since the last row of metrics, on the device: reading them there would wait for it."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(
            2, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
        )
        self.num_steps = self.num_tokens = self.num_computed = 0
        self.seconds = 0.0

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        self.sums += torch.stack([loss, grad_norm])
        self.num_steps += 1

    def row(self, step: int) -> dict[str, float]:
        """The metrics; SettingsError("lr", ...) when the loss or a gradient was not finite."""
        loss, grad_norm = (self.sums / self.num_steps).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise SettingsError(
                "lr",
                f"the loss or its gradient is not finite in the steps up to {step}; the checkpoint "
                "before is whole: start anew with a lower one, or look at the data",
            )
        return {
            "train/loss": loss,
            "optim/grad_norm": grad_norm,
            "train/tokens_per_second": self.num_tokens / max(self.seconds, 1e-9),
            "train/padding_share": 1 - self.num_tokens / self.num_computed,
        }


class Trainer:
    """One run: the model, its optimizer and where in the data it is."""

    def __init__(self, prepared: Prepared, report: runs.Reporter):
        self.settings = settings = prepared.settings
        self.run_folder = prepared.run_folder
        self.trainee, self.model = prepared.trainee, prepared.trainee.model
        self.device, self.precision = prepared.device, prepared.precision
        self.train, self.valid = prepared.train, prepared.valid
        self.report = report
        self.lengths = [len(pair.ids) for pair in self.train]
        self.epochs = EpochSteps(self.lengths, settings.batch_size, settings.seed)
        self.steps_per_epoch = self.epochs.per_epoch
        self.num_steps = self.epochs.number(settings.num_epochs)
        self._arithmetic = functools.partial(arithmetic, self.precision, self.device)
        self.optimizer = make_optimizer(self.trainee, settings)
        self.whole_logits = needs_whole_logits(self.model, self._batch(self.train, [0]))
        self.window = Window(self.device)
        self.progress: dict[str, Any] = {
            "step": 0, "num_tokens": 0, "seconds": 0.0, "status": "",
            "best_loss": math.inf, "num_since_best": 0,
        }  # fmt: skip
        self.run_folder.restore(STATE_FORMAT, self._take_state)
        path = self.run_folder.path
        self.run_folder.finish_replacing("best", "lora")
        first = self.progress["step"] + 1
        use_writer = settings.tensorboard
        writer = runs.tensorboard_writer(path / "tensorboard", first) if use_writer else None
        self.metrics = runs.Metrics(path / runs.METRICS_NAME, SFT_METRICS, writer)
        self.metrics.keep_until(self.progress["step"])

    def run(self, should_stop: Callable[[], bool]) -> SftResult:
        """Train to the end, or until asked to stop."""
        progress, settings = self.progress, self.settings
        first, stop = progress["step"], False
        if progress["status"]:  # it went to its end before; last/ may have been lost since
            self._save_folder("last", torch.float32)
        self.report.say(
            f"steps: {self.num_steps:,} of {settings.batch_size} pairs, {self.steps_per_epoch:,} "
            f"an epoch" + (f", going on after step {first:,}" if first else "")
        )
        ten_steps_seconds = 0.0
        while not progress["status"] and not stop:
            began = time.monotonic()
            self._train_step()
            step = progress["step"]
            seconds = time.monotonic() - began
            self.window.seconds += seconds
            ten_steps_seconds += seconds
            if step == first + 10:
                left = ten_steps_seconds / 10 * (self.num_steps - step)
                self.report.say(f"about {runs.duration(left)} left, validations not counted")
            stop = should_stop()
            row = self._after_step(stop, began)
            self.report.step(step, self.num_steps, row)
        best = self.run_folder.path / "best"
        status = progress["status"] or "stopped"
        return SftResult(status, progress["step"], self.num_steps, best, progress["best_loss"])

    def _train_step(self) -> None:
        """One optimizer step on one batch, in as many passes as micro_batch_size asks for."""
        settings, step = self.settings, self.progress["step"]
        rows = self.epochs.rows(step)
        micro_batches = [
            self._batch(self.train, rows[start : start + settings.micro_batch_size])
            for start in range(0, len(rows), settings.micro_batch_size)
        ]
        loss = self._gradients(micro_batches)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            list(self.trainee.trained().values()), settings.max_grad_norm or math.inf
        )
        lr = lr_at(step, self.num_steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(batch.num_tokens for batch in micro_batches)
        self.window.add(loss, grad_norm)
        self.window.num_tokens += num_tokens
        self.window.num_computed += sum(batch.ids.numel() for batch in micro_batches)
        self.progress["num_tokens"] += num_tokens
        self.progress["step"] = step + 1

    def _gradients(self, micro_batches: list[Batch]) -> torch.Tensor:
        """Add up the gradients of the mean loss over all completion tokens; that loss."""
        weight = sum(batch.weights.sum() for batch in micro_batches)
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            with self._arithmetic():
                nll = completion_nll(self.model, batch, self.whole_logits)
                loss = (nll * batch.weights).sum() / weight
            loss.backward()
            total += loss.detach()
        return total

    def _after_step(self, stop: bool, began: float) -> dict[str, float]:
        """Log, validate and save where it is due; the row that was logged, or {}."""
        settings, progress = self.settings, self.progress
        step = progress["step"]
        last = step == self.num_steps
        validates = last or step % settings.validate_every == 0
        saves = last or stop or step % settings.checkpoint_every == 0
        row: dict[str, float] = {}
        if validates or saves or step % settings.log_every == 0:
            row = self.window.row(step)
            self.window = Window(self.device)
            row["train/epoch"] = step / self.steps_per_epoch
            row["train/tokens"] = progress["num_tokens"]
            row["optim/lr"] = self.optimizer.param_groups[0]["lr"]
            if validates:
                row |= self._validate()
        progress["seconds"] += time.monotonic() - began
        if row:
            row["time/hours"] = progress["seconds"] / 3600
            write_row(self.metrics, step, row)
        if last:
            progress["status"] = "done"
        elif validates and 0 < settings.patience <= progress["num_since_best"]:
            progress["status"] = "patience"
        if saves or progress["status"]:
            self._save_state()
        return row

    def _validate(self) -> dict[str, float]:
        """The validation metrics; keeps the checkpoint when it is the best so far."""
        progress = self.progress
        if not self.valid:
            self._save_best()
            return {}
        nll = validation_nll(
            self.model, self.valid, self._valid_batches(), self.whole_logits, self._arithmetic
        )
        row = validation_metrics(nll, self.valid, self.settings.echo_weight)
        current = row["valid/loss"]
        if current < progress["best_loss"]:
            self._save_best()
            progress.update(best_loss=current, num_since_best=0)
        else:
            progress["num_since_best"] += 1
        row["valid/best_loss"] = progress["best_loss"]
        row["valid/num_since_best"] = progress["num_since_best"]
        return row

    def _valid_batches(self) -> Iterator[Batch]:
        lengths = [len(pair.ids) for pair in self.valid]
        for rows in by_length(lengths, self.settings.micro_batch_size):
            yield self._batch(self.valid, rows)

    def _batch(self, pairs: list[TokenPair], rows: list[int]) -> Batch:
        padding_id = self.trainee.policy.eos_id
        return collate(pairs, rows, padding_id, self.settings.echo_weight).to(self.device)

    def _save_folder(self, name: str, dtype: torch.dtype) -> None:
        self.run_folder.save_folder(name, lambda folder: self.trainee.export(folder, dtype))

    def _save_best(self) -> None:
        self._save_folder("best", torch.float16)
        if self.trainee.lora is not None:
            self.run_folder.save_folder("lora", self.trainee.export_lora)

    def _save_state(self) -> None:
        cuda = self.device.type == "cuda"
        self._save_folder("last", torch.float32)  # first, so that it is never behind the state
        self.run_folder.save_state(
            {
                "format": STATE_FORMAT,
                "progress": self.progress,
                "weights": {name: p.detach() for name, p in self.trainee.trained().items()},
                "optimizer": self.optimizer.state_dict(),
                "generator": torch.get_rng_state(),
                "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
            }
        )

    def _take_state(self, state: dict[str, Any]) -> None:
        self.trainee.load_trained(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress.update(state["progress"])
        torch.set_rng_state(state["generator"])
        if state["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)
