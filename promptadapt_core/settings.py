"""Every setting once: its default, its range and its help.

The command line, the node inputs and the sliders are made from dataclasses, so a range is never
written twice: from the one below, which hosts make at their start, and from those of the commands,
each in a file of its own. A value out of range raises SettingsError, which names the setting.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

MAX_SEED = 2**64 - 1  # what torch.Generator.manual_seed and ComfyUI's seed widget both accept
MAX_INPUT_CHARACTERS = 20_000  # far beyond any prompt; a pasted book is a mistake, not a prompt


class SettingsError(ValueError):
    """Bad input from the user. `name` is the setting or argument, `reason` one clear sentence."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that carries its range (`low` and `high` inclusive) and its help."""
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "step": step,
        "choices": choices,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of the settings dataclasses: checks types and ranges when it is made."""

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(field, kinds[field.name], value))


def _checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """The value in the field's own type, or SettingsError."""
    name, meta = field.name, field.metadata
    if typing.get_origin(kind) is types.UnionType:  # `int | None`
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        listed = isinstance(value, (list, tuple, set, frozenset))
        if not listed or not all(isinstance(item, str) for item in value):
            raise SettingsError(name, f"expected a list of strings, got {_shown(value)}")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf  # float() refuses some
    if type(value) is not kind:
        raise SettingsError(name, f"expected {kind.__name__}, got {_shown(value)}")
    if kind is float and not math.isfinite(value):
        raise SettingsError(name, f"expected a finite number, got {value!r}")
    if meta["choices"] and value not in meta["choices"]:
        names = ", ".join(meta["choices"])
        raise SettingsError(name, f"expected one of {names}, got {_shown(value)}")
    if kind in (int, float):
        low, high = meta["low"], meta["high"]
        if (low is not None and value < low) or (high is not None and value > high):
            raise SettingsError(name, f"expected {_range_text(low, high)}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value as an error may show it."""
    if isinstance(value, int) and abs(value) >= 10**40:  # Python itself refuses 5,000 digits
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _range_text(low: float | None, high: float | None) -> str:
    if high is None:
        return f"{low} or more"
    if low is None:
        return f"at most {high}"
    return f"a number from {low} to {high}"


def flag(name: str, default: Any = None) -> str:
    """The command-line flag of a setting: `num_candidates` -> `--num-candidates`."""
    return ("--no-" if default is True else "--") + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, cls: type[Settings]) -> None:
    """Add one flag per setting. Flags not given stay out of the namespace: the caller decides
    whether a policy's own default or the table's applies."""
    from argparse import SUPPRESS  # hosts import this module too, and never need argparse

    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        meta, kind = field.metadata, kinds[field.name]
        options: dict[str, Any] = {"dest": field.name, "default": SUPPRESS}
        if typing.get_origin(kind) is types.UnionType:
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        options["help"] = _help_text(field)
        if kind is bool:
            options["action"] = "store_false" if field.default else "store_true"
        elif typing.get_origin(kind) is tuple:
            options.update(action="append", metavar=meta["metavar"] or "TEXT")
        elif meta["choices"]:
            options.update(choices=meta["choices"])
        else:
            options.update(type=kind, metavar=meta["metavar"] or kind.__name__.upper())
        parser.add_argument(flag(field.name, field.default), **options)


def _help_text(field: dataclasses.Field) -> str:
    meta, text = field.metadata, field.metadata["help"]
    if field.default is True:
        text = f"do not {text}"
    if meta["low"] is not None and meta["high"] is not None and meta["high"] != MAX_SEED:
        text += f" ({meta['low']} to {meta['high']})"
    if field.default not in (None, "", ()) and not isinstance(field.default, bool):
        text += f" [default: {field.default}]"
    return text.replace("%", "%%")


def given(cls: type[Settings], namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings of `cls` that were given on the command line, by name."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return {name: getattr(namespace, name) for name in names if hasattr(namespace, name)}


@dataclasses.dataclass(frozen=True)
class AdaptSettings(Settings):
    """How one user input becomes candidates. A policy's manifest may bring other defaults."""

    num_candidates: int = setting(
        1, "how many different adapted prompts to return, best first", low=1, high=64
    )
    mode: str = setting(
        "sample",
        "beam: the likeliest; diverse: groups of beams that differ; sample: drawn with the seed",
        choices=("beam", "diverse", "sample"),
    )
    seed: int = setting(
        0, "the same input, seed and policy give the same text", low=0, high=MAX_SEED
    )
    max_new_tokens: int = setting(75, "longest addition, in tokens of the policy", low=1, high=512)
    token_budget: int = setting(
        75,
        "longest adapted prompt in tokens of the image model's CLIP text encoder; "
        "75 is one chunk, 150 two",
        low=1,
        high=750,
    )
    keep: tuple[str, ...] = setting(
        (), "a span of the input that must come back verbatim; may be repeated", metavar="SPAN"
    )
    ban: tuple[str, ...] = setting(
        (), "a word or phrase that must not be added; may be repeated", metavar="WORD"
    )
    gate: bool = setting(True, "leave a prompt alone that is already engineered")
    artists: bool = setting(False, "let the policy add names of artists")
    num_beams: int = setting(8, "beams kept in the modes beam and diverse", low=1, high=64)
    diversity_penalty: float = setting(
        1.0, "how strongly the groups of mode diverse avoid each other, in nats", low=0.0, high=10.0
    )
    length_penalty: float = setting(
        1.0, "exponent of the length by which a log-prob is divided to rank", low=-5.0, high=5.0
    )
    temperature: float = setting(
        0.8, "of mode sample: below 1 is safer, above 1 wilder", low=0.05, high=5.0
    )
    top_p: float = setting(
        0.9, "of mode sample: draw from the likeliest tokens of this mass", low=0.01, high=1.0
    )
    min_modifiers: int = setting(
        3, "a short plain input gains at least this many modifiers", low=0, high=20
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for phrase in self.ban:
            if not any(character.isalnum() for character in phrase):
                raise SettingsError("ban", f"expected a word or phrase, got {_shown(phrase)}")
