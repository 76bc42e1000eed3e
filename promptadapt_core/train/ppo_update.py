"""The updates of one iteration: epochs over a rollout, minibatches, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import objectives
from ..decoding import Stopped
from ..process_group import ALONE, ProcessGroup
from ..rollouts import (
    Rollout,
    TokenBatch,
    completion_logits,
    token_batch,
    without_repeats,
)
from ..settings import SettingsError
from .advantages import advantages_of
from .ppo_settings import PpoSettings
from .seeds import generator_of
from .value import ValueNetwork


@dataclass
class Learner:
    """The networks that learn, in evaluation mode (dropout off), and their optimizer.
    value_network: None for an algorithm that needs none. should_stop: asked before every
    micro-batch. group: of processes that hold the same networks and share the micro-batches."""

    model: Any
    value_network: ValueNetwork | None
    optimizer: torch.optim.AdamW
    settings: PpoSettings
    device: torch.device
    whole_logits: bool
    should_stop: Callable[[], bool] | None = None
    group: ProcessGroup = ALONE

    def networks(self) -> dict[str, torch.nn.Module]:
        """By the names that metrics have."""
        both = {"policy": self.model, "value": self.value_network}
        return {name: network for name, network in both.items() if network is not None}


@dataclass(frozen=True)
class Lesson:
    """What one iteration's updates learn: a rollout with its estimates, advantages and returns
    (B, T), and the weight of the KL."""

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    kl_coef: float

    def micro_batch(self, rows: Sequence[int], device: torch.device) -> MicroBatch:
        different, back = without_repeats(self.rollout, rows)
        return MicroBatch(
            self, list(rows), token_batch(self.rollout, different, device), back.to(device)
        )


@dataclass(frozen=True)
class MicroBatch:
    """b rows of a lesson. batch: those of them that differ, for the networks; back (b,): the place
    of each row among them."""

    lesson: Lesson
    rows: list[int]
    batch: TokenBatch
    back: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """(b, T) bool: the completion_mask."""
        return self.batch.completion_mask[self.back]

    def of(self, name: str) -> torch.Tensor:
        """(b, T) of a tensor of the lesson or its rollout, on the device of the batch."""
        lesson = self.lesson
        whole = getattr(lesson, name) if name in vars(lesson) else getattr(lesson.rollout, name)
        return whole[self.rows, : self.batch.completion_mask.shape[1]].to(self.back.device)


def make_optimizer(
    model: Any, value_network: ValueNetwork | None, settings: PpoSettings, fused: bool
) -> torch.optim.AdamW:
    """AdamW with the learning rate of each network, and weight decay on matrices."""
    groups = []
    for network, lr in ((model, settings.lr), (value_network, settings.value_lr)):
        if network is None:
            continue
        for matrices in (True, False):
            parameters = [
                p for p in network.parameters() if p.requires_grad and (p.dim() >= 2) is matrices
            ]
            decay = settings.weight_decay if matrices else 0.0
            groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=fused,
    )


def minibatches_of(
    rollout: Rollout, settings: PpoSettings, iteration: int, epoch: int, num_processes: int = 1
) -> list[list[list[int]]]:
    """The rows of each micro-batch of each minibatch; every row once.

    An order of its own for every (seed, iteration, epoch), in which candidates of one user input
    stay together: what they say alike is computed once. Within a minibatch rows of like length
    share a micro-batch, for less padding. Several processes have as many micro-batches each.
    """
    generator = generator_of(settings.seed, f"epoch {epoch}", iteration)
    groups = _side_by_side(rollout, settings.group_size)
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    order = [row for number in shuffled for row in groups[number]]
    num_tokens = rollout.num_tokens
    lengths = [len(ids) + num for ids, num in zip(rollout.prompt_ids, num_tokens, strict=True)]
    minibatches = []
    for start in range(0, len(order), settings.minibatch_size):
        rows = order[start : start + settings.minibatch_size]
        rows.sort(key=lambda row: lengths[row])
        size = settings.micro_batch_size
        if num_processes > 1:
            size = -(-len(rows) // (num_processes * -(-len(rows) // (num_processes * size))))
        minibatches.append([rows[at : at + size] for at in range(0, len(rows), size)])
    return minibatches


def _side_by_side(rollout: Rollout, group_size: int) -> list[list[int]]:
    """All rows in order, in groups of one user input, of group_size at most."""
    groups: list[list[int]] = []
    for row, user_input in enumerate(rollout.user_inputs):
        last = groups[-1] if groups else []
        if last and len(last) < group_size and rollout.user_inputs[last[0]] == user_input:
            last.append(row)
        else:
            groups.append([row])
    return groups


def update(learner: Learner, rollout: Rollout, kl_coef: float, iteration: int) -> dict[str, float]:
    """All updates of an iteration; their metrics.

    rollout: with its estimates, made in the micro-batches of epoch 0. SettingsError("lr", ...)
    before the step of a loss or gradient that is not finite. decoding.Stopped, midway, once
    should_stop() is true.
    """
    lesson = Lesson(rollout, *advantages_of(rollout, learner.settings, kl_coef), kl_coef)
    found = _passes(learner, lesson, iteration)
    num_updates = sum(row.pop("policy/stepped") for row in found)
    means = {name: sum(row[name] for row in found) / len(found) for name in found[0]}
    means["policy/num_updates"] = float(num_updates)
    if learner.value_network is None:
        return means
    mask, returns = rollout.completion_mask, lesson.returns
    return {
        **means,
        "value/mean": objectives.masked_mean(rollout.values, mask).item(),
        "value/returns": objectives.masked_mean(returns, mask).item(),
        "value/explained_variance": objectives.explained_variance(
            rollout.values, returns, mask
        ).item(),
    }


def _passes(learner: Learner, lesson: Lesson, iteration: int) -> list[dict[str, float]]:
    """One row of metrics for every minibatch that was computed."""
    settings, found = learner.settings, []
    for epoch in range(settings.num_epochs):
        for micro_batches in minibatches_of(
            lesson.rollout, settings, iteration, epoch, learner.group.num_processes
        ):
            row, furthest = gradients(learner, lesson, micro_batches)
            if not found:
                check_first_ratio(furthest, learner.device)
            for name, network in learner.networks().items():
                row[f"{name}/grad_norm"] = torch.nn.utils.clip_grad_norm_(
                    network.parameters(), settings.max_grad_norm or math.inf
                ).item()
            _check_finite(row, iteration)
            far = 0 < settings.max_approx_kl < row["kl/approx_kl"]
            if not far:
                learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            found.append({**row, "policy/stepped": float(not far)})
            if far:
                return found
    return found


def gradients(
    learner: Learner, lesson: Lesson, micro_batches: Sequence[Sequence[int]]
) -> tuple[dict[str, float], float]:
    """Add up the gradients of one minibatch's loss; (its metrics, the largest |log ratio|).

    The loss is a mean over all tokens of the minibatch, so it does not depend on how the minibatch
    is cut into micro-batches, and these are shared by processes, but for rounding.
    """
    num_tokens = sum(lesson.rollout.num_tokens[row] for part in micro_batches for row in part)
    group = learner.group
    own = own_micro_batches(micro_batches, group)
    found = group.gather(lambda: [*_own_gradients(learner, lesson, own, num_tokens)])
    group.sum_gradients(
        weight for network in learner.networks().values() for weight in network.parameters()
    )
    names = {name: None for sums, _ in found for name in sums}
    row = {name: sum(sums[name] for sums, _ in found if name in sums) for name in names}
    return row, max(furthest for _, furthest in found)


def own_micro_batches(
    micro_batches: Sequence[Sequence[int]], group: ProcessGroup
) -> Sequence[Sequence[int]]:
    """Those of one minibatch that are this process's, for its estimates as for its gradients."""
    return micro_batches[group.rank :: group.num_processes]


def _own_gradients(
    learner: Learner, lesson: Lesson, micro_batches: Sequence[Sequence[int]], num_tokens: int
) -> tuple[dict[str, float], float]:
    """What these micro-batches add to `gradients`; ({}, 0.0) of none. num_tokens: of all."""
    sums: dict[str, torch.Tensor] = {}
    furthest = torch.zeros((), device=learner.device)
    for rows in micro_batches:
        if learner.should_stop is not None and learner.should_stop():
            raise Stopped
        part = lesson.micro_batch(rows, learner.device)
        loss, parts, logprobs = _policy_loss(learner, part, num_tokens)
        if learner.value_network is not None:
            value_loss, value_clip_share = _value_loss(learner, part, num_tokens)
            loss = loss + learner.settings.value_coef * value_loss
            parts |= {"value/loss": value_loss, "value/clip_share": value_clip_share}
        loss.backward()
        with torch.no_grad():
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
            moved = objectives.kl_k1(logprobs, part.of("old_logprobs"), part.mask)
            furthest = torch.maximum(furthest, moved.abs().max())
    numbers = torch.stack(list(sums.values())).tolist() if sums else []
    return dict(zip(sums, numbers, strict=True)), furthest.item()


def _policy_loss(
    learner: Learner, part: MicroBatch, num_tokens: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """(loss, its metrics, log-probs (b, T)) of a micro-batch, see objectives.minibatch_mean."""
    settings, batch, mask = learner.settings, part.batch, part.mask
    logits = completion_logits(learner.model, batch, learner.whole_logits)
    logprobs = objectives.token_logprobs(logits, batch.completion_ids, settings.temperature)
    logprobs = logprobs[part.back]
    loss, clip_share, approx_kl = objectives.ppo_policy_loss(
        logprobs,
        part.of("old_logprobs"),
        part.of("advantages"),
        mask,
        clip_range=settings.clip_range,
        num_tokens=num_tokens,
    )
    entropy = objectives.minibatch_mean(
        objectives.entropy(logits, settings.temperature)[part.back], mask, num_tokens
    )
    parts = {
        "policy/loss": loss, "policy/clip_share": clip_share, "kl/approx_kl": approx_kl,
        "policy/entropy": entropy,
    }  # fmt: skip
    loss = loss - settings.entropy_coef * entropy
    kl_coef = part.lesson.kl_coef
    if settings.algorithm == "grpo" and kl_coef:
        k3 = objectives.kl_k3(logprobs, part.of("ref_logprobs"), mask)
        loss = loss + kl_coef * objectives.minibatch_mean(k3, mask, num_tokens)
    return loss, parts, logprobs


def _value_loss(
    learner: Learner, part: MicroBatch, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, clip share) of a micro-batch."""
    assert learner.value_network is not None
    return objectives.ppo_value_loss(
        learner.value_network(part.batch)[part.back],
        part.of("values"),
        part.of("returns"),
        part.mask,
        value_clip_range=learner.settings.value_clip_range,
        num_tokens=num_tokens,
    )


def check_first_ratio(furthest: float, device: torch.device) -> None:
    """The first minibatch of an iteration meets the weights that sampled: every ratio is 1. If it
    is not, old log-probs are of another policy, mask or temperature.

    furthest: largest |log ratio|. Exact on a CPU; other devices may choose other kernels where a
    gradient is wanted.
    """
    allowed = 0.0 if device.type == "cpu" else 1e-3
    assert not furthest > allowed, f"the first ratio of an iteration is exp({furthest}), not 1"


def _check_finite(row: dict[str, float], iteration: int) -> None:
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise SettingsError(
            "lr",
            f"{', '.join(wrong)} is not finite in iteration {iteration + 1}; nothing was saved "
            "since, and the checkpoints before are whole: start anew with a lower lr",
        )
