"""Mining: sample candidates from a policy, reward them, write them down.

Shared by rejection sampling and DPO. Completions are sampled as PPO samples them (rollouts.py), the
user inputs are taken in the same turn, and the reward is PPO's. Differences:
- The same adapted prompt with the same seeds is rendered once in the whole run, not once in each
  rollout: rewards do not change, and nothing is learned from how often a text was drawn.
- The user input itself stands in every group as one more candidate, which costs no picture: what is
  kept has to be better than it.

All that is drawn comes from (seed, number of the batch), so a run that goes on makes the batch that
was broken off anew, and no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import modifiers, runs
from ..adapter import PromptAdapter, Work
from ..judging import Judge
from ..policy import Policy
from ..rollouts import RewardFunction, Rollout, sample_rollout
from ..settings import AdaptSettings
from ..syntax import EDGE_CHARACTERS, plain_text
from .mined import Batch, Group, MinedFile, Scored, Worth
from .mining_settings import MiningSettings
from .seeds import generator_of
from .user_inputs import places_of, works_at

MOST_FAILURES_TOLD = 20  # each different sentence once

Key = tuple[str, str, tuple[int, ...]]  # user input, adapted prompt, seeds


def learned_texts(work: Work, adapted_prompt: str, continues: bool) -> tuple[str, str]:
    """(what a policy reads, what it learns to write) of an adapted prompt: both without syntax, as
    decoding has it. continues: completions begin with the user's own text."""
    policy_text = modifiers.clean(work.parsed.plain)
    plain = plain_text(adapted_prompt)
    if not continues:
        return policy_text, plain
    own = [plain_text(text.user_input) for text in (work.typed, work.parsed)]
    added = _added(own, plain)
    return policy_text, f"{policy_text}, {added}" if added else policy_text


def _added(own: Sequence[str], adapted: str) -> str:
    """What an adapted prompt says beyond the user's own text, wherever it was put in. own: that
    text as it was typed, and without the words that only ask for a picture."""
    for plain in own:
        if adapted.startswith(plain):
            return adapted[len(plain) :].lstrip(EDGE_CHARACTERS).rstrip(" ,")
    said = {modifiers.normal(part) for plain in own for part in modifiers.split_modifiers(plain)}
    parts = modifiers.split_modifiers(adapted)
    return ", ".join(part for part in parts if modifiers.normal(part) not in said)


class Mine:
    """What a run has sampled and rewarded so far."""

    def __init__(
        self,
        settings: MiningSettings,
        works: Sequence[Work],
        asked: AdaptSettings,
        reward: RewardFunction,
        judge: Judge | None,
        report: runs.Reporter,
    ):
        """works, asked: as in rollouts.sample_rollout."""
        self.settings, self.works, self.asked = settings, list(works), asked
        self.reward, self.judge, self.report = reward, judge, report
        self.known: dict[Key, Worth] = {}
        self.num_images = 0  # of candidates, rendered
        self.num_plain_images = 0
        self.num_asked = 0  # pictures that candidates would have cost without repeats
        self.num_candidates = 0
        self.num_batches = settings.num_rounds * settings.round_chunks + settings.measure_chunks
        self._told: set[str] = set()

    def remember(self, batch: Batch) -> None:
        """What is known of these candidates costs no picture any more."""
        for group in batch.groups:
            if group.plain is not None:
                self.known.setdefault(
                    (group.user_input, group.user_input, group.seeds), group.plain
                )
            for one in group.candidates:
                if one.worth is not None:
                    key = (group.user_input, one.adapted_prompt, group.seeds)
                    self.known.setdefault(key, one.worth)
            self.num_candidates += len(group.candidates)
            self.num_asked += len(group.candidates) * len(group.seeds)
        self.num_images += batch.num_rendered
        self.num_plain_images += batch.num_plain_rendered

    def dig(
        self,
        adapter: PromptAdapter,
        path: Path,
        first: int,
        num_inputs: int,
        most_images: int,
        should_stop: Callable[[], bool],
    ) -> list[Batch]:
        """The batches of a round: those in the file, then new ones up to num_inputs user inputs.

        first: number of the round's first batch. most_images: that may have been rendered in the
        whole run once the round is over; 0 sets no limit. decoding.Stopped once should_stop() is
        true: every whole batch is in the file.
        """
        file = MinedFile(path)
        for batch in file.batches:
            self.remember(batch)
        settings = self.settings
        total = -(-num_inputs // settings.chunk_inputs)
        while len(file.batches) < total:
            done = len(file.batches)
            wanted = min(settings.chunk_inputs, num_inputs - done * settings.chunk_inputs)
            if most_images:
                wanted = min(wanted, self._affordable(most_images))
            if wanted <= 0:
                break
            batch = self._batch(adapter, first + done, wanted, should_stop)
            file.append(batch)
            self.remember(batch)
            row = {"rollout/reward": mean_reward([batch])}
            self.report.step(first + done + 1, self.num_batches, row)
        return file.batches

    def _affordable(self, most_images: int) -> int:
        """User inputs whose candidates could all be rendered within the limit."""
        some_input = self.works[0].typed.user_input
        each = self.settings.group_size * len(self.reward.seeds_of(some_input))
        return (most_images - self.num_images) // each

    def _batch(
        self, adapter: PromptAdapter, number: int, num_inputs: int, should_stop: Callable[[], bool]
    ) -> Batch:
        settings = self.settings
        places = places_of(number, settings.chunk_inputs, len(self.works), settings.seed)
        places = places[:num_inputs]
        works, seeds = works_at(places, self.works, self.reward)
        generator = generator_of(settings.seed, "mining", number)
        limits = (settings.min_length_limit, settings.max_length_limit + 1)
        limit = int(torch.randint(*limits, (), generator=generator))
        rollout = sample_rollout(
            adapter,
            works,
            self.asked,
            max_new_tokens=limit,
            image_seeds=seeds,
            generator=generator,
            should_stop=should_stop,
        )
        found, rendered, plain_rendered = self._worths(rollout, number, should_stop)
        groups = _grouped(works, rollout, found, settings.group_size, adapter.policy)
        return Batch(number, tuple(groups), rendered, plain_rendered, limit)

    def _worths(
        self, rollout: Rollout, number: int, should_stop: Callable[[], bool]
    ) -> tuple[dict[Key, Worth], int, int]:
        """What candidates and plain user inputs are worth, and the pictures rendered for the two.
        Only what is not known is rendered."""
        rows = zip(rollout.user_inputs, rollout.adapted_prompts, rollout.image_seeds, strict=True)
        keys: list[Key] = []
        for user_input, adapted_prompt, seeds in rows:
            keys += [(user_input, text, tuple(seeds)) for text in (user_input, adapted_prompt)]
        keys = list(dict.fromkeys(keys))
        found = {key: self.known[key] for key in keys if key in self.known}
        new = [key for key in keys if key not in found]
        if not new:
            return found, 0, 0
        user_inputs, texts, seeds_of_new = (list(column) for column in zip(*new, strict=True))
        batch = self.reward.reward(
            user_inputs,
            texts,
            [list(seeds) for seeds in seeds_of_new],
            should_stop,
            self.judge is not None,
        )
        self._tell_failures(number, batch)
        judged = self._judged(user_inputs, texts, batch)
        for place, key in enumerate(new):
            worth = _worth(batch, judged, place)
            if worth is not None:
                found[key] = worth
        rendered = getattr(batch, "num_rendered", sum(
            len(seeds) for user_input, text, seeds in new if text != user_input
        ))  # fmt: skip
        return found, int(rendered), int(getattr(batch, "num_baselines_rendered", 0))

    def _judged(
        self, user_inputs: Sequence[str], texts: Sequence[str], batch: Any
    ) -> Mapping[str, np.ndarray]:
        if self.judge is None:
            return {}
        pictures = getattr(batch, "pictures", None) or [None] * len(texts)
        return self.judge.judge_each(user_inputs, texts, pictures)

    def _tell_failures(self, number: int, batch: Any) -> None:
        new = [one for one in getattr(batch, "failures", ()) if one not in self._told]
        if new and len(self._told) < MOST_FAILURES_TOLD:
            self._told.update(new)
            failed = int((~batch.ok).sum())
            self.report.say(
                f"batch {number + 1}: {failed} of {len(batch.ok)} texts have no reward; {new[0]}"
            )


def _grouped(
    works: Sequence[Work],
    rollout: Rollout,
    found: Mapping[Key, Worth],
    group_size: int,
    policy: Policy,
) -> list[Group]:
    """The rollout's rows by user input, with what they are worth."""
    groups = []
    continues = policy.manifest.start == "user_input"
    for index, work in enumerate(works):
        user_input = work.typed.user_input
        seeds = tuple(rollout.image_seeds[index * group_size])
        candidates = tuple(
            _scored(work, rollout, row, found.get((user_input, text, seeds)), policy, continues)
            for row in range(index * group_size, (index + 1) * group_size)
            for text in (rollout.adapted_prompts[row],)
        )
        policy_text = learned_texts(work, user_input, continues)[0]
        plain = found.get((user_input, user_input, seeds))
        groups.append(Group(user_input, policy_text, seeds, plain, candidates))
    return groups


def _scored(
    work: Work, rollout: Rollout, row: int, worth: Worth | None, policy: Policy, continues: bool
) -> Scored:
    num_tokens = rollout.num_tokens[row]
    policy_text, target = learned_texts(work, rollout.adapted_prompts[row], continues)
    left_alone = bool(rollout.left_alone[row])
    if left_alone:  # what it wrote, which no rule let through
        written = policy.decode(rollout.completion_ids[row, :num_tokens].tolist())
        written = " ".join(written.split()).strip(" ,")
        target = written if not continues else f"{policy_text}, {written}"
        target = target if written else policy_text
    return Scored(
        rollout.adapted_prompts[row],
        target,
        worth,
        num_tokens,
        bool(rollout.truncated[row]),
        left_alone,
    )


def _worth(batch: Any, judged: Mapping[str, np.ndarray], place: int) -> Worth | None:
    """None for a candidate that failed, or whose reward or a term of it is no finite number."""
    reward = float(batch.rewards[place])
    terms = {name: float(term[place]) for name, term in batch.terms.items()}
    if not (bool(batch.ok[place]) and all(map(math.isfinite, (reward, *terms.values())))):
        return None
    said = {name: float(values[place]) for name, values in judged.items()}
    return Worth(reward, terms, {n: v if math.isfinite(v) else None for n, v in said.items()})


def mean_reward(batches: Sequence[Batch]) -> float:
    """Of the candidates that have one; nan of none."""
    rewards = [
        one.worth.reward
        for batch in batches
        for group in batch.groups
        for one in group.candidates
        if one.worth is not None
    ]
    return sum(rewards) / len(rewards) if rewards else math.nan
