"""What one iteration of PPO learns from: completions, their rewards, what the judge says of them,
log-probs and values.

In a group of processes the main one samples, for all completions share each step of the policy and
a few of them take as long as many; what it wrote goes to all. Pictures, judgements and estimates
are shared.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..judging import Judge
from ..rollouts import RewardBatch, RewardFunction, Rollout, estimated, sample_rollout
from .ppo_preparing import Prepared
from .ppo_update import minibatches_of, own_micro_batches
from .seeds import generator_of
from .user_inputs import places_of, works_at


class Collector:
    """Collects the experience of any iteration; what it draws depends on the seed and on the
    number of the iteration alone. Every method has to be called by all processes of the group."""

    def __init__(self, prepared: Prepared, reward: RewardFunction, judge: Judge | None):
        self.prepared, self.settings, self.group = prepared, prepared.settings, prepared.group
        self.reward, self.judge = reward, judge

    def sample(
        self, iteration: int, should_stop: Callable[[], bool]
    ) -> tuple[Rollout, dict[str, float]]:
        """The completions of an iteration, and the metrics of what was drawn for it."""
        settings, prepared = self.settings, self.prepared
        num_inputs = settings.rollout_size // settings.group_size
        places = places_of(iteration, num_inputs, len(prepared.works), settings.seed)
        works, seeds = works_at(places, prepared.works, self.reward)
        generator = generator_of(settings.seed, "rollout", iteration)
        limits = (settings.min_length_limit, settings.max_length_limit + 1)
        limit = int(torch.randint(*limits, (), generator=generator))
        parts = self.group.from_main(
            lambda: vars(
                sample_rollout(
                    prepared.adapter,
                    works,
                    prepared.asked,
                    max_new_tokens=limit,
                    image_seeds=seeds,
                    generator=generator,
                    should_stop=should_stop,
                )
            )
        )
        passes = (iteration + 1) * num_inputs / len(prepared.works)
        return Rollout(**parts), {"rollout/length_limit": float(limit), "train/passes": passes}

    def rewards(
        self, rollout: Rollout, should_stop: Callable[[], bool], keep_pictures: bool
    ) -> RewardBatch:
        """Of all candidates; `pictures` of those that this process has rendered."""
        return self.reward.reward(
            rollout.user_inputs,
            rollout.adapted_prompts,
            rollout.image_seeds,
            should_stop,
            keep_pictures,
        )

    def judgements(self, sampled: Rollout, batch: RewardBatch) -> dict[str, np.ndarray]:
        """What the judge says of each candidate; {} without one."""
        judge = self.judge
        if judge is None:
            return {}
        pictures = getattr(batch, "pictures", None) or [None] * len(sampled)

        def judged() -> dict[str, torch.Tensor]:
            """nan of candidates whose pictures are elsewhere."""
            said = judge.judge_each(sampled.user_inputs, sampled.adapted_prompts, pictures)
            return {name: torch.from_numpy(values) for name, values in said.items()}

        whole = {name: np.full(len(sampled), np.nan) for name in judge.metrics}
        for said in self.group.gather(judged):
            for name, values in said.items():
                whole[name] = np.where(np.isnan(whole[name]), values.numpy(), whole[name])
        return whole

    def pictures(self, batch: RewardBatch, number: int) -> list[np.ndarray | None] | None:
        """Of the first `number` candidates, whoever rendered them; None where none were kept."""
        kept = getattr(batch, "pictures", None)
        if kept is None:
            return None
        own = {
            place: torch.from_numpy(np.ascontiguousarray(some))
            for place, some in enumerate(kept[:number])
            if some is not None
        }
        found: Mapping[int, torch.Tensor] = {}
        for part in self.group.gather(lambda: own):
            found = {**part, **found}
        return [found[place].numpy() if place in found else None for place in range(number)]

    def estimates(self, rollout: Rollout, iteration: int) -> Rollout:
        """With log-probs and values, made in the micro-batches of the first epoch, and by the
        process that learns from them, so that its first ratio is exactly 1."""
        group, learner = self.group, self.prepared.learner
        first_epoch = minibatches_of(rollout, self.settings, iteration, 0, group.num_processes)

        def own() -> list[torch.Tensor]:
            """0 at the rows of other processes."""
            made = estimated(
                rollout,
                [rows for parts in first_epoch for rows in own_micro_batches(parts, group)],
                policy_model=learner.model,
                ref_model=self.prepared.ref_model,
                values=learner.value_network,
                temperature=self.settings.temperature,
                device=learner.device,
                whole_logits=learner.whole_logits,
            )
            return [made.old_logprobs, made.ref_logprobs, made.values]

        parts = group.gather(own)
        sums = [functools.reduce(torch.add, some) for some in zip(*parts, strict=True)]
        old_logprobs, ref_logprobs, values = sums
        return dataclasses.replace(
            rollout, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, values=values
        )
