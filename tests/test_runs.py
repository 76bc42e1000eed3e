from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from promptadapt_core import moving, runs
from promptadapt_core.settings import SettingsError

TABLE = {"train/loss": "a loss", "valid/loss": "another"}


def write_version(text: str):
    def write(folder: Path) -> None:
        (folder / "version").write_text(text)

    return write


def version(folder: Path) -> str:
    return (folder / "version").read_text()


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    runs.replace_folder(tmp_path / "best", write_version("1"))
    runs.replace_folder(tmp_path / "best", write_version("2"))
    assert version(tmp_path / "best") == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    runs.replace_folder(tmp_path / "best", write_version("1"))

    def fail(folder: Path) -> None:
        write_version("2")(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        runs.replace_folder(tmp_path / "best", fail)
    assert version(tmp_path / "best") == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"best": "1", "best.new": "half"}, "1"),  # killed while writing
        ({"best.old": "1", "best.new": "2"}, "2"),  # killed between the two renames
        ({"best": "2", "best.old": "1"}, "2"),  # killed before the old one was deleted
        ({"best.old": "1"}, "1"),
    ],
)
def test_a_killed_replacement_is_finished(
    tmp_path: Path, found: dict[str, str], wanted: str
) -> None:
    for name, text in found.items():
        (tmp_path / name).mkdir()
        write_version(text)(tmp_path / name)
    runs.finish_replacing(tmp_path / "best")
    assert version(tmp_path / "best") == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_metrics_are_rows_and_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = runs.Metrics(path, TABLE)
    for step in (10, 20, 30):
        metrics.write(step, {"train/loss": 1 / step})
    with open(path, "a") as file:
        file.write('{"step": 40, "train')
    metrics.keep_until(20)
    metrics.write(30, {"valid/loss": float("nan")})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[2] == {"step": 30, "valid/loss": None}


@pytest.mark.parametrize("line", [b'{"step": null}', b'{"step": "1"}', b"[1]", b"\0\0", b"\xff"])
def test_a_row_that_makes_no_sense_is_dropped(tmp_path: Path, line: bytes) -> None:
    metrics = runs.Metrics(tmp_path / "metrics.jsonl", TABLE)
    metrics.write(1, {"train/loss": 1.0})
    whole = metrics.path.read_bytes()
    metrics.path.write_bytes(line + b"\n" + whole + line)
    metrics.keep_until(1)
    assert metrics.path.read_bytes() == whole


def test_a_metric_needs_a_definition(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="train/other"):
        runs.Metrics(tmp_path / "m", TABLE).write(1, {"train/other": 1.0})


def test_state_is_read_back(tmp_path: Path) -> None:
    folder = runs.RunFolder(str(tmp_path / "a" / "run"), resume=False)
    assert folder.load_state() is None
    assert folder.config("sft") is None
    folder.save_state({"weights": {"w": torch.ones(3)}, "step": 4, "best": float("inf")})
    state = folder.load_state()
    assert state is not None
    assert (state["step"], state["best"]) == (4, float("inf"))
    assert torch.equal(state["weights"]["w"], torch.ones(3))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("short")])
def test_a_full_disk_keeps_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = runs.RunFolder(str(tmp_path), resume=False)
    folder.save_state({"step": 1})

    def save(state: dict, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(runs.torch, "save", save)
    with pytest.raises(SettingsError, match=r"^out: .*state.pt could not be saved"):
        folder.save_state({"step": 2})
    assert folder.load_state() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_broken_state_and_config_are_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"garbage")
    (tmp_path / "config.json").write_text("{")
    folder = runs.RunFolder(str(tmp_path), resume=True)
    with pytest.raises(SettingsError, match=r"^resume: .*state.pt is broken"):
        folder.load_state()
    with pytest.raises(SettingsError, match=r"^resume: .*config.json cannot be read"):
        folder.config("sft")
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(SettingsError, match=r"^resume: .*state.pt is broken: it holds no state"):
        folder.load_state()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "is not a run of the trainer ppo"),
        ('{"trainer": "sft", "settings": {}, "data": {}}', "is not a run of the trainer ppo"),
        ('{"trainer": "ppo", "data": {}}', "config.json lacks the settings"),
        ('{"trainer": "ppo", "settings": {}, "data": 3}', "config.json lacks the settings"),
    ],
)
def test_the_config_of_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=f"^resume: .*{told}"):
        runs.RunFolder(str(tmp_path), resume=True).config("ppo")


def test_run_folders_are_not_overwritten(tmp_path: Path) -> None:
    config = {"trainer": "sft", "settings": {}, "data": {}}
    runs.RunFolder(str(tmp_path), resume=False).write_config(config)
    with pytest.raises(SettingsError, match="^out: .* already holds a run"):
        runs.RunFolder(str(tmp_path), resume=False)
    assert runs.RunFolder(str(tmp_path), resume=True).config("sft") == config


def test_bad_run_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="^out: expected the folder"):
        runs.RunFolder("", resume=False)
    with pytest.raises(SettingsError, match="^out: .* is a file"):
        runs.RunFolder(str(tmp_path / "file"), resume=False)
    with pytest.raises(SettingsError, match="^out: .* cannot be written"):
        runs.RunFolder(str(tmp_path / "file" / "run"), resume=False)
    with pytest.raises(SettingsError, match="^resume: there is no run"):
        runs.RunFolder(str(tmp_path / "none"), resume=True)


def test_progress_off_a_terminal_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = runs.Progress(stream, every_seconds=1000)
    for step in range(1, 101):
        progress.step(step, 100, {"train/loss": 2.0} if step == 50 else {})
    first, last = stream.getvalue().splitlines()
    assert first == "step 1/100 (1%)"
    assert last == "step 100/100 (100%), 0 s left, loss 2.000"


def test_the_time_left_comes_from_the_speed_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed run begins at step 40; ten steps in ten seconds, and fifty are left."""
    clock, stream = iter([100.0, 110.0]), io.StringIO()
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = runs.Progress(stream, every_seconds=0.0)
    progress.step(40, 100, {})
    progress.step(50, 100, {})
    assert stream.getvalue().splitlines()[-1] == "step 50/100 (50%), 50 s left"


def test_progress_on_a_terminal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    progress = runs.Progress(stream)
    progress.step(1, 2, {})
    progress.say("hello")
    progress.step(2, 2, {})
    lines = stream.getvalue().split("\n")
    assert lines[0].endswith("\rhello")
    assert lines[1].startswith("\rstep 2/2 (100%)")
    assert lines[2:] == [""]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert runs.duration(seconds) == text


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write_text(tmp_path / "f", "one\n")

    def refuse(*paths: Path) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="broken"):
        runs.write_text(tmp_path / "f", "two\n")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one\n"]


@pytest.mark.parametrize("windows", [True, False])
def test_a_file_that_a_scanner_has_open_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    replace, refusals = os.replace, iter([None] * 2)

    def refuses(source: Path, target: Path) -> None:
        for _ in refusals:
            raise PermissionError(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuses)
    monkeypatch.setattr(moving, "IS_WINDOWS", windows)
    (tmp_path / "file").write_text("before")
    if windows:
        runs.write_text(tmp_path / "file", "after")
        assert (tmp_path / "file").read_text() == "after"
        runs.replace_folder(tmp_path / "folder", write_version("1"))
        refusals = iter([None] * 2)
        runs.replace_folder(tmp_path / "folder", write_version("2"))
        assert version(tmp_path / "folder") == "2"
    else:  # there it is no matter of time
        with pytest.raises(PermissionError):
            runs.write_text(tmp_path / "file", "after")


def test_a_file_that_stays_open_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", refuses)
    monkeypatch.setattr(moving, "IS_WINDOWS", True)
    monkeypatch.setattr(moving, "MOVE_SECONDS", 0.2)
    with pytest.raises(PermissionError, match="in use"):
        runs.write_text(tmp_path / "file", "after")
    assert not list(tmp_path.iterdir()), "the half file is gone"


def test_the_file_of_another_writer_is_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("f.partial", "f.1.partial", "g.1.partial", "f.txt")]
    for path in others:
        path.write_bytes(b"half")
    runs.write_text(tmp_path / "f", "one\n")
    assert all(path.read_bytes() == b"half" for path in others)
    for path in others:
        os.utime(path, (0, 0))  # so old that its process is dead
    runs.write_text(tmp_path / "f", "two\n")
    assert {path.name for path in tmp_path.iterdir()} == {"f", "g.1.partial", "f.txt"}


def test_two_processes_write_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes(b"one")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            runs.write_text(tmp_path / "f", "two")
        assert partial.read_bytes() == b"one"

    runs.replace_file(tmp_path / "f", write)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one"]


def test_the_sizes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"")
    assert runs.file_sizes(tmp_path) == {"a/b/c": 3, "d": 0}
    with pytest.raises(FileNotFoundError):
        runs.file_sizes(tmp_path / "none")


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="out: "):
        runs.RunFolder("x" * 5000, resume=False)
