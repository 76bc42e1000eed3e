"""The pictures that the parts of the lab learn from: drawn once, each from its own number.

A folder holds pictures.npy (N, 64, 64, 3) uint8, labels.npy (N, 8, 8) uint8 and progress.json.
Scene and picture number i follow from (seed, i) alone, so drawing can be cut off and gone on with,
and a smaller set is the beginning of a larger one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import runs
from ..settings import SettingsError
from .captions import describe
from .drawing import Picture, draw
from .row_file import holds, write_rows
from .scenes import CROWDED, Scene, sample_scene
from .taste import NAMES, best_modifiers, modifier_values, rating
from .writers import WRITERS, choose_modifiers

PICTURES_NAME, LABELS_NAME, PROGRESS_NAME = "pictures.npy", "labels.npy", "progress.json"
RANDOM_SHARE, WRITTEN_SHARE = 0.35, 0.45  # the rest is nearly the best
NEARLY = 0.4  # standard deviation, points of taste, of what is wrong about the worth of a modifier
CHUNK = 500  # pictures between two notes of how far drawing is
NUM_SAMPLED = 48  # scenes behind the fingerprint of the world
OTHER_WORLD = (
    "of another version of the lab's world (its scenes, drawing, taste or words, or numpy or "
    "Pillow below them, have changed since); go on with that version or choose another folder"
)


def numbered_scene(seed: int, number: int) -> Scene:
    """Scene `number` of the endless series of `seed`."""
    return varied_scene(_generator(seed, number))


def numbered_picture(seed: int, number: int) -> Picture:
    """The picture of `numbered_scene(seed, number)`."""
    generator = _generator(seed, number)
    return draw(varied_scene(generator), generator)


def varied_scene(generator: random.Random) -> Scene:
    """A scene with modifiers at random, or as people choose them, or nearly the best for it.

    Modifiers at random seldom go together: whoever learned taste from those alone would take few
    modifiers for good ones. More things than people ask for, as those are harder to render.
    """
    scene = sample_scene(generator, CROWDED)
    point = generator.random()
    if point < RANDOM_SHARE:
        return scene
    plain = dataclasses.replace(scene, modifiers=())
    if point < RANDOM_SHARE + WRITTEN_SHARE:
        writer = generator.choice(WRITERS)
        return dataclasses.replace(plain, modifiers=choose_modifiers(writer, plain, generator))
    noise = [generator.gauss(0, NEARLY) for _ in NAMES]
    chosen = best_modifiers(modifier_values(plain) + noise, most=generator.randint(1, 5))
    return dataclasses.replace(plain, modifiers=chosen)


@functools.lru_cache(maxsize=1)
def world_fingerprint() -> str:
    """16 hexadecimal digits of the world as this code has it: scenes, their pictures, ratings and
    words. Data of another fingerprint does not go with the scenes that are computed anew."""
    digest = hashlib.sha256()
    for number in range(NUM_SAMPLED):
        generator = _generator(0, number)
        scene = varied_scene(generator)
        picture = draw(scene, generator)
        rated = round(rating(scene, picture.pixels, generator), 6)
        worth = modifier_values(scene).round(6).tolist()
        told = repr((scene, rated, worth, describe(scene, generator)))
        digest.update(told.encode() + picture.pixels.tobytes() + picture.labels.tobytes())
    return digest.hexdigest()[:16]


def _generator(seed: int, number: int) -> random.Random:
    return random.Random(f"lab {seed} {number}")


def write_pictures(
    folder: Path,
    number: int,
    seed: int,
    *,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """Draw pictures 0 .. number - 1 into the folder, or go on with what is there.

    Returns "done", or "stopped" when should_stop said so. SettingsError("out", ...) for a folder
    of another seed, size or version of the world, and where the disk refuses.
    """
    try:
        return _write_pictures(folder, number, seed, report or runs.Silent(), should_stop)
    except OSError as error:
        raise SettingsError("out", f"{folder} could not be written ({error.strerror})") from None


def _write_pictures(
    folder: Path,
    number: int,
    seed: int,
    report: runs.Reporter,
    should_stop: Callable[[], bool] | None,
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    start = _progress(folder, number, seed)
    while start < number:
        drawn = [numbered_picture(seed, i) for i in range(start, min(start + CHUNK, number))]
        pixels = np.stack([picture.pixels for picture in drawn])
        labels = np.stack([picture.labels for picture in drawn])
        write_rows(folder / PICTURES_NAME, start, pixels, number)
        write_rows(folder / LABELS_NAME, start, labels, number)
        start += len(drawn)
        world = world_fingerprint()
        row = {"seed": seed, "number": number, "drawn": start, "world": world}
        runs.write_text(folder / PROGRESS_NAME, json.dumps(row) + "\n")
        report.step(start, number, {})
        if should_stop is not None and should_stop() and start < number:
            return "stopped"
    return "done"


def _progress(folder: Path, number: int, seed: int) -> int:
    """How many are drawn; 0 in a new folder and where the files do not hold them."""
    path = folder / PROGRESS_NAME
    if not path.exists():
        return 0
    try:
        row = json.loads(path.read_text("utf-8"))
        same, drawn = (row["seed"], row["number"]) == (seed, number), int(row["drawn"])
    except (ValueError, KeyError, TypeError):
        return 0
    if not same:
        raise SettingsError("out", f"{folder} holds pictures of another seed or number")
    if row.get("world") != world_fingerprint():
        raise SettingsError("out", f"{folder} holds pictures {OTHER_WORLD}")
    names = (PICTURES_NAME, LABELS_NAME)
    return drawn if all(holds(folder / name, drawn, number) for name in names) else 0


def read_scenes(seed: int, number: int) -> list[Scene]:
    """The scenes of pictures 0 .. number - 1."""
    return [numbered_scene(seed, i) for i in range(number)]
