"""Which policies there are, and where. Text only: imports no torch."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from .lora import WEIGHTS_NAME as LORA_WEIGHTS
from .lora import is_lora, read_base
from .manifest import read_manifest
from .settings import SettingsError

DEFAULT_POLICY = "promptadapt-sd"
BUNDLED_FOLDER = Path(__file__).parent / "policies"
# They know only the words of the lab, so no list offers them; who wants one names it.
LAB_POLICY, LAB_SFT_POLICY = "lab", "lab-sft"
LAB_FOLDER = Path(__file__).parent / "lab" / "policies"
LAB_FOLDERS = {LAB_POLICY: LAB_FOLDER / "rl", LAB_SFT_POLICY: LAB_FOLDER / "sft"}
PROMPTIST_HUB_NAME = "microsoft/Promptist"
GPT2_HUB_NAME = "openai-community/gpt2"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class PolicyInfo(NamedTuple):
    """A policy that can be loaded. source: "bundled" or "models folder"."""

    name: str
    folder: Path
    description: str
    size_bytes: int
    source: str

    def as_json(self) -> dict[str, str | int]:
        """The same for json.dumps."""
        return {**self._asdict(), "folder": str(self.folder)}


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, safetensors before .bin; [] when there are none."""
    for single, index in zip(("model.safetensors", "pytorch_model.bin"), INDEX_NAMES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    return []


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingsError("policy", f"{index} is not an index of weight files") from None
    for name in names:
        if not isinstance(name, str):
            raise SettingsError("policy", f"{index} is not an index of weight files")
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise SettingsError("policy", f"{folder} lacks the weight file {name}")
    return [folder / name for name in names]


def find_policies(models_folder: str | Path | None = None) -> list[PolicyInfo]:
    """The bundled policies, then those in the models folder, each by name. Broken ones and links
    that leave the folder are left out: a list must not fail over one of its rows."""
    found = _policies_in(BUNDLED_FOLDER, "bundled")
    if models_folder is not None:
        found += _policies_in(Path(models_folder), "models folder")
    return found


def lab_policies() -> list[str]:
    """The names of the lab's policies that are here. They are not in `find_policies`."""
    return [name for name, folder in LAB_FOLDERS.items() if (folder / "config.json").is_file()]


def _policies_in(root: Path, source: str) -> list[PolicyInfo]:
    found = []
    for folder in _folders_in(root):
        try:
            if not _is_inside(folder, root):
                continue
            if is_lora(folder):
                files = [folder / LORA_WEIGHTS]
                description = f"LoRA of {read_base(folder).name}"
            elif (folder / "config.json").is_file():
                files = weight_files(folder)
                manifest = read_manifest(folder)
                description = manifest.description if manifest else ""
            else:
                continue
            size = sum(path.stat().st_size for path in files)
        except (SettingsError, OSError):
            continue
        if files:
            found.append(PolicyInfo(folder.name, folder, description, size, source))
    return found


def _folders_in(root: Path) -> list[Path]:
    """Hidden ones are what is being written, or was when its process was killed."""
    try:
        folders = [path for path in root.iterdir() if path.is_dir()]
        return sorted(path for path in folders if not path.name.startswith("."))
    except (OSError, ValueError):  # not there, not a folder, not ours to read, not a path
        return []


def _is_inside(folder: Path, root: Path) -> bool:
    return root.resolve() in folder.resolve().parents


def resolve_policy(
    name_or_folder: str | Path = "",
    models_folder: str | Path | None = None,
    *,
    allow_folders: bool = True,
    download: bool = False,
) -> Path:
    """The folder of a policy: "" is the default; a bundled name; a name in the models folder;
    "lab" and "lab-sft"; a folder, where allow_folders; a hub name "owner/name" fetched earlier, or
    now if `download`.

    A name never leaves the models folder, not by ".." and not by a link. Raises SettingsError.
    """
    wanted = str(name_or_folder) or DEFAULT_POLICY
    if any(ord(character) < 32 for character in wanted):
        raise SettingsError("policy", f"a name has no control characters, got {wanted!r}")
    roots = [BUNDLED_FOLDER] + ([Path(models_folder)] if models_folder is not None else [])
    if _is_name(wanted):
        for root in roots:
            if os.path.isdir(root / wanted):  # unlike Path.is_dir, takes any name
                if not allow_folders and not _is_inside(root / wanted, root):
                    raise SettingsError("policy", f"{wanted} is a link that leaves {root}")
                return root / wanted
        if wanted in LAB_FOLDERS and LAB_FOLDERS[wanted].is_dir():
            return LAB_FOLDERS[wanted]
    elif not allow_folders and not HUB_NAME.fullmatch(wanted):
        raise SettingsError("policy", f"expected the name of a policy, got the path {wanted!r}")
    folder = Path(os.path.expanduser(wanted))
    if allow_folders and os.path.isdir(folder):
        return folder
    if HUB_NAME.fullmatch(wanted):
        return _hub_folder(wanted, models_folder, download)
    names = ", ".join(info.name for info in find_policies(models_folder)) or "none"
    raise SettingsError("policy", f"there is no policy {wanted!r}; found here: {names}")


def _is_name(wanted: str) -> bool:
    """One path component, on Windows too."""
    return wanted not in (".", "..") and not re.search(r"[/\\:]", wanted)


def download_folder(models_folder: str | Path | None = None) -> Path:
    """Where downloads go: the models folder, else a folder of ours in the user's cache."""
    if models_folder is not None:
        return Path(models_folder)
    return Path.home() / ".cache" / "promptadapt"


def _hub_folder(name: str, models_folder: str | Path | None, download: bool) -> Path:
    folder = download_folder(models_folder) / name.replace("/", "--")
    if os.path.isfile(folder / "config.json") and weight_files(folder):
        return folder
    if not download:
        raise SettingsError(
            "policy", f"{name} is not on this computer; ask for the download with --download"
        )
    try:
        _download(name, folder)
    except Exception as error:  # the hub's client raises its own, its HTTP library's and OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            "policy", f"{name} is not on this computer and could not be downloaded: {reason}"
        ) from None
    if not weight_files(folder):
        raise SettingsError("policy", f"{name} on the hub holds no weights of a language model")
    return folder


def _download(name: str, folder: Path) -> None:
    """Fetch the top-level files of a hub repository; .bin only where there are no safetensors.
    The client shows its own progress bar and goes on with a broken-off download."""
    import huggingface_hub

    def fetch(repository: str, patterns: list[str]) -> None:
        options: dict = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
        known = inspect.signature(huggingface_hub.snapshot_download).parameters
        if "local_dir_use_symlinks" in known:  # old clients would put links there
            options["local_dir_use_symlinks"] = False
        huggingface_hub.snapshot_download(repository, local_dir=str(folder), **options)

    fetch(name, ["*.json", "*.txt", "*.safetensors", "tokenizer.model"])
    if not weight_files(folder):
        fetch(name, ["pytorch_model*.bin", "pytorch_model.bin.index.json"])
    if name == PROMPTIST_HUB_NAME:  # published without a tokenizer: it is gpt2's
        fetch(GPT2_HUB_NAME, ["vocab.json", "merges.txt"])
