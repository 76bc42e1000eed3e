"""The adapted prompts of a row that come from a policy, from a text or from people."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import runs
from ..adapter import PromptAdapter
from ..checkpoints import file_identity
from ..pipeline_files import hash_files
from ..policies import resolve_policy, weight_files
from ..settings import AdaptSettings, SettingsError
from .inputs import Inputs
from .kept import KeptFile
from .scoring import ShouldStop, chunks
from .settings import EvaluateSettings

INPUTS_AT_ONCE = 64  # adapted, then kept
TOO_LONG = ("too long for the policy", "the token budget is")  # as adapter and gate say it
GREEDY = {"mode": "beam", "num_beams": 1, "gate": False, "min_modifiers": 0}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The adapted prompts of a row, or of one training seed of it; None for a user input that the
    row does not have. num_too_long: user inputs left alone because the policy cannot read them.
    num_search_rendered: pictures that were rendered to find them, beside those of the evaluation.
    """

    adapted_prompts: list[str | None]
    source: str = ""
    num_too_long: int = 0
    num_search_rendered: int = 0


def check_policies(folders: Sequence[str]) -> None:
    """SettingsError("rows", ...) for one that is not there, before anything large is loaded."""
    for folder in folders:
        try:
            resolve_policy(folder)
        except SettingsError as error:
            raise SettingsError("rows", error.reason) from None


def load_policy(folder: str, settings: EvaluateSettings) -> tuple[PromptAdapter, AdaptSettings]:
    """A policy, and how it is asked. SettingsError("rows", ...) names a folder that is none."""
    chosen: dict[str, Any] = GREEDY if settings.decoding == "greedy" else {}
    try:
        adapter = PromptAdapter.load(resolve_policy(folder), device=settings.device)
        return adapter, adapter.settings(**chosen, num_candidates=1)
    except SettingsError as error:
        if error.name == "device":
            raise
        raise SettingsError("rows", f"{folder}: {error.reason}") from None


def written_by_people(inputs: Inputs) -> Prompts:
    """SettingsError("rows", ...) where nobody wrote anything."""
    targets = [row.target or None for row in inputs.rows]
    if not any(targets):
        raise SettingsError("rows", "people: no user input comes with a target")
    return Prompts(targets)


def adapted(
    folder: str,
    settings: EvaluateSettings,
    user_inputs: Sequence[str],
    out: Path,
    should_stop: ShouldStop,
    report: runs.Reporter,
) -> Prompts:
    """What a policy makes of the user inputs. Kept: the policy's files are part of the identity.

    A user input that the policy leaves alone is its own adapted prompt.
    """
    found = resolve_policy(folder)
    adapter, asked = load_policy(folder, settings)
    policy = f"{file_identity(weight_files(found))} {hash_files(found)}"
    identity = {"policy": policy, "asked": dataclasses.asdict(asked)}
    file = KeptFile(out, "adapted", identity)
    known = {row[0]: row for entry in file.entries for row in entry["adapted"]}
    done = 0
    for part in chunks(user_inputs, INPUTS_AT_ONCE):
        missing = [text for text in part if text not in known]
        if missing:
            adaptations = adapter.adapt_all(
                missing, should_stop=should_stop, **dataclasses.asdict(asked)
            )
            rows = [[a.user_input, a.candidates[0].adapted_prompt, a.gate] for a in adaptations]
            file.add({"adapted": rows})
            known |= {row[0]: row for row in rows}
        done += len(part)
        report.step(done, len(user_inputs), {})
    rows = [known[text] for text in user_inputs]
    return Prompts([row[1] for row in rows], policy, sum(_is_too_long(row[2]) for row in rows))


def _is_too_long(reason: str) -> bool:
    return any(words in reason for words in TOO_LONG)
