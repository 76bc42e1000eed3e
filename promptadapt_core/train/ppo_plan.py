"""What a run of PPO, GRPO or RLOO will cost, from a probe. The probe changes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..judging import Judge
from ..rollouts import RewardFunction, estimated, sample_rollout
from .costs import Part, Plan
from .ppo_preparing import Prepared
from .ppo_update import Lesson, gradients, own_micro_batches
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
from .seeds import generator_of

MOST_PASSES = 10_000  # over the user inputs, of which the seeds are counted
SAMPLE_BYTES = 600  # of a row of samples/
PICTURE_SHARE_OF_BYTES = 0.8  # of a picture's pixels that a PNG needs, where they are lively


class PolicyCost(NamedTuple):
    """Seconds of one candidate. rendered_share: of the candidates that cost pictures."""

    sampling: float
    estimating: float
    updating: float
    rendered_share: float
    num_candidates: int


def make_plan(
    prepared: Prepared,
    reward: RewardFunction,
    num_done: int,
    should_stop: Callable[[], bool] | None = None,
    *,
    judge: Judge | None = None,
    seconds: float = START_SECONDS,
) -> Plan:
    """The plan of the iterations after the first `num_done`, from a probe of about so many
    seconds. SettingsError where nothing gets a reward; decoding.Stopped. All processes of a group
    have to ask for it."""
    settings, began = prepared.settings, time.monotonic()
    num_iterations = max(settings.num_iterations - num_done, 0)
    num_episodes = num_iterations * settings.rollout_size
    user_inputs = [work.typed.user_input for work in prepared.works]
    num_images = len(reward.seeds_of(user_inputs[0]))
    num_plain = _num_plain(reward, user_inputs, num_episodes // settings.group_size, num_images)
    policy = _probe_policy(prepared, (1.0 - PICTURE_SHARE) * seconds, should_stop)
    pictures = num_episodes * num_images
    left = seconds - (time.monotonic() - began)
    parts, probe = reward_parts(
        reward,
        user_inputs,
        Pictures(pictures, num_plain, num_images, settings.rollout_size * num_images),
        left,
        should_stop,
        judge,
        prepared.learner.group.num_processes,
    )
    parts += [
        Part("sampling", num_episodes, "candidate", policy.sampling),
        Part("estimates", num_episodes, "candidate", policy.estimating),
        Part("updates", num_episodes, "candidate", policy.updating),
    ]
    took = time.monotonic() - began
    probe = dataclasses.replace(probe, seconds=took, num_candidates=policy.num_candidates)
    sentence = (
        f"plan: {num_iterations:,} iterations, {num_episodes:,} episodes, at most {pictures:,} "
        f"images of candidates and {num_plain:,} of plain user inputs"
    )
    counts = {
        "iterations": num_iterations, "episodes": num_episodes, "images": pictures,
        "plain_images": num_plain,
    }  # fmt: skip
    return Plan(
        settings.algorithm, counts, sentence, tuple(parts), policy.rendered_share,
        _memory(prepared), _disk(prepared, reward, num_iterations, num_images), probe,
    )  # fmt: skip


def _num_plain(
    reward: RewardFunction, user_inputs: list[str], num_met: int, num_images: int
) -> int:
    """Pictures of plain user inputs, at most. num_met: user inputs, as often as they come."""
    passes = min(-(-num_met // len(user_inputs)), MOST_PASSES)
    some_input = user_inputs[0]
    seeds = {seed for visit in range(passes) for seed in reward.seeds_of(some_input, visit)}
    most = min(min(len(user_inputs), num_met) * len(seeds), num_met * num_images)
    return max(most - num_kept(reward, user_inputs, min(passes, len(seeds))), 0)


def _probe_policy(
    prepared: Prepared, seconds: float, should_stop: Callable[[], bool] | None
) -> PolicyCost:
    """What a candidate costs outside the reward, in rollouts that grow up to the run's own."""
    settings, began = prepared.settings, time.monotonic()
    found: PolicyCost | None = None
    for number in sizes_to_try(settings.rollout_size, settings.group_size):
        if found is not None:
            needed = number * (found.sampling + found.estimating + found.updating)
            left = seconds - (time.monotonic() - began)
            # one clock is not another's, and the updates of a group are made together
            if prepared.learner.group.agree(lambda: needed > left):  # noqa: B023
                break
        found = _policy_cost(prepared, number, should_stop)
    assert found is not None
    return found


def _policy_cost(
    prepared: Prepared, number: int, should_stop: Callable[[], bool] | None
) -> PolicyCost:
    settings, learner = prepared.settings, prepared.learner
    num_inputs = number // settings.group_size
    works = (prepared.works * -(-num_inputs // len(prepared.works)))[:num_inputs]
    began = time.monotonic()
    rollout = sample_rollout(
        prepared.adapter,
        works,
        prepared.asked,
        max_new_tokens=(settings.min_length_limit + settings.max_length_limit) // 2,
        image_seeds=[[]] * num_inputs,
        generator=generator_of(settings.seed, "probe", 0),
        should_stop=should_stop,
    )
    sampled = time.monotonic()
    size = min(settings.micro_batch_size, -(-number // learner.group.num_processes))
    micro_batches = [list(range(at, min(at + size, number))) for at in range(0, number, size)]
    rollout = estimated(
        rollout,
        own_micro_batches(micro_batches, learner.group),
        policy_model=learner.model,
        ref_model=prepared.ref_model,
        values=learner.value_network,
        temperature=settings.temperature,
        device=learner.device,
        whole_logits=learner.whole_logits,
    )
    known = time.monotonic()  # log-probs are on the CPU by now
    nothing = torch.zeros(rollout.completion_mask.shape)
    gradients(learner, Lesson(rollout, nothing, nothing, settings.kl_coef), micro_batches)
    wait_for(learner.device)
    updated = time.monotonic()
    learner.optimizer.zero_grad(set_to_none=True)
    texts = set(zip(rollout.user_inputs, rollout.adapted_prompts, strict=True))
    num_drawn = sum(adapted != user_input for user_input, adapted in texts)
    return PolicyCost(
        (sampled - began) / number,
        (known - sampled) / number,
        settings.num_epochs * (updated - known) / number,
        num_drawn / number,
        number,
    )


def _num_weights(prepared: Prepared) -> int:
    return sum(
        parameter.numel()
        for network in prepared.learner.networks().values()
        for parameter in network.parameters()
    )


def _memory(prepared: Prepared) -> int:
    """Bytes: the peak so far and the optimizer's moments, which the first step adds."""
    learner = prepared.learner
    peak = peak_bytes(learner.device)
    moments = 0 if learner.optimizer.state else ADAM_BYTES * _num_weights(prepared)
    return peak + moments if peak else 0


def _disk(prepared: Prepared, reward: RewardFunction, num_iterations: int, num_images: int) -> int:
    """Bytes of the run folder at most, while a state or last/ is written beside the old one."""
    settings = prepared.settings
    num_policy = sum(parameter.numel() for parameter in prepared.learner.model.parameters())
    state = (4 + ADAM_BYTES) * _num_weights(prepared)
    folders = (2 * 4 + 2) * num_policy  # last/ twice, best/
    num_files = num_iterations // settings.samples_every + 1 if settings.samples_every else 0
    generator = getattr(getattr(reward, "rewarder", None), "generator", None)
    side = getattr(getattr(generator, "settings", None), "size", 0) or 512
    picture = PICTURE_SHARE_OF_BYTES * 3 * side * side * num_images
    return int(folders + 2 * state + num_files * settings.num_samples * (picture + SAMPLE_BYTES))
