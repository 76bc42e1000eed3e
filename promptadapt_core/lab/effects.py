"""Every modifier of the vocabulary, applied to a drawn scene.

The order of application is fixed by what an effect acts on, not by the order in which the modifiers
are said: light and weather, the layers put together, camera, medium, palette, quality, frame.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from ..settings import SettingsError
from .effects_light import (
    BEFORE,
    CAMERA,
    OVER,
    SIDE,
    Effect,
    Layers,
    blur,
    luminance,
    rgb,
    saturate,
)
from .effects_media import MEDIA, block_means, outlines
from .vocabulary import MODIFIER_BY_NAME

__all__ = ["DRAWN", "Layers", "finish"]

DRAWN = ("close-up", "wide shot")  # drawing.py does these

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
_FROM_CENTRE = np.hypot(_X - 31.5, _Y - 31.5)


def _black_and_white(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return ((luminance(picture) - 0.5) * 1.2 + 0.5).repeat(3, axis=2)


def _sepia(picture: np.ndarray, layers: Layers) -> np.ndarray:
    grey = luminance(picture)
    return rgb(44, 24, 8) + (rgb(255, 226, 172) - rgb(44, 24, 8)) * grey


def _pastel_colors(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return saturate(picture, 1.25) * 0.42 + rgb(148, 136, 148)


def _vibrant_colors(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return (saturate(picture, 2.2) - 0.5) * 1.15 + 0.5


_NEON_SPLIT = (_X / SIDE)[..., None]
_NEON_BASE = rgb(120, 0, 150) + (rgb(0, 60, 170) - rgb(120, 0, 150)) * _NEON_SPLIT
_NEON_LIGHT = rgb(255, 40, 220) + (rgb(0, 255, 240) - rgb(255, 40, 220)) * _NEON_SPLIT


def _neon_colors(picture: np.ndarray, layers: Layers) -> np.ndarray:
    lines = outlines(layers.composite())  # not those of a medium's texture
    dark = np.clip(saturate(picture, 2.2), 0, 1) * (0.2 + 0.5 * layers.alpha)
    dark = dark + _NEON_BASE * 0.4
    light = np.clip(lines + 1.2 * blur(lines, 2.0), 0, 1)
    return dark + (_NEON_LIGHT - dark) * light * (0.9 - 0.5 * layers.alpha)


def _blue_tones(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return rgb(6, 20, 84) + (rgb(206, 236, 255) - rgb(6, 20, 84)) * luminance(picture)


def _muted_colors(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return saturate(picture, 0.32) * 0.6 + rgb(50, 48, 42)


PALETTE: dict[str, Effect] = {
    "pastel colors": _pastel_colors,
    "vibrant colors": _vibrant_colors,
    "muted colors": _muted_colors,
    "neon colors": _neon_colors,
    "black and white": _black_and_white,
    "sepia": _sepia,
    "blue tones": _blue_tones,
}


def _blurry(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return blur(picture, 2.2)


def _low_quality(picture: np.ndarray, layers: Layers) -> np.ndarray:
    blocks = block_means(picture, 8)
    return np.round(blocks * 5) / 5 + (picture - blocks) * 0.4


def _overexposed(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture * 1.22 + 0.22


# White noise once, then the same in every patch of 8 by 8.
_GRAIN_TILE = np.random.default_rng(7).permutation(np.linspace(-1, 1, 64)).reshape(8, 8, 1)
_GRAIN = np.tile(_GRAIN_TILE, (8, 8, 1)).astype(np.float32) * np.float32(0.15)


def _film_grain(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture * 0.9 + 0.05 + _GRAIN


QUALITY: dict[str, Effect] = {
    "blurry": _blurry,
    "low quality": _low_quality,
    "overexposed": _overexposed,
    "film grain": _film_grain,
}

_CORNERS = np.clip(1.15 - np.clip((_FROM_CENTRE - 20) / 18, 0, 1.1), 0.05, 1)[..., None]


def _vignette(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture * _CORNERS


_EDGE = np.minimum(np.minimum(_X, SIDE - 1 - _X), np.minimum(_Y, SIDE - 1 - _Y))[..., None]
_BORDER = (_EDGE < 6).astype(np.float32)
_BORDER_COLOUR = np.where(_EDGE == 5, np.float32(0.45), np.float32(1)) * _BORDER


def _white_border(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture * (1 - _BORDER) + _BORDER_COLOUR


FRAME: dict[str, Effect] = {"vignette": _vignette, "white border": _white_border}


def finish(layers: Layers, modifiers: Sequence[str], generator: random.Random) -> np.ndarray:
    """The finished picture, (64, 64, 3) float32, 0 to 1. `layers` stays as it is.

    modifiers: names of vocabulary.MODIFIERS in any order; those that `drawing` does, and those
    that say nothing, change nothing here. Any other name raises SettingsError.
    generator: gives the same two draws whatever the modifiers are.
    """
    said = set(modifiers)
    unknown = sorted(said - MODIFIER_BY_NAME.keys())
    if unknown:
        raise SettingsError("modifiers", f"{unknown[0]!r} is not in the vocabulary")
    layers = layers.copy()
    layers.drift = (8 * generator.randrange(4), 8 * generator.randrange(4))
    for name, change in BEFORE.items():
        if name in said:
            change(layers)
            np.clip(layers.background, 0, 1, out=layers.background)
            np.clip(layers.things, 0, 1, out=layers.things)
    picture = layers.composite()
    for effects in (OVER, CAMERA, MEDIA, PALETTE, QUALITY, FRAME):
        for name, change_picture in effects.items():
            if name in said:
                picture = np.clip(change_picture(picture, layers), 0, 1)
    return picture.astype(np.float32, copy=False)
