"""A policy that is stored as LoRA matrices of another one (Hu et al. 2021, arXiv 2106.09685).

Such a folder holds adapter_model.safetensors and adapter_config.json as peft writes them, and
base_policy.json: the name of the policy that they belong to and the identity of its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from .settings import SettingsError

CONFIG_NAME = "adapter_config.json"
BASE_NAME = "base_policy.json"
WEIGHTS_NAME = "adapter_model.safetensors"


class LoraBase(NamedTuple):
    """The policy that LoRA matrices belong to. identity: see Policy.identity."""

    name: str
    identity: str


def is_lora(folder: Path) -> bool:
    """Whether the folder holds LoRA matrices and no whole policy."""
    has_both = (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()
    return has_both and not (folder / "config.json").is_file()


def write_base(folder: Path, base: LoraBase) -> None:
    """Beside what peft has written."""
    text = json.dumps(base._asdict(), ensure_ascii=False, indent=2) + "\n"
    (folder / BASE_NAME).write_text(text, encoding="utf-8")


def read_base(folder: Path) -> LoraBase:
    """SettingsError("policy", ...) where the folder does not say."""
    try:
        found = json.loads((folder / BASE_NAME).read_text(encoding="utf-8"))
        base = LoraBase(found["name"], found["identity"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = None
    if base is None or not all(isinstance(part, str) and part for part in base):
        raise SettingsError(
            "policy", f"{folder} holds LoRA matrices but does not say of which policy"
        )
    return base


def merged(model: Any, folder: Path) -> Any:
    """The transformers model with the matrices of the folder merged into it; `model` is used up.

    SettingsError("policy", ...) without peft and for matrices that do not fit.
    """
    try:
        import peft
    except ImportError:
        reason = f"{folder.name} is a LoRA, which needs the package peft: pip install peft"
        raise SettingsError("policy", reason) from None
    import torch

    try:
        with torch.random.fork_rng(devices=[]):  # first matrices, which the file then replaces
            wrapped = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        return wrapped.merge_and_unload()
    except Exception as error:  # peft and safetensors raise whatever a file leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError("policy", f"{folder} cannot be read as LoRA: {reason}") from None
