"""The lab's acceptance numbers, each with its number of cases and a 95% interval.

Everything is measured from pictures and from what the judge and the scorer say of them; who
rendered the pictures is the caller's business (see report.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..intervals import bootstrap, spearman, wilson
from .judge import JudgeReading
from .scenes import Scene

CONTENT_TARGET, MODIFIER_TARGET, RETRIEVAL_TARGET, TASTE_TARGET = 0.90, 0.85, 0.80, 0.80
SHARE_OF_MODIFIERS = 0.9
MEGABYTE = 1_000_000
ALL_WEIGHTS_MEGABYTES, ONE_FILE_MEGABYTES = 30.0, 16.0


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number. low, high: its 95% interval. number: cases behind it. target: what it must reach
    (stay under, where `at_most`), None where nothing is asked of it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    number: int = 0
    target: float | None = None
    at_most: bool = False
    unit: str = "share"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value itself reaches the target; None without one."""
        if self.target is None:
            return None
        return bool(self.value <= self.target if self.at_most else self.value >= self.target)

    def row(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "met": self.met}


def share(name: str, right: Sequence[bool] | np.ndarray, **more: object) -> Measure:
    """A share of cases that are right, with Wilson's interval."""
    right = np.asarray(right, dtype=bool)
    low, high = wilson(int(right.sum()), len(right))
    value = float(right.mean()) if len(right) else float("nan")
    return Measure(name, value, low, high, len(right), **more)  # type: ignore[arg-type]


def right_subjects(reading: JudgeReading, scenes: Sequence[Scene]) -> np.ndarray:
    """For each thing of each scene: whether its subject is among the likeliest, as many as the
    scene has different ones."""
    right = []
    for row, scene in enumerate(scenes):
        names = {thing.subject for thing in scene.things}
        likeliest = reading.likeliest_subjects(row, len(names))
        right += [thing.subject in likeliest for thing in scene.things]
    return np.array(right, dtype=bool)


def right_colours(reading: JudgeReading, scenes: Sequence[Scene]) -> np.ndarray:
    """For each thing with a colour whose subject the scene has once: whether the likeliest colour
    of that subject is the one."""
    right = []
    for row, scene in enumerate(scenes):
        names = [thing.subject for thing in scene.things]
        right += [
            reading.colour_of(thing.subject, row) == thing.colour
            for thing in scene.things
            if thing.colour is not None and names.count(thing.subject) == 1
        ]
    return np.array(right, dtype=bool)


def right_places(reading: JudgeReading, scenes: Sequence[Scene]) -> np.ndarray:
    """For each scene that names a place: whether it is the likeliest."""
    rows = zip(reading.place, scenes, strict=True)
    return np.array([read == scene.place for read, scene in rows if scene.place], dtype=bool)


def content(
    reading: JudgeReading, scenes: Sequence[Scene], source: str, asked: bool
) -> list[Measure]:
    """How often the judge reads subject, colour and place off the pictures of plain scenes.

    source: "rendered", "drawn", ...; asked: whether the targets hold for it.
    """
    parts = {
        "subject": right_subjects(reading, scenes),
        "colour": right_colours(reading, scenes),
        "place": right_places(reading, scenes),
    }
    target = CONTENT_TARGET if asked else None
    return [
        share(f"judge reads the {name}, {source}", right, target=target)
        for name, right in parts.items()
    ]


def modifier_measure(name: str, with_it: np.ndarray, without: np.ndarray) -> Measure:
    """Balanced accuracy of the judge for one modifier: the mean of how often it finds it where it
    is and does not find it where it is not. The interval is a bootstrap over the pairs.

    with_it, without: (K,) the judge's probability of the modifier, in pictures of the same captions
    and seeds with it and without.
    """
    found, wrongly, surer = with_it > 0.5, without > 0.5, with_it > without

    def balanced(rows: np.ndarray) -> float:
        return float(found[rows].mean() + 1 - wrongly[rows].mean()) / 2

    low, high = bootstrap(balanced, len(found), seed=0, num_draws=400)
    note = (
        f"found in {found.mean():.0%} with it and in {wrongly.mean():.0%} without; "
        f"surer with it in {surer.mean():.0%} of the pairs"
    )
    value = balanced(np.arange(len(found)))
    return Measure(name, value, low, high, len(found), MODIFIER_TARGET, note=note)


def modifiers_told(measures: Sequence[Measure]) -> Measure:
    """The share of effective modifiers that reach their target."""
    reached = [measure.met is True for measure in measures]
    return share(
        f"effective modifiers that the judge tells in at least {MODIFIER_TARGET:.0%}, rendered",
        reached,
        target=SHARE_OF_MODIFIERS,
        note="missed: " + (", ".join(m.name for m in measures if not m.met) or "none"),
    )


def retrieval(texts: np.ndarray, images: np.ndarray, among: int = 100) -> np.ndarray:
    """Whether each caption finds its picture first among `among`; (N // among * among,) bool.

    texts, images: (N, D) of unit length, row by row of the same caption. The sets are rows 0 ..
    among - 1 and so on, so every picture is asked for once.
    """
    right = []
    for start in range(0, len(texts) - among + 1, among):
        rows = slice(start, start + among)
        cosines = texts[rows] @ images[rows].T
        right += (cosines.argmax(axis=1) == np.arange(among)).tolist()
    return np.array(right, dtype=bool)


def taste_agreement(aesthetic: np.ndarray, tastes: np.ndarray, name: str) -> Measure:
    """Spearman's rank correlation of the head and the taste, with a bootstrap interval."""

    def correlation(rows: np.ndarray) -> float:
        return spearman(aesthetic[rows], tastes[rows])

    low, high = bootstrap(correlation, len(tastes), seed=0)
    value = correlation(np.arange(len(tastes)))
    return Measure(name, value, low, high, len(tastes), TASTE_TARGET, unit="correlation")


def size_measures(sizes: Mapping[str, int]) -> list[Measure]:
    """Sizes of the weight files against what git may hold. sizes: bytes by file name."""
    largest = max(sizes, key=sizes.__getitem__)
    return [
        Measure(
            "all weight files together", sum(sizes.values()) / MEGABYTE, number=len(sizes),
            target=ALL_WEIGHTS_MEGABYTES, at_most=True, unit="MB",
        ),
        Measure(
            "the largest weight file", sizes[largest] / MEGABYTE, number=len(sizes),
            target=ONE_FILE_MEGABYTES, at_most=True, unit="MB", note=largest,
        ),
    ]  # fmt: skip
