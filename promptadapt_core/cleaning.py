"""Cleans what people type into image models, and splits it into segments. Text only.

Many collected prompts went through a tokenizer that put spaces around every digit and hyphen
("8 k", "1 9 8 0 s", "post - processing"); clean() undoes that. Nothing here reads the lexicon.
"""

from __future__ import annotations

import re
import unicodedata

from .patterns import Pattern

_QUOTES = str.maketrans(
    {
        "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "`": "'",
        "´": "'", "，": ", ", "、": ", ", "；": "; ", "\u200b": "", "\ufeff": "", "–": "-",
        "—": "-", "…": ". ",
    }
)  # fmt: skip
# Words that are joined to the next one by a hyphen far more often than a dash follows them.
_PREFIXES = (
    "aero|afro|anti|art|avant|bi|bio|black|blue|close|co|cross|cut|cyber|de|deep|double|dr|e|eco|"
    "ex|extra|eye|fine|five|four|front|full|green|half|hand|hard|head|hi|high|hyper|in|inter|lo|"
    "long|low|macro|medium|mega|meta|mid|mini|mixed|mono|multi|neo|non|off|old|one|open|over|"
    "photo|post|pre|pro|pseudo|psy|rail|re|red|retro|sci|self|semi|short|side|single|six|soft|"
    "space|spider|spot|steam|still|sub|super|t|techno|three|tilt|trans|tri|two|ultra|un|under|"
    "up|very|well|white|wide|x|young"
)
_SUFFIXES = (
    "aged|backed|based|bit|blown|born|colored|coloured|core|definition|detailed|down|eared|"
    "eyed|faced|fi|fiction|focus|fold|free|g|haired|headed|hop|inspired|known|legged|length|level|"
    "like|lined|lit|looking|made|man|modern|movie|necked|person|point|poly|print|"
    "processed|processing|punk|quality|ray|realism|realistic|rendered|res|resolution|scale|"
    "shaded|shaped|shift|shot|sized|skinned|style|styled|surface|tech|tone|toned|up|view|ups|"
    "wave|winning|world"
)
_REPLACEMENTS = (
        (r"https?://\S+|www\.\S+", " "),
        (r"<[^<>]{0,200}>", " "),
        (r"(?:^|\s)--?(?:ar|v|q|s|c|w|h|n|no|seed|stylize|chaos|quality|stop|test|testp|hd|niji|"
         r"uplight|upbeta|iw|aspect|version|cfg|steps|width|height|number|prompt_strength)\b"
         r"(?:[\s=:]*[\d.:]+)*", " "),
        (r"\b(?:cfg|guidance)[\s_]*scale\b[\s_:=]*[\d. ]*", " "),
        (r"(?:^|\s)_\s*[whsnC]\s+\d[\d ]*", " "),
        (r"::\s*-?\d[\d.]*|:\s?:", ", "),
        (r"(?<![\w.])\d(?: \d)+(?!\w)", lambda found: found.group().replace(" ", "")),
        (r"(?<![\w.])(\d{1,2}) ?([kd])\b", r"\1\2"),
        (r"\b(\d{2,4}) ?'?s\b", r"\1s"),
        (r"\b(\d+) (mm|px|mp|ft|cm|hz|nm|th|rd|nd|st|fps)\b", r"\1\2"),
        (r"\bf ?/? ?(\d{1,2}) ?\. ?(\d)\b", r"f/\1.\2"),
        (r"\b(\w) ?& ?(\w)\b(?!\w)", r"\1&\2"),
        (r"(?<=\w) ?' ?(s|t|re|ve|ll)\b", r"'\1"),
        (rf"\b({_PREFIXES}) ?- (?=\w)|\b({_PREFIXES}) -(?=\w)", r"\1\2-"),
        (rf"(?<=\w) ?- ?({_SUFFIXES})\b", r"-\1"),
        # Two and more, or one at the end of a segment. Linear however many there are.
        (r"(?<!\s)\s*!((?:\s*!)+)?(?=(\s*(?:[,.;|]|$))?)",
         lambda found: " " if found[1] or found[2] is not None else found[0]),
        (r"\|(?:\s*\|)+", "|"),
        (r"\.(?:\s*\.)+", "."),
        (r"\s+(?=[,.;:!?)\]](?:\s|$))", ""),
        (r"(?<=[(\[]) +| +(?=[)\]])", ""),
        (r",(?:\s*[,.;])+", ","),
        (r",(?=[^\s\d])", ", "),
        (r"\s+", " "),
)  # fmt: skip
_RULES = tuple((Pattern(source, re.IGNORECASE), new) for source, new in _REPLACEMENTS)


def clean(text: str) -> str:
    """`text` on one line without URLs, command-line flags, tags, split digits and stray marks.

    "8 k" becomes "8k", "post - processing" "post-processing", "x , , y" "x, y". Words are neither
    added nor lost otherwise, their order and letter case stay. Idempotent in practice.
    """
    text = unicodedata.normalize("NFC", text).translate(_QUOTES)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if text.count('"') % 2:
        text = text.replace('"', "")
    return text.strip(" ,;|").removesuffix(".").strip()


# A full stop ends a sentence unless it follows an initial or an abbreviation.
_SEGMENT_END = Pattern(
    r"[,;|\n]+|(?<!\b\w)(?<!\bmr)(?<!\bmrs)(?<!\bms)(?<!\bdr)(?<!\bst)(?<!\bjr)(?<!\bvs)(?<!\bno)"
    r"\.+(?=\s|$)|::",
    re.IGNORECASE,
)
_EDGES = " \t.,;:|!?-_~*\u200d"


def split_modifiers(text: str) -> list[str]:
    """The segments of `text` between commas, semicolons, bars, line ends and full stops, stripped
    and never empty. A comma between digits ("10,000") does not split."""
    joined = re.sub(r"(?<=\d),(?=\d{3}\b)", "\0", text)
    parts = _SEGMENT_END.split(joined)
    segments = (part.replace("\0", ",").strip().strip(_EDGES).strip() for part in parts)
    return [part for part in segments if part]


_NOT_LETTERS = Pattern(r"[\W_]+")


def normal(modifier: str) -> str:
    """The key under which two spellings of a modifier are the same: lower case, only letters and
    digits ("Hyper-detailed!" and "hyper detailed" both give "hyperdetailed")."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", modifier).lower())
