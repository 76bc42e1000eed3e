"""Pictures drawn to a folder: cut off, gone on with, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")
pytest.importorskip("torch")  # the run folder's module

from promptadapt_core.lab import dataset, row_file  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


def read_pictures(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, labels)."""
    pixels, labels = (
        row_file.read_rows(folder / name) for name in (dataset.PICTURES_NAME, dataset.LABELS_NAME)
    )
    return pixels, labels


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CHUNK", 4)


def test_a_stopped_drawing_goes_on(tmp_path: Path) -> None:
    asked = iter([False, True, False, False])
    folder = tmp_path / "cut"
    assert dataset.write_pictures(folder, 14, 3, should_stop=lambda: next(asked)) == "stopped"
    assert dataset.write_pictures(folder, 14, 3, should_stop=lambda: False) == "done"
    assert dataset.write_pictures(tmp_path / "whole", 14, 3) == "done"
    for cut, whole in zip(read_pictures(folder), read_pictures(tmp_path / "whole"), strict=True):
        assert len(cut) == 14
        assert np.array_equal(cut, whole)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    dataset.write_pictures(tmp_path / "a", 5, 3)
    dataset.write_pictures(tmp_path / "b", 9, 3)
    small, large = (read_pictures(tmp_path / name)[0] for name in "ab")
    assert np.array_equal(small, large[:5])
    assert dataset.read_scenes(3, 5) == dataset.read_scenes(3, 9)[:5]


def test_scenes_belong_to_their_pictures(tmp_path: Path) -> None:
    dataset.write_pictures(tmp_path, 3, 7)
    pixels, labels = read_pictures(tmp_path)
    for number in range(3):
        picture = dataset.numbered_picture(7, number)
        assert np.array_equal(pixels[number], picture.pixels)
        assert np.array_equal(labels[number], picture.labels)
    assert dataset.numbered_scene(7, 0) != dataset.numbered_scene(8, 0)


def test_another_seed_or_number_is_refused(tmp_path: Path) -> None:
    dataset.write_pictures(tmp_path, 4, 1)
    for number, seed in ((4, 2), (5, 1)):
        with pytest.raises(SettingsError, match="another seed or number"):
            dataset.write_pictures(tmp_path, number, seed)


@pytest.mark.parametrize("name", [dataset.PICTURES_NAME, dataset.LABELS_NAME])
@pytest.mark.parametrize("size", [0, 11, 128, -1])
def test_pictures_that_were_cut_off_are_drawn_anew(tmp_path: Path, name: str, size: int) -> None:
    dataset.write_pictures(tmp_path, 6, 1)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:size])
    with pytest.raises(SettingsError, match="cannot be read"):
        read_pictures(tmp_path)
    assert dataset.write_pictures(tmp_path, 6, 1) == "done"
    assert (tmp_path / name).read_bytes() == whole


def test_pictures_of_another_world_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.write_pictures(tmp_path, 6, 1, should_stop=lambda: True)
    monkeypatch.setattr(dataset, "world_fingerprint", lambda: "another")
    with pytest.raises(SettingsError, match="pictures of another version of the lab's world"):
        dataset.write_pictures(tmp_path, 6, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("NEARLY", 0.5), ("RANDOM_SHARE", 0.2), ("CROWDED", ((1, 0.5), (2, 0.5)))]
)
def test_the_fingerprint_follows_the_world(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    measure = dataset.world_fingerprint.__wrapped__  # without its memory
    before = measure()
    assert before == measure() == dataset.world_fingerprint()
    monkeypatch.setattr(dataset, name, value)
    assert measure() != before


@pytest.mark.parametrize("part", ["rating", "describe", "modifier_values"])
def test_the_fingerprint_follows_taste_and_words(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before, own = dataset.world_fingerprint(), getattr(dataset, part)
    monkeypatch.setattr(dataset, part, lambda *given: own(*given) * 2)
    assert dataset.world_fingerprint.__wrapped__() != before


def test_a_full_disk_is_one_sentence_and_drawing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_until_full(path: Path, start: int, rows: np.ndarray, number: int) -> None:
        if start >= 4:
            raise OSError(28, "No space left on device")
        row_file.write_rows(path, start, rows, number)

    with monkeypatch.context() as full:
        full.setattr(dataset, "write_rows", write_until_full)
        with pytest.raises(SettingsError, match="No space left"):
            dataset.write_pictures(tmp_path, 10, 1)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_pictures(tmp_path)
    assert dataset.write_pictures(tmp_path, 10, 1) == "done"
    pixels, labels = read_pictures(tmp_path)
    assert all((pixels[n] == dataset.numbered_picture(1, n).pixels).all() for n in range(10))
    assert labels.shape == (10, 8, 8)


@pytest.mark.parametrize("name", [dataset.PICTURES_NAME, dataset.LABELS_NAME])
def test_what_was_lost_is_drawn_anew(tmp_path: Path, name: str) -> None:
    dataset.write_pictures(tmp_path, 10, 1, should_stop=lambda: True)
    (tmp_path / name).unlink()
    assert dataset.write_pictures(tmp_path, 10, 1) == "done"
    pixels, labels = read_pictures(tmp_path)
    picture = dataset.numbered_picture(1, 0)
    assert (pixels[0] == picture.pixels).all()
    assert (labels[0] == picture.labels).all()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(SettingsError, match="could not be written"):
        dataset.write_pictures(tmp_path / "file" / "folder", 4, 1)
