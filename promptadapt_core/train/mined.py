"""Candidates that were sampled and rewarded, in a file that can be looked at and gone on with.

One line for each user input and its seeds, then one that closes the batch they came in:

    {"user_input": ..., "policy_text": ..., "seeds": [...], "plain": {...}, "candidates": [...]}
    {"batch": 3, "num_rendered": 40, "num_plain_rendered": 8, "length_limit": 31}

A batch is written by one call and flushed to the disk. What follows the last closing line is of a
batch that was broken off; it is cut away and the batch made anew, the same in every bit on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import runs
from ..settings import SettingsError


@dataclasses.dataclass(frozen=True)
class Worth:
    """What pictures were worth: the reward, its terms with their weights and what the judge says
    (None where it says nothing); all finite numbers."""

    reward: float
    terms: dict[str, float]
    judged: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Scored:
    """One candidate. target: what a policy learns to write for it, plain text. worth: None where
    a picture or a score failed. num_tokens: of the completion, its end token included.
    left_alone: no rule let anything through, so that it is the user input; target is then what was
    written, which may be learned as the worse text only."""

    adapted_prompt: str
    target: str
    worth: Worth | None
    num_tokens: int
    truncated: bool
    left_alone: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Candidates of one user input with the same seeds. policy_text: what a policy reads of it.
    plain: what the pictures of the user input itself are worth."""

    user_input: str
    policy_text: str
    seeds: tuple[int, ...]
    plain: Worth | None
    candidates: tuple[Scored, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Groups that were sampled and rewarded together. num_rendered: pictures of candidates;
    num_plain_rendered: of plain user inputs not met before. length_limit: longest completion."""

    number: int
    groups: tuple[Group, ...]
    num_rendered: int
    num_plain_rendered: int
    length_limit: int


class MinedFile:
    """The batches of one round, in order. Opening it cuts away what was broken off."""

    def __init__(self, path: Path):
        """SettingsError("out", ...) where the disk refuses."""
        self.path = path
        try:
            whole, self.batches = _read(path)
            if path.exists() and path.read_bytes() != whole:
                runs.write_text(path, whole.decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise _unwritable(path, error) from None

    def append(self, batch: Batch) -> None:
        """On disk when this returns; SettingsError("out", ...) where the disk refuses."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                       for row in _rows(batch))  # fmt: skip
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.batches.append(batch)


def finished_batches(path: Path) -> list[Batch]:
    """Those of a round that is over, whose file is only read. SettingsError("resume", ...) where it
    is not as the round left it: its pictures are counted and are not rendered again."""
    try:
        whole, batches = _read(path)
        if batches and path.read_bytes() == whole:
            return batches
        reason = "it is not as its round left it"
    except OSError as error:
        reason = str(error.strerror)
    raise SettingsError("resume", f"{path} cannot be used: {reason}")


def groups_of(batches: Iterable[Batch]) -> list[Group]:
    """Those of one user input with the same seeds put together, in the order they were met."""
    found: dict[tuple[str, tuple[int, ...]], Group] = {}
    for batch in batches:
        for group in batch.groups:
            key = (group.user_input, group.seeds)
            known = found.get(key)
            if known is None:
                found[key] = group
            else:
                found[key] = dataclasses.replace(
                    known,
                    plain=known.plain or group.plain,
                    candidates=known.candidates + group.candidates,
                )
    return list(found.values())


def _rows(batch: Batch) -> list[dict[str, Any]]:
    groups = [dataclasses.asdict(group) for group in batch.groups]
    end = dataclasses.asdict(batch)
    del end["groups"]
    return [*groups, {"batch": end.pop("number"), **end}]


def _read(path: Path) -> tuple[bytes, list[Batch]]:
    """The lines of the whole batches, and these."""
    if not path.exists():
        return b"", []
    kept: list[str] = []
    batches: list[Batch] = []
    lines: list[str] = []
    groups: list[Group] = []
    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
            lines.append(line + "\n")
            if "batch" in row:
                number = row.pop("batch")
                batches.append(Batch(number=number, groups=tuple(groups), **row))
                kept += lines
                lines, groups = [], []
            else:
                groups.append(_group(row))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
    return "".join(kept).encode("utf-8"), batches


def _group(row: Mapping[str, Any]) -> Group:
    candidates = [Scored(**{**one, "worth": _worth(one["worth"])}) for one in row["candidates"]]
    return Group(
        row["user_input"],
        row["policy_text"],
        tuple(row["seeds"]),
        _worth(row["plain"]),
        tuple(candidates),
    )


def _worth(row: Mapping[str, Any] | None) -> Worth | None:
    return None if row is None else Worth(**row)


def _unwritable(path: Path, error: Exception) -> SettingsError:
    reason = getattr(error, "strerror", None) or error
    return SettingsError("out", f"{path} cannot be used ({reason})")


def num_rendered(batches: Sequence[Batch]) -> int:
    """Pictures of candidates."""
    return sum(batch.num_rendered for batch in batches)
