"""What the rounds will cost, from a probe on a few candidates. The probe changes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..adapter import PromptAdapter, Work
from ..judging import Judge
from ..rollouts import RewardFunction, sample_rollout
from .batches import Pair, collate, to_sequence
from .costs import Part, Plan, Probe
from .losses import completion_nll, needs_whole_logits
from .mining import learned_texts
from .mining_settings import MiningSettings
from .probing import (
    ADAM_BYTES,
    PICTURE_SHARE,
    START_SECONDS,
    Pictures,
    num_kept,
    peak_bytes,
    reward_parts,
    sizes_to_try,
    wait_for,
)
from .rounds_preparing import Prepared
from .seeds import generator_of

CANDIDATES_PER_IMAGE = 2  # of those that repeat each other, where the images are limited
CANDIDATE_BYTES = 500  # of a candidate in candidates.jsonl, its pair counted in


class PolicyCost(NamedTuple):
    """Seconds to sample one candidate, and to learn from one text once. rendered_share: of the
    candidates that cost pictures."""

    sampling: float
    learning: float
    rendered_share: float
    num_candidates: int


def make_plan(
    prepared: Prepared,
    adapter: PromptAdapter,
    reward: RewardFunction,
    num_done: int,
    texts_per_input: float,
    should_stop: Callable[[], bool] | None = None,
    *,
    judge: Judge | None = None,
    seconds: float = START_SECONDS,
) -> Plan:
    """The plan of the rounds after the first `num_done`, from a probe of about so many seconds.
    texts_per_input: that are learned from for each user input of a round, passes counted in.
    SettingsError where nothing gets a reward; decoding.Stopped."""
    settings, began = prepared.settings, time.monotonic()
    user_inputs = [work.typed.user_input for work in prepared.works]
    num_images = len(reward.seeds_of(user_inputs[0]))
    num_rounds, num_learned, num_inputs, num_candidates, num_pictures = _numbers(
        settings, num_done, num_images
    )
    num_plain = min(num_inputs, len(prepared.works)) * num_images
    num_plain = max(num_plain - num_kept(reward, user_inputs, 1), 0)
    policy = _probe_policy(prepared, adapter, (1.0 - PICTURE_SHARE) * seconds, should_stop)
    left = seconds - (time.monotonic() - began)
    parts, probe = reward_parts(
        reward,
        user_inputs,
        Pictures(num_pictures, num_plain, num_images, settings.mining_batch * num_images),
        left,
        should_stop,
        judge,
    )
    parts += [
        Part("sampling", num_candidates, "candidate", policy.sampling),
        Part("learning", num_learned * texts_per_input, "text", policy.learning),
    ]
    took = time.monotonic() - began
    probe = dataclasses.replace(probe, seconds=took, num_candidates=policy.num_candidates)
    sentence = (
        f"plan: {num_rounds:,} rounds, {num_inputs:,} user inputs with {num_candidates:,} "
        f"candidates, at most {num_pictures:,} images of candidates and {num_plain:,} of plain "
        "user inputs"
    )
    counts = {
        "rounds": num_rounds, "user_inputs": num_inputs, "candidates": num_candidates,
        "images": num_pictures, "plain_images": num_plain,
    }  # fmt: skip
    return Plan(
        "rounds", counts, sentence, tuple(parts), policy.rendered_share,
        _memory(prepared, adapter), disk_bytes(adapter, num_rounds, num_candidates), probe,
    )  # fmt: skip


def _numbers(
    settings: MiningSettings, num_done: int, num_images: int
) -> tuple[int, int, int, int, int]:
    """Rounds, user inputs to learn from, all user inputs, candidates and their pictures, at most,
    that are still to come."""
    num_rounds = max(settings.num_rounds - num_done, 0)
    num_learned = num_rounds * settings.round_inputs
    num_inputs = num_learned + settings.measure_inputs
    num_candidates = num_inputs * settings.group_size
    if not settings.max_images:
        return num_rounds, num_learned, num_inputs, num_candidates, num_candidates * num_images
    allowed = settings.max_images // num_images * CANDIDATES_PER_IMAGE
    num_candidates = min(num_candidates, allowed)
    num_inputs = min(num_inputs, -(-num_candidates // settings.group_size))
    num_pictures = min(num_candidates * num_images, settings.max_images)
    return num_rounds, min(num_learned, num_inputs), num_inputs, num_candidates, num_pictures


def make_votes_plan(
    prepared: Prepared, adapter: PromptAdapter, works: Sequence[Work], num_texts: float,
    should_stop: Callable[[], bool] | None = None,
) -> Plan:  # fmt: skip
    """The plan of one round that learns from votes. works: of the votes' user inputs. num_texts:
    to learn from, passes counted in."""
    began = time.monotonic()
    prepared = dataclasses.replace(prepared, works=list(works))
    policy = _probe_policy(prepared, adapter, START_SECONDS, should_stop)
    part = Part("learning", num_texts, "text", policy.learning)
    probe = Probe(time.monotonic() - began, policy.num_candidates)
    counts = {"rounds": 1, "texts": round(num_texts)}
    sentence = f"plan: 1 round, {num_texts:,.0f} texts to learn from, no images"
    return Plan(
        "rounds", counts, sentence, (part,), 1.0, _memory(prepared, adapter),
        disk_bytes(adapter, 1, 0), probe,
    )  # fmt: skip


def _probe_policy(
    prepared: Prepared,
    adapter: PromptAdapter,
    seconds: float,
    should_stop: Callable[[], bool] | None,
) -> PolicyCost:
    """In batches that grow up to the run's own."""
    settings, began = prepared.settings, time.monotonic()
    found: PolicyCost | None = None
    for number in sizes_to_try(settings.mining_batch, settings.group_size):
        if found is not None:
            left = seconds - (time.monotonic() - began)
            if (found.sampling + found.learning) * number > left:
                break
        found = _policy_cost(prepared, adapter, number, should_stop)
    assert found is not None
    return found


def _policy_cost(
    prepared: Prepared,
    adapter: PromptAdapter,
    number: int,
    should_stop: Callable[[], bool] | None,
) -> PolicyCost:
    settings, policy = prepared.settings, adapter.policy
    num_inputs = number // settings.group_size
    works = (prepared.works * -(-num_inputs // len(prepared.works)))[:num_inputs]
    began = time.monotonic()
    rollout = sample_rollout(
        adapter,
        works,
        prepared.asked,
        max_new_tokens=(settings.min_length_limit + settings.max_length_limit) // 2,
        image_seeds=[[]] * num_inputs,
        generator=generator_of(settings.seed, "probe", 0),
        should_stop=should_stop,
    )
    sampled = time.monotonic()
    learned_by = [work for work in works for _ in range(settings.group_size)]
    texts = zip(learned_by, rollout.adapted_prompts, strict=True)
    pairs = [Pair(*learned_texts(work, text, True), split="train") for work, text in texts]
    size = getattr(settings, "micro_batch_size", 0) or getattr(settings, "batch_size", number)
    sequences = [to_sequence(pair, policy) for pair in pairs[:size]]
    batch = collate(sequences, range(len(sequences)), policy.eos_id).to(prepared.device)
    model = policy.model.requires_grad_(True)
    completion_nll(model, batch, needs_whole_logits(model, batch)).mean().backward()
    wait_for(prepared.device)
    learned = time.monotonic()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    found = set(zip(rollout.user_inputs, rollout.adapted_prompts, strict=True))
    num_drawn = sum(adapted != user_input for user_input, adapted in found)
    return PolicyCost(
        (sampled - began) / number, (learned - sampled) / len(sequences), num_drawn / number, number
    )


def _num_weights(adapter: PromptAdapter) -> int:
    return sum(parameter.numel() for parameter in adapter.policy.model.parameters())


def _memory(prepared: Prepared, adapter: PromptAdapter) -> int:
    """Bytes: the peak so far and the optimizer's moments, at most."""
    peak = peak_bytes(prepared.device)
    return peak + ADAM_BYTES * _num_weights(adapter) if peak else 0


def disk_bytes(adapter: PromptAdapter, num_rounds: int, num_candidates: int) -> int:
    """Of the run folder at most: in every round the weights that it learned, as best/ and last/,
    the same for the run, and the state of the round that is learning."""
    num_weights = _num_weights(adapter)
    weights = (4 + 2) * num_weights * (num_rounds + 1)
    state = 2 * (4 + ADAM_BYTES) * num_weights
    return weights + state + CANDIDATE_BYTES * num_candidates
