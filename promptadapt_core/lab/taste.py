"""The taste of the lab's people, which is known: how good a picture of a scene is, about 1 to 10.

The main part is a table: what each modifier is worth for the place, the things and beside the
other modifiers. A smaller part is seen in the pixels. Every number is in taste_tables.py; values
add up. A suffix that suits all scenes gains less than half of what the best choice per scene does.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from .scenes import Scene
from .taste_tables import (
    COMBINATIONS,
    CROWDING,
    FAMILY_CLASH,
    HIGHEST,
    LOWEST,
    NOISE,
    NUM_BEFORE_CROWDING,
    PIXEL_TERMS,
    PLAIN,
    RELATION_LOST,
    WORTH,
)
from .vocabulary import MODIFIERS, SUBJECT_BY_NAME

NAMES = tuple(modifier.name for modifier in MODIFIERS)
_INDEX = {name: index for index, name in enumerate(NAMES)}
_IS_SEEN = np.array([int(modifier.effect != "none") for modifier in MODIFIERS])


def taste(scene: Scene, pixels: np.ndarray, *, relation_kept: bool = True) -> float:
    """How good the picture is, 1 to 10. pixels: (64, 64, 3) uint8. relation_kept: whether the
    picture shows the relation of the scene that was asked for."""
    value = taste_of_scene(scene) + taste_of_pixels(pixels)
    if not relation_kept:
        value += RELATION_LOST
    middle, reach = (HIGHEST + LOWEST) / 2, (HIGHEST - LOWEST) / 2
    return middle + reach * float(np.tanh((value - middle) / reach))


def rating(scene: Scene, pixels: np.ndarray, generator: random.Random) -> float:
    """One person's opinion of the picture: the taste and their noise, 1 to 10."""
    return min(max(taste(scene, pixels) + generator.gauss(0.0, NOISE), LOWEST), HIGHEST)


def taste_of_scene(scene: Scene) -> float:
    """What does not need the picture; 5 is a usual plain scene. Not limited to 1 to 10."""
    chosen = [_INDEX[name] for name in dict.fromkeys(scene.modifiers)]
    plain = _weighed(PLAIN, features(scene))
    return plain + _worth(chosen, modifier_values(scene), combination_values())


def crowding(number: int | np.ndarray) -> float | np.ndarray:
    """What that many modifiers cost, whatever they are: 0 or less. Those that change nothing in
    the picture are not among them, for who sees a picture cannot see them."""
    return CROWDING * np.maximum(0.0, number - NUM_BEFORE_CROWDING) ** 2


def features(scene: Scene) -> dict[str, float]:
    """What the tables ask about, with its weight: 1, or the share of the things that have it."""
    places = (scene.place, "outdoors") if scene.place not in (None, "in a room") else ()
    place = places or (scene.place or "nowhere",)
    number = "one thing" if len(scene.things) == 1 else "several things"
    found = dict.fromkeys(("any", *place, number), 1.0)
    for thing in scene.things:
        kind = SUBJECT_BY_NAME[thing.subject].kind
        for name in filter(None, (kind, thing.subject, thing.colour, thing.size)):
            found[name] = found.get(name, 0.0) + 1.0 / len(scene.things)
    return found


def _weighed(worth: dict[str, float], found: dict[str, float]) -> float:
    return sum(value * found.get(name, 0.0) for name, value in worth.items())


def modifier_values(scene: Scene) -> np.ndarray:
    """(len(NAMES),) float64: what each modifier is worth in the scene, taken alone."""
    found = features(scene)
    return np.array([_weighed(WORTH.get(name, {}), found) for name in NAMES])


@functools.lru_cache(maxsize=1)
def combination_values() -> np.ndarray:
    """(len(NAMES), len(NAMES)) float64, symmetric, 0 on the diagonal: what two modifiers add."""
    values = np.zeros((len(NAMES), len(NAMES)))
    for one, other, value in _combinations():
        values[_INDEX[one], _INDEX[other]] = values[_INDEX[other], _INDEX[one]] = value
    values.setflags(write=False)
    return values


def _combinations() -> Iterator[tuple[str, str, float]]:
    for one in MODIFIERS:
        for other in MODIFIERS:
            if one.name != other.name and one.family == other.family:
                yield one.name, other.name, FAMILY_CLASH.get(one.family, 0.0)
    for (one, other), value in COMBINATIONS.items():
        yield one, other, value


def best_modifiers(values: np.ndarray, most: int = 6, num_starts: int = 6) -> tuple[str, ...]:
    """The best set of modifiers that is found by adding and exchanging one at a time, from nothing
    and from the best few pairs.

    values: (len(NAMES),) as of `modifier_values`, of one scene or a mean over many.
    """
    pairs = combination_values()
    first, second = np.triu_indices(len(NAMES), 1)
    of_two = values[first] + values[second] + pairs[first, second]
    order = np.argsort(-of_two)[: num_starts - 1]
    starts = [[], *([int(first[index]), int(second[index])] for index in order)]
    found = [_climb(start, values, pairs, most) for start in starts if len(start) <= most]
    chosen = max(found, key=lambda members: _worth(members, values, pairs))
    return tuple(NAMES[index] for index in chosen)


def _climb(chosen: list[int], values: np.ndarray, pairs: np.ndarray, most: int) -> list[int]:
    """The set after the best changes of one member each, until none helps."""
    while True:
        each = values + pairs[:, chosen].sum(axis=1)  # what each adds beside the chosen
        # Row i: exchange chosen[i] for that modifier. Last row: add it.
        changes = np.vstack([each - pairs[chosen] - each[chosen, None], each])
        number = _IS_SEEN[chosen].sum()
        left = np.append(number - _IS_SEEN[chosen], number)
        changes += crowding(left[:, None] + _IS_SEEN) - crowding(number)
        changes[:, chosen] = -np.inf
        if len(chosen) >= most:
            changes[-1] = -np.inf
        row, new = divmod(int(changes.argmax()), len(values))
        if not changes[row, new] > 1e-9:
            return chosen
        chosen = [*chosen[:row], *chosen[row + 1 :], new]


def _worth(chosen: list[int], values: np.ndarray, pairs: np.ndarray) -> float:
    """What the modifiers of those indices add together."""
    beside = pairs[np.ix_(chosen, chosen)].sum() / 2
    return float(values[chosen].sum() + beside + crowding(_IS_SEEN[chosen].sum()))


def taste_of_pixels(pixels: np.ndarray) -> float:
    """What is seen without knowing the scene, -0.8 to 0.8. pixels: (64, 64, 3) uint8."""
    measured = measures(pixels)
    return sum(
        term["weight"] * float(np.tanh((measured[name] - term["usual"]) / term["spread"]))
        for name, term in PIXEL_TERMS.items()
    )


def measures(pixels: np.ndarray) -> dict[str, float]:
    """contrast: standard deviation of luminance. colourfulness: of Hasler and Suesstrunk 2003,
    equation 3. sharpness: mean absolute step between neighbours in luminance. All of 0..1."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64) / 255.0, -1, 0)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    centre = np.hypot(red_green.mean(), yellow_blue.mean())
    steps = [np.abs(np.diff(luminance, axis=axis)).mean() for axis in (0, 1)]
    return {
        "contrast": float(luminance.std()),
        "colourfulness": float(spread + 0.3 * centre),
        "sharpness": float(np.mean(steps)),
    }


def gain(scene: Scene, modifiers: Sequence[str]) -> float:
    """What the modifiers add to a scene, by its words alone; its own modifiers do not count."""
    own = Scene(scene.things, scene.relation, scene.place)
    chosen = Scene(scene.things, scene.relation, scene.place, tuple(modifiers))
    return taste_of_scene(chosen) - taste_of_scene(own)
