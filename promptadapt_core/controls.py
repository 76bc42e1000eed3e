"""The table of a job's settings as controls of a web page. Knows no web framework."""

from __future__ import annotations

import dataclasses
import secrets
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .job_settings import JobSettings

DROPDOWN, SLIDER, NUMBER, CHECKBOX, TEXT = "dropdown", "slider", "number", "checkbox", "text"
STEP = 0.05  # of a number that brings none
AXES = ("policy", "mode", "num_candidates", "rank", "seed")  # of plots over settings
ROWS = (  # as a page shows them, side by side
    ("policy", "mode"), ("num_candidates", "rank"), ("seed", "token_budget"), ("keep", "ban"),
    ("images", "gate"), ("keep_best", "scorer"), ("aesthetic_weight", "relevance_weight"),
)  # fmt: skip
# Requests and translations know the controls by these, so they stay as they are.
LABELS = {
    "policy": "Policy",
    "mode": "Mode",
    "num_candidates": "Candidates",
    "seed": "Adapting seed",
    "token_budget": "Token budget",
    "keep": "Keep",
    "ban": "Ban",
    "gate": "Leave engineered prompts alone",
    "rank": "Use candidate",
    "images": "Prompts of the images",
    "keep_best": "Keep the best",
    "scorer": "Scorer",
    "aesthetic_weight": "Aesthetic weight",
    "relevance_weight": "Relevance weight",
}


class Control(NamedTuple):
    """kind: one of the kinds above. options: value, info (the help), and with a slider minimum,
    maximum and step, with a dropdown choices."""

    name: str
    kind: str
    label: str
    options: dict[str, Any]


def job_controls(names: Iterable[str], choices: Mapping[str, Sequence[str]]) -> list[Control]:
    """The controls of the named settings. choices: of those that the computer decides, by name."""
    kinds = typing.get_type_hints(JobSettings)
    fields = {field.name: field for field in dataclasses.fields(JobSettings)}
    return [_control(fields[name], kinds[name], choices.get(name)) for name in names]


def choices_of(name: str) -> tuple[str, ...]:
    """What the table offers for a setting; () where the computer or nothing decides."""
    fields = {field.name: field for field in dataclasses.fields(JobSettings)}
    return fields[name].metadata["choices"] or ()


def _control(field: dataclasses.Field, kind: Any, choices: Sequence[str] | None) -> Control:
    meta = field.metadata
    options: dict[str, Any] = {"value": field.default, "info": meta["help"]}
    offered = list(meta["choices"] or choices or [])
    if offered:
        options["choices"] = offered
        options["value"] = field.default if field.default in offered else offered[0]
        shape = DROPDOWN
    elif kind is bool:
        shape = CHECKBOX
    elif typing.get_origin(kind) is tuple:
        options["value"] = "\n".join(field.default)
        shape = TEXT
    elif kind is str:
        shape = TEXT
    elif field.name == "seed":  # a slider to 2**64 is of no use
        shape = NUMBER
    else:
        step = 1 if kind is int else meta["step"] or STEP
        options.update(minimum=meta["low"], maximum=meta["high"], step=step)
        shape = SLIDER
    return Control(field.name, shape, LABELS[field.name], options)


def numbered(texts: Sequence[str]) -> list[str]:
    """Candidates as choices, "1. ...", best first."""
    return [f"{rank}. {text}" for rank, text in enumerate(texts, 1)]


def rank_of(choice: str) -> int:
    """The rank of a candidate by its choice."""
    return int(choice.partition(".")[0])


def is_account(username: str, password: str, accounts: str) -> bool:
    """Whether they are among accounts, "user:password,user:password". It takes as long if not."""
    sent = f"{username}:{password}".encode()
    equal = [secrets.compare_digest(sent, known.encode()) for known in accounts.split(",")]
    return any(equal)
