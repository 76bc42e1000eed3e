"""The pictures of a job are scored, and the best of them kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .decoding import Stopped
from .infotext import score_values, with_values
from .job_settings import JobSettings
from .jobs import Picture, kept, told
from .picture_rewards import reward_pictures
from .prompts import parse
from .reward_settings import RewardSettings
from .scorers import Scorer
from .settings import SettingsError


def keep_best(
    scorer: Scorer,
    user_input: str,
    pictures: Sequence[Picture],
    settings: JobSettings,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[list[Picture], list[str]]:
    """(the pictures that are returned, in their order and with their scores, what is said of them).
    Once should_stop() is true, or where they cannot be scored: all of them, without scores. To
    render them took long."""
    try:
        images = [picture.image for picture in pictures]
        scores = score_images(scorer, user_input, images, settings, should_stop)
    except Stopped:
        return list(pictures), ["stopped: the pictures have no scores"]
    except (SettingsError, RuntimeError) as error:  # torch: out of memory
        return list(pictures), [f"the pictures have no scores: {error}"]
    for picture, score in zip(pictures, scores, strict=True):
        picture.score = score
        picture.infotext = with_values(picture.infotext, score_values(score))
        picture.image.info["parameters"] = picture.infotext
    versions = [picture.version for picture in pictures]
    rewards = [score["reward"] for score in scores]
    numbers = kept(settings, versions, rewards)
    return [pictures[number] for number in numbers], told(versions, rewards, numbers)


def score_images(
    scorer: Scorer,
    user_input: str,
    images: Sequence[Any],
    settings: JobSettings,
    should_stop: Callable[[], bool] | None = None,
) -> list[dict[str, float]]:
    """{"reward", "aesthetic", "relevance"} of each picture (PIL) against the words of the user
    input. Stopped once should_stop() is true; SettingsError for scores that are not finite."""
    weights = RewardSettings(
        aesthetic_weight=settings.aesthetic_weight, relevance_weight=settings.relevance_weight
    )
    words = parse(user_input).plain or user_input
    pixels = [np.asarray(image.convert("RGB")) for image in images]
    found = reward_pictures(
        scorer, [words] * len(pixels), pixels, settings=weights, should_stop=should_stop
    )
    rows = zip(found.rewards, found.aesthetic, found.relevance, strict=True)
    return [{"reward": r, "aesthetic": a, "relevance": c} for r, a, c in rows]
