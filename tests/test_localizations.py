"""Translations of the Automatic1111 and Forge page: every label and help has its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptadapt_core.controls import job_controls
from promptadapt_core.infotext import TITLE
from promptadapt_core.job_settings import NAMES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "localizations").glob("*.json"))
OTHERS = (
    "Preview", "Use this one", "Unload models", "Candidate", "Adapt every prompt", "as the host",
)  # fmt: skip
WITH_TITLE = (
    "{} (always on)", "Show {} (always on), which works with other scripts too",
    "Where {} runs its models",
)  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_text_of_the_page_is_translated(file: Path) -> None:
    known = json.loads(file.read_text("utf-8"))
    made = job_controls(NAMES, {"policy": ["x"], "scorer": ["x"]})
    texts = {control.label for control in made} | {control.options["info"] for control in made}
    texts |= {*OTHERS, *(text.format(TITLE) for text in WITH_TITLE)}
    assert texts - set(known) == set()
    assert all(value and value != key for key, value in known.items())


def test_the_other_texts_are_those_of_the_script() -> None:
    script = (ROOT / "scripts" / "promptadapt.py").read_text("utf-8")
    for text in OTHERS:
        assert f'"{text}"' in script
    written = script.replace("{ALWAYS_TITLE}", "{TITLE} (always on)")
    for text in WITH_TITLE:
        assert text.format("{TITLE}") in written


def test_there_is_chinese() -> None:
    assert [file.name for file in FILES] == ["zh_CN.json"]
