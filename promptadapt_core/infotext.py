"""What a picture remembers of its adapted prompt, as "Key: value" pairs, and back.

Automatic1111 and its forks keep such pairs, separated by commas, in the last line of the text in a
picture. They put a value in JSON quotes where it holds a comma, a colon or the end of a line, and
split "512x512" in two; `packed` sees to it that every text comes back as it was.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from . import __version__
from .job_settings import KEEP_OFF, NAMES, SAME, JobSettings, job_settings
from .settings import SettingsError

TITLE = "Prompt Adapt"
VERSION = TITLE  # "Prompt Adapt: 0.1.0"
ORIGINAL = f"{TITLE} original"
RESULT = f"{TITLE} result"
POLICY_HASH = f"{TITLE} policy hash"
ALWAYS_ON = f"{TITLE} always on"
FAILED = f"{TITLE} failed"
RESTORED = f"{TITLE} restored"  # never written: what a page was given back
SCORES = ("reward", "aesthetic", "relevance")
KEYS = {name: f"{TITLE} {name.replace('_', ' ')}" for name in NAMES}
ALWAYS_WRITTEN = ("policy", "mode", "seed", "rank")
PACKED = "json:"  # holds a colon, so that the host quotes it


def packed(text: str) -> str:
    """A text as a value that a host writes and reads back unchanged."""
    quoted = any(mark in text for mark in ",:\n")
    plain = quoted or re.fullmatch(r'[^\s"\x00-\x1f]([^"\x00-\x1f]*[^\s"\x00-\x1f])?', text)
    if plain and not re.fullmatch(r"\d+x\d+", text) and not text.startswith(PACKED):
        return text
    return PACKED + json.dumps(text, ensure_ascii=False)


def unpacked(value: str) -> str:
    """The text that `packed` was given. A value that a person edited stays as it is."""
    if not value.startswith(PACKED):
        return value
    try:
        text = json.loads(value[len(PACKED) :])
    except (ValueError, RecursionError):  # strangers write pictures too
        return value
    return text if isinstance(text, str) else value


def picture_values(
    settings: JobSettings,
    original: str,
    rank: int,
    seed: int,
    num_candidates: int,
    result: str,
    policy_hash: str,
) -> dict[str, str]:
    """The pairs of one picture. rank: of the candidate that it shows, 0 for the plain input. seed
    and num_candidates: those that were used. Of the settings, what is not the default."""
    used = {**vars(settings), "rank": rank, "seed": seed, "num_candidates": num_candidates}
    defaults = vars(JobSettings())
    values = {VERSION: __version__, ORIGINAL: packed(original)}
    for name in NAMES:
        if name in ALWAYS_WRITTEN or used[name] != defaults[name]:
            values[KEYS[name]] = _written(used[name])
    known = {POLICY_HASH: policy_hash} if policy_hash else {}  # no policy has read it
    return {**values, **known, RESULT: packed(result)}


class PerImage:
    """A value that differs from picture to picture, as the host asks for it: with all of its own
    variables. It counts the pictures of the job, or those of one batch; a list it reads wrongly
    from the second batch on."""

    def __init__(self, values: Sequence[str | None]):
        self.values = list(values)

    def __call__(
        self,
        p: Any = None,
        index: int = 0,
        all_prompts: Sequence[str] = (),
        use_main_prompt: bool = False,
        **_: Any,
    ) -> str | None:
        if use_main_prompt:  # a grid, which tells of its first picture
            index = 0
        elif len(all_prompts) < len(self.values):  # one batch
            index += getattr(p, "iteration", 0) * getattr(p, "batch_size", 1)
        return self.values[min(index, len(self.values) - 1)]


def of_images(pairs: Sequence[Mapping[str, str]]) -> dict[str, str | PerImage]:
    """The pairs of a whole job of those of its pictures."""
    values = {key: [one.get(key) for one in pairs] for one in pairs for key in one}
    return {
        key: some[0] if len(set(some)) == 1 and some[0] is not None else PerImage(some)
        for key, some in values.items()
    }


def score_values(scores: Mapping[str, float]) -> dict[str, str]:
    """The pairs of a picture that was scored."""
    return {f"{TITLE} {name}": f"{scores[name]:.4f}" for name in SCORES}


def with_values(infotext: str, values: Mapping[str, str]) -> str:
    """A picture's text with further pairs at its end."""
    pairs = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items())
    return f"{infotext}, {pairs}" if infotext and pairs else infotext


def without_ours(params: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs that are not of this module."""
    return {k: v for k, v in params.items() if k != TITLE and not k.startswith(f"{TITLE} ")}


def was_adapted(params: Mapping[str, Any]) -> bool:
    """Whether the pairs, as the host read them, are of a picture of ours."""
    return ORIGINAL in params and VERSION in params


def original_of(params: Mapping[str, Any]) -> str:
    """The user input of a picture that `was_adapted`."""
    return unpacked(str(params[ORIGINAL]))


def restore(params: dict[str, Any], always_on_shown: bool) -> bool:
    """Put the user input back as params["Prompt"] where what adapted it will run again; whether.

    Otherwise the adapted prompt stays, which gives the same picture. always_on_shown: whether the
    page has the script that adapts every job.
    """
    by_script = params.get("Script") == TITLE
    if not was_adapted(params) or not (by_script or (ALWAYS_ON in params and always_on_shown)):
        return False
    params["Prompt"] = original_of(params)
    params[RESTORED] = True
    return True


def always_on_of(params: Mapping[str, Any]) -> bool | None:
    """Whether the script that adapts every job is to be on; None where nothing says so. Off unless
    the user input was put back, or an adapted prompt would be adapted again."""
    return (ALWAYS_ON in params and RESTORED in params) if was_adapted(params) else None


def control_of(params: Mapping[str, Any], name: str) -> Any:
    """The value of the control of a setting, the default where the picture says nothing or
    nonsense; None for pictures that are not ours."""
    if not was_adapted(params):
        return None
    value = getattr(_settings_of(params), name)
    return "\n".join(value) if isinstance(value, tuple) else value


def for_upscaling(
    settings: JobSettings, user_input: str, params: Mapping[str, Any]
) -> JobSettings | None:
    """The settings of a job that draws one picture larger; None where its text is the user input.

    params: the pairs of that picture. Its text comes back if it is ours and of the same user input,
    whichever image of its job it was; otherwise the settings say what to adapt, once.
    """
    if was_adapted(params) and original_of(params) == user_input:
        if params.get(KEYS["rank"]) == "0":
            return None
        settings = _settings_of(params)
    return dataclasses.replace(settings, images=SAME, keep_best=KEEP_OFF)


def _settings_of(params: Mapping[str, Any]) -> JobSettings:
    kinds = typing.get_type_hints(JobSettings)
    settings = JobSettings()
    for name in NAMES:
        if KEYS[name] not in params:
            continue
        text = unpacked(str(params[KEYS[name]]))
        if name == "rank" and text == "0":  # the plain input's own picture
            continue
        try:
            value = _read(text, kinds[name])
            settings = job_settings({**vars(settings), name: value})
        except (ValueError, SettingsError):
            continue
    return settings


def _read(text: str, kind: Any) -> Any:
    """A setting of its text; ValueError for nonsense."""
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(text)
        return text == "True"
    return kind(text) if kind in (int, float) else text


def _written(value: Any) -> str:
    return packed("\n".join(value)) if isinstance(value, tuple) else packed(str(value))


def _quoted(value: str) -> str:
    """As the host's own `quote`."""
    return json.dumps(value, ensure_ascii=False) if any(m in value for m in ",:\n") else value
