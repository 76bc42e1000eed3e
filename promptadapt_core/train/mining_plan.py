"""What the rounds will cost, from a probe on a few candidates. The probe changes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from .. import runs
from ..adapter import PromptAdapter
from ..rollouts import RewardFunction, sample_rollout
from ..settings import SettingsError
from .batches import Pair, collate, to_sequence
from .losses import completion_nll, needs_whole_logits
from .mining import learned_texts
from .rounds_preparing import Prepared
from .seeds import generator_of

PROBED_CANDIDATES = 32  # sampled, and learned from
CANDIDATES_PER_IMAGE = 2  # of those that repeat each other, where the images are limited
PROBED_REWARDS = 4  # rendered and scored, twice: without and with kept plain pictures


@dataclasses.dataclass(frozen=True)
class Plan:
    """Still to come: rounds, user inputs with their candidates, pictures of candidates and of
    plain user inputs, at most. seconds: of all of it, at most."""

    num_rounds: int
    num_inputs: int
    num_candidates: int
    num_images: int
    num_plain_images: int
    seconds: float

    def sentences(self) -> list[str]:
        return [
            f"plan: {self.num_rounds:,} rounds, {self.num_inputs:,} user inputs with "
            f"{self.num_candidates:,} candidates, at most {self.num_images:,} images of candidates "
            f"and {self.num_plain_images:,} of plain user inputs",
            f"expected, from a probe: at most about {runs.duration(self.seconds)}",
        ]


def make_plan(
    prepared: Prepared,
    adapter: PromptAdapter,
    reward: RewardFunction,
    num_done: int,
    texts_per_input: float,
    should_stop: Callable[[], bool],
) -> Plan:
    """The plan of the rounds after the first `num_done`. texts_per_input: that are learned from
    for each user input of a round, passes counted in. decoding.Stopped when asked to."""
    settings = prepared.settings
    num_rounds = max(settings.num_rounds - num_done, 0)
    num_learned = num_rounds * settings.round_inputs
    num_inputs = num_learned + settings.measure_inputs
    num_images = len(reward.seeds_of(prepared.works[0].typed.user_input))
    num_candidates = num_inputs * settings.group_size
    if settings.max_images:
        allowed = settings.max_images // num_images * CANDIDATES_PER_IMAGE
        num_candidates = min(num_candidates, allowed)
        num_inputs = min(num_inputs, -(-num_candidates // settings.group_size))
        num_learned = min(num_learned, num_inputs)
    num_pictures = num_candidates * num_images
    if settings.max_images:
        num_pictures = min(num_pictures, settings.max_images)
    sampling, learning = _probe_policy(prepared, adapter, should_stop)
    own, plain = _probe_reward(prepared, reward, should_stop)
    num_plain = min(num_inputs, len(prepared.works)) * num_images
    seconds = (
        num_candidates * sampling
        + num_pictures / num_images * own
        + num_plain / num_images * plain
        + num_learned * texts_per_input * learning
    )
    return Plan(num_rounds, num_inputs, num_candidates, num_pictures, num_plain, seconds)


def _probe_policy(
    prepared: Prepared, adapter: PromptAdapter, should_stop: Callable[[], bool]
) -> tuple[float, float]:
    """Seconds to sample one candidate, and to learn from one text once."""
    settings, policy = prepared.settings, adapter.policy
    works = (prepared.works * PROBED_CANDIDATES)[:PROBED_CANDIDATES]
    began = time.monotonic()
    rollout = sample_rollout(
        adapter,
        works,
        dataclasses.replace(prepared.asked, num_candidates=1),
        max_new_tokens=(settings.min_length_limit + settings.max_length_limit) // 2,
        image_seeds=[[]] * len(works),
        generator=generator_of(settings.seed, "probe", 0),
        should_stop=should_stop,
    )
    sampled = time.monotonic()
    texts = zip(works, rollout.adapted_prompts, strict=True)
    pairs = [Pair(*learned_texts(work, text, True), split="train") for work, text in texts]
    sequences = [to_sequence(pair, policy) for pair in pairs]
    batch = collate(sequences, range(len(sequences)), policy.eos_id).to(prepared.device)
    model = policy.model.requires_grad_(True)
    completion_nll(model, batch, needs_whole_logits(model, batch)).mean().backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    learned = time.monotonic()
    return (sampled - began) / len(works), (learned - sampled) / len(works)


def _probe_reward(
    prepared: Prepared, reward: RewardFunction, should_stop: Callable[[], bool]
) -> tuple[float, float]:
    """Seconds per candidate, and per plain user input that is met for the first time.
    SettingsError where not one of a few can be rendered and scored."""
    works = prepared.works[:PROBED_REWARDS]
    user_inputs = [work.typed.user_input for work in works]
    adapted_prompts = [f"{text}, detailed" for text in user_inputs]
    seeds = [reward.seeds_of(text) for text in user_inputs]
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        batch = reward.reward(user_inputs, adapted_prompts, seeds, should_stop)
        seconds.append((time.monotonic() - began) / len(works))
        if not bool(batch.ok.any()):
            why = next(iter(getattr(batch, "failures", ())), "no reason is known")
            reason = f"none of the first {len(works)} user inputs gets a reward; the first: {why}"
            raise SettingsError("renderer", reason)
    return seconds[1], max(seconds[0] - seconds[1], 0.0)
