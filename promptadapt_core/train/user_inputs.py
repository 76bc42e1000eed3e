"""User inputs for training: one a line of a .txt, or rows of a .jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..adapter import Work
from ..rollouts import RewardFunction
from ..settings import SettingsError
from .seeds import generator_of


def read_user_inputs(path: str | Path) -> tuple[list[str], int]:
    """The different user inputs of a file in their order, and how many were there twice.

    .txt: one a line. .jsonl: objects with a text user_input; of rows that carry a split (pairs
    of promptadapt_core.data) only those of "train". SettingsError("user_inputs", ...) for a file
    that is missing, empty or broken; the line is named.
    """
    if not str(path):
        raise SettingsError("user_inputs", "expected a file of user inputs")
    lines = lines_of(path, "user_inputs")
    as_json = Path(path).suffix.lower() == ".jsonl"
    found = []
    for number, line in enumerate(lines, start=1):
        text = _from_json(line, number, path) if as_json and line.strip() else line
        if text.strip():
            found.append(text.strip())
    if not found:
        raise SettingsError("user_inputs", f"{path} holds no user inputs")
    different = list(dict.fromkeys(found))
    return different, len(found) - len(different)


def lines_of(path: str | Path, name: str) -> list[str]:
    """The lines of a text file in UTF-8; SettingsError(name, ...) where it cannot be read."""
    try:
        # not splitlines(), which cuts at rarer marks too: U+2028, U+0085, form feeds
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise SettingsError(name, f"there is no file {path}") from None
    except OSError as error:
        raise SettingsError(name, f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError(name, f"{path} is not UTF-8 text") from None


def _from_json(line: str, number: int, path: str | Path) -> str:
    """The user input of a row, "" where it belongs to another split."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise SettingsError("user_inputs", f"line {number} of {path} is not JSON") from None
    text = row.get("user_input") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise SettingsError("user_inputs", f"line {number} of {path} needs the text user_input")
    return text if row.get("split", "train") == "train" else ""


def places_of(iteration: int, num_places: int, num_inputs: int, seed: int) -> list[tuple[int, int]]:
    """(place, pass) of the user inputs that make up an iteration: every one once in each pass.

    Depends on the arguments alone. Every pass over the inputs has an order of its own.
    """
    orders: dict[int, list[int]] = {}
    places = []
    for index in range(iteration * num_places, (iteration + 1) * num_places):
        turn, place = divmod(index, num_inputs)
        if turn not in orders:
            generator = generator_of(seed, "user_inputs", turn)
            orders[turn] = torch.randperm(num_inputs, generator=generator).tolist()
        places.append((orders[turn][place], turn))
    return places


def works_at(
    places: Sequence[tuple[int, int]], works: Sequence[Work], reward: RewardFunction
) -> tuple[list[Work], list[list[int]]]:
    """The works at the places of an iteration, and the seeds of their pictures at that pass."""
    found = [works[place] for place, _ in places]
    seeds = [
        reward.seeds_of(work.typed.user_input, visit)
        for work, (_, visit) in zip(found, places, strict=True)
    ]
    return found, seeds
