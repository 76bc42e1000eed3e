"""Every metric of a PPO run, defined once. Keys are `group/name`; one row per iteration.

What the reward function and the judge describe (groups of their own) is defined where they are.
"""

from __future__ import annotations

from ..objectives import ref_kl
from ..rollouts import Rollout

PPO_METRICS: dict[str, str] = {
    "rollout/reward": "mean reward of the candidates, before any KL; of the weights before this "
    "iteration's updates",
    "rollout/reward_std": "its standard deviation over candidates",
    "rollout/num_candidates": "candidates that the updates learned from",
    "rollout/num_dropped": "candidates left out: no picture, or no finite reward",
    "rollout/length_limit": "longest completion allowed, in tokens; drawn for every rollout",
    "rollout/num_tokens": "mean tokens of a completion, its end token included",
    "rollout/truncated_share": "share of completions cut by the limit, which have no end token",
    "rollout/left_alone_share": "share of completions of which no rule let anything through, so "
    "that the user input itself was drawn",
    "rollout/distinct_share": "different adapted prompts / candidates",
    "rollout/num_words_added": "mean whitespace words of the adapted prompt less those of the "
    "user input",
    "kl/ref_kl": "KL to the SFT policy, nats per completion: mean of the summed k1 of the rollout",
    "kl/kl_coef": "its weight in this iteration's token rewards",
    "kl/penalty": "kl_coef * ref_kl, reward units: what the KL took from the mean reward",
    "kl/approx_kl": "size of the updates: k3 of KL(old || new), nats per token, mean over them",
    "policy/loss": "clipped policy loss, mean over the updates",
    "policy/clip_share": "share of tokens that the clip left without gradient",
    "policy/entropy": "nats per token at the sampling temperature, mean over the updates",
    "policy/grad_norm": "norm of the policy's gradient before clipping, mean over the updates",
    "policy/num_updates": "optimizer steps of this iteration",
    "value/loss": "half the clipped squared error, mean over the updates; value_coef not in it",
    "value/clip_share": "share of tokens whose value the clip left without gradient",
    "value/mean": "mean value before a token, of the rollout",
    "value/returns": "mean return from a token, KL penalty included; near 0 with group_baseline",
    "value/explained_variance": "1 - var(returns - values) / var(returns) of the rollout; 0 is no "
    "better than a constant",
    "value/grad_norm": "norm of the value network's gradient before clipping, mean",
    "train/episodes": "candidates sampled so far",
    "train/images": "pictures of candidates asked for so far; those of plain user inputs not "
    "counted",
    "train/passes": "passes over the user inputs so far",
    "train/best_reward": "highest mean of rollout/reward over 5 iterations; best/ has its weights",
    "train/num_alarms": "alarms so far (alarms.jsonl)",
    "time/hours": "wall time of training so far, over all resumed parts",
    "time/sampling_seconds": "sampling the completions and making adapted prompts of them",
    "time/reward_seconds": "inside the reward function: renderer and scorer",
    "time/judge_seconds": "the judge, and writing samples",
    "time/estimate_seconds": "log-probs and values of the rollout",
    "time/update_seconds": "the updates, and saving best/",
    "time/saving_seconds": "saving the resumable state after the iteration before",
    "time/outside_reward_share": "share of this iteration's wall time outside the reward function",
}


def rollout_metrics(sampled: Rollout, rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """The groups rollout and kl of a rollout with its estimates. sampled: before candidates were
    dropped."""
    mask, number = rollout.completion_mask, len(rollout)
    kl = ref_kl(rollout.old_logprobs, rollout.ref_logprobs, mask).item()
    pairs = zip(rollout.user_inputs, rollout.adapted_prompts, strict=True)
    num_added = sum(len(adapted.split()) - len(user.split()) for user, adapted in pairs)
    return {
        "rollout/reward": rollout.rewards.mean().item(),
        "rollout/reward_std": rollout.rewards.std(unbiased=False).item(),
        "rollout/num_candidates": float(number),
        "rollout/num_dropped": float(len(sampled) - number),
        "rollout/num_tokens": mask.sum().item() / number,
        "rollout/truncated_share": rollout.truncated.float().mean().item(),
        "rollout/left_alone_share": rollout.left_alone.float().mean().item(),
        "rollout/distinct_share": len(set(rollout.adapted_prompts)) / number,
        "rollout/num_words_added": num_added / number,
        "kl/ref_kl": kl,
        "kl/kl_coef": kl_coef,
        "kl/penalty": kl_coef * kl,
    }
