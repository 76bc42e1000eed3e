"""What a run will cost, from a probe on a few candidates. The probe changes nothing."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable

import torch

from .. import runs
from ..rollouts import RewardFunction, estimated, sample_rollout
from ..settings import SettingsError
from .ppo_preparing import Prepared
from .ppo_update import Lesson, gradients
from .seeds import generator_of

PROBED_CANDIDATES = 32  # sampled, and updated on
PROBED_REWARDS = 4  # rendered and scored, twice: without and with kept plain pictures
MOST_PASSES = 10_000  # over the user inputs, of which the seeds are counted
ADAM_BYTES = 8  # of the two moments of a float32 weight


@dataclasses.dataclass(frozen=True)
class Plan:
    """num_iterations, num_episodes, num_images: still to come; of images the candidates' own, at
    most, and num_plain_images for the plain user inputs, at most. seconds: of all of it, a little
    more than what it will take, for larger batches are faster. memory_bytes: expected peak of the
    process, or of the GPU; 0 where it is not known."""

    num_iterations: int
    num_episodes: int
    num_images: int
    num_plain_images: int
    seconds: float
    memory_bytes: int

    def sentences(self) -> list[str]:
        memory = f", {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else ""
        return [
            f"plan: {self.num_iterations:,} iterations, {self.num_episodes:,} episodes, at most "
            f"{self.num_images:,} images of candidates and {self.num_plain_images:,} of plain "
            "user inputs",
            f"expected, from a probe: at most about {runs.duration(self.seconds)}{memory}",
        ]


def make_plan(
    prepared: Prepared,
    reward: RewardFunction,
    num_done: int,
    should_stop: Callable[[], bool] | None = None,
) -> Plan:
    """The plan of the iterations after the first `num_done`."""
    settings = prepared.settings
    num_iterations = settings.num_iterations - num_done
    num_episodes = num_iterations * settings.rollout_size
    num_met = num_episodes // settings.group_size  # user inputs, as often as they come
    num_inputs = min(len(prepared.works), num_met)
    some_input = prepared.works[0].typed.user_input
    num_images = len(reward.seeds_of(some_input))
    passes = min(-(-num_met // len(prepared.works)), MOST_PASSES)
    num_seeds = len(
        {seed for visit in range(passes) for seed in reward.seeds_of(some_input, visit)}
    )
    policy_seconds = _probe_policy(prepared, should_stop)
    own_seconds, plain_seconds = _probe_reward(prepared, reward, should_stop)
    num_plain = min(num_inputs * num_seeds, num_met * num_images)
    seconds = num_episodes * (policy_seconds + own_seconds) + num_plain / num_images * plain_seconds
    return Plan(
        num_iterations,
        num_episodes,
        num_episodes * num_images,
        num_plain,
        seconds,
        _memory(prepared),
    )


def _probe_policy(prepared: Prepared, should_stop: Callable[[], bool] | None) -> float:
    """Seconds per candidate outside the reward."""
    settings, learner = prepared.settings, prepared.learner
    number = min(PROBED_CANDIDATES, settings.rollout_size)
    works = (prepared.works * number)[:number]
    began = time.monotonic()
    rollout = sample_rollout(
        prepared.adapter,
        works,
        dataclasses.replace(prepared.asked, num_candidates=1),
        max_new_tokens=(settings.min_length_limit + settings.max_length_limit) // 2,
        image_seeds=[[]] * number,
        generator=generator_of(settings.seed, "probe", 0),
        should_stop=should_stop,
    )
    size = settings.micro_batch_size
    micro_batches = [list(range(at, min(at + size, number))) for at in range(0, number, size)]
    rollout = estimated(
        rollout,
        micro_batches,
        policy_model=learner.model,
        ref_model=prepared.ref_model,
        values=learner.value_network,
        temperature=settings.temperature,
        device=learner.device,
        whole_logits=learner.whole_logits,
    )
    sampled = time.monotonic()
    nothing = torch.zeros(rollout.completion_mask.shape)
    gradients(learner, Lesson(rollout, nothing, nothing, settings.kl_coef), micro_batches)
    learner.optimizer.zero_grad(set_to_none=True)
    updated = time.monotonic()
    return (sampled - began + settings.num_epochs * (updated - sampled)) / number


def _probe_reward(
    prepared: Prepared, reward: RewardFunction, should_stop: Callable[[], bool] | None
) -> tuple[float, float]:
    """Seconds per candidate, and per plain user input that is met for the first time.
    SettingsError where not one of a few can be rendered and scored."""
    works = prepared.works[: min(PROBED_REWARDS, prepared.settings.rollout_size)]
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


def _memory(prepared: Prepared) -> int:
    """Bytes: the peak so far and the optimizer's moments, which the first step adds."""
    learner = prepared.learner
    num_weights = sum(
        parameter.numel()
        for network in learner.networks().values()
        for parameter in network.parameters()
    )
    moments = 0 if learner.optimizer.state else ADAM_BYTES * num_weights
    if learner.device.type == "cuda":
        return torch.cuda.max_memory_allocated(learner.device) + moments
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + moments
