"""Builds the lab from nothing: pictures, autoencoder, renderer, CLIP, aesthetic head and judge.

    python -m promptadapt_core.lab build --out builds/lab

Every work is a folder of `--out` and goes on where it was stopped or killed; a finished part is
skipped. On one machine's CPU the same settings and number of threads give the same weights, bit
for bit, stopped in between or not; more or fewer threads add numbers up in another order. Several
processes may build different parts of one folder: each work is locked by the one that does it, and
who needs the same pictures or ratings waits for them. At the end `weights/` holds the files that
this package bundles, for `--weights` (see bundle.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

from .. import runs
from ..devices import pick_device
from ..settings import SettingsError, flag
from .bundle import is_bundled, write_bundle
from .dataset import OTHER_WORLD, world_fingerprint
from .progress import Work
from .settings import PARTS, LabSettings
from .stages import WEIGHTS_NAME, is_finished
from .works import Works

CONFIG_NAME = "build.json"
FREE = ("out", "device", "part", "save_every_seconds", "num_threads")  # may differ on going on
NEEDS = {"vae": (), "renderer": ("vae",), "clip": (), "aesthetic": ("clip",), "judge": ()}
WORKS = {  # what each part takes, in order; the last one is a stage that ends it
    "vae": ("pictures", "vae", "vae-decoder", "vae-encoder"),
    "renderer": ("pictures", "latents", "renderer"),
    "clip": ("pictures", "ratings", "clip"),
    "aesthetic": ("pictures", "ratings", "embeddings", "aesthetic"),
    "judge": ("judge-pictures", "judge"),
}
SHARED = ("pictures", "ratings")  # works of several parts
LOCK_SECONDS = 0.5  # between two looks at what another process has locked
# Seconds per picture or step at the default sizes on one core; only proportions matter.
SECONDS = {
    "pictures": 0.008, "vae": 0.19, "vae-decoder": 0.2, "vae-encoder": 0.1, "latents": 0.001,
    "renderer": 0.8, "ratings": 0.0008, "clip": 0.3, "embeddings": 0.002, "aesthetic": 0.003,
    "judge-pictures": 0.008, "judge": 0.23,
}  # fmt: skip


def build(
    settings: LabSettings,
    *,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> str | None:
    """Build what the settings ask for and is not there yet; the folder is settings.out.

    report: gets lines and every step; one with `plan` and `begin` (see progress.py) also learns
    what is to come. should_stop: asked after every step. Returns the name of the work in which it
    stopped, with everything saved, or None at the end. Raises SettingsError for bad input, for
    parts that settings.part needs and are missing, and for a disk that refuses.
    """
    device, report = pick_device(settings.device), report or runs.Silent()
    should_stop = should_stop or (lambda: False)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    path = open_folder(settings)
    wanted = PARTS if settings.part == "all" else (settings.part,)
    _check_needs(settings, path, wanted)
    works = planned(
        settings, [part for part in wanted if not part_is_finished(settings, path, part)]
    )
    if hasattr(report, "plan"):
        report.plan(works)
    doing = Works(settings, path, device, report, should_stop)
    for work in works:
        if hasattr(report, "begin"):
            report.begin(work.name)
        patience = should_stop if work.name in SHARED else None
        with alone(path, work.name, patience, report) as mine:
            if not mine or doing.do(work.name) == "stopped":
                return work.name
    missing = [part for part in PARTS if not part_is_finished(settings, path, part)]
    if missing:
        report.say(f"still to build: {', '.join(missing)}")
    else:
        with alone(path, WEIGHTS_NAME, should_stop, report) as mine:
            if not mine:
                return WEIGHTS_NAME
            finish(settings, path, device, report)
    return None


@contextlib.contextmanager
def alone(
    path: Path,
    name: str,
    should_stop: Callable[[], bool] | None = None,
    report: runs.Reporter | None = None,
) -> Iterator[bool]:
    """Holds the lock of this work of the build in `path`, which goes with its process, however that
    ends.

    While another process has it: SettingsError("out", ...), or with `should_stop` a wait until the
    other is done. False is what the block gets when should_stop ended the wait, else True.
    """
    lock = filelock.FileLock(path / f"{name}.lock")
    held = _acquire(lock, 0.0)
    if not held and should_stop is None:
        reason = f"another process is at work on {path / name}; wait for it or choose another"
        raise SettingsError("out", f"{reason} folder")
    if not held and report is not None:
        report.say(f"waiting for another process, which is at work on {path / name}")
    while not held and should_stop is not None and not should_stop():
        held = _acquire(lock, LOCK_SECONDS)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _acquire(lock: filelock.BaseFileLock, seconds: float) -> bool:
    """Whether the lock was free within the time; SettingsError("out", ...) where there can be
    none."""
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # the latter where the disk knows no locks
        reason = getattr(error, "strerror", None) or str(error) or "it knows no locks"
        folder = Path(lock.lock_file).parent
        raise SettingsError("out", f"{folder} cannot be written ({reason})") from None
    return True


def planned(settings: LabSettings, parts: list[str]) -> list[Work]:
    """What the parts take, in order, each once."""
    names = dict.fromkeys(name for part in parts for name in WORKS[part])
    return [
        Work(name, SECONDS[name] * size) for name in names if (size := work_size(settings, name))
    ]


def work_size(settings: LabSettings, name: str) -> int:
    """How many steps or pictures a work has; a work of none is left out."""
    if name == "judge-pictures":
        return settings.num_judge_pictures
    if name in ("pictures", "latents", "ratings", "embeddings"):
        return settings.num_pictures
    return getattr(settings, f"num_{name.replace('-', '_')}_steps")


def part_is_finished(settings: LabSettings, path: Path, part: str) -> bool:
    last = WORKS[part][-1]
    stage = _Named(last, work_size(settings, last))
    return is_finished(stage, path / last)  # type: ignore[arg-type]


def finish(settings: LabSettings, path: Path, device: torch.device, report: runs.Reporter) -> None:
    """All parts are there: put the weights together. SettingsError("out", ...) where that fails."""
    parts = {part: path / WORKS[part][-1] / WEIGHTS_NAME for part in PARTS}
    out = path / WEIGHTS_NAME
    if not is_bundled(out, parts):
        report.say("putting the weights together")
        write_bundle(out, parts, settings.num_calibration_pictures, settings.seed, device, report)
    report.say(f"all parts are built: {out}")


def open_folder(settings: LabSettings) -> Path:
    """The folder of the build, made where there is none. SettingsError("out", ...) for one that
    holds a training, was begun with other settings or another world, or cannot be written."""
    for name in (runs.CONFIG_NAME, runs.STATE_NAME):
        if os.path.exists(os.path.join(settings.out, name)):
            reason = f"{settings.out} holds the run of a training; choose another folder"
            raise SettingsError("out", reason)
    folder = runs.RunFolder(settings.out, resume=False).path
    config = {k: v for k, v in dataclasses.asdict(settings).items() if k not in FREE}
    config["world"] = world_fingerprint()
    path = folder / CONFIG_NAME
    with alone(folder, "build", should_stop=lambda: False):
        try:
            found = json.loads(path.read_text("utf-8")) if path.exists() else {}
            if not isinstance(found, dict):
                raise ValueError("expected a JSON object")
        except (OSError, ValueError) as error:
            raise SettingsError("out", f"{path} cannot be read: {error}") from None
        check_config(config, found, folder)
        if found == config:
            return folder
        try:
            runs.write_text(path, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise SettingsError("out", f"{path} cannot be written ({error.strerror})") from None
    return folder


def check_config(config: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """SettingsError("out", ...) names the first setting that differs, or the world."""
    for name, value in found.items():
        if name in config and name != "world" and config[name] != value:
            raise SettingsError(
                "out",
                f"{folder} was begun with {flag(name)} {value}, not {config[name]}; choose "
                "another folder",
            )
    if found and found.get("world") != config["world"]:
        raise SettingsError("out", f"{folder} holds a build {OTHER_WORLD}")


def _check_needs(settings: LabSettings, path: Path, wanted: tuple[str, ...]) -> None:
    """SettingsError("part", ...) for parts that are needed, missing and not wanted."""
    needed = {before for part in wanted for before in NEEDS[part]} - set(wanted)
    for part in needed:
        if not part_is_finished(settings, path, part):
            raise SettingsError(
                "part",
                f"{wanted[0]} needs {part}, which is not finished in {path}; build it by "
                f"--part {part} first",
            )


@dataclasses.dataclass(frozen=True)
class _Named:
    """As much of a Stage as `is_finished` asks for."""

    name: str
    num_steps: int
