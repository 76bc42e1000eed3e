"""The demo's picture: before and after of every text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..lab.grids import Cell, sheet
from .comparing import Comparison, Shown
from .parts import value

MOST_IN_A_ROW = 4
GAP = 2  # pixels of the renderer between pictures
PAPER = 255


def before_and_after(comparisons: Sequence[Comparison], heads: Sequence[str]) -> Image.Image:
    """A row for each user input, a block of pictures for each wording, with its text and scores
    below. heads: over the blocks."""
    rows = [
        [Cell(mosaic(item.pictures), _label(item)) for item in comparison.shown]
        for comparison in comparisons
    ]
    return sheet(rows, scale=2, heads=heads, block=1)


def _label(item: Shown) -> str:
    scores = f"(aesthetic {value(item.scores['aesthetic'])}, taste {value(item.scores['taste'])})"
    return f"{item.wording.text} {scores}"


def mosaic(pictures: np.ndarray, columns: int = MOST_IN_A_ROW) -> np.ndarray:
    """Pictures (S, H, W, 3) uint8 as one, at most `columns` side by side."""
    number, height, width, _ = pictures.shape
    columns = min(columns, number)
    rows = -(-number // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    paper = np.full(size, PAPER, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        paper[top : top + height, left : left + width] = picture
    return paper
