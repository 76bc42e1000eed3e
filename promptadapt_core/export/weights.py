"""The weights of a run in a folder of their own: whole, or as LoRA matrices of another policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import file_identity
from ..lora import CONFIG_NAME, WEIGHTS_NAME, LoraBase, write_base
from ..manifest import Manifest, write_manifest
from ..policies import HUB_NAME, LAB_FOLDERS, find_policies, resolve_policy, weight_files
from ..policy import Policy
from ..settings import SettingsError
from .finished import Run
from .lora_extraction import extract_lora

LORA_FOLDER = "lora"  # of a supervised run: the matrices that best/ has merged
PRIVATE_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")
MOST_OFF = 0.02  # of the largest weight: what halves and merging may round


def write_whole(policy: Policy, folder: Path, manifest: Manifest) -> None:
    """float16."""
    policy.manifest = manifest
    policy.save(folder, torch.float16)
    _without_paths(folder, "")


def write_lora(run: Run, policy: Policy, folder: Path, manifest: Manifest) -> LoraBase:
    """The matrices, and what they belong to. SettingsError("lora", ...) where the run trained all
    weights, and where no host could find the policy that it began with."""
    rank = int(run.settings.get("lora_rank") or 0)
    if not rank:
        reason = "the run trained all weights (no --lora-rank): leave this out to export them"
        raise SettingsError("lora", reason)
    base_folder = _start_folder(run)
    base = LoraBase(_known_name(run.start, base_folder, folder.parent), _identity(base_folder))
    trained = run.path / LORA_FOLDER
    if run.trainer == "sft":
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (trained / name).is_file():
                raise SettingsError("lora", f"{trained} lacks {name}")
            shutil.copyfile(trained / name, folder / name)
    else:  # merged after each round: the difference has a rank of so many rounds' matrices
        extract_lora(Policy.load(base_folder), policy, rank, max(run.step, 1), folder)
    write_base(folder, base)
    write_manifest(manifest, folder)
    _without_paths(folder, base.name)
    _check_same(policy, folder)
    return base


def _start_folder(run: Run) -> Path:
    """Of the policy that the run began with."""
    try:
        folder = resolve_policy(run.start)
    except SettingsError as error:
        raise SettingsError("lora", f"the policy it belongs to is gone: {error.reason}") from None
    known = run.config["data"].get("base")
    if run.trainer == "sft" and known and known != _identity(folder):
        raise SettingsError("lora", f"{folder} is not the base that the run began with")
    return folder


def _identity(folder: Path) -> str:
    return file_identity(weight_files(folder))


def _known_name(start: str, folder: Path, beside: Path) -> str:
    """What a host finds the base by: its name here, or beside the export."""
    for name, known in (
        *((info.name, info.folder) for info in find_policies()),
        *LAB_FOLDERS.items(),
    ):
        if folder.resolve() == known.resolve():
            return name
    if HUB_NAME.fullmatch(start) and not Path(start).is_dir():
        return start
    near = beside / folder.name
    if near.is_dir() and weight_files(near) and _identity(near) == _identity(folder):
        return folder.name
    raise SettingsError(
        "lora",
        f"a host finds the policy that the matrices belong to by its name: copy {folder} into "
        f"{beside} first, or export the whole policy",
    )


def _check_same(policy: Policy, folder: Path) -> None:
    """SettingsError where the folder gives other weights than the checkpoint."""
    found = Policy.load(folder).weights
    off = 0.0
    for name, weight in policy.weights.items():
        if not weight.is_floating_point():
            continue
        most = weight.abs().max().clamp(min=1e-3)
        off = max(off, ((found[name] - weight).abs().max() / most).item())
    if off > MOST_OFF:
        reason = f"the matrices do not give the weights of the checkpoint (off by {off:.1%})"
        raise SettingsError("lora", f"{reason}; export the whole policy")


def _without_paths(folder: Path, name: str) -> None:
    """Libraries write down where they read a model from, which is nobody's business."""
    for file in folder.glob("*.json"):
        try:
            found: Any = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        private = [key for key in PRIVATE_NAMES if isinstance(found, dict) and found.get(key)]
        if private:
            found |= {key: name for key in private}
            text = json.dumps(found, ensure_ascii=False, indent=2) + "\n"
            file.write_text(text, encoding="utf-8")
