"""Which segments are worth learning as modifiers: learned from the prompts themselves.

What follows the main content of a typed prompt is not all style: people go on to name trees,
clothes and other people there, and a policy that learns those invents things. A segment is
accepted when several people typed it as a modifier and few typed it as content; a rarer one when
all its words are words of accepted modifiers ("soft rim light").
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..modifiers import find_artists, is_explicit, modifier_score, normal, split_modifiers
from .targets import Target

MIN_TARGETS = 1000  # fewer prompts say too little about what is usual
MIN_WRITERS = 3  # clusters of prompts with the modifier
MIN_SHARE = 0.35  # of the uses of a phrase that are uses as a modifier
LEAST_SHARE = 0.1  # enough when the lexicon is sure
SURE_SCORE = 2.5  # log odds
RARE_SCORE = 2.0  # of a modifier that fewer people typed
LEAST_SCORE = -1.5  # a segment below is content, however often it stands at the end
MIN_WORD_USES = 10  # of a word in accepted modifiers, for rarer modifiers made of such words
MAX_PHRASE_WORDS = 4

NAME_SHARE = 0.3  # of the uses of a segment that stand between two artists: it is one too
TYPO_RATIO = 8  # how much more people write it right
TYPO_LENGTH = 8  # letters and digits; shorter words have honest neighbours

_WORD = re.compile(r"[^\W\d_]{3}")
_SHORT = re.compile(  # modifiers without a word of three letters
    r"(?:\d{1,2}k|[2345]d|u?hd|qhd|cg|bw|b&w|d&d|\d{2,3}mm|f/\d[\d.]*|[\s/+])+", re.IGNORECASE
)
_NOT_WANTED = re.compile(r"(?:no|not|non|without|by|don't|safe for|w|h)\b", re.IGNORECASE)
_WORDS = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = frozenset("a an the of in on at to for and or with by from as is very".split())
# What a person has or wears, and who is there: content of the picture wherever it stands.
_CONTENT = frozenset(
    "hair hairs haired eyes eyed skin beard dress dresses shirt clothes clothing outfit uniform "
    "armor armour armored robe robes cloak helmet hat glasses boots makeup tattoo tattoos wings "
    "horns ears nose lips smile smiling woman women man men girl girls boy boys lady person "
    "people king queen child children body breasts muscles muscular scar scars gown suit coat "
    "jacket shaven slim hourglass cyborg he she his her him wearing holding sword gun weapon "
    "weapons".split()
)
_STILL_STYLE = frozenset(  # with a word of _CONTENT in them, and style all the same
    "fullbody fullbodyshot fullbodyportrait halfbody halfbodyshot halfbodyportrait wholebody "
    "upperbody headandshoulders cinematicbodyshot".split()
)


class Vocabulary(NamedTuple):
    """Accepted modifiers and the words that they are made of."""

    spellings: dict[str, str]  # normal form -> how it is usually written
    words: frozenset[str]  # words of which rarer modifiers may be made

    def spelling(self, modifier: str) -> str:
        """`modifier` as it is usually written, "" when it is not worth learning."""
        key = normal(modifier)
        if key in self.spellings:
            return self.spellings[key]
        words = [word for word in words_of(modifier) if word not in _FUNCTION_WORDS]
        known = words and all(word in self.words for word in words)
        if not known or names_content(modifier) or not has_shape(modifier):
            return ""
        if modifier_score(modifier) >= RARE_SCORE:
            return modifier
        return ""

    def filtered(self, target: Target) -> Target:
        """`target` with its accepted modifiers, each once, as they are usually written."""
        spelt = (self.spelling(modifier) for modifier in target.modifiers)
        unique = {normal(text): text for text in spelt if text}
        return Target(target.main, tuple(unique.values()))


def words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def names_content(modifier: str) -> bool:
    """Whether `modifier` says what a person looks like or that one is there."""
    return normal(modifier) not in _STILL_STYLE and not _CONTENT.isdisjoint(words_of(modifier))


def learn(
    targets: Sequence[Target], clusters: Sequence[str], cleaned: Iterable[str] = ()
) -> Vocabulary | None:
    """The vocabulary of `targets`, None when there are fewer than MIN_TARGETS.

    `clusters` names the cluster of each target: near copies count as one writer. `cleaned` are
    the whole prompts, to see which segments stand among artists.
    """
    if len(targets) < MIN_TARGETS:
        return None
    writers: dict[str, set[str]] = defaultdict(set)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    in_main: Counter[str] = Counter()
    for target, cluster in zip(targets, clusters, strict=True):
        in_main.update(set(phrases(target.main)))
        for modifier in target.modifiers:
            key = normal(modifier)
            writers[key].add(cluster)
            spellings[key][modifier] += 1
    written = {key: usual(counts) for key, counts in spellings.items()}
    spread = Counter(word for text in written.values() for word in set(words_of(text)))
    names = names_among_artists(cleaned)
    accepted = {
        key: text
        for key, text in sorted(written.items())
        if key not in names
        and is_accepted(text, len(writers[key]), in_main[key])
        and is_of_known_words(text, spread)
    }
    counts = {key: len(writers[key]) for key in accepted}
    seen = {key: len(found) for key, found in writers.items()}
    right = {key: accepted[correct] for key, correct in corrections(seen, counts).items()}
    words = building_words(accepted, counts, in_main)
    return Vocabulary({**accepted, **right}, words)


def building_words(
    accepted: dict[str, str], counts: dict[str, int], in_main: Counter[str]
) -> frozenset[str]:
    """The words that are used in accepted modifiers much more than in main content."""
    uses: Counter[str] = Counter()
    for key, text in accepted.items():
        for word in set(words_of(text)):
            uses[word] += counts[key]
    return frozenset(
        word
        for word, count in uses.items()
        if count >= MIN_WORD_USES and 2 * count >= in_main[word] and not word.isdigit()
    )


def names_among_artists(cleaned: Iterable[str]) -> set[str]:
    """Segments that stand between two artists too often to be a modifier."""
    between: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    for text in cleaned:
        segments = split_modifiers(text)
        artists = [bool(find_artists(segment)) for segment in segments]
        for place, segment in enumerate(segments):
            key = normal(segment)
            uses[key] += 1
            around = artists[max(0, place - 1) : place] + artists[place + 1 : place + 2]
            between[key] += len(around) == 2 and all(around)
    return {key for key, count in between.items() if count >= 2 and count >= NAME_SHARE * uses[key]}


def corrections(seen: dict[str, int], accepted: dict[str, int]) -> dict[str, str]:
    """Misspelt keys -> the accepted key that is one letter away and TYPO_RATIO times as frequent.

    Both map keys to how many people typed them; few are counted as MIN_WRITERS.
    """
    by_deletion: dict[str, set[str]] = defaultdict(set)
    for key, count in accepted.items():
        if len(key) >= TYPO_LENGTH and count >= TYPO_RATIO * MIN_WRITERS:
            for form in _deletions(key):
                by_deletion[form].add(key)
    found = {}
    for key, count in seen.items():
        if len(key) < TYPO_LENGTH:
            continue
        near = {other for form in _deletions(key) for other in by_deletion.get(form, ())}
        least = TYPO_RATIO * max(count, MIN_WRITERS)
        better = [o for o in near if accepted[o] >= least and _digits(o) == _digits(key)]
        if better:
            found[key] = max(better, key=lambda other: (accepted[other], other))
    return found


def _deletions(key: str) -> set[str]:
    return {key, *(key[:place] + key[place + 1 :] for place in range(len(key)))}


def _digits(key: str) -> str:
    return "".join(filter(str.isdigit, key))


def is_accepted(modifier: str, num_writers: int, num_in_main: int) -> bool:
    """Whether so many uses as a modifier, and so many inside main content, make it one."""
    if num_writers < MIN_WRITERS or names_content(modifier):
        return False
    if not has_shape(modifier) or is_explicit(modifier):
        return False
    share = num_writers / (num_writers + num_in_main)
    score = modifier_score(modifier)
    if share >= MIN_SHARE:
        return score >= LEAST_SCORE
    return share >= LEAST_SHARE and score >= SURE_SCORE


def has_shape(modifier: str) -> bool:
    """Whether `modifier` looks like one: words, nothing forbidden (image models do not read "no"),
    no loose hyphen."""
    if " - " in modifier or _NOT_WANTED.match(modifier):
        return False
    return bool(_WORD.search(modifier) or _SHORT.fullmatch(modifier))


def is_of_known_words(modifier: str, spread: Counter[str]) -> bool:
    """Words that occur in this one phrase only are names, mostly of artists; `spread` counts the
    different segments with a word. A single word may stand alone."""
    words = [word for word in words_of(modifier) if len(word) > 2 and not word.isdigit()]
    return len(words) < 2 or all(spread[word] > 1 for word in words)


def usual(spellings: Counter[str]) -> str:
    """The most frequent spelling; of equally frequent ones the first in the alphabet."""
    return min(spellings, key=lambda text: (-spellings[text], text))


def phrases(text: str) -> Iterable[str]:
    """The normal forms of all runs of up to MAX_PHRASE_WORDS words."""
    words = words_of(text)
    for size in range(1, MAX_PHRASE_WORDS + 1):
        for start in range(len(words) - size + 1):
            yield "".join(words[start : start + size])
