"""Regular expressions that wait: what they find, and that importing compiles none."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest

from promptadapt_core.patterns import Pattern

ROOT = Path(__file__).resolve().parents[1]


def test_a_pattern_finds_what_re_finds() -> None:
    source, text = r"(\w+)=(\d)", "A=1, b=2"
    ours, theirs = Pattern(source), re.compile(source)
    assert ours.findall(text) == theirs.findall(text)
    assert ours.sub(r"\2", text) == theirs.sub(r"\2", text)
    assert ours.match(text).groups() == ("A", "1")
    assert (ours.pattern, ours.flags, ours.groups) == (theirs.pattern, theirs.flags, theirs.groups)
    assert Pattern("a", re.IGNORECASE).search("A")
    assert not Pattern("a").search("A")


def test_copies_find_the_same() -> None:
    for copied in (copy.copy(Pattern("a+")), copy.deepcopy(Pattern("a+"))):
        assert copied.findall("aa b a") == ["aa", "a"]


def test_what_is_no_pattern_is_told_at_first_use() -> None:
    pattern = Pattern("(")
    with pytest.raises(re.error):
        pattern.search("")
    with pytest.raises(AttributeError):
        Pattern("a").no_such_method  # noqa: B018


def test_importing_the_text_modules_compiles_nothing() -> None:
    probe = """
import re, dataclasses, typing, inspect, unicodedata
def compiled(source, *_, **__):
    raise AssertionError(f"compiled while importing: {source}")
for name in "compile findall finditer fullmatch match search split sub subn".split():
    setattr(re, name, compiled)
from promptadapt_core import settings, prompts, modifiers, gate
"""
    run = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
