"""Learns promptadapt_core/lexicon.json.gz from engineered prompts and keyword counts.

Two things are learned, and nothing else is stored:

- `artists`: names that follow "by", or stand in lists that do, with counts;
- `weights`: a logistic regression on the words of a segment, modifier against main content, in
  tenths of log odds. A prompt is content followed by modifiers; where the one ends is not marked,
  so rounds of self-training alternate between placing the border where the weights say it is and
  fitting the weights to either side.

Run: python -m promptadapt_core.data.lexicon --prompts F --keywords G [--keywords H] --out FILE
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..artists import name_of, split_names
from ..cleaning import clean, normal, split_modifiers
from ..modifiers import features, main_run, score_of, unknown
from ..settings import SettingsError
from .reading import read_rows

MIN_FEATURE_COUNT = 6
FREQUENT_KEYWORD = 60  # how often a keyword counts as a sure modifier at the start
NUM_ROUNDS = 3
NUM_EPOCHS = 5
RATE = 0.3
DECAY = 0.003
MAX_IMPORTANCE = 6.0


# Names known to everyone, which the prompts may spell out too rarely to be learned.
FAMOUS = (
    "monet, claude monet, picasso, pablo picasso, dali, salvador dali, van gogh, vincent van gogh, "
    "klimt, gustav klimt, giger, hr giger, h. r. giger, h r giger, mucha, rutkowski, da vinci, "
    "leonardo da vinci, leonardo davinci, rembrandt, botticelli, bosch, "
    "hieronymus bosch, bruegel, brueghel, durer, albrecht durer, goya, francisco goya, velazquez, "
    "vermeer, caravaggio, rubens, titian, j. m. w. turner, cezanne, gauguin, "
    "matisse, degas, renoir, manet, toulouse-lautrec, munch, edvard munch, kandinsky, mondrian, "
    "malevich, magritte, rene magritte, max ernst, joan miro, chagall, modigliani, frida kahlo, "
    "diego rivera, edward hopper, norman rockwell, andy warhol, warhol, basquiat, keith haring, "
    "roy lichtenstein, jackson pollock, rothko, banksy, hokusai, hiroshige, escher, m. c. escher, "
    "mc escher, beksinski, zdzislaw beksinski, moebius, jean giraud, "
    "leyendecker, j. c. leyendecker, "
    "jc leyendecker, frazetta, frank frazetta, syd mead, tim burton, wes "
    "anderson, stanley kubrick, "
    "miyazaki, hayao miyazaki, ghibli, studio ghibli, studio trigger, "
    "junji ito, kentaro miura, akira toriyama, osamu tezuka, katsuhiro otomo, masamune shirow, "
    "ansel adams, annie leibovitz, steve mccurry, cindy sherman, helmut newton, thomas kinkade, "
    "bob ross, john singer sargent, bouguereau, waterhouse, john william waterhouse, "
    "gustave dore, william blake, caspar david friedrich, bierstadt, albert bierstadt, "
    "aivazovsky, ivan aivazovsky, ilya repin, repin, shishkin, vrubel, anders zorn, sorolla, "
    "joaquin sorolla, alma-tadema, sakimichan, sakimi chan, ross draws, rossdraws, artgerm, wlop, "
    "greg rutkowski, kuvshinov, ilya kuvshinov, beeple, loish, rhads, sparth, tom bagshaw, "
    "craig mullins, simon stalenhag, stalenhag, ruan jia, yoji shinkawa, makoto shinkai, "
    "yoshitaka amano, ayami kojima, peter mohrbacher, alex grey, android "
    "jones, kaws, ridley scott, "
    "david lynch, tarkovsky, christopher nolan, denis villeneuve, roger deakins, zaha hadid, "
    "gaudi, "
    "frank stella, tintoretto, kupka, frantisek kupka, hiroshi yoshida, iris van herpen, royo, "
    "luis royo, cronenberg, david cronenberg, kubrick, max fleischer, tom lovell, keith parkinson, "
    "wayne reynolds, dan dos santos, michael garmash, rob rey, jeremy lipkin, stephen bliss, "
    "diego fazio, takashi takeuchi, katsuhiro, katsura masakazu, masakazu katsura, jurgens, "
    "dan jurgens, michael whelan, whelan, whealan, bussiere, gaston bussiere, mohrbacher, "
    "zabrocki, zeronis, ozabu, karlkka, mcbess, vofan, lau, stanley lau, hayao, william adolphe, "
    "william-adolphe bouguereau, alex malveda, faberge, lovecraft, h. p. lovecraft, ratfink, "
    "marc chagall, paul cezanne, henri matisse, edgar degas, auguste renoir, edouard manet, "
    "john constable, winslow homer, georgia o'keeffe, egon schiele, otto dix, francis bacon, "
    "lucian freud, david hockney, gerhard richter, damien hirst, takashi murakami, yayoi kusama, "
    "n. c. wyeth, andrew wyeth, maxfield parrish, arthur rackham, edmund dulac, kay nielsen, "
    "brian froud, alan lee, john howe, ted nasmith, boris vallejo, julie bell, frank miller, "
    "mike mignola, jack kirby, steve ditko, jim lee, alan moore, al feldstein, alphonse mucha"
)


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
        artists = _believed(more, _outside(total, artists), least=2, share=0.3)
    _add_keyword_artists(artists, keywords)
    for name in FAMOUS.split(","):
        artists.setdefault(name.strip(), 1)
    return artists


def _outside(total: Counter[str], artists: Mapping[str, int]) -> Counter[str]:
    """How often a word stands outside longer names that have it ("rutkowski" without "greg")."""
    left = total.copy()
    for name in artists:
        words = name.split()
        if len(words) > 1:
            for word in (words[0], words[-1]):
                left[word] -= total[name]
    return left


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
        if len(name) > 2 and count >= needed and part >= (0.4 if one_word else share):
            believed[name] = count
    return believed


def _add_keyword_artists(artists: dict[str, int], keywords: Mapping[str, int]) -> None:
    """Believe the names that keyword lists join to a believed one by "and"."""
    for _ in range(2):
        for keyword, count in keywords.items():
            names = [name_of(name) for name, _ in split_names(clean(keyword))]
            if len(names) > 1 and sum(name in artists for name in names) * 2 >= len(names):
                for name in names:
                    if len(name) > 2 and " " in name:
                        artists[name] = max(artists.get(name, 0), count)


def learn_weights(
    prompts: Sequence[Sequence[str]], keywords: Mapping[str, int]
) -> dict[str, float]:
    """Weights of the features of a segment (modifiers.features) in the log odds of modifier
    against main content: a logistic regression on borders that it moves itself.

    `prompts` are lists of segments without artists. `keywords` are counts of segments of engineered
    prompts of another collection: they start the self-training, as in "everything from the first
    frequent keyword on that is not the first segment is a modifier".
    """
    frequent = {normal(keyword) for keyword, count in keywords.items() if count >= FREQUENT_KEYWORD}
    borders = []
    for segments in prompts:
        marks = [place for place, text in enumerate(segments) if place and normal(text) in frequent]
        borders.append((0, marks[0] if marks else len(segments)))
    known = _known_features(prompts)
    weights: dict[str, float] = {}
    for _ in range(NUM_ROUNDS):
        weights = _fit(_label(prompts, borders), known)
        scores: dict[str, float] = {}
        borders = [_border(segments, weights, scores) for segments in prompts]
    return weights


def _known_features(prompts: Sequence[Sequence[str]]) -> set[str]:
    """The features that occur in enough different segments to learn something from them."""
    counts: Counter[str] = Counter()
    distinct: Counter[str] = Counter()
    for segments in prompts:
        distinct.update(segments)
    for segment, count in distinct.items():
        for feature in set(features(segment)):
            counts[feature] += count if feature[0] == "=" else min(count, 3)
    return {feature for feature, count in counts.items() if count >= MIN_FEATURE_COUNT}


def _label(
    prompts: Sequence[Sequence[str]], borders: Sequence[tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """How often each segment stands in main content and outside it."""
    counts: dict[str, tuple[int, int]] = {}
    for segments, (start, end) in zip(prompts, borders, strict=True):
        for place, segment in enumerate(segments):
            main, modifier = counts.get(segment, (0, 0))
            if start <= place < end:
                counts[segment] = (main + 1, modifier)
            else:
                counts[segment] = (main, modifier + 1)
    return counts


def _fit(labels: Mapping[str, tuple[int, int]], known: set[str]) -> dict[str, float]:
    """Logistic regression by stochastic descent with AdaGrad steps; a segment weighs as the root of
    its count, so that the most copied prompts do not decide everything."""
    examples = []
    for segment, (main, modifier) in sorted(labels.items()):
        found = [feature if feature in known else unknown(feature) for feature in features(segment)]
        examples.append((found, modifier / (main + modifier), math.sqrt(main + modifier)))
    weights: dict[str, float] = {}
    squares: dict[str, float] = {}
    order = random.Random(0)
    for _ in range(NUM_EPOCHS):
        order.shuffle(examples)
        for found, target, importance in examples:
            score = sum([weights.get(feature, 0.0) for feature in found])
            error = 1 / (1 + math.exp(-max(-30.0, min(30.0, score)))) - target
            step = error * min(importance, MAX_IMPORTANCE)
            for feature in found:
                weight = weights.get(feature, 0.0)
                gradient = step + DECAY * weight
                square = squares.get(feature, 1.0) + gradient * gradient
                squares[feature] = square
                weights[feature] = weight - RATE * gradient / math.sqrt(square)
    return weights


def _border(
    segments: Sequence[str], weights: Mapping[str, float], scores: dict[str, float]
) -> tuple[int, int]:
    """The run of segments most likely to be the main content; `scores` keeps what is known."""
    found = []
    for segment in segments:
        if segment not in scores:
            scores[segment] = score_of(segment, weights)
        found.append(scores[segment])
    return main_run(found, later=0.0, slope=0.0)


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
    weights = learn_weights(segmented, keywords)
    tenths = {feature: round(10 * weight) for feature, weight in sorted(weights.items())}
    return {
        "artists": dict(sorted(artists.items())),
        # That a word or a whole segment is known at all says something; other features do not.
        "weights": {
            feature: weight
            for feature, weight in tenths.items()
            if abs(weight) >= 2 or feature[0] == "=" or feature.isalnum()
        },
    }


def write_lexicon(lexicon: Mapping[str, Mapping], path: str | Path) -> None:
    """Write the lexicon; the same lexicon gives the same bytes."""
    text = json.dumps(lexicon, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    Path(path).write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def read_prompts(path: str | Path, exclude_source: Sequence[str] = ()) -> list[str]:
    """The field `prompt` of the training rows of a .jsonl(.gz) file, explicit ones included.

    A row all of whose sources begin with one of `exclude_source` is left out.
    """
    return [
        row.engineered_prompt
        for row in read_rows(str(path))
        if row.split in (None, "train") and not row.comes_only_from(tuple(exclude_source))
    ]


def read_keywords(paths: Iterable[str | Path]) -> dict[str, int]:
    """Keyword counts of .csv files (a header, then keyword and count), the largest of each."""
    keywords: dict[str, int] = {}
    for path in paths:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                for row in list(csv.reader(file))[1:]:
                    if row:
                        keywords[row[0]] = max(keywords.get(row[0], 0), int(row[1]))
        except (IndexError, ValueError, csv.Error):
            raise SettingsError("keywords", f"{path} is no .csv of keyword, count") from None
    return keywords


def main(
    arguments: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> int:
    """Learn and write; `parser` gets the flags."""
    parser = parser or argparse.ArgumentParser()
    parser.description = __doc__.splitlines()[0]
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
