"""Samples of a run to look at: samples/00010.jsonl, and a PNG with the pictures where there are.

A row holds user_input, adapted_prompt, reward, terms, truncated, left_alone, seeds and ok, and what
the judge says where there is one. Row n of the PNG shows the pictures of row n; it is black where
none was drawn: the candidate failed, or it is the user input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import runs
from ..rollouts import RewardBatch, Rollout
from ..settings import SettingsError

FOLDER_NAME = "samples"


def write_samples(
    folder: Path,
    iteration: int,
    rollout: Rollout,
    batch: RewardBatch,
    number: int,
    judged: Mapping[str, np.ndarray] | None = None,
    pictures: Sequence[np.ndarray | None] | None = None,
) -> None:
    """The first `number` candidates of a rollout and its rewards, rows alike.

    judged: (B,) for each metric of a judge, nan where it says nothing. pictures: (num, H, W, 3)
    uint8 or None for each of those candidates. SettingsError("out", ...) where the disk refuses.
    """
    number = min(number, len(rollout))
    rows = [_row(rollout, batch, place, judged or {}) for place in range(number)]
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        folder.mkdir(exist_ok=True)
        runs.write_text(folder / f"{iteration:05d}.jsonl", text)
        if pictures is not None and (grid := _grid(pictures[:number])) is not None:
            runs.replace_file(folder / f"{iteration:05d}.png", lambda path: _save(grid, path))
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError("out", f"{folder} cannot be written ({reason})") from None


def _row(
    rollout: Rollout, batch: RewardBatch, place: int, judged: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    row = {
        "user_input": rollout.user_inputs[place],
        "adapted_prompt": rollout.adapted_prompts[place],
        "reward": _rounded(batch.rewards[place]),
        "terms": {name: _rounded(term[place]) for name, term in batch.terms.items()},
        "ok": bool(batch.ok[place]),
        "truncated": bool(rollout.truncated[place]),
        "left_alone": bool(rollout.left_alone[place]),
        "seeds": rollout.image_seeds[place],
    }
    said = {name: _rounded(values[place]) for name, values in judged.items()}
    return {**row, "judge": said} if said else row


def _rounded(value: Any) -> float | None:
    """None for what JSON cannot write."""
    return round(float(value), 5) if math.isfinite(value) else None


def _grid(pictures: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One row of pictures for each candidate, black where there is none."""
    shapes = [some.shape for some in pictures if some is not None]
    if not shapes:
        return None
    blank = np.zeros(shapes[0], dtype=np.uint8)
    rows = [np.concatenate(list(blank if some is None else some), axis=1) for some in pictures]
    return np.concatenate(rows, axis=0)


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")
