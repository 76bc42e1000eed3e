"""Tells modifiers (style, light, quality, camera, artists) from main content. Text only.

Learned weights (promptadapt_core/lexicon.json.gz) say how much likelier a word or a whole segment
is as a modifier; trim() cuts an engineered prompt where its content ends. The other names that
belong here (clean, find_artists, ...) are passed on from the modules below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .artists import find_artists, known_spans, remove_artists
from .cleaning import clean, normal, split_modifiers
from .explicit import is_explicit
from .lexicon import lexicon
from .patterns import Pattern

__all__ = [
    "Trimmed", "clean", "find_artists", "is_explicit", "is_modifier", "lexicon", "modifier_score",
    "normal", "remove_artists", "split_modifiers", "trim",
]  # fmt: skip

MAX_WORDS = 40  # a longer segment is judged by its first words
MAX_LEAD = 12  # content begins within so many segments
CLIP = 3.0  # no segment counts for more
LATER = 0.2  # a segment after the first must look like content by this much
SLOPE = 0.3  # and by so much more for each further one
LEAD = 2.0  # what leaving a leading segment out costs
SURE = 1.5  # log odds from which words at the end of content are cut off
THRESHOLD = 0.0  # log odds from which a segment is a modifier

# Praise, grain and gear in front of a subject say nothing about it.
_PRAISE = Pattern(
    r"((?:an?|the)\b)?\s*((?:(?:(?:highly|ultra|hyper|extremely|insanely|incredibly|super|very|"
    r"most|intricately|stunningly|finely|high|best|award)[ -]?)*"
    r"(?:beautiful|gorgeous|stunning|amazing|awesome|breathtaking|incredible|wonderful|adorable|"
    r"fancy|epic|intricate|elegant|detailed|realistic|photorealistic|hyperrealistic|"
    r"ultrarealistic|photo-?realistic|cinematic|colou?rful|masterpiece|professional|perfect|"
    r"award[ -]?winning|winning|quality|resolution|definition|masterful|exquisite|"
    r"[248]k|u?hd|hdr|\d{2,3}mm|render of)\b[ -]*(?:and "
    r")?)+)(?=[^\W_])(?!of\b|and\b|in\b|by\b|with\b)",
    re.IGNORECASE,
)
_MEDIUM = Pattern(
    r"\b(?:art|artwork|concept|drawing|illustration|image|painting|photo|photograph|photography|"
    r"picture|poster|render|rendering|scene|shot|sketch|style|subject|wallpaper)$",
    re.IGNORECASE,
)
_DEGREES = frozenset("ultra hyper highly very extremely super insanely incredibly most".split())
_UNFINISHED = frozenset(  # what content cannot end with: the words after it belong to it
    "a an the of in on at to for and or with by from as like is are his her its their this that "
    "into under over near wearing holding made very through behind beside".split()
)
_WORD = Pattern(r"[^\W_]+(?:'[^\W_]+)*")


def features(segment: str) -> list[str]:
    """What the weights look at: words, neighbouring words, the first and last word, the whole."""
    words = _WORD.findall(segment.lower())[:MAX_WORDS]
    if not words:
        return ["<bias>"]
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:])]  # noqa: B905
    return ["<bias>", *words, *pairs, "^" + words[0], words[-1] + "$", "=" + "".join(words)]


def unknown(feature: str) -> str:
    """What stands for a feature without a weight of its own: one feature of its kind."""
    if feature[0] in "^=":
        return feature[0] + "<unknown>"
    if feature[-1] == "$":
        return "<unknown>$"
    return "<unknown pair>" if " " in feature else "<unknown>"


def score_of(segment: str, weights: Mapping[str, float]) -> float:
    """Sum of the weights of the features of `segment`, in the unit of the weights."""
    score = 0.0
    for feature in features(segment):
        weight = weights.get(feature)
        score += weights.get(unknown(feature), 0.0) if weight is None else weight
    return score


def main_run(
    scores: Sequence[float], later: float = LATER, slope: float = SLOPE
) -> tuple[int, int]:
    """The run of segments (start, end) most likely to be the main content, from the log odds of
    modifier of each. Content comes early: a segment after the first must look like content by
    `later`, and by `slope` more for each one further back."""
    clipped = [max(-CLIP, min(CLIP, score)) for score in scores]
    best, place = math.inf, (0, 1)
    lead = 0.0
    for start in range(min(MAX_LEAD, len(scores))):
        running = lead
        for end in range(start + 1, len(scores) + 1):
            distance = end - 1 - start
            running += clipped[end - 1] + (later + slope * distance if distance else 0.0)
            if running < best:
                best, place = running, (start, end)
        lead += max(0.0, -clipped[start]) + (LEAD if start == 0 else LEAD / 10)
    return place


class Trimmed(NamedTuple):
    """An engineered prompt taken apart: content, removed modifiers, removed artist phrases."""

    main: str
    modifiers: tuple[str, ...]
    artists: tuple[str, ...]


def modifier_score(segment: str) -> float:
    """Log odds that `segment` is a modifier rather than main content."""
    return score_of(segment, lexicon().weights) / 10


def is_modifier(segment: str) -> bool:
    """Whether `segment` is a modifier: style, light, quality, camera, or artists' names."""
    if modifier_score(segment) >= THRESHOLD:
        return True
    return _is_artists(segment)


def _is_artists(segment: str) -> bool:
    spans = known_spans(segment)
    return bool(spans) and not _WORD.search(remove_artists(segment, thorough=True))


def trim(engineered_prompt: str) -> Trimmed:
    """Take an engineered prompt apart. `main` is never empty when the prompt has a word.

    The content is the likeliest run of segments, without the praise in front of it and without
    modifiers that follow its last word with no comma between.
    """
    text = clean(engineered_prompt)
    artists = tuple(find_artists(text, thorough=True))
    bare = remove_artists(text, thorough=True) or text
    segments = [part for segment in split_modifiers(bare) for part in _uncolon(segment)]
    if not segments:
        return Trimmed(text, (), artists)
    start, end = main_run([modifier_score(segment) for segment in segments])
    before, after = list(segments[:start]), list(segments[end:])
    kept, praise = _strip_praise(segments[start])
    content, peeled = [], []
    for segment in [kept, *segments[start + 1 : end]]:
        rest, found = _peel(segment)
        content.append(rest)
        peeled += found
    return Trimmed(", ".join(content), tuple(before + praise + peeled + after), artists)


def _uncolon(segment: str) -> list[str]:
    """ "digital painting: a cat" is two segments."""
    before, colon, after = segment.partition(": ")
    if colon and after and _MEDIUM.search(before):
        return [re.sub(r"^an? ", "", before, flags=re.IGNORECASE), after]
    return [segment]


def _strip_praise(segment: str) -> tuple[str, list[str]]:
    """The segment without leading words of praise ("a beautiful", "4k"), and those words."""
    found = _PRAISE.match(segment)
    if not found:
        return segment, []
    article, rest = found.group(1) or "", segment[found.end() :]
    if article.lower() in ("a", "an"):
        right = "an" if rest[0].lower() in "aeiou" else "a"
        article = right.capitalize() if article[0].isupper() else right
    return f"{article} {rest}".strip(), [found.group(2).strip(" -")]


def _peel(segment: str) -> tuple[str, list[str]]:
    """The segment without the modifiers at its end, and these, in their order."""
    words = segment.split()
    peeled: list[str] = []
    while len(words) > 1:
        size = _modifier_at_end(words)
        if not size:
            break
        peeled.insert(0, " ".join(words[-size:]))
        words = words[:-size]
    if peeled and words[-1].lower() in _DEGREES and len(words) > 1:
        peeled[0] = f"{words.pop()} {peeled[0]}"
    while peeled and words[-1].lower() in _UNFINISHED:
        words += peeled.pop(0).split()
    if sum(len(chunk.split()) for chunk in peeled) < 2:
        return segment, []
    return " ".join(words), peeled


def _modifier_at_end(words: list[str]) -> int:
    """How many words at the end are a modifier that is known as a whole; 0 for none."""
    weights = lexicon().weights
    for size in range(min(4, len(words) - 1), 0, -1):
        chunk = " ".join(words[-size:])
        if "=" + "".join(_WORD.findall(chunk.lower())) in weights and modifier_score(chunk) >= SURE:
            return size
    return 0
