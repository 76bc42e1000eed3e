"""A refined policy as a folder that all hosts list, whole or as LoRA matrices."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..lora import LoraBase, write_base
from ..moving import move
from ..policies import LAB_FOLDERS, find_policies
from ..settings import SettingsError
from .refining import Refiner

LAB_NAMES = {folder: name for name, folder in LAB_FOLDERS.items()}
MOST_NAMES = 10_000
LONGEST_NAME = 100
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)  # of Windows


def check_name(name: str) -> str:
    """A name that is one folder on every system, or SettingsError("save_name", ...)."""
    name = name.strip()
    bad = not name or name.startswith(".") or name.endswith(".") or len(name) > LONGEST_NAME
    if bad or re.search(r'[<>:"/\\|?*\x00-\x1f]', name) or RESERVED.match(name):
        raise SettingsError("save_name", f"expected the name of a folder, got {name!r:.80}")
    return name


def save_policy(refiner: Refiner, folder: Path, name: str) -> Path:
    """Write the refined policy into a new folder in `folder`; that folder. float16.

    A known name, of a bundled policy too, gets a number: what is there stays.
    SettingsError("save_name", ...) for a name that cannot be used and a disk that refuses.
    """
    policy = refiner.refined_policy()
    return _save(folder, name, lambda place: policy.save(place, torch.float16))


def save_lora(refiner: Refiner, folder: Path, name: str) -> Path:
    """Write the LoRA matrices alone, as peft reads them; see save_policy. They belong to the
    policy that the refinement began with, which has to be bundled or in `folder`."""
    trainee, base = refiner.copy.trainee, refiner.base
    if trainee is None or trainee.lora is None:
        raise SettingsError("save_policy", "no LoRA matrices were trained")
    if base.folder is None:
        reason = "LoRA matrices need the policy that they belong to as a folder; save a folder"
        raise SettingsError("save_policy", reason)

    base_name = LAB_NAMES.get(base.folder, base.folder.name)

    def write(place: Path) -> None:
        trainee.export_lora(place)
        write_base(place, LoraBase(base_name, base.identity))

    return _save(folder, name, write)


def _save(folder: Path, name: str, write: Callable[[Path], object]) -> Path:
    """Whole or not at all: written beside, then moved."""
    name = check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))  # which nobody else may read
        try:
            beside = own / "policy"
            beside.mkdir()
            write(beside)
            return _moved(beside, folder, name)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror or error})"
        raise SettingsError("save_name", reason) from None


def _moved(beside: Path, folder: Path, name: str) -> Path:
    bundled = {info.name.casefold() for info in find_policies()} | set(LAB_FOLDERS)
    for number in range(1, MOST_NAMES):
        place = folder / (name if number == 1 else f"{name}-{number}")
        if place.name.casefold() not in bundled and not place.exists():
            move(beside, place)
            return place
    raise SettingsError("save_name", f"there are {MOST_NAMES} folders called {name} already")
