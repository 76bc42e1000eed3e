"""Learns promptadapt_core/lexicon.json.gz from engineered prompts and keyword counts.

Three things are learned, and nothing else is stored:

- `artists`: names that follow "by", or stand in lists that do, with counts;
- `words`: how much likelier a word is in a modifier than in main content (natural log odds,
  times 10). A prompt is content followed by modifiers; where the one ends is not marked, so a few
  rounds of self-training alternate between placing the border where the words say it is and
  counting the words on either side;
- `phrases`: the same for whole segments that occur often, so that "pulp fiction" is known as a
  whole.

Run: python -m promptadapt_core.data.lexicon --prompts F --keywords G [--keywords H] --out FILE
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from promptadapt_core.artists import name_of, split_names
from promptadapt_core.cleaning import clean, normal, split_modifiers
from promptadapt_core.modifiers import words_of

MIN_WORD_COUNT = 6
MIN_PHRASE_COUNT = 6
NUM_ROUNDS = 6
SMOOTHING = 2.0
LIMIT = 4.0  # no log odds beyond this, either way


class Item:
    """A run of words between two delimiters, and what stood before it: start, by, and, comma."""

    __slots__ = ("before", "text")

    def __init__(self, text: str, before: str):
        self.text = text
        self.before = before


def learn_artists(texts: Sequence[str], keywords: Mapping[str, int]) -> dict[str, int]:
    """Names (lower case) with how often they were met as an artist.

    A name is believed when it follows "by" at least twice and in a fair share of all its
    occurrences; then what is joined to a believed name by "and", or stands between two believed
    names, is believed by the same rule, twice over.
    """
    chains = [_items(text) for text in texts]
    total: Counter[str] = Counter()
    for text in texts:
        total.update(_ngrams(text))
    evidence: Counter[str] = Counter()
    for items in chains:
        evidence.update({item.text: 1 for item in items if item.before == "by" and item.text})
    artists = _believed(evidence, total, least=2, share=0.2)
    for _ in range(3):
        more = evidence.copy()
        for items in chains:
            for place, item in enumerate(items[1:], 1):
                if not item.text or item.before == "by":
                    continue
                before = items[place - 1].text in artists
                after = place + 1 < len(items) and items[place + 1].text in artists
                if (before and after) or (before and item.before == "and"):
                    more[item.text] += 1
        artists = _believed(more, total, least=2, share=0.3)
    _add_keyword_artists(artists, keywords)
    return artists


def _items(text: str) -> list[Item]:
    items: list[Item] = []
    for segment in split_modifiers(text):
        for place, (name, after_by) in enumerate(split_names(segment)):
            before = "by" if after_by else ("and" if place else ("comma" if items else "start"))
            items.append(Item(name_of(name, cut=after_by), before))
    return items


def _ngrams(text: str) -> Iterable[str]:
    for segment in split_modifiers(text.lower()):
        words = segment.split()
        for size in (1, 2, 3, 4):
            for start in range(len(words) - size + 1):
                yield " ".join(words[start : start + size])


def _believed(
    evidence: Mapping[str, int], total: Mapping[str, int], least: int, share: float
) -> dict[str, int]:
    believed = {}
    for name, count in evidence.items():
        one_word = " " not in name
        needed = max(least, 4 if one_word else least)
        part = count / max(total[name], count, 1)
        if name and count >= needed and part >= (0.4 if one_word else share):
            believed[name] = count
    return believed


def _add_keyword_artists(artists: dict[str, int], keywords: Mapping[str, int]) -> None:
    """Believe the names that keyword lists join to a believed one by "and"."""
    for _ in range(2):
        for keyword, count in keywords.items():
            names = [name_of(name) for name, _ in split_names(clean(keyword))]
            if len(names) > 1 and sum(name in artists for name in names) * 2 >= len(names):
                for name in names:
                    if name and " " in name:
                        artists[name] = max(artists.get(name, 0), count)


def learn_weights(
    prompts: Sequence[Sequence[str]], keywords: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Log odds of words and of whole segments, modifier against main content.

    `prompts` are lists of segments without artists. `keywords` are counts of segments of engineered
    prompts of another collection: they start the self-training, as in "everything from the first
    frequent keyword on that is not the first segment is a modifier".
    """
    frequent = {normal(keyword) for keyword, count in keywords.items() if count >= 250}
    borders = []
    for segments in prompts:
        marks = [place for place, text in enumerate(segments) if place and normal(text) in frequent]
        borders.append((0, marks[0] if marks else len(segments)))
    words: dict[str, float] = {}
    phrases: dict[str, float] = {}
    for _ in range(NUM_ROUNDS):
        words, phrases = _count(prompts, borders, keywords)
        borders = [_border(segments, words, phrases) for segments in prompts]
    return words, phrases


def _count(
    prompts: Sequence[Sequence[str]],
    borders: Sequence[tuple[int, int]],
    keywords: Mapping[str, int],
) -> tuple[dict[str, float], dict[str, float]]:
    word_counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    phrase_counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for segments, (start, end) in zip(prompts, borders, strict=True):
        for place, segment in enumerate(segments):
            side = int(not start <= place < end)
            word_counts[side].update(words_of(segment))
            if len(segments) > 1:
                phrase_counts[side][normal(segment)] += 1
    words = _log_odds(word_counts, MIN_WORD_COUNT, lambda word: 0.0)
    prior = {normal(keyword): 1.0 for keyword, count in keywords.items() if count >= 100}
    phrases = _log_odds(phrase_counts, MIN_PHRASE_COUNT, lambda key: prior.get(key, 0.0))
    return words, phrases


def _log_odds(counts, least: int, prior) -> dict[str, float]:
    main, modifier = counts
    num_main, num_modifier = sum(main.values()), sum(modifier.values())
    odds = {}
    for key in main.keys() | modifier.keys():
        if key and main[key] + modifier[key] >= least:
            value = prior(key) + math.log(
                (modifier[key] + SMOOTHING) / (main[key] + SMOOTHING * num_main / num_modifier)
            )
            odds[key] = min(LIMIT, max(-LIMIT, value))
    return odds


def _border(
    segments: Sequence[str], words: Mapping[str, float], phrases: Mapping[str, float]
) -> tuple[int, int]:
    """The run of segments most likely to be the main content."""
    scores = []
    for segment in segments:
        key = normal(segment)
        found = words_of(segment)
        score = sum(words.get(word, -0.5) for word in found) / math.sqrt(max(len(found), 1))
        scores.append(phrases[key] if key in phrases else score)
    best, place = math.inf, (0, 1)
    for start in range(min(3, len(scores))):
        running = 0.4 * start  # content comes first unless the words say otherwise
        running -= sum(scores[:start]) * 0.5
        for end in range(start + 1, len(scores) + 1):
            running += scores[end - 1]
            if running < best:
                best, place = running, (start, end)
    return place


def build_lexicon(prompts: Iterable[str], keywords: Mapping[str, int]) -> dict[str, dict]:
    """The lexicon from engineered prompts and keyword counts, ready for write_lexicon()."""
    texts = [clean(text) for text in prompts]
    artists = learn_artists(texts, keywords)
    pattern = re.compile(r"\b(?:by|in the style of|style of|art by)\s+[^,.;|]*", re.IGNORECASE)
    segmented = []
    for text in texts:
        kept = []
        for segment in split_modifiers(pattern.sub(",", text)):
            if not any(name_of(name) in artists for name, _ in split_names(segment)):
                kept.append(segment)
        if kept:
            segmented.append(kept)
    words, phrases = learn_weights(segmented, keywords)
    return {
        "artists": dict(sorted(artists.items())),
        "phrases": _tenths(phrases),
        "words": _tenths(words),
    }


def _tenths(odds: Mapping[str, float]) -> dict[str, int]:
    return {key: round(10 * value) for key, value in sorted(odds.items())}


def write_lexicon(lexicon: Mapping[str, Mapping], path: str | Path) -> None:
    """Write the lexicon; the same lexicon gives the same bytes."""
    text = json.dumps(lexicon, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    Path(path).write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def read_prompts(path: str | Path, exclude_source: Sequence[str] = ()) -> list[str]:
    """The field `prompt` of the training rows of a .jsonl(.gz) file, explicit ones included.

    A row all of whose sources begin with one of `exclude_source` is left out.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    prompts = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            sources = row.get("source") or [""]
            clear = not all(source.startswith(tuple(exclude_source)) for source in sources)
            if row.get("split", "train") == "train" and (clear or not exclude_source):
                prompts.append(row["prompt"])
    return prompts


def read_keywords(paths: Iterable[str | Path]) -> dict[str, int]:
    """Keyword counts of .csv files (a header, then keyword and count), the largest of each."""
    keywords: dict[str, int] = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            for row in list(csv.reader(file))[1:]:
                keywords[row[0]] = max(keywords.get(row[0], 0), int(row[1]))
    return keywords


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", required=True, help=".jsonl or .jsonl.gz, field `prompt`")
    parser.add_argument("--keywords", action="append", default=[], help=".csv: keyword, count")
    parser.add_argument("--exclude-source", action="append", default=[], metavar="PREFIX")
    parser.add_argument("--out", default=str(Path(__file__).parents[1] / "lexicon.json.gz"))
    options = parser.parse_args(arguments)
    prompts = read_prompts(options.prompts, options.exclude_source)
    lexicon = build_lexicon(prompts, read_keywords(options.keywords))
    write_lexicon(lexicon, options.out)
    sizes = ", ".join(f"{len(part)} {name}" for name, part in lexicon.items())
    print(f"{len(prompts)} prompts: {sizes}, {Path(options.out).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
