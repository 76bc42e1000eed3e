"""Pictures side by side with what is said of each: one picture to look at."""

from __future__ import annotations

import bisect
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .settings import SettingsError

GAP, FRAME = 12, 4  # pixels between cells; of the line around the best picture
TEXT_SIZE, LINE = 14, 18  # of the font, and from one line to the next
MOST_TEXT_LINES = 5
SMALLEST_CELL, LARGEST_CELL = 192, 512  # longer side of a picture on the sheet, in pixels
WIDEST = 8 * (LARGEST_CELL + 2 * FRAME + GAP)  # of more columns each is narrower
PAPER, INK, GREY, BEST = (250, 250, 250), (25, 25, 25), (105, 105, 105), (24, 122, 62)


@dataclass(frozen=True)
class Cell:
    """picture: (H, W, 3) uint8. heads: lines written below it as they are, such as its scores.
    text: below them, broken into lines. best: framed."""

    picture: np.ndarray
    heads: tuple[str, ...] = ()
    text: str = ""
    best: bool = False


def contact_sheet(cells: Sequence[Cell], num_columns: int = 0) -> np.ndarray:
    """The cells row by row as one picture (H, W, 3) uint8.

    All pictures lie in equal squares, small ones enlarged. num_columns: 0 takes about as many
    columns as rows.
    """
    if not cells:
        raise SettingsError("images", "expected one or more pictures, got none")
    columns = num_columns or math.ceil(math.sqrt(len(cells)))
    columns = min(columns, len(cells))
    side = max(max(cell.picture.shape[:2]) for cell in cells)
    side = min(max(side, SMALLEST_CELL), LARGEST_CELL, WIDEST // columns - 2 * FRAME - GAP)
    side = max(side, 1)
    width = side + 2 * FRAME
    lines = [_lines(cell, width) for cell in cells]
    rows = [
        range(start, min(start + columns, len(cells))) for start in range(0, len(cells), columns)
    ]
    heights = [width + LINE * max(len(lines[i]) for i in row) + GAP for row in rows]
    paper = Image.new("RGB", (columns * (width + GAP) + GAP, sum(heights) + GAP), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            _draw(paper, cells[i], lines[i], (GAP + column * (width + GAP), top), side)
        top += height
    return np.asarray(paper).copy()


def _draw(
    paper: Image.Image,
    cell: Cell,
    lines: list[tuple[str, bool]],
    place: tuple[int, int],
    side: int,
) -> None:
    draw, font = ImageDraw.Draw(paper), text_font()
    left, top = place
    picture = _fitted(cell.picture, side)
    x = left + FRAME + (side - picture.width) // 2
    y = top + FRAME + (side - picture.height) // 2
    if cell.best:
        corner = (x + picture.width + FRAME - 1, y + picture.height + FRAME - 1)
        draw.rectangle(((x - FRAME, y - FRAME), corner), fill=BEST)
    paper.paste(picture, (x, y))
    top += side + 2 * FRAME
    for number, (line, is_head) in enumerate(lines):
        ink = GREY if not is_head else BEST if cell.best else INK
        draw.text((left, top + number * LINE), line, ink, font)


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
    """The picture as large as fits into a square."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture if size == picture.size else picture.resize(size, Image.LANCZOS)


def text_font() -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(TEXT_SIZE)
    except (TypeError, ImportError, OSError):  # Pillow before 10.1, or built without FreeType
        return ImageFont.load_default()


def _lines(cell: Cell, width: int) -> list[tuple[str, bool]]:
    """(line, whether it is of the heads). What does not fit ends in dots: no letter is narrower
    than a pixel, so that more than `width` of them never fit into a line."""
    font = text_font()
    lines = [(_cut(_plain(head[: 2 * width]), width, font), True) for head in cell.heads]
    words = _plain(cell.text[: (MOST_TEXT_LINES + 1) * width]).split()
    texts: list[str] = []
    while words and len(texts) < MOST_TEXT_LINES:
        number = 1
        while number < len(words) and font.getlength(" ".join(words[: number + 1])) <= width:
            number += 1
        texts.append(_cut(" ".join(words[:number]), width, font))
        words = words[number:]
    if words:
        texts[-1] = _cut(texts[-1] + " ...", width, font)
    return lines + [(text, False) for text in texts]


def _cut(line: str, width: int, font: ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("...")
    fitting = bisect.bisect_right(
        range(len(line)), width, key=lambda end: font.getlength(line[:end] + "...")
    )
    return line[: max(fitting - 1, 0)].rstrip() + "..."


def _plain(text: str) -> str:
    """What the font that Pillow brings can write; accents go, other scripts become "?"."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(
        letter if letter.isascii() else "?"
        for letter in decomposed
        if not unicodedata.combining(letter)
    )
