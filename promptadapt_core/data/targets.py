"""From a typed engineered prompt to a clean target, or the reason why it makes none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from .. import modifiers
from ..settings import MAX_INPUT_CHARACTERS
from .reading import Row

MAX_MAIN_WORDS = 25
MAX_MODIFIER_WORDS = 8  # longer segments are descriptions or sentences, not modifiers
MAX_CLIP_TOKENS = 75  # of Stable Diffusion's text encoder, without start and end token
MAX_REPEATED_WORD = 4  # a main content that says one word more often is noise

# Words that cannot end a main content: what followed them was trimmed, or never typed.
_DANGLING = frozenset(
    "a an the of by with and or in on at to from for as into like via & + - – is are "
    "featuring feat depicting wearing made inspired drawn painted illustrated created "
    "style's".split()
)
_MEDIA = frozenset(  # after half a phrase: "a minimalist" of "a minimalist painting by ..."
    "painting paintings render rendering renders art artwork portrait portraits cover sculpture "
    "photograph photography photo illustration illustrations design drawing sketch shot still "
    "poster print style".split()
)
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")
_BRACKETS = re.compile(r"[()\[\]{}<>]")


class Target(NamedTuple):
    """The cleaned content of an engineered prompt."""

    main: str
    modifiers: tuple[str, ...]

    def text(self) -> str:
        return ", ".join((self.main, *self.modifiers))


def make_target(row: Row, *, artists: bool) -> Target | str:
    """The target of one row, or in a few words why it is left out. See also finished()."""
    reason = _unwanted(row)
    if reason:
        return reason
    cleaned = modifiers.clean(row.engineered_prompt)
    trimmed = modifiers.trim(cleaned)
    main = tidy(trimmed.main if artists else modifiers.remove_artists(trimmed.main))
    reason = _bad_main(main)
    if reason:
        return reason
    main = whole_segments(main, cleaned)
    if not main:
        return "broken main content"
    kept = keep_modifiers(main, trimmed.modifiers, artists=artists)
    if artists:
        kept += [tidy(name) for name in trimmed.artists if name.lower() not in main.lower()]
    return Target(main, tuple(kept))


def finished(target: Target, min_modifiers: int) -> Target | str:
    """The target cut to what the image model reads, or why it is left out."""
    kept = fit(target.main, list(target.modifiers))
    if len(kept) < min_modifiers:
        return "too few modifiers"
    return Target(target.main, tuple(kept))


def _unwanted(row: Row) -> str:
    if "minor" in row.flags:
        return "flagged minor"
    if "syntax" in row.flags:
        return "flagged syntax"
    if not row.engineered_prompt.strip():
        return "empty"
    if len(row.engineered_prompt) > MAX_INPUT_CHARACTERS:
        return "too long"
    if modifiers.is_explicit(row.engineered_prompt):
        return "explicit"
    return ""


def _bad_main(main: str) -> str:
    words = main.split()
    if not any(character.isalpha() for character in main):
        return "no main content"
    if len(words) > MAX_MAIN_WORDS:
        return "main content too long"
    lowered = [word.strip(",.").lower() for word in words]
    if max(map(lowered.count, lowered)) > MAX_REPEATED_WORD:
        return "repeats itself"
    if " - " in main:
        return "loose hyphen"
    return ""


def whole_segments(main: str, cleaned: str) -> str:
    """`main` without later segments that are a torn part of one in the cleaned prompt, "" when
    the first is torn. Taking artists and styles out can leave half a phrase, such as "a matte" of
    "a matte painting by ..."."""
    typed = [_words(segment) for segment in modifiers.split_modifiers(tidy(cleaned))]
    segments = modifiers.split_modifiers(main)
    whole = [any(_holds(words, _words(segment)) for words in typed) for segment in segments]
    if not whole or not whole[0]:
        return ""
    return ", ".join(segment for segment, sound in zip(segments, whole, strict=True) if sound)


def _words(segment: str) -> list[str]:
    words = segment.lower().split()
    return ["a" if word == "an" else word for word in words]


def _holds(typed: list[str], part: list[str]) -> bool:
    """Whether `part` is `typed` with whole phrases left out: nothing by an artist in the middle,
    no noun of a medium right after it."""
    place, last, left_out = 0, -1, []
    for index, word in enumerate(typed):
        if place < len(part) and word == part[place]:
            if place:
                left_out += typed[last + 1 : index]
            place, last = place + 1, index
    if place < len(part) or part[-1] in _DANGLING or "by" in left_out:
        return False
    return last + 1 == len(typed) or typed[last + 1] not in _MEDIA


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
    return re.sub(r"^(?:of|and|with|by)\s+", "", text, flags=re.IGNORECASE)


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
