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

PICTURES_AT_ONCE = 8  # between two questions whether to stop


def keep_best(
    scorer: Scorer,
    user_input: str,
    pictures: Sequence[Picture],
    settings: JobSettings,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[list[Picture], list[str]]:
    """(the pictures that are returned, in their order and with their scores, what is said of them).
    Once should_stop() is true: all of them, without scores."""
    try:
        images = [picture.image for picture in pictures]
        scores = score_images(scorer, user_input, images, settings, should_stop)
    except Stopped:
        return list(pictures), ["stopped: the pictures have no scores"]
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
    scores = []
    for start in range(0, len(images), PICTURES_AT_ONCE):
        if should_stop is not None and should_stop():
            raise Stopped
        part = [np.asarray(i.convert("RGB")) for i in images[start : start + PICTURES_AT_ONCE]]
        found = reward_pictures(scorer, [words] * len(part), part, settings=weights)
        rows = zip(found.rewards, found.aesthetic, found.relevance, strict=True)
        scores += [{"reward": r, "aesthetic": a, "relevance": c} for r, a, c in rows]
    return scores
