"""The folder of one training run: config.json, metrics.jsonl, checkpoints, a resumable state.

Nothing here is ever half written: files and folders are written beside their place, flushed to the
disk and moved there. A process killed at any moment leaves the last good version, and
`finish_replacing` completes a move that was cut off between its two renames.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from .moving import move
from .settings import SettingsError

LEFT_SECONDS = 3600.0  # after which the file of an unfinished replace_file is one of a dead process
CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
STATE_NAME = "state.pt"
# What it raises to load the state of another model, optimizer or version.
FOREIGN_STATE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class Reporter(Protocol):
    """What a host passes to watch a run."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        """After every step; metrics is empty where the step wrote no row."""


class Silent:
    """A Reporter that says nothing."""

    def say(self, text: str) -> None:
        pass

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        pass


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk and move it to `path`. The file
    is this process's own: of several that write at once, one wins whole. What killed processes
    left an hour ago goes."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        _flush(partial)
        move(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f"{glob.escape(path.name)}.*partial"):
        with contextlib.suppress(OSError):  # another process has just removed it
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder beside `folder`, then put it in its place.

    No system replaces a folder that has files by one call: the old one is moved aside first.
    """
    finish_replacing(folder)
    new, old = _beside(folder)
    try:
        new.mkdir(parents=True)
        write(new)
        for path in new.rglob("*"):
            if path.is_file():
                _flush(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        move(folder, old)
    move(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Complete or undo what a killed replace_folder left."""
    new, old = _beside(folder)
    if not folder.exists() and old.exists():
        # `folder` is moved aside only once `new` is whole.
        move(new if new.exists() else old, folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def file_sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below a folder, by its name there with forward slashes; OSError where
    there is no folder."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


class Metrics:
    """metrics.jsonl: one JSON object a line, {"step": n, "group/name": number, ...}, one row per
    step at most. table: every key that may be written, with its definition."""

    def __init__(self, path: Path, table: Mapping[str, str], writer: Any = None):
        self.path = path
        self.table = table
        self.writer = writer  # of TensorBoard, or None

    def keep_until(self, step: int) -> None:
        """Drop the rows after `step` and a row that was cut off: a resumed run writes them anew."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                is_kept = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if is_kept:
                kept.append(line)
        replace_file(self.path, lambda partial: _write_bytes(partial, b"".join(kept)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row and flush it to the disk. A value that is not finite is written as null."""
        unknown = sorted(set(values) - set(self.table))
        assert not unknown, f"metrics without a definition: {unknown}"
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **row}, allow_nan=False) + "\n"
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        for name, value in values.items():
            if self.writer is not None and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def tensorboard_writer(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer for the folder, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, UTF-8 with plain newlines."""
    replace_file(path, lambda partial: _write_bytes(partial, text.encode("utf-8")))


def _write_bytes(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


class RunFolder:
    """A run folder that is open for one trainer."""

    def __init__(self, out: str, resume: bool):
        """Open or make the folder. SettingsError("out", ...) when it holds a run and `resume` is
        off, when there is no folder to resume, or when it cannot be written."""
        if not out:
            raise SettingsError("out", "expected the folder of the run")
        self.path = Path(out)
        try:
            self.path.exists()
        except OSError as error:  # such as a name that is too long
            raise SettingsError("out", f"no folder can have this name ({error.strerror})") from None
        if self.path.exists() and not self.path.is_dir():
            raise SettingsError("out", f"{out} is a file, expected a folder")
        if resume and not self.path.is_dir():
            raise SettingsError("resume", f"there is no run in {out}")
        holds_run = any((self.path / name).exists() for name in (CONFIG_NAME, STATE_NAME))
        if holds_run and not resume:
            raise SettingsError(
                "out", f"{out} already holds a run; go on with it by --resume or choose another"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / ".writable", "")
            (self.path / ".writable").unlink(missing_ok=True)  # another process may be at it too
        except OSError as error:
            raise SettingsError("out", f"{out} cannot be written ({error.strerror})") from None

    def finish_replacing(self, *names: str) -> None:
        """Complete or undo what a killed process left: moves of these folders, and half files. Only
        for a folder that no other process writes to."""
        for name in names:
            finish_replacing(self.path / name)
        for left in self.path.rglob("*.partial"):
            with contextlib.suppress(OSError):
                left.unlink()

    def config(self, trainer: str) -> dict[str, Any] | None:
        """config.json, or None in a new run. SettingsError("resume", ...) where it is broken or
        not of this trainer."""
        path = self.path / CONFIG_NAME
        if not path.exists():
            return None
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingsError("resume", f"{path} cannot be read: {error}") from None
        if not isinstance(config, dict) or config.get("trainer") != trainer:
            raise SettingsError("resume", f"{self.path} is not a run of the trainer {trainer}")
        if not all(isinstance(config.get(part), dict) for part in ("settings", "data")):
            raise SettingsError("resume", f"{path} lacks the settings or the data of the run")
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        self._saving("config.json", lambda: write_text(self.path / CONFIG_NAME, text))

    def save_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Replace a checkpoint folder whole; SettingsError("out", ...) when the disk refuses."""
        self._saving(name, lambda: replace_folder(self.path / name, write))

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the resumable state: tensors, numbers, texts, lists and dicts of those."""

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                torch.save(dict(state), file)

        self._saving(STATE_NAME, lambda: replace_file(self.path / STATE_NAME, write))

    def load_state(self) -> dict[str, Any] | None:
        """The resumable state on the CPU; None when the run saved none yet."""
        path = self.path / STATE_NAME
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign or broken file can raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SettingsError("resume", f"{path} is broken: {reason}") from None
        if not isinstance(state, dict):
            raise SettingsError("resume", f"{path} is broken: it holds no state of a run")
        return state

    def restore(self, wanted_format: int, put: Callable[[dict[str, Any]], None]) -> None:
        """Let `put` take what it needs of the resumable state, where there is one. SettingsError
        ("resume", ...) for a state of another format, model or optimizer."""
        state = self.load_state()
        if state is None:
            return
        if state.get("format") != wanted_format:
            raise SettingsError("resume", "the saved state is of another version of promptadapt")
        try:
            put(state)
        except FOREIGN_STATE as error:
            raise self.foreign_state(error) from None

    def foreign_state(self, error: Exception) -> SettingsError:
        """What to raise for one of FOREIGN_STATE."""
        if isinstance(error, SettingsError):
            return error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return SettingsError("resume", f"{self.path / STATE_NAME} is not of this run: {reason}")

    def _saving(self, name: str, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch and safetensors wrap what the disk says
            raise _unsaved(self.path / name, error) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] != "safetensors":
                raise
            raise _unsaved(self.path / name, error) from None


def _unsaved(path: Path, error: Exception) -> SettingsError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return SettingsError(
        "out", f"{path} could not be saved ({reason}); what was saved before is whole"
    )


class Progress:
    """A Reporter on a stream: one line that is rewritten on a terminal, else one every
    `every_seconds`. The time left comes from the speed since this process began."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = 30.0):
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_seconds = 0.2 if self.terminal else every_seconds
        self.first: tuple[int, float] | None = None
        self.last_shown = -math.inf
        self.width = 0
        self.metrics: dict[str, float] = {}

    def say(self, text: str) -> None:
        if self.terminal and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0
        self.stream.write(text + "\n")
        self.stream.flush()

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.metrics.update(metrics)
        if self.first is None:
            self.first = (step, now)
        if now - self.last_shown < self.every_seconds and step < num_steps:
            return
        self.last_shown = now
        first_step, first_time = self.first
        left = ""
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (num_steps - step)
            left = f", {duration(seconds)} left"
        line = f"step {step}/{num_steps} ({step / num_steps:.0%}){left}{self._figures()}"
        if not self.terminal:
            self.say(line)
            return
        line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
        self.stream.write("\r" + line.ljust(self.width))
        self.stream.flush()
        self.width = len(line)
        if step >= num_steps:
            self.stream.write("\n")
            self.width = 0

    def _figures(self) -> str:
        shown = {"train/loss": "loss {:.3f}", "valid/loss": "valid {:.3f}",
                 "train/tokens_per_second": "{:,.0f} tokens/s",
                 "rollout/reward": "reward {:.3f}", "kl/ref_kl": "KL {:.2f}"}  # fmt: skip
        parts = [text.format(self.metrics[n]) for n, text in shown.items() if n in self.metrics]
        return "".join(f", {part}" for part in parts)


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
