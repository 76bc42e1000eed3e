"""From a typed engineered prompt to a clean target, or the reason why it makes none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from .. import modifiers
from .reading import Row

MAX_MAIN_WORDS = 25
MAX_MODIFIER_WORDS = 8  # longer segments are descriptions or sentences, not modifiers
MAX_CLIP_TOKENS = 75  # of Stable Diffusion's text encoder, without start and end token
MAX_REPEATED_WORD = 4  # a main content that says one word more often is noise

# Words that cannot end a main content: what followed them was trimmed, or never typed.
_DANGLING = frozenset(
    "a an the of by with and or in on at to from for as into like via & + - – is are "
    "featuring feat depicting wearing made inspired drawn painted illustrated created style's".split()
)
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")
_BRACKETS = re.compile(r"[()\[\]{}<>]")


class Target(NamedTuple):
    """The cleaned content of an engineered prompt."""

    main: str
    modifiers: tuple[str, ...]

    def text(self) -> str:
        return ", ".join((self.main, *self.modifiers))


def make_target(row: Row, *, artists: bool, min_modifiers: int) -> Target | str:
    """The target of one row, or in one or two words why it is left out."""
    reason = _unwanted(row)
    if reason:
        return reason
    trimmed = modifiers.trim(modifiers.clean(row.engineered_prompt))
    main = tidy(trimmed.main if artists else modifiers.remove_artists(trimmed.main))
    reason = _bad_main(main)
    if reason:
        return reason
    kept = keep_modifiers(main, trimmed.modifiers, artists=artists)
    if artists:
        kept += [tidy(name) for name in trimmed.artists if name.lower() not in main.lower()]
    kept = fit(main, kept)
    if len(kept) < min_modifiers:
        return "too few modifiers"
    return Target(main, tuple(kept))


def _unwanted(row: Row) -> str:
    if "minor" in row.flags:
        return "flagged minor"
    if "syntax" in row.flags:
        return "flagged syntax"
    if not row.engineered_prompt.strip():
        return "empty"
    if modifiers.is_explicit(row.engineered_prompt):
        return "explicit"
    return ""


def _bad_main(main: str) -> str:
    words = main.split()
    if not any(character.isalpha() for character in main):
        return "no main content"
    if len(words) > MAX_MAIN_WORDS:
        return "main content too long"
    if words[-1].lower() in _DANGLING:
        return "broken main content"
    lowered = [word.strip(",.").lower() for word in words]
    if max(map(lowered.count, lowered)) > MAX_REPEATED_WORD:
        return "repeats itself"
    return ""


def keep_modifiers(main: str, segments: Iterable[str], *, artists: bool) -> list[str]:
    """The modifiers worth learning: clean, no repeats, nothing that the main content says."""
    kept: list[str] = []
    known = {modifiers.normal(segment) for segment in modifiers.split_modifiers(main)}
    for segment in segments:
        text = tidy(segment if artists else modifiers.remove_artists(segment))
        key = modifiers.normal(text)
        if not key or key in known or not any(map(str.isalnum, text)):
            continue
        words = text.split()
        if len(words) > MAX_MODIFIER_WORDS or words[-1].lower() in _DANGLING:
            continue
        if not artists and modifiers.find_artists(text):
            continue
        known.add(key)
        kept.append(text)
    return kept


def tidy(segment: str) -> str:
    """A segment without brackets, stray punctuation and dangling ends."""
    text = _BRACKETS.sub(" ", unicodedata.normalize("NFC", segment))
    text = re.sub(r"[\"“”*~|\\]+", " ", text)
    text = re.sub(r"!+", "!", text)
    text = re.sub(r"\s*,(\s*,)*\s*", ", ", text)
    text = re.sub(r"\s+([.!?:;])", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip(" ,.;:!-–—_/&+'")
    return text


def fit(main: str, kept: list[str]) -> list[str]:
    """The leading modifiers that fit, with the main content, into the image model's encoder."""
    while kept and count_pieces(", ".join([main, *kept])) > MAX_CLIP_TOKENS:
        kept = kept[:-1]
    return kept


def count_pieces(text: str) -> int:
    """About how many CLIP tokens a text has: CLIP splits words, digits and punctuation apart, and
    rare long words once or twice more."""
    pieces = _PIECES.findall(text)
    return len(pieces) + sum(len(piece) // 10 for piece in pieces)
