"""Tells modifiers (style, light, quality, camera, artists) from main content. Text only.

Learned weights (promptadapt_core/lexicon.json.gz) say how much likelier a word or a whole segment
is as a modifier; trim() cuts an engineered prompt where its content ends. The other names that
belong here (clean, find_artists, ...) are passed on from the modules below.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from promptadapt_core.artists import find_artists, known_spans, remove_artists
from promptadapt_core.cleaning import clean, normal, split_modifiers
from promptadapt_core.explicit import is_explicit
from promptadapt_core.lexicon import lexicon

__all__ = [
    "Trimmed", "clean", "find_artists", "is_explicit", "is_modifier", "lexicon", "modifier_score",
    "normal", "remove_artists", "split_modifiers", "trim", "words_of",
]  # fmt: skip

THRESHOLD = 4.0  # tenths of log odds from which a segment is a modifier
UNKNOWN = -8.0  # of a word the lexicon has not: content words are many, modifiers few

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    "a an the of in on at to for and or with by from as is are be was it its this that".split()
)


def words_of(segment: str) -> list[str]:
    """The lower-cased words of a segment that carry meaning; hyphenated words count as several."""
    found = _WORD.findall(segment.lower().replace("-", " "))
    return [word for word in found if word not in _FUNCTION_WORDS]


class Trimmed(NamedTuple):
    """An engineered prompt taken apart: content, removed modifiers, removed artist phrases."""

    main: str
    modifiers: tuple[str, ...]
    artists: tuple[str, ...]


def modifier_score(segment: str) -> float:
    """Tenths of log odds that `segment` is a modifier rather than main content."""
    known = lexicon()
    key = normal(segment)
    if not key:
        return 0.0
    words = words_of(segment)
    score = sum(known.words.get(word, UNKNOWN) for word in words) / math.sqrt(max(len(words), 1))
    if key in known.phrases:
        return known.phrases[key] + 0.25 * score
    return score


def is_modifier(segment: str) -> bool:
    """Whether `segment` is a modifier: style, light, quality, camera, or artists' names."""
    if modifier_score(segment) >= THRESHOLD:
        return True
    return _is_artists(segment)


def _is_artists(segment: str) -> bool:
    spans = known_spans(segment)
    return bool(spans) and not words_of(remove_artists(segment, thorough=True))


def trim(engineered_prompt: str) -> Trimmed:
    """Take an engineered prompt apart. `main` is never empty when the prompt has a word."""
    text = clean(engineered_prompt)
    artists = tuple(find_artists(text, thorough=True))
    bare = remove_artists(text, thorough=True) or text
    segments = split_modifiers(bare)
    if not segments:
        return Trimmed(text, (), ())
    scores = [modifier_score(segment) - THRESHOLD for segment in segments]
    start, end = _main_run(scores)
    main = ", ".join(segments[start:end])
    return Trimmed(main, tuple(segments[:start] + segments[end:]), artists)


def _main_run(scores: list[float]) -> tuple[int, int]:
    start = 0
    while start < len(scores) - 1 and scores[start] > 0:
        start += 1
    end = start + 1
    while end < len(scores) and scores[end] <= 0:
        end += 1
    return start, end
