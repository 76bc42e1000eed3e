"""A .npy file that is filled a few rows at a time and goes on where it was cut off.

Written by plain writes, not through a memory map: on a full disk a map kills the process, while a
write raises an error and leaves the rows before whole.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import runs
from ..settings import SettingsError


def fill(
    path: Path,
    number: int,
    make: Callable[[int, int], np.ndarray],
    origin: Mapping[str, Any],
    *,
    chunk: int = 1024,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """Fill the file with rows 0 .. number - 1, or go on with what is there.

    make: gets (start, end), gives those rows (end - start, ...). origin: what the rows follow
    from, as JSON has it; rows of another origin are replaced. A note of how far the file is stands
    beside it. Returns "done", or "stopped" when should_stop, asked after every chunk, said so.
    SettingsError("out", ...) where the disk refuses.
    """
    report = report or runs.Silent()
    start = num_filled(path, number, origin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while start < number:
            rows = make(start, min(start + chunk, number))
            write_rows(path, start, rows, number)
            start += len(rows)
            note = {"origin": origin, "number": number, "filled": start}
            runs.write_text(_note(path), json.dumps(note) + "\n")
            report.step(start, number, {})
            if should_stop is not None and should_stop() and start < number:
                return "stopped"
    except OSError as error:
        raise SettingsError(
            "out", f"{path} cannot be written ({error.strerror}); what was saved before is whole"
        ) from None
    return "done"


def num_filled(path: Path, number: int, origin: Mapping[str, Any]) -> int:
    """How many rows of this origin the file holds; 0 for a file that is shorter than its note
    says."""
    try:
        note = json.loads(_note(path).read_text("utf-8"))
        if (note["origin"], note["number"]) != (dict(origin), number):
            return 0
        filled = int(note["filled"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return filled if holds(path, filled, number) else 0


def holds(path: Path, filled: int, number: int) -> bool:
    """Whether the file, of `number` rows in the end, is long enough for its first `filled`."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            least = file.tell() + filled * math.prod(shape[1:]) * dtype.itemsize
            return shape[0] == number and path.stat().st_size >= least
    except (OSError, ValueError, IndexError):
        return False


def read_rows(path: Path, *, mapped: bool = False) -> np.ndarray:
    """All rows of a filled file, in memory or mapped; SettingsError("out", ...) for a file that is
    missing or not whole. Writing to the mapped array leaves the file alone."""
    try:
        return np.load(path, mmap_mode="c" if mapped else None)
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError("out", f"{path} cannot be read: {error}") from None


def write_rows(path: Path, start: int, rows: np.ndarray, number: int) -> None:
    """Write rows (n, ...) as start .. start + n - 1 of a file of `number` in the end, and flush it
    to the disk. What stands behind `start`, such as rows cut off by a kill, goes."""
    head = _head(number, rows)
    with open(path, "r+b" if start else "w+b") as file:
        if start == 0:
            file.write(head)
        file.seek(len(head) + start * rows[:1].nbytes)
        file.write(np.ascontiguousarray(rows).tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _note(path: Path) -> Path:
    return path.with_name(path.stem + ".json")


def _head(number: int, rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": (number, *rows.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()
