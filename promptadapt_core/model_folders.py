"""What lies in the model folders of a host: policies and scorers, offered by name.

A folder with config.json and weights is a policy, one with scorer.json is a scorer. Text only:
imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from .policies import DEFAULT_POLICY, find_policies, lab_policies, resolve_policy
from .settings import SettingsError

LAB_SCORER = "lab"
LAB_SCORER_FOLDER = Path(__file__).parent / "lab" / "weights" / "scorer"
SCORER_FILE = "scorer.json"


def policy_names(model_folders: Sequence[Path] = ()) -> list[str]:
    """The policies that can be loaded by name: the default first, those of the lab last."""
    found = [info.name for info in find_policies()]
    for folder in model_folders:
        found += [info.name for info in find_policies(folder) if info.source != "bundled"]
    found.sort(key=lambda name: name != DEFAULT_POLICY)
    return list(dict.fromkeys([*found, *lab_policies()]))


def policy_folder(name: str, model_folders: Sequence[Path] = ()) -> Path:
    """The folder of a policy in `policy_names`; SettingsError("policy", ...) if it is gone."""
    if name not in policy_names(model_folders):
        raise SettingsError("policy", _gone("policy", name, policy_names(model_folders)))
    for folder in model_folders:
        if any(info.name == name for info in find_policies(folder)):
            return resolve_policy(name, folder, allow_folders=False)
    return resolve_policy(name, allow_folders=False)


def scorer_names(model_folders: Sequence[Path] = ()) -> list[str]:
    """The scorers that can be loaded by name, the lab's first."""
    return list(_scorers(model_folders))


def scorer_folder(name: str, model_folders: Sequence[Path] = ()) -> Path:
    """The folder of a scorer in `scorer_names`; SettingsError("scorer", ...) if it is gone."""
    found = _scorers(model_folders)
    if name not in found:
        raise SettingsError("scorer", _gone("scorer", name, list(found)))
    return found[name]


def folder_state(folder: Path) -> str:
    """16 hexadecimal digits that change when a file of the folder does: names, sizes and times.

    Quick, for a host that asks before every run whether a checkpoint is still the same one."""
    lines = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        about = path.stat()
        lines.append(f"{path.name} {about.st_size} {about.st_mtime_ns}")
    text = "\n".join([str(folder), *lines])
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _scorers(model_folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder; the first of a name counts. Links that leave their folder are left out."""
    found = {}
    if (LAB_SCORER_FOLDER / SCORER_FILE).is_file():
        found[LAB_SCORER] = LAB_SCORER_FOLDER
    for root in model_folders:
        try:
            folders = sorted(root.iterdir())
        except OSError:  # not there, or not ours to read
            continue
        for folder in folders:
            if _is_scorer(folder, root):
                found.setdefault(folder.name, folder)
    return found


def _is_scorer(folder: Path, root: Path) -> bool:
    try:
        return (folder / SCORER_FILE).is_file() and root.resolve() in folder.resolve().parents
    except OSError:  # a folder that we may not look into
        return False


def _gone(kind: str, name: str, names: Sequence[str]) -> str:
    place = os.path.join("models", "promptadapt")
    return (
        f"there is no {kind} {name!r:.80} in {place} any more; found: {', '.join(names) or 'none'}"
    )
