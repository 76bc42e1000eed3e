"""One round of DPO: from pairs of texts to a policy that prefers the chosen ones.

The folder holds metrics.jsonl (dpo_metrics.py), best/ (the lowest validation loss) and last/, both
float32, and state.pt. The reference's log-probs are computed once and the reference is let go: it
cannot drift, and takes no memory.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import objectives, runs
from ..decoding import context_length
from ..devices import pick_device
from ..manifest import Manifest
from ..policy import Policy
from ..settings import SettingsError
from .bases import Trainee, with_seeded_lora
from .batches import EpochSteps, by_length
from .dpo_metrics import DPO_METRICS
from .dpo_optimizer import eight_bit, lr_at, make_optimizer
from .dpo_pairs import PairTokens, check_same_tokens, pair_batch, text_logprobs, to_tokens
from .dpo_settings import ADAMW_8BIT, DpoSettings
from .losses import arithmetic, needs_whole_logits
from .preparing import choose_precision
from .sft import write_row

STATE_FORMAT = 1


class DpoLearning:
    """The model, its optimizer and where in the pairs it is."""

    def __init__(
        self,
        settings: DpoSettings,
        rows: Sequence[dict[str, Any]],
        policy: Policy,
        manifest: Manifest,
        reference: Policy | None,
        out: Path,
        device: torch.device,
        report: runs.Reporter,
    ):
        """rows: user_input, chosen and rejected, as the policy reads and writes them. policy: to
        start from, whose weights are changed. reference: None for the policy as it is.
        SettingsError for what does not fit, and for a saved state of another model."""
        self.settings, self.device, self.report = settings, device, report
        precision = choose_precision(settings.precision, device)
        self._arithmetic = functools.partial(arithmetic, precision, device)
        models = [one.model for one in (policy, reference) if one is not None]
        longest = min(settings.max_length, *(context_length(m) or math.inf for m in models))
        self.train, self.valid = to_tokens(rows, policy, int(longest), settings.valid_share, report)
        self.echo_weight = 0.0 if manifest.start == "user_input" else 1.0
        self.padding_id = policy.eos_id
        policy.manifest = manifest
        self.trainee = _trainee(policy, device)
        self.model = self.trainee.model
        self.whole_logits = needs_whole_logits(self.model, self._batch(self.train, [0]))
        if reference is not None:
            texts = [row[name] for row in rows for name in ("user_input", "chosen", "rejected")]
            check_same_tokens(reference, policy, texts)
        ref_model = self.model if reference is None else _trainee(reference, device).model
        self.ref_train, self.ref_valid = (
            self._logprobs_of(ref_model, pairs) for pairs in (self.train, self.valid)
        )
        del ref_model
        make_trainable(self.trainee, settings, device)
        self.optimizer = make_optimizer(self.trainee.trained().values(), settings, device)
        lengths = [pair.length for pair in self.train]
        self.epochs = EpochSteps(lengths, settings.batch_size, settings.seed)
        self.num_steps = self.epochs.number(settings.num_epochs)
        self.sums: dict[str, float] = {}
        self.num_summed = 0
        self.run_folder = runs.RunFolder(str(out), resume=out.is_dir())
        self.progress: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "best_loss": math.inf, "last": {}
        }  # fmt: skip
        self.run_folder.restore(STATE_FORMAT, self._take_state)
        self.run_folder.finish_replacing("best", "last")
        self.metrics = runs.Metrics(out / runs.METRICS_NAME, DPO_METRICS)
        self.metrics.keep_until(self.progress["step"])

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end; False when asked to stop before, the state saved."""
        progress, stop = self.progress, False
        first = progress["step"]
        going = f", going on after step {first:,}" if first else ""
        self.report.say(
            f"learning from {len(self.train):,} pairs in {self.num_steps:,} steps of "
            f"{self.settings.batch_size}, validated by {len(self.valid):,}{going}"
        )
        while progress["step"] < self.num_steps and not stop:
            began = time.monotonic()
            self._step()
            stop = should_stop() and progress["step"] < self.num_steps
            self._after_step(stop, began)
        self._save("last")
        return progress["step"] == self.num_steps

    @property
    def best_name(self) -> str:
        """The folder of the weights that go on."""
        return "best" if self.valid else "last"

    def _step(self) -> None:
        """One optimizer step on one batch, in as many passes as micro_batch_size asks for."""
        settings, step = self.settings, self.progress["step"]
        rows, size = self.epochs.rows(step), settings.micro_batch_size
        found = [
            self._gradients(rows[start : start + size], len(rows))
            for start in range(0, len(rows), size)
        ]
        grad_norm = torch.nn.utils.clip_grad_norm_(
            list(self.trainee.trained().values()), settings.max_grad_norm or math.inf
        ).item()
        row = {name: sum(part[name] for part in found) for name in found[0]}
        row["optim/grad_norm"] = grad_norm
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise SettingsError(
                "lr",
                f"{', '.join(wrong)} is not finite in step {step + 1}; the checkpoints before are "
                "whole: start anew with a lower lr",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.num_steps, settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in row.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num_summed += 1
        self.progress["step"] = step + 1

    def _gradients(self, rows: list[int], num_pairs: int) -> dict[str, float]:
        """Add up the gradients of a micro-batch's part of the loss; its parts of the metrics."""
        settings, ref = self.settings, self.ref_train[rows].to(self.device)
        with self._arithmetic():
            logprobs, tokens = text_logprobs(
                self.model, self._batch(self.train, rows), self.whole_logits
            )
        chosen, rejected = logprobs.chunk(2)
        loss, margins = objectives.dpo_loss(
            chosen, rejected, ref[:, 0], ref[:, 1], beta=settings.beta, num_pairs=num_pairs
        )
        nll = (-chosen / tokens[: len(rows)].clamp(min=1.0)).sum() / num_pairs
        (loss + settings.sft_coef * nll).backward()
        with torch.no_grad():
            parts = {
                "train/loss": loss,
                "train/nll": nll,
                "train/margin": margins.sum() / num_pairs,
                "train/accuracy": (margins > 0).float().sum() / num_pairs,
                "train/chosen_gain": (chosen - ref[:, 0]).sum() / num_pairs,
                "train/rejected_gain": (rejected - ref[:, 1]).sum() / num_pairs,
            }
            return dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))

    def _after_step(self, stop: bool, began: float) -> None:
        """Log, validate and save where it is due."""
        settings, progress = self.settings, self.progress
        step = progress["step"]
        last = step == self.num_steps
        saves = last or step % settings.checkpoint_every == 0
        row: dict[str, float] = {}
        if saves or step % settings.log_every == 0:
            row = {name: value / self.num_summed for name, value in self.sums.items()}
            self.sums, self.num_summed = {}, 0
            row["train/epoch"] = step / self.epochs.per_epoch
            row["optim/lr"] = self.optimizer.param_groups[0]["lr"]
        if saves and self.valid:
            row |= self._validate()
        progress["seconds"] += time.monotonic() - began
        if row:
            row["time/hours"] = progress["seconds"] / 3600
            progress["last"] = row
            write_row(self.metrics, step, row)
        if saves or stop:
            self._save_state()

    def _validate(self) -> dict[str, float]:
        """The validation metrics; keeps the weights when they are the best so far."""
        ref = self.ref_valid
        logprobs = self._logprobs_of(self.model, self.valid)
        loss, margins = objectives.dpo_loss(
            logprobs[:, 0], logprobs[:, 1], ref[:, 0], ref[:, 1],
            beta=self.settings.beta, num_pairs=len(self.valid),
        )  # fmt: skip
        row = {
            "valid/loss": loss.item(),
            "valid/accuracy": (margins > 0).float().mean().item(),
            "valid/margin": margins.mean().item(),
        }
        if row["valid/loss"] < self.progress["best_loss"]:
            self._save("best")
            self.progress["best_loss"] = row["valid/loss"]
        row["valid/best_loss"] = self.progress["best_loss"]
        return row

    @torch.no_grad()
    def _logprobs_of(self, model: Any, pairs: list[PairTokens]) -> torch.Tensor:
        """(P, 2) float32 on the CPU: nats of the chosen and the rejected text of each pair."""
        if not pairs:
            return torch.zeros(0, 2)
        whole_logits = self.whole_logits
        if model is not self.model:
            whole_logits = needs_whole_logits(model, self._batch(pairs, [0]))
        found = torch.zeros(len(pairs), 2)
        lengths = [pair.length for pair in pairs]
        for rows in by_length(lengths, self.settings.micro_batch_size):
            with self._arithmetic():
                logprobs, _ = text_logprobs(model, self._batch(pairs, rows), whole_logits)
            found[rows] = logprobs.float().cpu().reshape(2, -1).T
        return found

    def _batch(self, pairs: list[PairTokens], rows: Sequence[int]) -> Any:
        return pair_batch(pairs, rows, self.padding_id, self.echo_weight).to(self.device)

    def _save(self, name: str) -> None:
        self.run_folder.save_folder(name, lambda folder: self.trainee.export(folder, torch.float32))

    def _save_state(self) -> None:
        weights = {name: p.detach() for name, p in self.trainee.trained().items()}
        self.run_folder.save_state(
            {
                "format": STATE_FORMAT,
                "progress": self.progress,
                "sums": {"sums": self.sums, "number": self.num_summed},
                "weights": weights,
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _take_state(self, state: dict[str, Any]) -> None:
        self.trainee.load_trained(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress.update(state["progress"])
        self.sums, self.num_summed = state["sums"]["sums"], state["sums"]["number"]


def check_learning(settings: DpoSettings, folder: Path) -> None:
    """SettingsError for what learning needs and this machine or the policy in `folder` lacks:
    found before pictures are rendered for it."""
    if settings.optimizer == ADAMW_8BIT:
        eight_bit(pick_device(settings.device))
    if settings.lora_rank or settings.gradient_checkpointing:
        policy = Policy.load(folder)
        make_trainable(Trainee(policy, policy.model), settings, torch.device("cpu"))


def make_trainable(trainee: Trainee, settings: DpoSettings, device: torch.device) -> None:
    """Let all weights learn, or LoRA matrices put into the model."""
    model = trainee.model
    if settings.lora_rank:
        trainee.lora = with_seeded_lora(model, settings.lora_rank, settings.seed)
        model.to(device).eval()
    else:
        model.requires_grad_(True)
    if settings.gradient_checkpointing:
        _checkpoint_gradients(model)


def _trainee(policy: Policy, device: torch.device) -> Trainee:
    """The policy's model on the device: float32, no dropout, nothing learns yet."""
    model = policy.model
    for parameter in model.parameters():
        parameter.data = parameter.data.float().clone()  # not a view of the file
    model.tie_weights()
    model.requires_grad_(False).to(device).eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # the same kernel with and without gradient
    return Trainee(policy, model)


def _checkpoint_gradients(model: Any) -> None:
    """Activations are computed anew for the backward pass. transformers does so in training mode
    only, so that dropout has to be taken out."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise SettingsError("gradient_checkpointing", f"{type(model).__name__} has none")
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(model, name):  # the newer transformers calls it the first
            getattr(model, name)({"use_reentrant": False})
            break
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    model.train()
