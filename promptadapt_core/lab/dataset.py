"""The pictures that the parts of the lab learn from: drawn once, each from its own number.

A folder holds pictures.npy (N, 64, 64, 3) uint8, labels.npy (N, 8, 8) uint8 and progress.json.
Scene and picture number i follow from (seed, i) alone, so drawing can be cut off and gone on with,
and a smaller set is the beginning of a larger one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import runs
from ..settings import SettingsError
from .drawing import PATCHES, SIZE, Picture, draw
from .scenes import Scene, sample_scene

PICTURES_NAME, LABELS_NAME, PROGRESS_NAME = "pictures.npy", "labels.npy", "progress.json"
CHUNK = 500  # pictures between two notes of how far drawing is


def numbered_scene(seed: int, number: int) -> Scene:
    """Scene `number` of the endless series of `seed`."""
    return sample_scene(_generator(seed, number))


def numbered_picture(seed: int, number: int) -> Picture:
    """The picture of `numbered_scene(seed, number)`."""
    generator = _generator(seed, number)
    return draw(sample_scene(generator), generator)


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
    of another seed or size, and where the disk refuses.
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
    mode = "r+" if start else "w+"
    pictures = np.lib.format.open_memmap(
        folder / PICTURES_NAME, mode, np.uint8, (number, SIZE, SIZE, 3)
    )
    labels = np.lib.format.open_memmap(
        folder / LABELS_NAME, mode, np.uint8, (number, PATCHES, PATCHES)
    )
    for i in range(start, number):
        picture = numbered_picture(seed, i)
        pictures[i], labels[i] = picture.pixels, picture.labels
        if (i + 1) % CHUNK == 0 or i + 1 == number:
            pictures.flush()
            labels.flush()
            row = {"seed": seed, "number": number, "drawn": i + 1}
            runs.write_text(folder / PROGRESS_NAME, json.dumps(row) + "\n")
            report.step(i + 1, number, {})
            if should_stop is not None and should_stop() and i + 1 < number:
                return "stopped"
    return "done"


def _progress(folder: Path, number: int, seed: int) -> int:
    """How many are drawn; 0 in a new folder."""
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
    return drawn


def read_pictures(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, labels) of a finished folder, mapped from the disk, read only."""
    try:
        return (
            np.load(folder / PICTURES_NAME, mmap_mode="r"),
            np.load(folder / LABELS_NAME, mmap_mode="r"),
        )
    except (OSError, ValueError) as error:
        raise SettingsError("out", f"the pictures in {folder} cannot be read: {error}") from None


def read_scenes(seed: int, number: int) -> list[Scene]:
    """The scenes of pictures 0 .. number - 1."""
    return [numbered_scene(seed, i) for i in range(number)]
