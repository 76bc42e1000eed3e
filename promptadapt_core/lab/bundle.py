"""The folder of the lab's weights: what a build ends with and this package brings.

transformer/ and vae/ as diffusers writes them, scorer/ with a scorer.json as any OpenClipScorer
reads it, judge/ with judge.safetensors. All in half precision.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from .. import runs
from ..images import DiffusersGenerator
from ..pipeline_files import hash_files
from ..settings import SettingsError
from .aesthetic import assemble_scorer, calibrate_relevance, load_embedder
from .folders import assemble, bundle_weights
from .writers import user_inputs

SCORER_NAME, JUDGE_NAME = "scorer", "judge"


def write_bundle(
    out: Path, parts: Mapping[str, Path], num_calibrated: int, seed: int, device: torch.device
) -> None:
    """Replace the folder `out` by the finished weights of the parts, by name as in PARTS.

    num_calibrated: how many plain user inputs are rendered to find the scorer's relevance knee.
    SettingsError("out", ...) where the disk refuses or a part is broken; what was in `out` before
    is then whole.
    """
    try:
        runs.replace_folder(out, lambda new: _fill(new, parts, num_calibrated, seed, device))
        runs.write_text(_note(out), json.dumps(_hashes(parts)) + "\n")
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            "out", f"{out} cannot be written ({reason}); what was saved before is whole"
        ) from None
    except SettingsError as error:  # the file of a part is broken; a build has no flag for it
        raise SettingsError("out", error.reason) from None


def is_bundled(out: Path, parts: Mapping[str, Path]) -> bool:
    """Whether `out` was written from just these parts."""
    runs.finish_replacing(out)
    try:
        found = json.loads(_note(out).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return out.is_dir() and found == _hashes(parts)


def _fill(
    out: Path, parts: Mapping[str, Path], num_calibrated: int, seed: int, device: torch.device
) -> None:
    bundle_weights(parts["renderer"], parts["vae"], out)
    knee, slope = _calibrate(out, parts["clip"], num_calibrated, seed, device)
    assemble_scorer(out / SCORER_NAME, parts["clip"], parts["aesthetic"], knee, slope)
    shutil.copytree(parts["judge"], out / JUDGE_NAME, copy_function=shutil.copyfile)


def _calibrate(
    weights: Path, clip: Path, number: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """(knee, slope) of the relevance term, from plain user inputs and their own renders."""
    inputs = user_inputs(number, seed, held_out=False)
    # Windows does not remove files that are still mapped.
    with tempfile.TemporaryDirectory(dir=weights.parent, ignore_cleanup_errors=True) as folder:
        assemble(weights, Path(folder) / "pipeline")
        generator = DiffusersGenerator.load(Path(folder) / "pipeline", device=str(device))
        pixels = generator.generate(inputs, range(number))
    scorer = load_embedder(clip, device)
    images, texts = scorer.embed_images(pixels), scorer.embed_texts(inputs)
    own, others = ((images * some).sum(dim=1) for some in (texts, texts.roll(1, dims=0)))
    return calibrate_relevance(own, others)


def _hashes(parts: Mapping[str, Path]) -> dict[str, str]:
    return {name: hash_files(path) for name, path in parts.items()}


def _note(out: Path) -> Path:
    return out.with_name(out.name + ".json")
