"""What a picture is made with: watercolor, woodcut, stained glass and so on.

Each takes the picture, (64, 64, 3) float32, 0 to 1, and the `Layers` it was put together from, and
returns the changed picture. Textures repeat every 8 or 16 pixels on a fixed grid.
"""

from __future__ import annotations

import functools

import numpy as np

from .effects_light import (
    SIDE,
    Effect,
    Layers,
    blur,
    luminance,
    rgb,
    saturate,
)

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
_EDGE = np.minimum(np.minimum(_X, SIDE - 1 - _X), np.minimum(_Y, SIDE - 1 - _Y))


def outlines(picture: np.ndarray) -> np.ndarray:
    """(64, 64, 1): about 1 where the colour changes sharply, else 0. Any number of channels."""
    change = np.zeros_like(picture)
    change[1:-1] = np.abs(picture[2:] - picture[:-2])
    across = np.abs(picture[:, 2:] - picture[:, :-2])
    change[:, 1:-1] = np.maximum(change[:, 1:-1], across)
    sharpest = functools.reduce(np.maximum, np.moveaxis(change, 2, 0))
    return np.clip(sharpest * 2.4 - 0.25, 0, 1)[..., None]


def block_means(picture: np.ndarray, side: int) -> np.ndarray:
    """Each block of side x side pixels in its mean colour."""
    num = SIDE // side
    means = picture.reshape(num, side, num, side, 3).mean(axis=(1, 3))
    return means.repeat(side, axis=0).repeat(side, axis=1)


def flatten(picture: np.ndarray, num_tones: int) -> np.ndarray:
    """Few tones of brightness; the hues stay."""
    grey = luminance(picture)
    return picture + (np.floor(grey * num_tones * 0.999) + 0.5) / num_tones - grey


_PAPER = rgb(252, 249, 240)
_WAVES = 2.5 * np.sin(_X / 32 * 2 * np.pi) + 2.5 * np.cos(_Y / 32 * 2 * np.pi)
_WASH = np.clip((_EDGE - 4.5 + _WAVES * 0.7) / 4, 0, 1)[..., None]
_BLOTCHES = (
    0.08 * np.sin((_X + 0.5 * _Y) / 16 * 2 * np.pi) * np.cos((_Y - 0.5 * _X) / 16 * 2 * np.pi)
)[..., None].astype(np.float32)


def _watercolor(picture: np.ndarray, layers: Layers) -> np.ndarray:
    soft = blur(picture, 1.0) * 0.6 + picture * 0.4
    rims = np.clip(soft - blur(picture, 2.0), -0.3, 0.1)
    paint = saturate(soft * 0.72 + 0.25 + rims * 0.8 + _BLOTCHES, 1.15)
    return _PAPER + (paint - _PAPER) * _WASH


# Strokes slant: each pixel takes the colour of the middle of its stroke.
_STROKE_LONG = np.floor((_X + _Y) / 8) * 8 + 4
_STROKE_WIDE = np.floor((_X - _Y) / 4) * 4 + 2
_STROKE_ROWS = np.clip((_STROKE_LONG - _STROKE_WIDE) / 2, 0, SIDE - 1).astype(int)
_STROKE_COLUMNS = np.clip((_STROKE_LONG + _STROKE_WIDE) / 2, 0, SIDE - 1).astype(int)
_RELIEF = (0.13 * np.cos((_X - _Y) / 4 * 2 * np.pi))[..., None].astype(np.float32)


def _oil_painting(picture: np.ndarray, layers: Layers) -> np.ndarray:
    strokes = picture[_STROKE_ROWS, _STROKE_COLUMNS] * 0.45 + picture * 0.55
    rich = saturate(strokes, 1.3) * rgb(255, 240, 214)
    return rich * 0.92 + 0.02 + _RELIEF


_PIXEL_GRID = np.where((_X % 4 == 3) | (_Y % 4 == 3), 0.78, 1.05)[..., None].astype(np.float32)


def _pixel_art(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return flatten(block_means(saturate(picture, 1.25), 4), 6) * _PIXEL_GRID


def _line_art(picture: np.ndarray, layers: Layers) -> np.ndarray:
    lines = np.maximum(outlines(picture), outlines(layers.alpha))
    return (0.84 + 0.14 * saturate(picture, 1.6)) * (1 - 0.92 * lines)


_HATCH = (0.5 + 0.5 * np.cos((_X + _Y) / 4 * 2 * np.pi))[..., None].astype(np.float32)


def _pencil_sketch(picture: np.ndarray, layers: Layers) -> np.ndarray:
    grey = luminance(picture)
    tint = saturate(picture, 1.2) - grey
    shade = (1 - grey) * (0.25 + 0.7 * _HATCH) + outlines(picture) * 0.5
    return rgb(238, 234, 224) - shade * 0.8 + tint * 0.22


def _panes() -> tuple[np.ndarray, np.ndarray]:
    """The number of the pane of each pixel, (64, 64) int, and the lead between panes, (64, 64, 1).
    Panes are the Voronoi cells of points that repeat every 16 pixels."""
    points = [
        (left + x, top + y)
        for top in range(-16, SIDE + 16, 16)
        for left in range(-16, SIDE + 16, 16)
        for x, y in ((2, 3), (11, 1), (5, 11), (14, 10))
    ]
    distances = np.stack([np.hypot(_X - x, _Y - y) for x, y in points])
    nearest = np.sort(distances, axis=0)
    lead = np.clip(1.5 - (nearest[1] - nearest[0]), 0, 1)
    used, panes = np.unique(distances.argmin(axis=0), return_inverse=True)
    return panes.reshape(SIDE, SIDE), lead[..., None].astype(np.float32)


_PANES, _LEAD = _panes()
_PANE_SHARES = np.eye(_PANES.max() + 1, dtype=np.float32)[_PANES.ravel()].T.copy()
_PANE_SHARES /= _PANE_SHARES.sum(axis=1, keepdims=True)


def _stained_glass(picture: np.ndarray, layers: Layers) -> np.ndarray:
    means = (_PANE_SHARES @ picture.reshape(-1, 3))[_PANES]
    glass = saturate(means * 0.6 + picture * 0.4, 1.7) * 1.1 + 0.03
    lead = np.maximum(_LEAD, 0.8 * outlines(layers.alpha))
    return np.clip(glass, 0, 1) * (1 - 0.92 * lead)


def _paper_cutout(picture: np.ndarray, layers: Layers) -> np.ndarray:
    alpha = np.clip(layers.alpha * 2 - 0.5, 0, 1)
    sheets = flatten(blur(picture, 1.0), 4) * 0.72 + 0.2
    shadow = blur(np.roll(alpha, (4, 4), axis=(0, 1)), 1.0)
    grown = np.clip(blur(alpha, 1.5) * 5, 0, 1)
    paper = sheets * (1 - 0.6 * shadow)
    paper = paper + (0.98 - paper) * grown
    return paper + (flatten(picture, 5) - paper) * alpha


_INK = rgb(30, 20, 16)
_WOODCUT_PAPER = rgb(240, 222, 184)
# The cuts lie across in the background and upright in the things.
_CUTS = (0.5 + 0.5 * np.cos((_Y + 1.2 * np.sin(_X / 16 * 2 * np.pi)) / 4 * 2 * np.pi))[..., None]
_CUTS = _CUTS.astype(np.float32)
_UPRIGHT_CUTS = np.ascontiguousarray(_CUTS.transpose(1, 0, 2))


def _woodcut(picture: np.ndarray, layers: Layers) -> np.ndarray:
    cuts = _CUTS + (_UPRIGHT_CUTS - _CUTS) * layers.alpha
    printed = np.clip((luminance(picture) * 1.15 - 0.05 - cuts * 0.75) * 4 + 0.5, 0, 1)
    lines = np.maximum(outlines(picture) * layers.alpha * 0.7, outlines(layers.alpha))
    return _INK + (_WOODCUT_PAPER - _INK) * (printed * (1 - lines))


_DOTS = np.clip(1.9 - np.hypot(_X % 4 - 1.5, _Y % 4 - 1.5), 0, 1)[..., None].astype(np.float32)


def _comic_book(picture: np.ndarray, layers: Layers) -> np.ndarray:
    flat = np.clip(saturate(flatten(picture, 4), 1.7), 0, 1)
    dotted = flat + (1 - flat) * (1 - _DOTS) * 0.45
    lines = np.maximum(outlines(picture), outlines(layers.alpha))
    return dotted * (1 - lines)


MEDIA: dict[str, Effect] = {
    "watercolor": _watercolor,
    "oil painting": _oil_painting,
    "pixel art": _pixel_art,
    "line art": _line_art,
    "pencil sketch": _pencil_sketch,
    "stained glass": _stained_glass,
    "paper cutout": _paper_cutout,
    "woodcut": _woodcut,
    "comic book": _comic_book,
}
