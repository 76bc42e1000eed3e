"""The folder of the lab's weights: what a build ends with and this package brings.

transformer/ and vae/ as diffusers writes them, scorer/ with a scorer.json as any OpenClipScorer
reads it, judge/ with judge.safetensors. All in half precision.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from .. import runs
from ..pipeline_files import hash_files
from ..settings import SettingsError
from .aesthetic import (
    LEAST_DISTANCE,
    POINTS,
    assemble_scorer,
    calibrate_relevance,
    load_embedder,
)
from .folders import bundle_weights
from .plain_renderer import PlainRenderer
from .writers import user_inputs

SCORER_NAME, JUDGE_NAME = "scorer", "judge"
AT_ONCE = 8  # pictures


def write_bundle(
    out: Path,
    parts: Mapping[str, Path],
    num_calibrated: int,
    seed: int,
    device: torch.device,
    report: runs.Reporter | None = None,
) -> None:
    """Replace the folder `out` by the finished weights of the parts, by name as in PARTS.

    num_calibrated: how many plain user inputs are rendered to find the scorer's relevance knee.
    SettingsError("out", ...) where the disk refuses or a part is broken; what was in `out` before
    is then whole.
    """
    report = report or runs.Silent()

    def fill(new: Path) -> None:
        bundle_weights(parts["renderer"], parts["vae"], new)
        knee, slope = _calibrate(new, parts["clip"], num_calibrated, seed, device)
        if slope == POINTS / LEAST_DISTANCE:
            report.say("CLIP hardly tells user inputs apart: relevance will mean little")
        assemble_scorer(new / SCORER_NAME, parts["clip"], parts["aesthetic"], knee, slope)
        shutil.copytree(parts["judge"], new / JUDGE_NAME, copy_function=shutil.copyfile)

    try:
        runs.replace_folder(out, fill)
        runs.write_text(_note(out), json.dumps(_facts(out, parts)) + "\n")
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            "out", f"{out} cannot be written ({reason}); what was saved before is whole"
        ) from None
    except SettingsError as error:  # the file of a part is broken; a build has no flag for it
        raise SettingsError("out", error.reason) from None


def is_bundled(out: Path, parts: Mapping[str, Path]) -> bool:
    """Whether `out` was written from just these parts and has all its files, in their sizes."""
    runs.finish_replacing(out)
    try:
        found = json.loads(_note(out).read_text("utf-8"))
        return found == _facts(out, parts)
    except (OSError, ValueError):
        return False


def _calibrate(
    weights: Path, clip: Path, number: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """(knee, slope) of the relevance term, from plain user inputs and their own renders."""
    inputs = user_inputs(number, seed, held_out=False)
    renderer = PlainRenderer(weights, str(device))
    batches = [range(number)[start : start + AT_ONCE] for start in range(0, number, AT_ONCE)]
    drawn = [renderer.generate([inputs[row] for row in rows], rows) for rows in batches]
    pixels = np.concatenate(drawn)
    scorer = load_embedder(clip, device)
    images, texts = scorer.embed_images(pixels), scorer.embed_texts(inputs)
    own, others = ((images * some).sum(dim=1) for some in (texts, texts.roll(1, dims=0)))
    return calibrate_relevance(own, others)


def _facts(out: Path, parts: Mapping[str, Path]) -> dict[str, Any]:
    """What the note beside `out` says; OSError where there is no such folder."""
    hashes = {name: hash_files(path) for name, path in parts.items()}
    return {"parts": hashes, "files": runs.file_sizes(out)}


def _note(out: Path) -> Path:
    return out.with_name(out.name + ".json")
