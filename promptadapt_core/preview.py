"""Candidates as a web page shows them: the person's words plain, what was added bold."""

from __future__ import annotations

import html
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .controls import numbered
from .job_settings import IMAGE_SEED, from_arguments
from .loaded_models import LoadedModels

LARGEST_IMAGE_SEED = 2**32 - 1  # hosts draw theirs below it


class Preview(NamedTuple):
    """html: what is shown. choices: the candidates by number, "1. ...", best first. seed: that
    brings them again."""

    html: str
    choices: list[str]
    seed: int


def preview(
    models: LoadedModels,
    user_input: str,
    image_seed: Any,
    values: Sequence[Any],
    names: Sequence[str],
    folders: Sequence[Path] = (),
    device: str = "cpu",
) -> Preview:
    """The candidates of a user input. values: of the controls, named by names. image_seed: of the
    host's page, where -1 or nonsense is one yet to be drawn: then so is ours. SettingsError."""
    settings = from_arguments(values, names)
    seed = settings.seed
    if seed == IMAGE_SEED:
        seed = _whole_number(image_seed)
        seed = secrets.randbelow(LARGEST_IMAGE_SEED) if seed < 0 else seed
    given = settings.for_adapter(seed)
    found = models.adapt([user_input], settings.policy, folders, device, **given)[0]
    adaptation = found.adaptation
    shown = candidates_html(adaptation.candidates, adaptation.gate, seed)
    return Preview(shown, numbered(found.texts), seed)


def _whole_number(value: Any) -> int:
    """Of a number or a text; -1 for anything else."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return IMAGE_SEED


def candidates_html(candidates: Sequence[Any], gate: str, seed: int) -> str:
    """A list of them, best first, and the seed that brings the same ones again. candidates: of
    the adapter."""
    items = "".join(
        f"<li>{_marked(one.adapted_prompt, one.added)} "
        f'<span style="opacity: 0.6">({one.num_clip_tokens} tokens)</span></li>'
        for one in candidates
    )
    said = "" if gate == "adapted" else f"<p>{html.escape(gate)}</p>"
    return f'<ol>{items}</ol>{said}<p style="opacity: 0.6">seed {seed}</p>'


def _marked(adapted_prompt: str, added: str) -> str:
    """The adapted prompt in HTML. What was added may not lie in one piece: a policy that rewrites
    has it marked nowhere."""
    before, found, after = adapted_prompt.rpartition(added) if added else (adapted_prompt, "", "")
    if not found:
        return html.escape(adapted_prompt)
    return f"{html.escape(before)}<b>{html.escape(found)}</b>{html.escape(after)}"
