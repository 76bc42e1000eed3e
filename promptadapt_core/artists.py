"""Names of artists: finding them and taking them out. Text only.

A name is known when the lexicon has it. Two strengths, because the two uses err differently: in a
person's own text a false alarm is worse ("standing by a lake"), in a text for training or for
output a missed name is worse.
"""

from __future__ import annotations

import functools
import re

from .lexicon import lexicon
from .patterns import Pattern

# What introduces names. "by" alone may introduce anything ("by the sea").
_STYLE_OF = (
    r"(?:(?:art|artwork|artworks|painted|illustrated|drawn|photographed|rendered|created|designed|"
    r"directed|sculpted|styled|inspired|work|works|masterpiece|written|animated) +)?\bby\b"
    r"|\b(?:in|into|with)? *(?:the |an? )?(?:art |artistic |painting |visual |mixed |combined )?"
    r"\b(?:art)?styles? (?:of|by|from)\b|\ba la\b"
    r"|\binspired by\b|\binfluenced by\b|\bhomage to\b|\bartworks? of\b|\bpaintings of\b"
)
# "surrounded by birds", "side by side": such a "by" introduces no artist.
_PLAIN_BY = Pattern(
    r"\b(?:\w+ed|lit|driven|eaten|held|built|worn|stand|standing|sitting|walking|side|step|one|"
    r"day|bite|hand|flying|passing|hit|shot|taken|seen|led|hidden|bitten|torn|swept|hanging|near|"
    r"pulled|ridden|run|caught|sit|close|followed|go|going|driving) +by$",
    re.IGNORECASE,
)
INTRODUCTION = Pattern(_STYLE_OF, re.IGNORECASE)
_JOINS = Pattern(r"\s+(?:and|und|x|vs|meets|or|with)\s+|\s*[&+/,;|]\s*|\s+mixed with\s+", re.I)
_FIRST = Pattern(
    r"^(?:and|art|artwork|painting|painted|illustration|illustrated|drawn|photo|photograph|style|"
    r"styled|in|the|style|of|by|like|as|also|from|artist|artists|famous|legendary|director|painter|"
    r"photographer|master|concept)\s+",
    re.IGNORECASE,
)
SURE_COUNT = 3  # a name met so often is an artist even without "by"
# A name ends before such a word.
_STOPS = frozenset(
    "and a an the of in at on with from for as to standing sitting "
    "trending digital style art painting "
    "concept highly detailed 4k 8k hd render illustration photo portrait featured featuring made "
    "using oil photography very extremely ultra hyper unreal octane "
    "artstation cinematic is are was "
    "that which who while under over through into during against near behind beside between around "
    "his her their its this these those my your our it he she they colorful beautiful intricate "
    "realistic dramatic volumetric hyperrealistic photorealistic global high quality award winning "
    "sharp focus but not no wearing holding showing depicting then mixed "
    "dark bright if cover movie "
    "film anime inspired style. like via per cgsociety deviantart pixiv behance wallpaper sketch "
    "smooth elegant fantasy dynamic ray 3d 2d 35mm 50mm masterpiece realism digitally painted "
    "watercolor watercolour ink drawing poster artwork".split()
)
_PARTICLES = frozenset(
    "van von der den de di da del della la le du el al bin ter ten st san o".split()
)
_NOT_NAMES = frozenset(
    "night day hand hands sea candlelight moonlight firelight sunlight "
    "starlight lamplight daylight "
    "light fire water rain snow side step nature magic god gods design default accident myself him "
    "me you them us himself herself itself someone everyone nobody many several various different "
    "two three four both each one people ai dalle midjourney stable diffusion professional "
    "professionals artist artists children kids humans aliens robots force law train car boat bus "
    "foot bike air flames smoke clouds mist fog water trees flowers neon "
    "lightning torches lanterns "
    "candles sunset sunrise dusk dawn noon midnight modern pop abstract surreal river lake "
    "beach pool ocean seaside road window door forest mountain".split()
)


def split_names(segment: str) -> list[tuple[str, bool]]:
    """The parts of a segment between joining words, each with whether "by" or "style of" comes
    right before it: "art by a and b" gives ("", False), ("a", True), ("b", False)."""
    parts: list[tuple[str, bool]] = []
    for place, piece in enumerate(INTRODUCTION.split(segment)):
        for number, name in enumerate(_JOINS.split(piece)):
            parts.append((name.strip(), place > 0 and number == 0))
    return parts


def name_of(text: str, cut: bool = False) -> str:
    """`text` as the key of a name (lower case), "" when it has not the shape of one.

    With `cut`, words from the first that cannot belong to a name are left out.
    """
    text = _FIRST.sub("", text.strip().lower().replace("’s", "").removesuffix("'s"))
    words = text.replace(":", " ").replace('"', " ").strip(" .!?-_*()[]").split()
    kept = []
    for word in words:
        if word in _STOPS:
            if cut:
                break
            return ""
        kept.append(word)
    if not kept or len(kept) > 4 or kept[0] in _NOT_NAMES or kept[-1] in _PARTICLES:
        return ""
    if any(character.isdigit() or character in "()[]{}<>_=*" for character in "".join(kept)):
        return ""
    return " ".join(kept)


_KNOWN_WORD = Pattern(r"[^\W_](?:[\w'’.&-]*[^\W_])?\.?")


@functools.cache
def _by_first_word() -> dict[str, tuple[tuple[str, ...], ...]]:
    """The known names as words without full stops, by their first word, longest first."""
    table: dict[str, list[tuple[str, ...]]] = {}
    for name in lexicon().artists:
        words = tuple(_bare(word) for word in name.split())
        table.setdefault(words[0], []).append(words)
    return {first: tuple(sorted(names, key=len, reverse=True)) for first, names in table.items()}


def _bare(word: str) -> str:
    return word.lower().removesuffix("'s").removesuffix("’s").replace(".", "")


def known_spans(text: str) -> list[tuple[int, int]]:
    """Where known names stand in `text` (offsets), left to right, longest first, no overlaps."""
    found = list(_KNOWN_WORD.finditer(text))
    words = [_bare(match.group()) for match in found]
    table = _by_first_word()
    spans, place = [], 0
    while place < len(words):
        size = 0
        for name in table.get(words[place], ()):
            if tuple(words[place : place + len(name)]) == name:
                size = len(name)
                last = found[place + size - 1]
                spans.append((found[place].start(), last.start() + len(last.group().rstrip("."))))
                break
        place += size or 1
    return spans


def artist_spans(text: str, thorough: bool = False) -> list[tuple[int, int]]:
    """Offsets of the phrases that name artists, introduction included ("by x and y").

    Not thorough: a known name counts after "by", "style of" and in lists after such a name, or
    alone as a whole segment. Thorough: every known name anywhere, and whatever has the shape of a
    name after "by", "style of" or in a list that they begin.
    """
    spans: list[tuple[int, int]] = []
    known = known_spans(text)
    for introduction in INTRODUCTION.finditer(text):
        if spans and introduction.start() < spans[-1][1]:
            continue
        begin = introduction.end()
        plain = introduction.group().lower() == "by" and _PLAIN_BY.search(text[:begin])
        guess = thorough and not plain
        end = _name_end(text, begin, known, guess, first=True)
        if end > begin:
            spans.append((introduction.start(), _list_end(text, end, known, thorough)))
    for start, end in known:
        inside = any(first <= start and end <= last for first, last in spans)
        if not inside and (thorough or _alone(text, start, end)):
            spans.append((start, _list_end(text, end, known, True) if thorough else end))
            if thorough:
                known = [span for span in known if span[0] >= spans[-1][1] or span[1] <= end]
    return _merged(spans)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _list_end(text: str, end: int, known: list[tuple[int, int]], guess: bool) -> int:
    """End of the list of names that goes on after the name that ends at `end`."""
    while True:
        next_end = _name_end(text, end, known, guess, first=False)
        if next_end == end:
            return end
        end = next_end


_NEXT = Pattern(r"(?:\s*(?:,|&|\+|/|;)\s*(?:and\s+)?|\s+and\s+|\s+)?(?:(?:art\s+)?by\s+|the\s+)?")
_WORD = Pattern(r"[^\s,;|&+/()\[\]]+")


def _name_end(text: str, start: int, known: list[tuple[int, int]], guess: bool, first: bool) -> int:
    """End of the name that begins after the joining words at `start`, or `start` when none does.

    A known name, or with `guess` a run of words of the shape of a name; in a list after a comma
    that must look like a person's."""
    begin = _NEXT.match(text, start).end()
    for known_start, known_end in known:
        if known_start == begin:
            return known_end
    joined = text[start:begin].strip().lower().removesuffix("the").strip()
    if not guess or begin == start or not (first or joined):
        return start
    end, words = begin, []
    for match in _WORD.finditer(text, begin):
        if words and text[end : match.start()].strip():
            break
        word = match.group()
        if not name_of(" ".join([*words, word])) and word.lower() not in _PARTICLES:
            break
        words.append(word)
        end = match.end()
        if word.endswith((".", ":", "!")) and len(word) > 2:
            end -= 1
            break
    name = name_of(text[begin:end])
    if len(name) < 3 or (joined.startswith((",", ";")) and not _looks_like_person(name)):
        return start
    return end


@functools.cache
def _first_names() -> frozenset[str]:
    """First words of at least two known artists' names."""
    return frozenset(
        first
        for first, names in _by_first_word().items()
        if sum(len(name) > 1 for name in names) > 1
    )


def _looks_like_person(name: str) -> bool:
    """Whether an unknown name in a list of artists is one more: a known first name, or words
    that no modifier and no content has made known."""
    words, weights = name.split(), lexicon().weights
    if len(words) > 1 and words[0] in _first_names() and "=" + "".join(words) not in weights:
        return True
    return len(words) < 4 and not any(word in weights for word in words)


def _alone(text: str, start: int, end: int) -> bool:
    """Whether the name is a segment of its own, or one of names joined by "and"."""
    if lexicon().artists.get(text[start:end].lower(), 0) < SURE_COUNT:
        return False
    before, after = text[:start].rstrip(" \"'(:"), text[end:].lstrip(" \"'):")
    opened = not before or before[-1] in ",;|." or re.search(r"(?:\band|&|\+)$", before) is not None
    closed = not after or after[0] in ",;|.&+" or after.startswith("and ")
    return opened and closed


def find_artists(text: str, thorough: bool = False) -> list[str]:
    """The phrases of `text` that name artists, as written, in order (see artist_spans)."""
    return [text[start:end].strip() for start, end in artist_spans(text, thorough)]


_GOES_ON = Pattern(
    r"\s*(?:[,.;|:)\]]|$|(?:of|in|at|on|with|from|for|as|to|standing|sitting|wearing|holding|and|"
    r"who|that|which|while|under|over|near|inside|is|are|featuring|depicting|showing|&|\+)\b)",
    re.IGNORECASE,
)


# What a removed name leaves dangling before and after it.
_LEAD = Pattern(
    rf"(?:{_STYLE_OF}|\b(?:and|artist|artists|from|of|as|like|art|style|also|the|with|an?)\b"
    r"|[,&+/\s\"'(:])*$",
    re.IGNORECASE,
)
_DANGLING = Pattern(
    r"(?:^|(?<=[,;.|]))\s*(?:and|by|&|\+|art|style of|in the style of)\s*(?=[,;.|]|$)"
)
_TAIL = Pattern(r"(?:'s\b)?(?:\s+(?:art ?style|styled?|painting style)\b)?", re.IGNORECASE)


def remove_artists(text: str, thorough: bool = False) -> str:
    """`text` without the phrases that name artists and without what they leave dangling."""
    pieces, place = [], 0
    for start, end in artist_spans(text, thorough):
        piece = text[place:start]
        pieces.append(_LEAD.sub(lambda found: "," if "," in found.group() else " ", piece))
        place = end + _TAIL.match(text[end:]).end()
        if not _GOES_ON.match(text, place):
            pieces.append(", ")  # "x by artist y": what follows the name is a segment of its own
    pieces.append(text[place:])
    kept = "".join(pieces)
    kept = _DANGLING.sub(" ", kept)
    kept = re.sub(r"[,;]\s*(?:and|&|\+)\s+", ", ", kept)
    kept = re.sub(r"\s+(?=[,.;|])", "", re.sub(r"\s+", " ", kept))
    kept = re.sub(r"([,;|])(?:\s*[,;|.])+", r"\1", kept)
    return kept.strip(" ,;|&+")
