"""What must survive of a person's prompt: protected syntax, kept spans, content words.

`parse` reads a user input once. The policy sees only `ParsedInput.plain`; `append` and `restore`
bring its words together with the person's own text, and `lost_spans` verifies the result.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .restoration import WORD, put_back
from .settings import MAX_INPUT_CHARACTERS, SettingsError
from .syntax import (
    EDGE_CHARACTERS,
    SEPARATOR_KINDS,
    TAIL_KINDS,
    WHITESPACE,
    Segment,
    ends_like_weight,
    join_plain,
    segments,
    without_stray_syntax,
)

_INVISIBLE = WHITESPACE + "\u200b\u200c\u200d\u2060\ufe0e\ufe0f\ufeff"
_STOP_WORDS = frozenset(
    """a about above after all also am an and any are as at be because been before being below
    between both but by can could did do does doing down during each for from had has have
    having he her here hers him his how i if in into is it its just me my no nor not of off on
    once only or other our out over own s same she so some such t than that the their them then
    there these they this those through to too under until up very was we were what when where
    which while who whom why will with would you your""".split()
)


class ProtectedSpan(NamedTuple):
    """user_input[start:end] comes back verbatim. `kind` as in syntax.Segment, or "kept"."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class ParsedInput:
    """A user input taken apart by `parse`.

    `spans` are ordered and do not overlap. `plain` is what the policy reads: the words without
    the syntax, on one line; it is empty where the input is nothing but tags or wildcards.
    """

    user_input: str
    spans: tuple[ProtectedSpan, ...]
    plain: str
    segments: tuple[Segment, ...]  # spans and the text between them; together the whole input

    def append(self, addition: str) -> str:
        """The user input with `addition` ("x, y, z") put in; every typed character stays, in order.

        It goes behind the words of the first section (sections end at BREAK, AND and newlines),
        before the tags and the weight that close this section. Loose separators at the very end
        of the input are replaced. An input without words has it in front of its tags.
        """
        addition = without_stray_syntax(addition)
        if not addition:
            return self.user_input
        end = self._place()
        head, tail = self.user_input[:end], self.user_input[end:]
        if not tail.strip(EDGE_CHARACTERS) and self._last_span_end() <= end:
            tail = ""
        composed = any(segment.kind == "and" for segment in self.segments)
        if composed and ends_like_weight(addition):
            addition += ","
        needs_space = bool(tail) and tail[0] not in EDGE_CHARACTERS
        needs_comma = bool(head.strip(EDGE_CHARACTERS))
        return head + (", " if needs_comma else "") + addition + (" " if needs_space else "") + tail

    def _last_span_end(self) -> int:
        return self.spans[-1].end if self.spans else 0

    def _place(self) -> int:
        """Offset behind the last word of the first section that has some."""
        sections: list[list[Segment]] = [[]]
        for segment in self.segments:
            if segment.kind in SEPARATOR_KINDS:
                sections.append([])
            else:
                sections[-1].append(segment)
        bodies = [_without_tail(section) for section in sections]
        for test in (_has_words, bool):
            for body in bodies:
                if test(body):
                    return _body_end(body[-1])
        return 0

    def lost_spans(self, adapted_prompt: str) -> list[str]:
        """The spans that `adapted_prompt` does not hold verbatim and in order; [] is verified.

        A span that begins or ends with a letter or digit counts only where it is not inside a
        longer word, unless it was inside one in the user input.
        """
        lost: list[str] = []
        missing: set[str] = set()
        position = 0
        for span in self.spans:
            wanted = self.user_input[span.start : span.end]
            # what was not found from an earlier position is not there from a later one either
            end = -1
            if wanted not in missing:
                end = _find_span(self.user_input, span, adapted_prompt, position)
            if end < 0:
                lost.append(wanted)
                missing.add(wanted)
            else:
                position = end
        return lost

    def restore(self, rewrite: str) -> str | None:
        """A free rewrite of `plain` with every span put back verbatim and in order.

        A span is located by its words, or else by those around it. None where that cannot be
        done: a BREAK or an AND whose two sides can no longer be told apart, an empty rewrite.
        """
        rewrite = " ".join(rewrite.split())
        if self.plain and rewrite == self.plain:
            return self.user_input
        rest = rewrite[len(self.plain) :]
        if self.plain and rewrite.startswith(self.plain) and rest[0] in ",.;":
            restored: str | None = self.append(rest)  # the usual rewrite: nothing but additions
        else:
            rewrite = without_stray_syntax(rewrite)
            restored = put_back(self.user_input, self.segments, rewrite) if rewrite else None
        return None if not restored or self.lost_spans(restored) else restored


def parse(user_input: str, keep: Sequence[str] = ()) -> ParsedInput:
    """Read a user input. Each span in `keep` is protected where it first occurs.

    Raises SettingsError("user_input", ...) for text that is empty, too long or not text, and
    SettingsError("keep", ...) for a span that the user input does not hold.
    """
    _check(user_input)
    found = segments(user_input)
    for start, end in _kept_ranges(user_input, keep):
        found = _protect(user_input, found, start, end)
    spans = tuple(ProtectedSpan(*segment[:3]) for segment in found if segment.kind != "text")
    return ParsedInput(user_input, spans, join_plain(found), tuple(found))


def _check(user_input: str) -> None:
    if not isinstance(user_input, str):
        raise SettingsError("user_input", f"expected text, got {type(user_input).__name__}")
    if len(user_input) > MAX_INPUT_CHARACTERS:
        raise SettingsError(
            "user_input",
            f"expected at most {MAX_INPUT_CHARACTERS:,} characters, got {len(user_input):,}",
        )
    if not user_input.strip(_INVISIBLE):
        raise SettingsError("user_input", "expected some words, got none")
    if "\0" in user_input:
        raise SettingsError("user_input", "expected text, got a NUL character in it")
    if any("\ud800" <= character <= "\udfff" for character in user_input):
        raise SettingsError("user_input", "expected text, got half a character (a surrogate)")


def _kept_ranges(user_input: str, keep: Sequence[str]) -> list[tuple[int, int]]:
    listed = isinstance(keep, Sequence) and not isinstance(keep, str)
    if not listed or not all(isinstance(kept, str) for kept in keep):
        raise SettingsError("keep", f"expected a list of strings, got {keep!r:.80}")
    ranges = []
    for kept in keep:
        stripped = kept.strip(WHITESPACE)
        start = user_input.find(stripped)
        if not stripped:
            raise SettingsError("keep", "expected a span of the user input, got an empty one")
        if start < 0 or kept not in user_input:
            raise SettingsError("keep", f"the user input does not hold the span {kept!r:.80}")
        ranges.append((start, start + len(stripped)))
    return sorted(set(ranges))


def _protect(user_input: str, found: list[Segment], start: int, end: int) -> list[Segment]:
    """Protect user_input[start:end] too; a span that it cuts into becomes part of it."""
    before = [segment for segment in found if segment.end <= start]
    after = [segment for segment in found if segment.start >= end]
    inside = found[len(before) : len(found) - len(after)]
    if len(inside) == 1 and inside[0].kind != "text":
        return found
    first, last = inside[0], inside[-1]
    if first.kind == "text" and first.start < start:
        before.append(Segment(first.start, start, "text", user_input[first.start : start]))
        inside[0] = first = Segment(start, first.end, "text", user_input[start : first.end])
    if last.kind == "text" and last.end > end:
        after.insert(0, Segment(end, last.end, "text", user_input[end : last.end]))
        start_of_last = inside[-1].start
        inside[-1] = Segment(start_of_last, end, "text", user_input[start_of_last:end])
    first, last = inside[0], inside[-1]
    plain = "".join(segment.plain for segment in inside)
    return [*before, Segment(first.start, last.end, "kept", plain), *after]


def _without_tail(section: list[Segment]) -> list[Segment]:
    """A section without the tags, the weight and the loose separators that close it."""
    num = len(section)
    while num and (section[num - 1].kind in TAIL_KINDS or _is_loose(section[num - 1])):
        num -= 1
    return section[:num]


def _is_loose(segment: Segment) -> bool:
    return segment.kind == "text" and not segment.plain.strip(EDGE_CHARACTERS)


def _body_end(segment: Segment) -> int:
    if segment.kind != "text":
        return segment.end
    return segment.start + len(segment.plain.rstrip(EDGE_CHARACTERS))


def _has_words(body: Sequence[Segment]) -> bool:
    return any(
        segment.kind in ("wildcard", "embedding", "variable") or WORD.search(segment.plain)
        for segment in body
    )


def _find_span(user_input: str, span: ProtectedSpan, text: str, position: int) -> int:
    """End of the span's first occurrence in `text` from `position` on, or -1."""
    wanted = user_input[span.start : span.end]
    open_left = not _joined(user_input, span.start)
    open_right = not _joined(user_input, span.end)
    while (found := text.find(wanted, position)) >= 0:
        end = found + len(wanted)
        if not (open_left and _joined(text, found)) and not (open_right and _joined(text, end)):
            return end
        position = found + 1
    return -1


def _joined(text: str, offset: int) -> bool:
    """True where the characters around `offset` are of one word."""
    return 0 < offset < len(text) and text[offset - 1].isalnum() and text[offset].isalnum()


def content_words(text: str) -> list[str]:
    """The words that carry meaning, lower-cased, in order, with repeats: no stop words.

    A hyphen or an underscore parts words; "girl's" counts as "girl". Any script.
    """
    normal = unicodedata.normalize("NFC", text).lower()
    return [word for word in WORD.findall(normal) if word not in _STOP_WORDS]


def kept_share(user_input_plain: str, adapted_prompt: str) -> float:
    """Share (0 to 1) of the input's distinct content words that the adapted prompt has too.

    1.0 where the input has none.
    """
    wanted = set(content_words(user_input_plain))
    return len(wanted & set(content_words(adapted_prompt))) / len(wanted) if wanted else 1.0
