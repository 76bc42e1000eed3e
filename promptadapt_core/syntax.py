"""The prompt syntax of all hosts in one parser: a text becomes segments, in linear time.

Understood: emphasis `(x)` `(x:1.2)` `[x]`, escapes `\\(`, scheduling `[a:b:0.5]` `[b:0.5]`
`[a::0.5]`, alternation `[a|b]`, `BREAK`, `AND` and its weights (the Automatic1111 wiki, "Features",
and `modules/prompt_parser.py`); `<lora:name:0.8>` and every other `<word:...>`;
`embedding:name` (ComfyUI); `__wild/cards__`, `{a|b}`, `{2$$a|b}`, `{0.5::a|b}`, `${name}`
(Dynamic Prompts). All of them nest. A bracket without its partner is ordinary text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .patterns import Pattern

SEPARATOR_KINDS = frozenset({"and", "break", "newline"})  # they end a section of a prompt
TAIL_KINDS = frozenset({"network", "weight"})  # they may follow a section's words
# What str.isspace() calls so.
WHITESPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
EDGE_CHARACTERS = WHITESPACE + ",.;"  # what may stand loose at the end of a section

# Hostile text stays linear: no alternative scans the same characters from two starts, and what is
# matched again at every level of a nest is bounded.
_TOKEN = Pattern(
    r"""
      (?P<escape>\\[()\[\]{}<>|\\])
    | (?P<network><[^\W\d_]\w*:[^<>]*>)
    | (?P<embedding>(?<!\w)[Ee]mbedding:(?:[^\s,:;|()\[\]{}<>\\.]|[.\\](?=\w))+)
    | (?P<wildcard>__(?!_)(?:(?!__)[\w*/\\.~@+-])+(?:\([^()\r\n]*\))?__)
    | (?P<open>(?<!\$)\$\{|[(\[{])
    | (?P<close>[)\]}])
    | (?P<word>\b(?:AND|BREAK)\b)
    | (?P<newline>[\r\n]+)
    | (?P<mark>[:|])
    """,
    re.VERBOSE,
)
_PARTNER = {")": "(", "]": "[", "}": "{", "\\)": "\\(", "\\]": "\\[", "\\}": "\\{", "\\>": "\\<"}
_NUMBER = Pattern(r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})")
_WEIGHT_AT_END = Pattern(r":\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)$")
_LOOSE_START = Pattern(r"^(?:[ ,;]|\.(?=[ ,;.]|$))+")
_LOOSE_RUN = Pattern(r"(?<![,.;])(?<![,.;] ),(?: ?[.;,])+(?= |$)")
_PARTED = Pattern(r"[0-9A-Za-z\u00aa-\u1fff)\]}]")  # scripts with spaces between words
_PARTED_AFTER = Pattern(r"[0-9A-Za-z\u00aa-\u1fff(\[{]")
_UNREADABLE = Pattern("[\0\ud800-\udfff]")
_STRAY = Pattern("[<>]")
_CHOICE_PREFIX = Pattern(
    r"\s{0,9}(?:[~@]?\d{0,9}(?:-\d{0,9})?\$\$(?:[^$]{0,99}\$\$)?)?(?:\s{0,9}[\d.]{1,9}::)?"
)


class Segment(NamedTuple):
    """A piece of a prompt at top level. Segments touch each other and cover the whole text.

    `kind` is "text", or a protected kind: emphasis, schedule, alternation, choice, variable,
    network, embedding, wildcard, escape, weight, and, break, newline. `plain` is what a reader
    without the syntax sees of it.
    """

    start: int
    end: int
    kind: str
    plain: str


def segments(text: str) -> list[Segment]:
    """Cut a text into its top-level segments."""
    tokens = list(_TOKEN.finditer(text))
    partners = _pairs(tokens)
    found: list[Segment] = []
    position = 0

    def add(end: int, kind: str, plain: str) -> None:
        nonlocal position
        if end > position:
            found.append(Segment(position, end, kind, plain))
            position = end

    index = 0
    while index < len(tokens):
        token = tokens[index]
        name, last = token.lastgroup, partners.get(index, index)
        paired = last > index
        if name in ("open", "close", "mark") and not paired:
            index += 1
            continue
        add(token.start(), "text", text[position : token.start()])
        if paired:
            kind, plain = _read_group(text, tokens, partners, index, last)
        else:
            kind, plain = _read_token(token)
        add(tokens[last].end(), kind, plain)
        index = last + 1
    add(len(text), "text", text[position:])
    return _with_weights(text, found)


def _pairs(tokens: list[re.Match[str]]) -> dict[int, int]:
    """Partner of each balanced bracket, by token index.

    A closing bracket takes the nearest open one of its type; open ones between stay alone. Escaped
    brackets pair too, so that `\\(series\\)` is one segment, yet never disturb the real ones.
    """
    partners: dict[int, int] = {}
    waiting: list[tuple[int, str, int]] = []
    num_waiting = dict.fromkeys("([{", 0)
    num_separators = 0
    for index, token in enumerate(tokens):
        name, mark = token.lastgroup, token.group()
        if name in ("word", "newline"):
            num_separators += 1
        elif name == "open" or (name == "escape" and mark[1] in "([{<"):
            waiting.append((index, mark.removeprefix("$"), num_separators))
            if name == "open":
                num_waiting[mark[-1]] += 1
        elif name == "escape" and mark in _PARTNER:
            if waiting and waiting[-1][1:] == (_PARTNER[mark], num_separators):
                opener = waiting.pop()[0]
                partners[opener], partners[index] = index, opener
        elif name == "close" and num_waiting[_PARTNER[mark]]:
            while True:
                opener, kind, _ = waiting.pop()
                if kind in num_waiting:
                    num_waiting[kind] -= 1
                    if kind == _PARTNER[mark]:
                        break
            partners[opener], partners[index] = index, opener
    return partners


def _read_token(token: re.Match[str]) -> tuple[str, str]:
    """Kind and plain text of a token that is no bracket."""
    name = token.lastgroup or ""
    if name == "escape":
        return "escape", token.group()[1]
    if name == "word":
        return token.group().lower(), ", "
    return (name, ", ") if name == "newline" else (name, " ")


class _Frame:
    """What has been read of an open bracket: options split at `|`, each split at `:`."""

    def __init__(self, opener: str):
        self.opener = opener
        self.options: list[list[list[str]]] = [[[]]]

    def add(self, piece: str) -> None:
        if piece:
            self.options[-1][-1].append(piece)

    def close(self) -> tuple[str, str]:
        """Kind and plain text of the finished group."""
        options = [["".join(part) for part in option] for option in self.options]
        if self.opener[0] == "\\":
            return "escape", self.opener[1] + _literal(options) + _CLOSING[self.opener]
        if self.opener == "${":
            return "variable", " "
        if self.opener == "{":
            texts = [":".join(option) for option in options]
            return "choice", _first([text[_CHOICE_PREFIX.match(text).end() :] for text in texts])
        numbered = len(options[-1]) > 1 and _NUMBER.fullmatch(options[-1][-1].strip()) is not None
        if numbered:
            del options[-1][-1]
        if self.opener == "(":
            return "emphasis", _literal(options)
        if numbered:
            return "schedule", _first([_first(option[::-1]) for option in options])
        kind = "alternation" if len(options) > 1 else "emphasis"
        return kind, _first([":".join(option) for option in options])


_CLOSING = {opener: closer[1] for closer, opener in _PARTNER.items() if len(opener) == 2}


def _literal(options: list[list[str]]) -> str:
    return "|".join(":".join(option) for option in options)


def _first(texts: list[str]) -> str:
    return next((text for text in texts if text.strip()), " ")


def _read_group(
    text: str, tokens: list[re.Match[str]], partners: dict[int, int], first: int, last: int
) -> tuple[str, str]:
    """Kind and plain text of the balanced group from token `first` to token `last`.

    Iterative: a prompt may nest deeper than Python recurses.
    """
    frames = [_Frame(tokens[first].group())]
    position = tokens[first].end()
    for index in range(first + 1, last):
        token = tokens[index]
        name = token.lastgroup
        frames[-1].add(text[position : token.start()])
        position = token.end()
        if name == "open" and index in partners:
            frames.append(_Frame(token.group()))
        elif name == "close" and index in partners:
            kind, plain = frames.pop().close()
            start = tokens[partners[index]].start()
            frames[-1].add(_spaced(text, start, position, kind, plain))
        elif name == "mark" and token.group() == "|":
            frames[-1].options.append([[]])
        elif name == "mark":
            frames[-1].options[-1].append([])
        elif name in ("open", "close"):
            frames[-1].add(" " if name == "open" else token.group())  # an open one here crosses
        else:
            frames[-1].add(_read_token(token)[1])
    frames[-1].add(text[position : tokens[last].start()])
    kind, plain = frames[0].close()
    return kind, _spaced(text, tokens[first].start(), tokens[last].end(), kind, plain)


def _spaced(text: str, start: int, end: int, kind: str, plain: str) -> str:
    """Plain text of the group text[start:end], apart from what it touches where the hosts part it.

    They encode emphasized text by itself: "visual(colour)" reads "visual colour". Choices and
    schedules are replaced within their word: "{sun|moon}light".
    """
    if kind != "emphasis":
        return plain
    before = " " if start and _PARTED.match(text[start - 1]) else ""
    return before + plain + (" " if end < len(text) and _PARTED_AFTER.match(text[end]) else "")


def _with_weights(text: str, found: list[Segment]) -> list[Segment]:
    """Mark the weight `:0.8` that ends a part of a prompt composed with AND."""
    if not any(segment.kind == "and" for segment in found):
        return found
    result: list[Segment] = []
    at_end = True
    for segment in reversed(found):
        content = segment.plain.rstrip() if segment.kind == "text" else ""
        weight = _WEIGHT_AT_END.search(content) if at_end and content else None
        if weight:
            start = segment.start + weight.start()
            end = segment.start + weight.end()
            pieces = [
                Segment(segment.start, start, "text", text[segment.start : start]),
                Segment(start, end, "weight", " "),
                Segment(end, segment.end, "text", text[end : segment.end]),
            ]
            result.extend(piece for piece in reversed(pieces) if piece.end > piece.start)
        else:
            result.append(segment)
        skipped = segment.kind in ("network", "newline") or (segment.kind == "text" and not content)
        at_end = segment.kind == "and" or (at_end and skipped)
    return result[::-1]


def plain_text(text: str) -> str:
    """A text without its syntax, words kept: `(red cat:1.2), <lora:x:1>` becomes `red cat`.

    BREAK, AND and newlines become commas, whitespace is folded, loose commas at the ends go.
    """
    return join_plain(segments(text))


def join_plain(found: list[Segment]) -> str:
    """The plain text of segments in a row."""
    pieces: list[str] = []
    for segment in found:
        if segment.kind in SEPARATOR_KINDS and pieces:
            pieces[-1] = pieces[-1].rstrip(EDGE_CHARACTERS)
        pieces.append(segment.plain)
    folded = re.sub(r"\s+", " ", "".join(pieces))
    folded = re.sub(r" ?,(?: ?,)*", ",", folded)
    folded = _LOOSE_RUN.sub(",", folded)
    return _LOOSE_START.sub("", folded).rstrip(EDGE_CHARACTERS)


def without_stray_syntax(text: str) -> str:
    """Text from a policy made safe to stand beside a person's syntax, on one line.

    Brackets without a partner go, AND and BREAK are lower-cased, balanced syntax stays.
    """
    text = _UNREADABLE.sub(" ", text)
    tokens = list(_TOKEN.finditer(text))
    partners = _pairs(tokens)
    pieces: list[str] = []
    position = 0
    for index, token in enumerate(tokens):
        pieces.append(_STRAY.sub(" ", text[position : token.start()]))
        name, mark = token.lastgroup, token.group()
        if name in ("open", "close") and index not in partners:
            mark = " "
        pieces.append(mark.lower() if name == "word" else mark)
        position = token.end()
    pieces.append(_STRAY.sub(" ", text[position:]))
    folded = re.sub(r"\s+", " ", "".join(pieces))
    return folded.lstrip(" ,;").rstrip(EDGE_CHARACTERS + "\\")


def ends_like_weight(text: str) -> bool:
    """True where a composed prompt would read the end of `text` as a weight: "at 12:30"."""
    return _WEIGHT_AT_END.search(text.rstrip()) is not None
