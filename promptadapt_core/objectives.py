"""The maths of learning from rewards and preferences, as pure functions on tensors.

Shapes: B completions (of one rollout, minibatch or micro-batch), T tokens, V in the vocabulary,
P pairs. completion_mask is (B, T) bool, True on the real tokens: a run from the first token up to
and including the last one chosen. What stands at padding, NaN too, reaches no result and no
gradient, and results are 0 there. Half precision is computed in float32; float64 stays float64.
Nothing is changed in place, nothing is drawn at random, and no result is fetched from the device.

A micro-batch's loss is its part of the minibatch's: the sum over its tokens divided by
num_tokens, the count of the WHOLE minibatch. The parts, and so their gradients, add up.

Departures from the code that Promptist was trained with (microsoft/LMOps, folder promptist, commit
4f2a9de): the reward is added to the penalty of the last token, not written over it; whitening sees
real tokens only; the controller of kl_coef follows the KL to the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROUNDING_UNITS = 16  # a spread below this many float steps of the values is rounding, not signal
MAX_KL_ERROR = 0.2  # Ziegler et al. 2019, section 2.2


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at_real_tokens(values: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """Before any arithmetic: an infinity that is masked out only after it has NaN for gradient."""
    return _precise(values).masked_fill(~completion_mask, 0.0)


# Means and spreads


def minibatch_mean(
    values: torch.Tensor, completion_mask: torch.Tensor, num_tokens: float | torch.Tensor
) -> torch.Tensor:
    """0-d: this micro-batch's part of the mean of `values` (B, T) over a minibatch's real tokens.

    num_tokens: real tokens of the whole minibatch, above 0. Every token weighs the same, so a
    longer completion weighs more (as in DAPO, arXiv 2503.14476, equation 8).
    """
    return _at_real_tokens(values, completion_mask).sum() / num_tokens


def masked_mean(values: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """0-d: mean of `values` (B, T) over real tokens; 0 if there are none."""
    return minibatch_mean(values, completion_mask, completion_mask.sum().clamp(min=1))


def _statistics(
    values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Deviations from the mean (G, N), mean (G, 1) and variance (G, 1) of each row's masked-in
    entries. The variance is divided by their number, and exactly 0 where it is only rounding."""
    values = _at_real_tokens(values, mask)
    number = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = values.sum(-1, keepdim=True) / number
    deviations = (values - mean).masked_fill(~mask, 0.0)
    variance = deviations.square().sum(-1, keepdim=True) / number
    step = torch.finfo(values.dtype).eps * values.detach().abs().amax(-1, keepdim=True)
    rounding = variance <= (ROUNDING_UNITS * step).square()
    return deviations, mean, variance.masked_fill(rounding, 0.0)


def _divided_by_std(deviations: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Deviations of std 1, or all 0 where the variance is 0."""
    return deviations * variance.masked_fill(variance == 0.0, math.inf).rsqrt()


def masked_whiten(
    values: torch.Tensor, completion_mask: torch.Tensor, shift_mean: bool = True
) -> torch.Tensor:
    """(B, T): `values` (B, T) with mean 0 and std 1 over the real tokens, 0 at padding.

    Without shift_mean the mean stays what it was. The std divides by the number of tokens, so
    that one token works too: one token, or tokens that are all alike, become the mean (0).
    Source: whiten in openai/lm-human-preferences, lm_human_preferences/train_policy.py, commit
    1ab856d, which knows no padding.
    """
    deviations, mean, variance = _statistics(values.reshape(1, -1), completion_mask.reshape(1, -1))
    whitened = _divided_by_std(deviations, variance)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.reshape(values.shape).masked_fill(~completion_mask, 0.0)


# Log-probs, entropy, divergences


def token_logprobs(
    logits: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """(..., T) nats, at most 0: log-probs of `ids` (..., T) under softmax(logits / temperature).

    logits: (..., T, V), those that predict each id. temperature: above 0, the one the tokens were
    sampled at. Nothing else is modelled: a rollout that also cuts to a nucleus or top k or bans
    tokens draws from another distribution than this one, and is not on-policy.
    """
    logprobs = (_precise(logits) / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """(..., T) nats, 0 to log V: entropy of softmax(logits / temperature), logits (..., T, V).

    A logit of -inf is a token that cannot come; it counts nothing and gets no gradient.
    """
    logprobs = (_precise(logits) / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -math.inf, 0.0)).sum(-1)


def completion_logprobs(logprobs: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """(B,) nats: log-prob of each whole completion, its end token included, from (B, T)."""
    return _at_real_tokens(logprobs, completion_mask).sum(-1)


def kl_k1(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """(B, T) nats, either sign: logprobs - ref_logprobs of the sampled tokens, 0 at padding.

    Its mean over samples of the policy is KL(policy || reference). Source: k1 of J. Schulman,
    "Approximating KL divergence", 2020.
    """
    return _at_real_tokens(logprobs, completion_mask) - _at_real_tokens(
        ref_logprobs, completion_mask
    )


def kl_k3(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """(B, T) nats, 0 or more up to rounding: exp(d) - 1 - d with d = ref_logprobs - logprobs, 0 at
    padding. The mean is that of k1, the variance lower. Source: k3 of J. Schulman, "Approximating
    KL divergence", 2020; in the loss of GRPO (arXiv 2402.03300, equation 4).
    """
    difference = -kl_k1(logprobs, ref_logprobs, completion_mask)
    return difference.expm1() - difference


@torch.no_grad()
def ref_kl(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """0-d, nats per completion: estimate of KL(policy || reference) of whole completions, the
    mean over B of the summed k1 (B, T). What is logged, and what AdaptiveKl is fed."""
    return kl_k1(logprobs, ref_logprobs, completion_mask).sum(-1).mean()


@dataclass
class AdaptiveKl:
    """Moves kl_coef so that ref_kl nears the target. kl_coef is all its state.

    Source: Ziegler et al. 2019 (arXiv 1909.08593, section 2.2); the horizon from
    openai/lm-human-preferences, lm_human_preferences/train_policy.py, commit 1ab856d.
    """

    kl_coef: float  # 0 or more
    target: float  # above 0; nats per completion, as ref_kl
    horizon: float = 10_000.0  # above 0; episodes in which an error of 0.1 moves kl_coef by a tenth

    def update(self, ref_kl: float, num_episodes: int) -> float:
        """The new kl_coef. ref_kl: of the last rollout, to the REFERENCE policy; the KL to the
        policy that sampled it is about 0 and would switch the penalty off. num_episodes: its
        candidates. One update moves kl_coef by a fifth at most."""
        if math.isnan(ref_kl):
            raise ValueError("ref_kl: expected a number, got NaN")
        error = min(max(ref_kl / self.target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
        self.kl_coef *= 1.0 + error * min(num_episodes / self.horizon, 1.0)
        return self.kl_coef


# From rewards to advantages


@torch.no_grad()
def token_rewards(
    rewards: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    completion_mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """(B, T) reward units: -kl_coef * k1 at every real token, plus the reward at the last one.

    rewards: (B,), one per candidate before any KL. logprobs, ref_logprobs: (B, T) nats, of the
    policy that sampled and of the reference. The reward is ADDED, so the last token keeps its
    penalty. The last real token of a completion cut by its length limit is an ordinary token: no
    end token is made up for it. A row without a real token gets no reward.
    Source: Ziegler et al. 2019 (arXiv 1909.08593, equation 2).
    """
    penalty = kl_coef * kl_k1(logprobs, ref_logprobs, completion_mask)
    real_from_here = completion_mask.flip(-1).cumsum(-1).flip(-1)
    is_last = completion_mask & (real_from_here == 1)
    reward = _precise(rewards).unsqueeze(-1).expand(penalty.shape).masked_fill(~is_last, 0.0)
    return reward - penalty


@torch.no_grad()
def gae(
    token_rewards: torch.Tensor,
    values: torch.Tensor,
    completion_mask: torch.Tensor,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (B, T), reward units, 0 at padding; not whitened.

    values: (B, T), estimates before each token. gamma, gae_lambda: 0 to 1. returns = advantages +
    values. The value beyond the last real token is 0, of a truncated completion too: the length
    limit, drawn per rollout, is part of the episode. Bootstrapping (Pardo et al., arXiv 1712.00378)
    stands in for the rewards that a time limit cut off, but here nothing is cut off: the text is
    rendered as it stands and its whole reward has come. A value added to it would count the reward
    twice, and pay for running into the limit.
    Source: Schulman et al. 2016 (arXiv 1506.02438, equation 16).
    """
    rewards = _at_real_tokens(token_rewards, completion_mask)
    values = _at_real_tokens(values, completion_mask)  # 0 at padding is 0 beyond the end
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    backwards = []
    for t in range(values.shape[1] - 1, -1, -1):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = surprise + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
        backwards.append(next_advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


@torch.no_grad()
def group_advantages(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """(B,): (reward - mean of its group) / std of its group; 0 in a group of equal rewards or of
    one.

    rewards: (B,). groups: (B,) int64, the same number for candidates of one user input and the
    same image seeds. The std divides by the number.
    Source: GRPO (Shao et al., arXiv 2402.03300, section 4.1.2).
    """
    numbers, groups = groups.unique(return_inverse=True)
    member = groups == torch.arange(len(numbers), device=groups.device)[:, None]  # (G, B)
    deviations, _, variance = _statistics(rewards.expand(member.shape), member)
    return _divided_by_std(deviations, variance).sum(0).to(_precise(rewards).dtype)


@torch.no_grad()
def less_the_others(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """(B,) reward units: reward - mean of the OTHERS of its group; 0 for the only one of a group,
    and exactly 0 where all of a group are alike: whitening would blow up what rounding leaves.

    rewards, groups: (B,), as in group_advantages.
    Source: RLOO (Ahmadian et al., arXiv 2402.14740, section 2.2).
    """
    _, groups = groups.unique(return_inverse=True)
    zeros = rewards.new_zeros(int(groups.max()) + 1)
    lowest = zeros.scatter_reduce(0, groups, rewards, "amin", include_self=False)
    rewards = rewards - lowest[groups]  # the same of all in a group, so it cancels out
    sums = zeros.index_add(0, groups, rewards)[groups]
    others = zeros.index_add(0, groups, torch.ones_like(rewards))[groups] - 1.0
    less = rewards - (sums - rewards) / others.clamp(min=1.0)
    return less.masked_fill(others == 0, 0.0)


# Losses


def ppo_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    clip_range: float,
    num_tokens: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, clip share, approx_kl), all 0-d and parts of the minibatch (see minibatch_mean).

    logprobs: (B, T) nats, with gradient; old_logprobs: those when sampled; advantages: (B, T).
    loss: mean of max(-ratio * advantage, -clip(ratio, 1 +- clip_range) * advantage), to be lowered.
    clip share: 0 to 1, tokens that the clip left without gradient. approx_kl: nats per token, k3 of
    KL(old || new), exactly 0 where the ratio is 1. The last two carry no gradient.
    Source: PPO (Schulman et al., arXiv 1707.06347, equation 7); approx_kl: vwxyzjn/cleanrl,
    cleanrl/ppo.py, commit 2f4172e.
    """
    advantages = _at_real_tokens(advantages, completion_mask)
    ratio = kl_k1(logprobs, old_logprobs, completion_mask).exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = minibatch_mean(torch.maximum(plain, clipped), completion_mask, num_tokens)
    with torch.no_grad():
        clip_share = minibatch_mean((clipped > plain).to(plain), completion_mask, num_tokens)
        size = kl_k3(old_logprobs, logprobs, completion_mask)
        approx_kl = minibatch_mean(size, completion_mask, num_tokens)
    return loss, clip_share, approx_kl


def ppo_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    value_clip_range: float,
    num_tokens: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, clip share), both 0-d and parts of the minibatch; value_coef is not in it.

    values: (B, T), with gradient; old_values: those that `returns` (B, T) were made with. loss:
    half the mean of the larger squared error of values and of values clipped to old_values +-
    value_clip_range (reward units; math.inf never clips). clip share: 0 to 1, no gradient.
    Source: openai/lm-human-preferences, lm_human_preferences/train_policy.py, commit 1ab856d.
    """
    values, old_values, returns = (
        _at_real_tokens(part, completion_mask) for part in (values, old_values, returns)
    )
    nearby = values.clamp(old_values - value_clip_range, old_values + value_clip_range)
    plain, clipped = (values - returns).square(), (nearby - returns).square()
    loss = 0.5 * minibatch_mean(torch.maximum(plain, clipped), completion_mask, num_tokens)
    return loss, minibatch_mean((clipped > plain).to(plain), completion_mask, num_tokens)


@torch.no_grad()
def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """0-d, at most 1: 1 - var(returns - values) / var(returns) over real tokens, both (B, T).

    1 is a perfect value head, 0 no better than a constant, below 0 worse; 0 too where all returns
    are alike. Source: vwxyzjn/cleanrl, cleanrl/ppo.py, commit 2f4172e.
    """
    mask = completion_mask.reshape(1, -1)
    returns = _at_real_tokens(returns, completion_mask).reshape(1, -1)
    errors = returns - _at_real_tokens(values, completion_mask).reshape(1, -1)
    total = _statistics(returns, mask)[2].squeeze()
    left = _statistics(errors, mask)[2].squeeze()
    return (1.0 - left / total).masked_fill(total == 0.0, 0.0)


def dpo_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    ref_chosen_logprobs: torch.Tensor,
    ref_rejected_logprobs: torch.Tensor,
    *,
    beta: float,
    num_pairs: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, margins): 0-d, this micro-batch's part of the mean over num_pairs; (P,), no gradient.

    The log-probs: (P,) nats of whole completions (completion_logprobs), the first two with
    gradient. margins: beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), above 0 where
    the policy prefers the chosen one more than the reference does. loss: mean of -log
    sigmoid(margin), log 2 at the start.
    Source: DPO (Rafailov et al., arXiv 2305.18290, equation 7).
    """
    chosen = _precise(chosen_logprobs) - _precise(ref_chosen_logprobs)
    rejected = _precise(rejected_logprobs) - _precise(ref_rejected_logprobs)
    margins = beta * (chosen - rejected)
    return -torch.nn.functional.logsigmoid(margins).sum() / num_pairs, margins.detach()
