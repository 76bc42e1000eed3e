"""Scores of the plain user inputs' pictures, kept on disk: rendered once per user input and seed.

    FOLDER/<16 digits of renderer and scorer>/<time>-<process>.jsonl

A process appends to a file of its own and reads everyone's when it begins: no lock, no two writers
in one file on any system. Each line holds all scores of one call, so whatever moment a process is
killed at, a call's scores are there as a whole or not at all: a resumed run finds either what the
uninterrupted one would have found, or nothing and renders the same pictures in the same batch.
Of a group of processes only the main one reads and writes; all know the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .process_group import ALONE, ProcessGroup
from .settings import MAX_SEED, SettingsError

SUFFIX = ".jsonl"


class Baseline(NamedTuple):
    """Scores of one picture of a plain user input, as in scorers.Scores; finite."""

    aesthetic: float
    relevance: float


class BaselineCache:
    """(user input, seed) -> Baseline, of one renderer and one scorer.

    What another process adds meanwhile is not seen, only rendered once more. Where two processes
    scored the same picture, the older file counts.
    """

    def __init__(
        self,
        path: Path | str | None,
        renderer_identity: str,
        scorer_identity: str,
        group: ProcessGroup = ALONE,
    ):
        """path: a folder, which renderers and scorers may share; None keeps all in memory. group:
        of processes that add the same at the same time.

        Raises SettingsError("baselines", ...) where the folder cannot be read or written, and
        where an identity is empty: the scores of two renderers would be mixed up.
        """
        self._identities = {"renderer": renderer_identity, "scorer": scorer_identity}
        self._known: dict[tuple[str, int], Baseline] = {}
        self._file: Path | None = None  # this process's own, made at the first `add`
        self.folder: Path | None = None
        if path is None:
            return
        for name, identity in self._identities.items():
            if not identity:
                raise SettingsError("baselines", f"the {name} has no identity to keep scores under")
        group.on_main(lambda: self._open(Path(path)))
        if group.num_processes > 1:
            rows = group.from_main(lambda: [[*pair, *one] for pair, one in self._known.items()])
            self._known = dict(_entry(*row) for row in rows)

    def _open(self, path: Path) -> None:
        """Read what is there."""
        key = json.dumps([*self._identities.values()])
        self.folder = path / hashlib.sha256(key.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            for file in sorted(self.folder.glob(f"*{SUFFIX}")):  # their names begin with the time
                self._read(file)
        except OSError as error:
            raise _unusable(self.folder, "cannot be used", error) from None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, user_input: str, seed: int) -> Baseline | None:
        """The scores of that picture, exactly as they were added, or None."""
        return self._known.get((user_input, seed))

    def add(self, baselines: Mapping[tuple[str, int], Baseline]) -> None:
        """Keep the scores of (user input, seed) pairs; a pair that is known keeps its own.

        On disk when this returns. Raises SettingsError("baselines", ...) when the disk refuses,
        and for a score that is not finite.
        """
        new = {pair: Baseline(*map(float, scores)) for pair, scores in baselines.items()}
        new = {pair: scores for pair, scores in new.items() if pair not in self._known}
        for (user_input, seed), scores in new.items():
            if not all(map(math.isfinite, scores)):
                reason = f"{user_input!r:.80} with seed {seed} has a score that is not finite"
                raise SettingsError("baselines", reason)
        if not new:
            return
        if self.folder is not None:
            self._append([[*pair, *scores] for pair, scores in new.items()])
        self._known.update(new)

    def _append(self, rows: list[list[Any]]) -> None:
        assert self.folder is not None
        content = json.dumps({"rows": rows}, allow_nan=False) + "\n"
        path = self._file
        if path is None:
            content = json.dumps(self._identities) + "\n" + content
            path = self.folder / f"{time.time_ns():020d}-{os.getpid()}{SUFFIX}"
        try:
            with open(path, "xb" if self._file is None else "ab") as file:
                file.write(content.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._file = None  # it may end in half a line: never append to that
            raise _unusable(path, "cannot be written", error) from None
        self._file = path

    def _read(self, file: Path) -> None:
        """What a file holds. A line that is cut off or makes no sense is passed over."""
        for line in file.read_bytes().splitlines():
            try:
                rows = json.loads(line).get("rows", [])
                found = dict(_entry(*row) for row in rows)
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue
            for pair, scores in found.items():
                self._known.setdefault(pair, scores)


def _entry(
    user_input: str, seed: int, aesthetic: float, relevance: float
) -> tuple[tuple[str, int], Baseline]:
    """One row of a file; ValueError or TypeError for one that `add` did not write."""
    scores = Baseline(aesthetic, relevance)
    numbers = all(type(score) is float and math.isfinite(score) for score in scores)
    if not (isinstance(user_input, str) and type(seed) is int and 0 <= seed <= MAX_SEED):
        raise ValueError("no user input and seed")
    if not numbers:
        raise ValueError("no two finite scores")
    return (user_input, seed), scores


def _unusable(path: Path, what: str, error: OSError) -> SettingsError:
    return SettingsError("baselines", f"{path} {what} ({error.strerror or error})")
