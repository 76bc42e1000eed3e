"""How long the parts of a run take, measured on few candidates and in bounded time.

Nothing is drawn from a global generator, and weights stay as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ..judging import Judge
from ..settings import SettingsError
from . import costs
from .costs import Part, Probe

START_SECONDS = 6.0  # of the probe before a run
PLAN_SECONDS = 30.0  # of the probe that is all there is to do
PICTURE_SHARE = 0.7  # of these for pictures, the rest for the policy
MOST_TRIED = 4  # user inputs, of which one must get a reward
ADAM_BYTES = 8  # of the two moments of a float32 weight

ShouldStop = Callable[[], bool] | None


def nothing_rewarded(num_tried: int, failures: Iterable[str]) -> SettingsError:
    """What to raise where none of so many user inputs gets a reward."""
    why = next(iter(failures), "no reason is known")
    return SettingsError(
        "renderer",
        f"none of the first {num_tried} user inputs gets a reward; the first: {why}",
    )


class Pictures(NamedTuple):
    """How many are to come at most. own, plain: of candidates and of plain user inputs.
    of_candidate: of each. at_once: of the candidates that are rewarded by one call."""

    own: int
    plain: int
    of_candidate: int
    at_once: int


def reward_parts(
    reward: Any,
    user_inputs: Sequence[str],
    pictures: Pictures,
    seconds: float,
    should_stop: ShouldStop,
    judge: Judge | None = None,
    num_sharing: int = 1,
) -> tuple[list[Part], Probe]:
    """What pictures and their scores cost, from about so many seconds of rendering. num_sharing:
    processes that share them. SettingsError where nothing gets a reward; decoding.Stopped."""
    if not hasattr(reward, "rewarder"):  # its pictures are its own business
        cost = probe_reward(reward, user_inputs, should_stop)
        each = pictures.of_candidate
        return [
            Part("rewards", pictures.own / each, "candidate", cost.candidate, repeats=True),
            Part(costs.PLAIN, pictures.plain / each, "user input", cost.plain),
        ], Probe(0.0)
    from .picture_probe import probe_pictures  # with what renders and scores

    texts = [(text, f"{text}, detailed") for text in user_inputs]
    found = probe_pictures(reward.rewarder, texts, pictures.at_once, seconds, should_stop, judge)
    rendering, scoring = found.rendering / num_sharing, found.scoring / num_sharing
    parts = [
        Part(costs.RENDERING, pictures.own, "picture", rendering, repeats=True),
        Part(costs.SCORING, pictures.own, "picture", scoring, repeats=True),
        Part(costs.PLAIN, pictures.plain, "picture", rendering + scoring),
    ]
    if judge is not None:
        parts.append(Part("judging", pictures.own, "picture", found.judging / num_sharing))
    return parts, found.probe


class RewardCost(NamedTuple):
    """Of a reward function that is no Rewarder: seconds of a candidate, and of a plain user input
    that is met for the first time."""

    candidate: float
    plain: float


def probe_reward(reward: Any, user_inputs: Sequence[str], should_stop: ShouldStop) -> RewardCost:
    """Two calls with the same candidates: without and with kept plain pictures. SettingsError where
    none of them gets a reward."""
    chosen = list(user_inputs[:MOST_TRIED])
    adapted_prompts = [f"{text}, detailed" for text in chosen]
    seeds = [reward.seeds_of(text) for text in chosen]
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        batch = reward.reward(chosen, adapted_prompts, seeds, should_stop)
        seconds.append((time.monotonic() - began) / len(chosen))
        if not bool(batch.ok.any()):
            raise nothing_rewarded(len(chosen), getattr(batch, "failures", ()))
    return RewardCost(seconds[1], max(seconds[0] - seconds[1], 0.0))


def num_kept(reward: Any, user_inputs: Sequence[str], most_visits: int) -> int:
    """Plain pictures of the run whose scores are kept already."""
    cache = getattr(getattr(reward, "rewarder", None), "baselines", None)
    if cache is None or not len(cache):
        return 0
    wanted = {
        (text, seed)
        for text in user_inputs
        for visit in range(most_visits)
        for seed in reward.seeds_of(text, visit)
    }
    return sum(cache.get(*picture) is not None for picture in wanted)


def sizes_to_try(whole: int, group_size: int) -> list[int]:
    """Numbers of candidates, in groups: each is tried if the one before was quick enough."""
    found = []
    for number in (8, 32, min(whole, 256)):
        number = min(number, whole) // group_size * group_size or group_size
        if number not in found:
            found.append(number)
    return sorted(found)


def wait_for(device: torch.device) -> None:
    """Until what the device was asked for is done: the clock means nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Peak of the GPU's memory, else of the process's; 0 where neither is known (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
