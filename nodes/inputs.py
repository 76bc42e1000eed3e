"""The settings tables of the core as ComfyUI's INPUT_TYPES, and back."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

AUTO = "auto"  # a choice that leaves a setting to the policy
ON_THE_COMMAND_LINE = "; may be repeated"
STEP = 0.05  # of a number that brings none
LARGEST = 2**31 - 1


def widgets(cls: type, names: Iterable[str]) -> dict[str, tuple]:
    """The named settings of a settings dataclass as entries of INPUT_TYPES."""
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return {name: widget(fields[name], kinds[name]) for name in names}


def widget(field: dataclasses.Field, kind: Any) -> tuple:
    """One setting: its type, default, range and help."""
    meta = field.metadata
    options: dict[str, Any] = {"default": field.default, "tooltip": meta["help"]}
    if meta["choices"]:
        return (list(meta["choices"]), options)
    if kind is bool:
        return ("BOOLEAN", options)
    if typing.get_origin(kind) is tuple:
        text = meta["help"].removesuffix(ON_THE_COMMAND_LINE)
        options.update(
            default="\n".join(field.default), multiline=True, tooltip=f"{text}; one a line"
        )
        return ("STRING", options)
    low, high = meta["low"], meta["high"]
    options.update(min=-LARGEST if low is None else low, max=LARGEST if high is None else high)
    if kind is float:
        options["step"] = meta["step"] or STEP
        return ("FLOAT", options)
    if field.name == "seed":
        options["control_after_generate"] = True
    return ("INT", options)


def with_auto(entry: tuple, told: str) -> tuple:
    """A list of choices with AUTO before them, as the default. told: what AUTO means."""
    choices, options = entry
    tooltip = f"{AUTO}: {told}; {options['tooltip']}"
    return ([AUTO, *choices], {**options, "default": AUTO, "tooltip": tooltip})


def settings_from(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """What widgets gave, in the types of the settings: lists come as text, one item a line. A
    setting left to the policy (AUTO, an empty list) is left out."""
    kinds = typing.get_type_hints(cls)
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(cls)}
    given = {}
    for name, value in values.items():
        if typing.get_origin(kinds[name]) is tuple and isinstance(value, str):
            value = tuple(line for line in map(str.strip, value.splitlines()) if line)
            if value:
                given[name] = value
        elif not (choices[name] and value == AUTO):
            given[name] = value
    return given


def check_linked(name: str, fits: bool, source: str) -> None:
    """ComfyUI does not check what an API user typed where only a link can go."""
    from ..promptadapt_core.settings import SettingsError

    if not fits:
        raise SettingsError(name, f"expected a link from {source}")
