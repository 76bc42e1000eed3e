"""Sheets of labelled pictures, for people to look at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, BLOCK_GAP = 6, 18
LINE = 12  # pixels of one line of the default font
PAPER, INK, GREY = (255, 255, 255), (30, 30, 30), (120, 120, 120)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of a sheet. pixels (height, width, 3) uint8, or None for an empty place;
    label: written below it."""

    pixels: np.ndarray | None
    label: str = ""


def sheet(
    rows: Sequence[Sequence[Cell]],
    *,
    scale: int = 3,
    heads: Sequence[str] = (),
    names: Sequence[str] = (),
    block: int = 0,
) -> Image.Image:
    """The rows of cells as one picture.

    scale: how many times the cells are enlarged. heads: over the columns. names: before the rows.
    block: so many columns stand together, with a wider gap after them; 0 spaces all alike. All
    cells are as large as the largest.
    """
    sizes = [cell.pixels.shape for row in rows for cell in row if cell.pixels is not None]
    height = max((size[0] for size in sizes), default=1) * scale
    width = max((size[1] for size in sizes), default=1) * scale
    columns = max((len(row) for row in rows), default=0)
    labels = [[_lines(cell.label, width) for cell in row] for row in rows]
    below = [LINE * max((len(lines) for lines in row), default=0) for row in labels]
    left = max((_width(name) for name in names), default=0) + (GAP if names else 0)
    top = GAP + (LINE + 2 if heads else 0)
    tops = [top + sum(height + space + GAP for space in below[:row]) for row in range(len(rows))]
    lefts = [
        GAP + left + column * (width + GAP) + (column // block * BLOCK_GAP if block else 0)
        for column in range(columns)
    ]
    total = (
        (lefts[-1] if lefts else left) + width + GAP,
        top + sum(height + space + GAP for space in below),
    )
    paper = Image.new("RGB", total, PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default()
    for column, head in enumerate(heads):
        draw.text((lefts[column], GAP - 2), _lines(head, width, most=1)[0], GREY, font)
    for row, cells in enumerate(rows):
        if row < len(names):
            draw.text((GAP, tops[row] + height // 2 - LINE // 2), _plain(names[row]), INK, font)
        for column, cell in enumerate(cells):
            place = (lefts[column], tops[row])
            if cell.pixels is not None:
                paper.paste(enlarged(cell.pixels, scale), place)
            for number, line in enumerate(labels[row][column]):
                draw.text((place[0], place[1] + height + number * LINE), line, INK, font)
    return paper


def folded(cells: Sequence[Cell], columns: int) -> list[list[Cell]]:
    """A list of cells as rows of `columns`."""
    return [list(cells[start : start + columns]) for start in range(0, len(cells), columns)]


def enlarged(pixels: np.ndarray, scale: int) -> Image.Image:
    """A picture (height, width, 3) uint8, `scale` times as large and smooth."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if scale == 1:
        return picture
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _plain(text: str) -> str:
    """What the default font can write."""
    return text.encode("ascii", "replace").decode("ascii")


def _width(text: str) -> int:
    return math.ceil(ImageFont.load_default().getlength(_plain(text)))


def _lines(text: str, width: int, most: int = 4) -> list[str]:
    """The text broken into lines that fit; what would be a line too many ends in dots."""
    lines: list[str] = []
    for word in _plain(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] += "..."
    for number, line in enumerate(lines):
        while _width(line) > width and len(line) > 4:
            line = line.removesuffix("...")[:-1] + "..."
        lines[number] = line
    return lines or ([""] if most == 1 else [])
