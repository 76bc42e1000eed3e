"""Pictures as hosts hold them, float (N, H, W, C) in 0..1, and as the core does, uint8 RGB."""

from __future__ import annotations

import numpy as np

from .settings import SettingsError


def pixels_of(images: np.ndarray, name: str = "images") -> np.ndarray:
    """(N, H, W, 3) uint8 of pictures (N, H, W, C), C 1 (grey), 3 (RGB) or 4 (RGBA, whose alpha is
    dropped). Beyond 0..1 is cut off. SettingsError(name, ...) for other shapes and for NaN."""
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape:
        shape = tuple(images.shape)
        raise SettingsError(
            name, f"expected pictures of (number, height, width, 1, 3 or 4), got {shape}"
        )
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        first = int(np.argmin(finite)) + 1
        raise SettingsError(
            name,
            f"picture {first} of {len(images)} holds values that are not numbers (NaN): its "
            "rendering failed",
        )
    images = images[..., :3] if images.shape[3] != 1 else images.repeat(3, axis=3)
    return np.rint(images.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def floats_of(pixels: np.ndarray) -> np.ndarray:
    """float32 in 0..1 of pictures in uint8; any shape."""
    return pixels.astype(np.float32) / 255.0
