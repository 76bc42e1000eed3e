"""ComfyUI's IMAGE, a float tensor (N, H, W, C) in 0..1, and the core's uint8 arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..promptadapt_core.pixels import floats_of, pixels_of
from .inputs import check_linked


def pictures_of(batches: Sequence[Any], name: str) -> tuple[list[np.ndarray], list[int]]:
    """(every picture (H, W, 3) uint8, how many each batch holds) of a list of IMAGEs."""
    pictures, counts = [], []
    for number, batch in enumerate(batches, 1):
        told = name if len(batches) == 1 else f"{name}, batch {number} of {len(batches)}"
        check_linked(told, isinstance(batch, torch.Tensor), "a node that makes an IMAGE")
        pixels = pixels_of(batch.detach().float().cpu().numpy(), told)
        pictures += list(pixels)
        counts.append(len(pixels))
    return pictures, counts


def frames_of(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every picture (H, W, C) of a list of IMAGEs, as it came."""
    return [frame for batch in batches for frame in batch]


def batch_of(frames: Sequence[torch.Tensor]) -> torch.Tensor:
    """One IMAGE. What has another size than the first is scaled and cut to it, as ComfyUI's own
    nodes do; alpha goes where not all have it, grey becomes RGB."""
    channels = {frame.shape[-1] for frame in frames}
    if channels not in ({3}, {4}):
        frames = [frame[..., :3].expand(-1, -1, 3) for frame in frames]
    height, width = frames[0].shape[:2]
    return torch.stack([_fitted(frame, height, width) for frame in frames])


def _fitted(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of a picture (H, W, C), as much of it as the size can show."""
    if frame.shape[:2] == (height, width):
        return frame
    scale = max(height / frame.shape[0], width / frame.shape[1])
    rows, columns = (
        max(wanted, round(scale * had))
        for wanted, had in zip((height, width), frame.shape, strict=False)
    )
    scaled = functional.interpolate(
        frame.movedim(-1, 0)[None].float(), size=(rows, columns), mode="bilinear", antialias=True
    )[0].movedim(0, -1)
    top, left = (rows - height) // 2, (columns - width) // 2
    return scaled[top : top + height, left : left + width].to(frame.dtype)


def image_of(picture: np.ndarray) -> torch.Tensor:
    """An IMAGE of one picture (H, W, 3) uint8."""
    return torch.from_numpy(floats_of(picture))[None]


def as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
