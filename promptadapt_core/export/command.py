"""The command that a run was begun with, from its config.json. Folders that files lie in are left
out: where somebody keeps them is private."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from typing import Any

from ..policies import HUB_NAME
from ..reward_settings import RewardSettings
from ..settings import flag
from ..train.planning import SETTINGS
from .finished import Run, last_part

WIDTH = 96


def train_command(run: Run) -> str:
    """On several lines, with every setting that is not the default's."""
    words = [f"python -m promptadapt_core.train {run.trainer}"]
    words += _flags(SETTINGS[run.trainer], {**run.settings, "out": run.path.name})
    words += _flags(RewardSettings, run.config.get("reward", {}).get("terms", {}))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _flags(cls: type, values: Mapping[str, Any]) -> list[str]:
    found = []
    for field in dataclasses.fields(cls):
        value = values.get(field.name, field.default)
        if isinstance(value, list):
            value = tuple(value)
        if value == field.default or value is None:
            continue
        name = flag(field.name, field.default)
        if isinstance(value, bool):
            found.append(name)
            continue
        is_path = any(kind in (field.metadata.get("metavar") or "") for kind in ("FOLDER", "FILE"))
        for part in value if isinstance(value, tuple) else (value,):
            text = shown_name(str(part)) if is_path else str(part)
            found.append(f"{name} {shlex.quote(text)}")
    return found


def shown_name(value: str) -> str:
    """A name of the hub as it is, of a path its last part."""
    if HUB_NAME.fullmatch(value) and not os.path.exists(value) and not is_checkpoint(value):
        return value
    return last_part(value)


def is_checkpoint(value: str) -> bool:
    """Whether it ends as the checkpoints of a run do."""
    return value.endswith(("/best", "/last", "\\best", "\\last"))
