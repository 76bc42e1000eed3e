"""What a policy folder says about itself, in promptadapt.json. Text only: imports no torch."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from .settings import AdaptSettings, SettingsError

MANIFEST_NAME = "promptadapt.json"
MANIFEST_FORMAT = 1  # raise it when an older reader would misunderstand the file
STARTS = ("user_input", "free")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How a policy wants to be asked, and the defaults it was trained for.

    template: what the policy continues; "{user_input}" stands for the user's plain text.
    start: "user_input" when the completion is made to begin with the plain user input,
        "free" when the policy writes the whole adapted prompt itself.
    decoding: names of AdaptSettings and this policy's own defaults for them.
    vocab_sha256: of the vocabulary that the weights were trained with (tokenizing.vocab_sha256),
        "" where it is not known.
    """

    name: str = ""
    template: str = "{user_input} Rephrase:"
    start: str = "user_input"
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    licence: str = ""
    vocab_sha256: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "template", "start", "description", "licence", "vocab_sha256"):
            if not isinstance(getattr(self, field), str):
                raise _wrong(f"{field} has to be text, got {getattr(self, field)!r}")
            if re.search("[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]", getattr(self, field)):
                raise _wrong(f"{field} holds a control character or half a character")
        if self.template.count("{user_input}") != 1:
            raise _wrong(f"template has to hold {{user_input}} once, got {self.template!r}")
        if self.start not in STARTS:
            raise _wrong(f"start has to be one of {', '.join(STARTS)}, got {self.start!r}")
        if not isinstance(self.decoding, dict):
            raise _wrong(f"decoding has to be an object of settings, got {self.decoding!r}")
        object.__setattr__(self, "decoding", _checked_decoding(self.decoding))

    def policy_prompt(self, user_input: str) -> str:
        """The text that the policy continues."""
        return self.template.replace("{user_input}", user_input.strip())


def _wrong(reason: str) -> SettingsError:
    return SettingsError("policy", f"{MANIFEST_NAME}: {reason}")


def _checked_decoding(decoding: dict[str, Any]) -> dict[str, Any]:
    """The decoding defaults in the settings' own types, or SettingsError."""
    known = {field.name for field in dataclasses.fields(AdaptSettings)}
    unknown = sorted(set(map(str, decoding)) - known)
    if unknown:
        raise _wrong(f"decoding has settings that do not exist: {', '.join(unknown)}")
    if "keep" in decoding:
        raise _wrong("decoding.keep: a span to keep belongs to a user input, not to a policy")
    try:
        checked = AdaptSettings(**decoding)
    except SettingsError as error:
        raise _wrong(f"decoding.{error.name}: {error.reason}") from None
    return {name: getattr(checked, name) for name in decoding}


# As the released model card runs it; what the card does not filter is not filtered.
PROMPTIST = Manifest(
    name="Promptist",
    template="{user_input} Rephrase:",
    start="free",
    decoding={
        "mode": "beam",
        "num_beams": 8,
        "length_penalty": -1.0,
        "max_new_tokens": 75,
        "min_modifiers": 0,
        "artists": True,
    },
    description="microsoft/Promptist, GPT-2 small trained with PPO for Stable Diffusion 1.4",
    licence="MIT",
)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a policy folder; None when it has none. SettingsError when it is bad."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(f"could not be read in {folder}: {error}") from None
    if not isinstance(fields, dict):
        raise _wrong(f"expected a JSON object in {folder}")
    version = fields.pop("format", MANIFEST_FORMAT)
    if type(version) is not int or version < 1:
        raise _wrong(f"format has to be a whole number from 1 on, got {version!r}")
    if version > MANIFEST_FORMAT:
        raise _wrong(
            f"format {version} is newer than this promptadapt reads ({MANIFEST_FORMAT}); update it"
        )
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(Manifest)})
    if unknown:
        raise _wrong(f"unknown entries in {folder}: {', '.join(unknown)}")
    manifest = Manifest(**fields)
    return manifest if manifest.name else dataclasses.replace(manifest, name=folder.name)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write promptadapt.json into the folder."""
    fields = {"format": MANIFEST_FORMAT, **dataclasses.asdict(manifest)}
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
