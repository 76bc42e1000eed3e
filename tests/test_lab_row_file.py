from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from promptadapt_core.lab import row_file
from promptadapt_core.lab.row_file import fill, num_filled, read_rows
from promptadapt_core.settings import SettingsError

ORIGIN = {"seed": 3}


def squares(start: int, end: int) -> np.ndarray:
    return np.stack([np.arange(start, end, dtype=np.int32) ** 2, np.arange(start, end)], axis=1)


def test_rows_come_back_as_numpy_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.npy"
    assert fill(path, 10, squares, ORIGIN, chunk=4) == "done"
    assert (read_rows(path) == squares(0, 10)).all()
    assert (read_rows(path, mapped=True) == squares(0, 10)).all()


def test_a_stopped_file_goes_on_and_a_whole_one_is_left_alone(tmp_path: Path) -> None:
    path, made = tmp_path / "rows.npy", []

    def make(start: int, end: int) -> np.ndarray:
        made.append(start)
        return squares(start, end)

    assert fill(path, 10, make, ORIGIN, chunk=4, should_stop=lambda: True) == "stopped"
    assert num_filled(path, 10, ORIGIN) == 4
    with pytest.raises(SettingsError, match=r"rows\.npy cannot be read"):
        read_rows(path)
    assert fill(path, 10, make, ORIGIN, chunk=4) == "done"
    assert fill(path, 10, make, ORIGIN, chunk=4) == "done"
    assert made == [0, 4, 8]
    assert (read_rows(path) == squares(0, 10)).all()


def test_half_a_row_of_a_killed_process_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    fill(path, 10, squares, ORIGIN, chunk=4, should_stop=lambda: True)
    with open(path, "ab") as file:
        file.write(b"half a row and more than one row")
    fill(path, 10, squares, ORIGIN, chunk=4)
    assert (read_rows(path) == squares(0, 10)).all()


def test_rows_of_another_origin_or_number_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    fill(path, 10, squares, ORIGIN)
    assert num_filled(path, 10, {"seed": 4}) == 0
    assert num_filled(path, 11, ORIGIN) == 0
    fill(path, 6, lambda start, end: squares(start, end) + 1, {"seed": 4})
    assert (read_rows(path) == squares(0, 6) + 1).all()


def test_a_note_without_its_file_counts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    fill(path, 10, squares, ORIGIN)
    path.unlink()
    assert num_filled(path, 10, ORIGIN) == 0
    (tmp_path / "rows.json").write_text(json.dumps({"origin": ORIGIN}), encoding="utf-8")
    assert num_filled(path, 10, ORIGIN) == 0


@pytest.mark.parametrize("size", [0, 7, 100, 128, 136, -1])
@pytest.mark.parametrize("stopped", [True, False])
def test_rows_that_were_cut_off_are_made_anew(tmp_path: Path, size: int, stopped: bool) -> None:
    path = tmp_path / "rows.npy"
    fill(path, 10, squares, ORIGIN, chunk=4, should_stop=lambda: stopped)
    path.write_bytes(path.read_bytes()[:size])
    assert num_filled(path, 10, ORIGIN) == 0
    assert fill(path, 10, squares, ORIGIN, chunk=4) == "done"
    assert (read_rows(path) == squares(0, 10)).all()


def test_a_file_holds_what_its_header_and_its_size_say(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    row_file.write_rows(path, 0, squares(0, 3), 10)  # 3 rows of 2 * 8 bytes behind a header
    assert path.stat().st_size == 128 + 48
    assert row_file.holds(path, 3, 10)
    assert not row_file.holds(path, 4, 10)
    assert not row_file.holds(path, 3, 11)
    assert not row_file.holds(tmp_path / "none.npy", 0, 10)
    path.write_bytes(b"x" * 1000)
    assert not row_file.holds(path, 0, 10)


def test_a_full_disk_leaves_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "rows.npy", row_file.write_rows

    def full(path: Path, start: int, *rest: object) -> None:
        if start >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(row_file, "write_rows", full)
    with pytest.raises(SettingsError, match=r"No space left on device.*is whole") as caught:
        fill(path, 10, squares, ORIGIN, chunk=4)
    assert caught.value.name == "out"
    monkeypatch.undo()
    assert num_filled(path, 10, ORIGIN) == 4
    assert fill(path, 10, squares, ORIGIN, chunk=4) == "done"
    assert (read_rows(path) == squares(0, 10)).all()
