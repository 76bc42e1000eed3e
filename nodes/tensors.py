"""ComfyUI's IMAGE, a float tensor (N, H, W, C) in 0..1, and the core's uint8 arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..promptadapt_core.pixels import floats_of, pixels_of
from ..promptadapt_core.settings import SettingsError


def pictures_of(batches: Sequence[Any], name: str) -> tuple[list[np.ndarray], list[int]]:
    """(every picture (H, W, 3) uint8, how many each batch holds) of a list of IMAGEs."""
    pictures, counts = [], []
    for batch in batches:
        pixels = pixels_of(batch.detach().float().cpu().numpy(), name)
        pictures += list(pixels)
        counts.append(len(pixels))
    return pictures, counts


def image_of(pictures: Sequence[np.ndarray], name: str = "images") -> torch.Tensor:
    """One IMAGE of pictures of one size."""
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for height, width in sizes[:3])
        raise SettingsError(name, f"expected pictures of one size, got {told}")
    return torch.from_numpy(floats_of(np.stack(pictures)))


def as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
