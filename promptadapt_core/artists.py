"""Names of artists: finding them and taking them out. Text only.

A name is known when the lexicon has it. Two strengths, because the two uses err differently: in a
person's own text a false alarm is worse ("standing by a lake"), in a text for training or for
output a missed name is worse.
"""

from __future__ import annotations

import functools
import re

from promptadapt_core.cleaning import split_modifiers
from promptadapt_core.lexicon import lexicon

# What introduces names. "by" alone may introduce anything ("by the sea").
_STYLE_OF = (
    r"(?:(?:art|artwork|artworks|painting|painted|paint|illustration|illustrated|drawing|drawn|photo|"
    r"photos|photograph|photographs|photographed|photography|picture|portrait|poster|cover|concept|"
    r"render|rendered|created|made|done|designed|directed|sculpted|sculpture|film|movie|still|style|"
    r"styled|work|works|masterpiece|inspired|written|composition|character design|design) +)?"
    r"\bby\b"
    r"|\b(?:in|into|with)? *(?:the |an? )?(?:art |artistic |painting |visual |mixed |combined )?"
    r"styles? (?:of|by|from)\b|\bin style of\b|\bstyle of\b|\ba la\b|\bart ?style of\b"
    r"|\binspired by\b|\binfluenced by\b|\bhomage to\b|\bartworks? of\b|\bpaintings of\b"
)
INTRODUCTION = re.compile(_STYLE_OF, re.IGNORECASE)
_JOINS = re.compile(r"\s+(?:and|und|x|vs|meets|or|with)\s+|\s*[&+/,;|]\s*|\s+mixed with\s+", re.I)
_FIRST = re.compile(
    r"^(?:and|art|artwork|painting|painted|illustration|illustrated|drawn|photo|photograph|style|"
    r"styled|in|the|style|of|by|like|as|also|from|artist|artists|famous|legendary|director|painter|"
    r"photographer|master|concept)\s+",
    re.IGNORECASE,
)
# A name ends before such a word.
_STOPS = frozenset(
    "a an the of in at on with from for as to standing sitting trending digital style art painting "
    "concept highly detailed 4k 8k hd render illustration photo portrait featured featuring made "
    "using oil photography very extremely ultra hyper unreal octane artstation cinematic is are was "
    "that which who while under over through into during against near behind beside between around "
    "his her their its this these those my your our it he she they colorful beautiful intricate "
    "realistic dramatic volumetric hyperrealistic photorealistic global high quality award winning "
    "sharp focus but not no wearing holding showing depicting then mixed dark bright if cover movie "
    "film anime inspired style. like via per cgsociety deviantart pixiv behance wallpaper sketch "
    "smooth elegant fantasy dynamic ray 3d 2d 35mm 50mm masterpiece realism digitally painted "
    "watercolor watercolour ink drawing poster artwork".split()
)
_PARTICLES = frozenset("van von der den de di da del della la le du el al bin ter ten st san o".split())
_NOT_NAMES = frozenset(
    "night day hand hands sea candlelight moonlight firelight sunlight starlight lamplight daylight "
    "light fire water rain snow side step nature magic god gods design default accident myself him "
    "me you them us himself herself itself someone everyone nobody many several various different "
    "two three four both each one people ai dalle midjourney stable diffusion professional "
    "professionals artist artists children kids humans aliens robots force law train car boat bus "
    "foot bike air flames smoke clouds mist fog water trees flowers neon lightning torches lanterns "
    "candles sunset sunrise dusk dawn noon midnight modern pop abstract surreal".split()
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
    name = " ".join(kept)
    return name if len(name) > 2 else ""


@functools.cache
def _known_pattern() -> re.Pattern[str]:
    """Every known name, longest first, as one pattern keyed by its first word (see _known_at)."""
    return re.compile(r"[^\W_](?:[\w'’.&-]*[^\W_])?\.?")


@functools.cache
def _by_first_word() -> dict[str, tuple[tuple[str, ...], ...]]:
    table: dict[str, list[tuple[str, ...]]] = {}
    for name in lexicon().artists:
        words = tuple(name.split())
        table.setdefault(words[0], []).append(words)
    return {first: tuple(sorted(names, key=len, reverse=True)) for first, names in table.items()}


def known_spans(text: str, least_count: int = 1) -> list[tuple[int, int]]:
    """Where known names stand in `text` (offsets), left to right, longest first, no overlaps."""
    found = list(_known_pattern().finditer(text))
    words = [match.group().lower().removesuffix("'s").rstrip(".") for match in found]
    artists, table = lexicon().artists, _by_first_word()
    spans, place = [], 0
    while place < len(words):
        step = 1
        for name in table.get(words[place], ()):
            if tuple(words[place : place + len(name)]) == tuple(w.rstrip(".") for w in name):
                if artists[" ".join(name)] >= least_count:
                    spans.append((found[place].start(), found[place + len(name) - 1].end()))
                    step = len(name)
                break
        place += step
    return spans


_LEAD = re.compile(
    rf"(?:(?:{_STYLE_OF})|\b(?:and|artist|from|of|art|style|also)\b|[,&+/\s\"'(:]|\b(?:the|an?)\s+style\b)*$",
    re.IGNORECASE,
)
_TAIL = re.compile(r"(?:'s\b)?(?:\s+(?:art ?style|styled?|painting style)\b)?", re.IGNORECASE)


def artist_spans(text: str, thorough: bool = False) -> list[tuple[int, int]]:
    """Offsets of the phrases that name artists, introduction included ("by x", "and y").

    Not thorough: a known name counts after "by", "style of" and in lists after such a name, or
    alone as a whole segment. Thorough: every known name anywhere, and whatever has the shape of a
    name after "by", "style of" or in a list that they begin.
    """
    spans: list[tuple[int, int]] = []
    known = known_spans(text)
    for introduction in INTRODUCTION.finditer(text):
        end = introduction.end()
        if spans and introduction.start() < spans[-1][1]:
            continue
        while True:
            new_end = _name_end(text, end, known, thorough or "style" in introduction.group())
            if new_end == end:
                break
            end = new_end
        if end > introduction.end():
            spans.append((introduction.start(), end))
    for start, end in known:
        inside = any(first <= start and end <= last for first, last in spans)
        if not inside and (thorough or _alone(text, start, end, spans)):
            spans.append((start, end))
    return sorted(spans)


_NEXT = re.compile(r"(?:\s*(?:,|&|\+|/|;)\s*(?:and\s+)?|\s+and\s+|\s+(?=by\b)|\s+)?(?:(?:art\s+)?by\s+|the\s+)?")
_WORD = re.compile(r"[^\s,;|&+/()\[\]]+")


def _name_end(text: str, start: int, known: list[tuple[int, int]], guess: bool) -> int:
    """End of the name that begins after the joining words at `start`, or `start` when none does."""
    begin = _NEXT.match(text, start).end()
    for first, last in known:
        if first == begin:
            return last
    joined = text[start:begin].strip(" ")
    if not guess or (joined and joined not in ("and", "&", "+")):
        return start
    end, words = begin, []
    for match in _WORD.finditer(text, begin):
        gap = text[end : match.start()]
        if words and gap.strip():
            break
        words.append(match.group())
        if not name_of(" ".join(words), cut=False) and not words[-1].lower() in _PARTICLES:
            break
        end = match.end()
        if match.group().endswith("."):
            break
    name = name_of(text[begin:end])
    if not name or not start or (not joined and start == begin):
        return start
    return end


def _alone(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    before, after = text[:start].rstrip(" \"'(:"), text[end:].lstrip(" \"'):")
    opened = not before or before[-1] in ",;|." or re.search(r"(?:\band|&|\+)$", before) is not None
    closed = not after or after[0] in ",;|.&+" or after.startswith("and ")
    return opened and closed and bool(split_modifiers(text[start:end]))


def find_artists(text: str, thorough: bool = False) -> list[str]:
    """The phrases of `text` that name artists, as written, in order (see artist_spans)."""
    return [text[start:end].strip() for start, end in artist_spans(text, thorough)]


def remove_artists(text: str, thorough: bool = False) -> str:
    """`text` without the phrases that name artists and without what they leave dangling."""
    pieces, place = [], 0
    for start, end in artist_spans(text, thorough):
        piece = text[place:start]
        pieces.append(_LEAD.sub(lambda found: "," if "," in found.group() else " ", piece))
        place = end + _TAIL.match(text[end:]).end()
        if not re.match(r"\s*(?:[,.;|]|$)", text[place:]):
            pieces.append(" ")
    pieces.append(text[place:])
    kept = "".join(pieces)
    kept = re.sub(r"(?:^|(?<=[,;.|]))\s*(?:and|by|&|\+|art|style of|in the style of)\s*(?=[,;.|]|$)", " ", kept)
    kept = re.sub(r"[,;]\s*(?:and|&|\+)\s+", ", ", kept)
    kept = re.sub(r"\s+(?=[,.;|])", "", re.sub(r"\s+", " ", kept))
    kept = re.sub(r"([,;|])(?:\s*[,;|.])+", r"\1", kept)
    return kept.strip(" ,;|&+")
