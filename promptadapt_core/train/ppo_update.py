"""The updates of one iteration: epochs over a rollout, minibatches, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import objectives
from ..rollouts import Rollout, completion_logits, token_batch
from ..settings import SettingsError
from .ppo_settings import PpoSettings
from .seeds import generator_of
from .value import ValueNetwork

NETWORKS = ("policy", "value")


@dataclass
class Learner:
    """The two networks that learn, both in evaluation mode (dropout off), and their optimizer."""

    model: Any
    value_network: ValueNetwork
    optimizer: torch.optim.AdamW
    settings: PpoSettings
    device: torch.device
    whole_logits: bool

    def parameters(self, network: str) -> list[torch.nn.Parameter]:
        return list((self.model if network == "policy" else self.value_network).parameters())


def make_optimizer(
    model: Any, value_network: ValueNetwork, settings: PpoSettings, fused: bool
) -> torch.optim.AdamW:
    """AdamW with the learning rate of each network, and weight decay on matrices."""
    groups = []
    for network, lr in ((model, settings.lr), (value_network, settings.value_lr)):
        for matrices in (True, False):
            parameters = [p for p in network.parameters() if (p.dim() >= 2) is matrices]
            decay = settings.weight_decay if matrices else 0.0
            groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=fused,
    )


def minibatches_of(
    rollout: Rollout, settings: PpoSettings, iteration: int, epoch: int
) -> list[list[list[int]]]:
    """The rows of each micro-batch of each minibatch; every row once.

    An order of its own for every (seed, iteration, epoch). Within a minibatch rows of like length
    share a micro-batch, for less padding.
    """
    generator = generator_of(settings.seed, f"epoch {epoch}", iteration)
    order = torch.randperm(len(rollout), generator=generator).tolist()
    num_tokens = rollout.num_tokens
    lengths = [len(ids) + num for ids, num in zip(rollout.prompt_ids, num_tokens, strict=True)]
    minibatches = []
    for start in range(0, len(order), settings.minibatch_size):
        rows = order[start : start + settings.minibatch_size]
        rows.sort(key=lambda row: lengths[row])
        size = settings.micro_batch_size
        minibatches.append([rows[at : at + size] for at in range(0, len(rows), size)])
    return minibatches


def update(learner: Learner, rollout: Rollout, kl_coef: float, iteration: int) -> dict[str, float]:
    """All updates of an iteration; their metrics.

    rollout: with its estimates, made in the micro-batches of epoch 0. SettingsError("lr", ...)
    before the step of a loss or gradient that is not finite.
    """
    settings = learner.settings
    mask = rollout.completion_mask
    rewards = objectives.token_rewards(
        learned_rewards(rollout, settings.group_baseline),
        rollout.old_logprobs,
        rollout.ref_logprobs,
        mask,
        kl_coef,
    )
    advantages, returns = objectives.gae(
        rewards, rollout.values, mask, settings.gamma, settings.gae_lambda
    )
    whitened = objectives.masked_whiten(advantages, mask)
    found = _passes(learner, rollout, whitened, returns, iteration)
    num_updates = sum(row.pop("policy/stepped") for row in found)
    means = {name: sum(row[name] for row in found) / len(found) for name in found[0]}
    return {
        **means,
        "policy/num_updates": float(num_updates),
        "value/mean": objectives.masked_mean(rollout.values, mask).item(),
        "value/returns": objectives.masked_mean(returns, mask).item(),
        "value/explained_variance": objectives.explained_variance(
            rollout.values, returns, mask
        ).item(),
    }


def learned_rewards(rollout: Rollout, group_baseline: bool) -> torch.Tensor:
    """(B,) reward units: what the advantages are made of. With group_baseline each reward less the
    mean of the others of the same user input and image seeds.

    That mean does not depend on the candidate itself, so the gradient's expectation stays the same
    (RLOO: Ahmadian et al., arXiv 2402.14740, section 2.2); what the seeds and the user input do to
    all its candidates is gone before the value network has to know it.
    """
    if not group_baseline:
        return rollout.rewards
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    keys = zip(rollout.user_inputs, map(tuple, rollout.image_seeds), strict=True)
    groups = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return objectives.less_the_others(rollout.rewards, groups)


def _passes(
    learner: Learner,
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    iteration: int,
) -> list[dict[str, float]]:
    """One row of metrics for every minibatch that was computed."""
    settings, found = learner.settings, []
    for epoch in range(settings.num_epochs):
        for micro_batches in minibatches_of(rollout, settings, iteration, epoch):
            row, furthest = gradients(learner, rollout, advantages, returns, micro_batches)
            if not found:
                check_first_ratio(furthest, learner.device)
            for network in NETWORKS:
                row[f"{network}/grad_norm"] = torch.nn.utils.clip_grad_norm_(
                    learner.parameters(network), settings.max_grad_norm or math.inf
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
    learner: Learner,
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    micro_batches: Sequence[Sequence[int]],
) -> tuple[dict[str, float], float]:
    """Add up the gradients of one minibatch's loss; (its metrics, the largest |log ratio|).

    The loss is a mean over all tokens of the minibatch, so it does not depend on how the minibatch
    is cut into micro-batches, but for rounding.
    """
    settings, device = learner.settings, learner.device
    num_tokens = sum(rollout.num_tokens[row] for part in micro_batches for row in part)
    names = ("policy/loss", "policy/clip_share", "kl/approx_kl", "policy/entropy",
             "value/loss", "value/clip_share")  # fmt: skip
    sums = torch.zeros(len(names), device=device)
    furthest = torch.zeros((), device=device)
    for rows in micro_batches:
        batch = token_batch(rollout, rows, device)
        mask, width = batch.completion_mask, batch.completion_mask.shape[1]
        old_logprobs, old_values, own_advantages, own_returns = (
            whole[list(rows), :width].to(device)
            for whole in (rollout.old_logprobs, rollout.values, advantages, returns)
        )
        logits = completion_logits(learner.model, batch, learner.whole_logits)
        logprobs = objectives.token_logprobs(logits, batch.completion_ids, settings.temperature)
        policy_loss, clip_share, approx_kl = objectives.ppo_policy_loss(
            logprobs, old_logprobs, own_advantages, mask,
            clip_range=settings.clip_range, num_tokens=num_tokens,
        )  # fmt: skip
        entropy = objectives.minibatch_mean(
            objectives.entropy(logits, settings.temperature), mask, num_tokens
        )
        value_loss, value_clip_share = objectives.ppo_value_loss(
            learner.value_network(batch), old_values, own_returns, mask,
            value_clip_range=settings.value_clip_range, num_tokens=num_tokens,
        )  # fmt: skip
        loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy
        loss.backward()
        parts = (policy_loss, clip_share, approx_kl, entropy, value_loss, value_clip_share)
        with torch.no_grad():
            sums += torch.stack([part.detach() for part in parts])
            furthest = torch.maximum(
                furthest, objectives.kl_k1(logprobs, old_logprobs, mask).abs().max()
            )
    return dict(zip(names, sums.tolist(), strict=True)), furthest.item()


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
