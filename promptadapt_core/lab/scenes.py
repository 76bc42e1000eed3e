"""What a picture of the lab shows, before it is drawn."""

from __future__ import annotations

import dataclasses
import random

from .vocabulary import COLOURS, MODIFIERS, PLACES, RELATIONS, SIZES, SUBJECTS

NUM_THINGS = ((1, 0.66), (2, 0.28), (3, 0.06))
CROWDED = ((1, 0.46), (2, 0.37), (3, 0.17))
NUM_MODIFIERS = ((0, 0.24), (1, 0.25), (2, 0.20), (3, 0.14), (4, 0.09), (5, 0.05), (6, 0.03))


@dataclasses.dataclass(frozen=True)
class Thing:
    """colour None: nobody said which. size: a key of SIZES, or None."""

    subject: str
    colour: str | None = None
    size: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """things: up to three; things[0] RELATION things[1], and a third beside them. place None: a
    plain backdrop. modifiers: names, in the order in which they were said."""

    things: tuple[Thing, ...]
    relation: str | None = None
    place: str | None = None
    modifiers: tuple[str, ...] = ()


def sample_scene(
    generator: random.Random, num_things: tuple[tuple[int, float], ...] = NUM_THINGS
) -> Scene:
    """A scene with everything that can be said. num_things: weights of the numbers of things."""
    things = tuple(
        Thing(
            subject=generator.choice(SUBJECTS).name,
            colour=generator.choice(list(COLOURS)),
            size=generator.choice(list(SIZES)) if generator.random() < 0.3 else None,
        )
        for _ in range(weighted(generator, num_things))
    )
    return Scene(
        things=things,
        relation=generator.choice(RELATIONS) if len(things) > 1 else None,
        place=generator.choice(PLACES) if generator.random() < 0.85 else None,
        modifiers=sample_modifiers(generator, weighted(generator, NUM_MODIFIERS)),
    )


def sample_modifiers(generator: random.Random, number: int) -> tuple[str, ...]:
    """Different modifiers; the nine media only one at a time, as they exclude each other."""
    chosen: list[str] = []
    for modifier in generator.sample(MODIFIERS, len(MODIFIERS)):
        if len(chosen) == number:
            break
        if modifier.family == "medium" and any(m in _MEDIA for m in chosen):
            continue
        chosen.append(modifier.name)
    return tuple(chosen)


def weighted(generator: random.Random, table: tuple[tuple[int, float], ...]) -> int:
    """One of the numbers, by the weights beside them."""
    values, weights = zip(*table, strict=True)
    return generator.choices(values, weights)[0]


_MEDIA = frozenset(modifier.name for modifier in MODIFIERS if modifier.family == "medium")
