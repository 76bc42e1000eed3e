from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("PIL")

from promptadapt_core import contact_sheet as sheets  # noqa: E402
from promptadapt_core.contact_sheet import Cell, contact_sheet  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

RED, BLUE = (220, 10, 10), (10, 10, 220)


def filled(colour: tuple[int, int, int], height: int = 200, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def corner(number: int) -> int:
    """Where the square of the picture in this row or column begins, without text between."""
    return sheets.GAP + number * (200 + 2 * sheets.FRAME + sheets.GAP) + sheets.FRAME


def test_pictures_lie_row_by_row_in_their_own_pixels() -> None:
    sheet = contact_sheet([Cell(filled(RED)), Cell(filled(BLUE)), Cell(filled(RED))], 2)
    side = 200 + 2 * sheets.FRAME + sheets.GAP
    assert sheet.shape == (2 * side + sheets.GAP, 2 * side + sheets.GAP, 3)
    assert sheet.dtype == np.uint8
    for number, colour in enumerate((RED, BLUE, RED)):
        row, column = divmod(number, 2)
        y, x = corner(row), corner(column)
        assert (sheet[y : y + 200, x : x + 200] == colour).all()
    assert (sheet[corner(1) : corner(1) + 200, corner(1) :] == sheets.PAPER).all()


def test_the_best_has_a_frame() -> None:
    plain = contact_sheet([Cell(filled(RED))])
    framed = contact_sheet([Cell(filled(RED), best=True)])
    place = (corner(0) - 1, corner(0) - 1)
    assert tuple(plain[place]) == sheets.PAPER
    assert tuple(framed[place]) == sheets.BEST
    inside = slice(corner(0), corner(0) + 200)
    assert (framed[inside, inside] == RED).all()


def test_small_pictures_grow_and_large_ones_shrink() -> None:
    one = contact_sheet([Cell(filled(RED, 1, 1))])
    assert one.shape[1] == sheets.SMALLEST_CELL + 2 * sheets.FRAME + 2 * sheets.GAP
    wide = contact_sheet([Cell(filled(RED, 40, 4000))])
    assert wide.shape[1] == sheets.LARGEST_CELL + 2 * sheets.FRAME + 2 * sheets.GAP
    rows = (wide == RED).all(axis=2).any(axis=1).sum()
    assert rows == 5  # 512 * 40 / 4000


def test_scores_and_text_are_written_below() -> None:
    bare = contact_sheet([Cell(filled(RED))])
    told = contact_sheet([Cell(filled(RED), ("reward 1.25", "aesthetic 5.00"), "a red house")])
    assert told.shape[0] - bare.shape[0] == 3 * sheets.LINE
    below = told[corner(0) + 200 + sheets.FRAME :]
    for number in range(3):
        line = below[number * sheets.LINE : (number + 1) * sheets.LINE]
        assert (line < 150).any(), f"line {number} is empty"


def test_text_is_broken_at_words_and_cut_at_the_end() -> None:
    cell = Cell(filled(RED), text=" ".join(f"word{i}" for i in range(100)))
    lines = sheets._lines(cell, 200)
    assert len(lines) == sheets.MOST_TEXT_LINES
    assert lines[0][0].startswith("word0 word1")
    assert lines[-1][0].endswith("...")
    font = sheets.text_font()
    assert all(font.getlength(line) <= 200 for line, _ in lines)
    long_word = sheets._lines(Cell(filled(RED), text="x" * 500), 200)
    assert long_word[0][0].endswith("x...")


def test_a_text_of_any_length_takes_no_time() -> None:
    started = time.process_time()
    contact_sheet([Cell(filled(RED), ("y" * 400_000,), "x" * 400_000)] * 16)
    assert time.process_time() - started < 5.0


def test_many_columns_make_no_giant() -> None:
    cells = [Cell(filled(RED, 600, 6))] * 40
    assert contact_sheet(cells[:8], 8).shape[1] == sheets.WIDEST + sheets.GAP
    for columns in (9, 20, 40):
        height, width, _ = contact_sheet(cells[:columns], columns).shape
        assert 0.9 * sheets.WIDEST < width <= sheets.WIDEST + sheets.GAP
        assert height < width / columns + 2 * sheets.GAP


def test_what_the_font_lacks_becomes_a_question_mark() -> None:
    assert sheets._plain("Café 猫 ½") == "Cafe ? 1?2"
    contact_sheet([Cell(filled(RED), ("奖励",), "\U0001f600 \x00 \n")])


def test_sixty_four_make_a_square_and_none_is_refused() -> None:
    sheet = contact_sheet([Cell(filled(RED, 8, 8))] * 64)
    assert sheet.shape[0] == sheet.shape[1]
    with pytest.raises(SettingsError, match="one or more"):
        contact_sheet([])
