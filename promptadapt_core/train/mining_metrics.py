"""Every metric of the rounds of mining and learning, defined once. Keys are `group/name`; one row
for each round, and one more for the candidates that measure the last.

The terms of the reward and what the judge says are defined where they are (rewards.py, judging.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .mined import Batch, Group, Scored, Worth

MINING_METRICS: dict[str, str] = {
    "mined/reward": "mean reward of the candidates that have one, of the policy that the round "
    "began with",
    "mined/reward_std": "its standard deviation over candidates",
    "mined/best_reward": "mean over user inputs of the best candidate's reward",
    "mined/plain_reward": "mean over user inputs of the reward of the user input itself",
    "mined/num_candidates": "candidates sampled in the round",
    "mined/num_dropped": "candidates without a reward: a picture or a score failed",
    "mined/num_tokens": "mean tokens of a completion, its end token included",
    "mined/truncated_share": "share of completions cut by the limit",
    "mined/left_alone_share": "share of completions of which no rule let anything through",
    "mined/distinct_share": "different adapted prompts / candidates",
    "mined/num_images": "pictures of candidates rendered in the round; a text is rendered once "
    "with the same seeds, in the whole run",
    "learned/num_pairs": "pairs that the policy learned from",
    "learned/reward": "mean reward of the texts that it learned to write",
    "learned/gain": "mean reward of these above that of their plain user inputs",
    "train/candidates": "candidates sampled so far",
    "train/images": "pictures of candidates asked for so far, those that repeat each other too",
    "train/rendered": "pictures of candidates rendered so far",
    "train/plain_rendered": "pictures of plain user inputs rendered so far",
    "train/best_reward": "highest mined/reward so far; best/ has the weights that it is of",
    "time/hours": "wall time of the run so far, over all resumed parts",
    "time/mining_seconds": "sampling, rendering and scoring of the round, in this process",
    "time/learning_seconds": "choosing what to learn from and learning it, in this process",
}


def mining_metrics(
    batches: Sequence[Batch], groups: Sequence[Group], tables: Mapping[str, str]
) -> dict[str, float]:
    """The group `mined`, and of the reward's and the judge's metrics those in `tables` that are
    means over candidates. What a judge said that the run has no more is left out."""
    every = [one for group in groups for one in group.candidates]
    worths = [one.worth for one in every if one.worth is not None]
    rewards = [worth.reward for worth in worths]
    mean = _mean(rewards)
    number = max(len(every), 1)
    return {
        "mined/reward": mean,
        "mined/reward_std": math.sqrt(_mean((reward - mean) ** 2 for reward in rewards)),
        "mined/best_reward": _mean(
            max(found) for group in groups if (found := _rewards(group.candidates))
        ),
        "mined/plain_reward": _mean(group.plain.reward for group in groups if group.plain),
        "mined/num_candidates": float(len(every)),
        "mined/num_dropped": float(len(every) - len(worths)),
        "mined/num_tokens": _mean(one.num_tokens for one in every),
        "mined/truncated_share": sum(one.truncated for one in every) / number,
        "mined/left_alone_share": sum(one.left_alone for one in every) / number,
        "mined/distinct_share": len({one.adapted_prompt for one in every}) / number,
        "mined/num_images": float(sum(batch.num_rendered for batch in batches)),
        **_terms(worths, tables),
        **_judged(worths, tables),
    }


def _rewards(candidates: Iterable[Scored]) -> list[float]:
    return [one.worth.reward for one in candidates if one.worth is not None]


def _terms(worths: Sequence[Worth], tables: Mapping[str, str]) -> dict[str, float]:
    names = worths[0].terms if worths else ()
    found = {f"reward/{name}_mean": _mean(one.terms[name] for one in worths) for name in names}
    return {name: value for name, value in found.items() if name in tables}


def _judged(worths: Sequence[Worth], tables: Mapping[str, str]) -> dict[str, float]:
    names = dict.fromkeys(name for worth in worths for name in worth.judged if name in tables)
    means = {
        name: _mean(value for one in worths if (value := one.judged.get(name)) is not None)
        for name in names
    }
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _mean(values: Iterable[float]) -> float:
    """nan of none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
