"""From the rewards of a rollout to the advantage of every token, for each algorithm.

- ppo: the KL penalty of every token and the reward at the last one, generalised advantage
  estimation with the value network, whitened over all tokens.
- grpo: each reward less the mean of its group, divided by its standard deviation, the same for all
  tokens of a completion. The KL is in the loss (see ppo_update.gradients).
- rloo: each reward, less kl_coef times the KL of its completion, less the mean of the others of
  its group, the same for all tokens.

A group is the candidates of one user input with the same image seeds. The last two need no value
network.
"""

from __future__ import annotations

import torch

from .. import objectives
from ..rollouts import Rollout
from .ppo_settings import PpoSettings


def advantages_of(
    rollout: Rollout, settings: PpoSettings, kl_coef: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (B, T), 0 at padding; returns, reward units, are what a value
    network learns. rollout: with its estimates."""
    mask = rollout.completion_mask
    if settings.algorithm != "ppo":
        compared = _compared(rollout, settings.algorithm, kl_coef)
        advantages = compared[:, None].expand(mask.shape).masked_fill(~mask, 0.0)
        return advantages, torch.zeros_like(advantages)
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
    return objectives.masked_whiten(advantages, mask), returns


def learned_rewards(rollout: Rollout, group_baseline: bool) -> torch.Tensor:
    """(B,) reward units: what PPO's advantages are made of. With group_baseline each reward less
    the mean of the others of the same user input and image seeds.

    That mean does not depend on the candidate itself, so the gradient's expectation stays the same
    (RLOO: Ahmadian et al., arXiv 2402.14740, section 2.2); what the seeds and the user input do to
    all its candidates is gone before the value network has to know it.
    """
    if not group_baseline:
        return rollout.rewards
    return objectives.less_the_others(rollout.rewards, groups_of(rollout))


def groups_of(rollout: Rollout) -> torch.Tensor:
    """(B,) int64: candidates of one user input with the same image seeds share a number."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    keys = zip(rollout.user_inputs, map(tuple, rollout.image_seeds), strict=True)
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _compared(rollout: Rollout, algorithm: str, kl_coef: float) -> torch.Tensor:
    """(B,): one advantage for each completion."""
    groups = groups_of(rollout)
    if algorithm == "grpo":
        return objectives.group_advantages(rollout.rewards, groups)
    kl = objectives.kl_k1(rollout.old_logprobs, rollout.ref_logprobs, rollout.completion_mask)
    return objectives.less_the_others(rollout.rewards - kl_coef * kl.sum(-1), groups)
