"""What the judge sees in the pictures of one text, in words."""

from __future__ import annotations

import numpy as np

from ..lab.judge import JudgeReading
from ..lab.judge_network import COLOUR_NAMES, MODIFIER_NAMES, PLACE_NAMES, SUBJECT_NAMES
from ..lab.scenes import Scene
from ..lab.vocabulary import SUBJECT_BY_NAME

SURE = 0.8  # from this mean probability on a modifier is said to be seen
MOST_MODIFIERS = 5


def seen(reading: JudgeReading, rows: slice, scene: Scene) -> str:
    """ "a red cat by the sea, golden hour": the likeliest on the mean over the pictures in `rows`.

    As many subjects are named as the scene asks for, each with the colour that it most likely has.
    """
    number = max(len({thing.subject for thing in scene.things}), 1)
    subjects = np.argsort(-reading.subjects[rows].mean(0), kind="stable")[:number]
    colours = reading.colours[rows].mean(0).argmax(1)
    things = [_thing(SUBJECT_NAMES[index], COLOUR_NAMES[colours[index]]) for index in subjects]
    place = PLACE_NAMES[reading.places[rows].mean(0).argmax()]
    content = " and ".join(things) + (f" {place}" if place else "")
    return ", ".join([content, *_modifiers(reading.modifiers[rows].mean(0))])


def _thing(subject: str, colour: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {SUBJECT_BY_NAME[subject].name}"


def _modifiers(shares: np.ndarray) -> list[str]:
    """The surest first. shares: (43,) probabilities."""
    order = np.argsort(-shares, kind="stable")[:MOST_MODIFIERS]
    return [MODIFIER_NAMES[index] for index in order if shares[index] >= SURE]
