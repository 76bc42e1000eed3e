"""Protected spans put back into a free rewrite of a prompt's plain text.

The words of both texts are aligned (longest common subsequence); a span goes where its words went,
a span without words where its neighbours went.
"""

from __future__ import annotations

from collections.abc import Sequence

from .patterns import Pattern
from .syntax import EDGE_CHARACTERS, SEPARATOR_KINDS, Segment

MAX_ALIGNMENT = 1_000_000  # words of the input times words of its rewrite; about 0.2 s
# A word: no whitespace, no ASCII, general, CJK or full-width punctuation. So combining marks,
# joiners and emoji stay with their word; "long_hair" and "hyper-detailed" are two words each.
WORD = Pattern(
    r"[^\s\x00-/:-@\[-`{-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\xd7\xf7\u060c\u061b\u061f\u0964"
    r"\u2010-\u205e\u2060-\u206f\u3000-\u3004\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20"
    r"\uff3b-\uff40\uff5b-\uff65\ufe0e\ufe0f\ufeff]+"
)


def put_back(user_input: str, segments: Sequence[Segment], rewrite: str) -> str | None:
    """`rewrite` with the protected ones of `segments` (all of `user_input`'s) in it, in order.

    None where a BREAK or an AND stood between words that can no longer be told apart, or where
    the texts are too long to align.
    """
    owned = [
        (word.group().casefold(), number)
        for number, segment in enumerate(segments)
        for word in WORD.finditer(segment.plain)
    ]
    words = list(WORD.finditer(rewrite))
    if len(owned) * len(words) > MAX_ALIGNMENT:
        return None
    matches: dict[int, list[int]] = {}
    pairs = _align([word for word, _ in owned], [word.group().casefold() for word in words])
    for index, place in pairs:
        matches.setdefault(owned[index][1], []).append(place)
    places: dict[int, tuple[int, int]] = {}
    for number, found in matches.items():
        run = found if segments[number].kind == "text" else _dense(found)
        places[number] = (words[run[0]].start(), words[run[-1]].end())
    return _place_units(user_input, segments, rewrite, {number for _, number in owned}, places)


def _align(first: list[str], second: list[str]) -> list[tuple[int, int]]:
    """Index pairs of a longest common subsequence, as early in both as possible."""
    longest = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in range(len(first) - 1, -1, -1):
        row, below, word = longest[i], longest[i + 1], first[i]
        for j in range(len(second) - 1, -1, -1):
            if second[j] == word:
                row[j] = below[j + 1] + 1
            else:
                row[j] = below[j] if below[j] > row[j + 1] else row[j + 1]
    pairs = []
    i = j = 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _dense(places: list[int]) -> list[int]:
    """All of a span's places, or the longest unbroken run where they lie far apart."""
    if places[-1] - places[0] < 2 * len(places) + 2:
        return places
    runs = [[places[0]]]
    for place in places[1:]:
        if place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return max(runs, key=len)


def _place_units(
    user_input: str,
    segments: Sequence[Segment],
    rewrite: str,
    worded: set[int],
    places: dict[int, tuple[int, int]],
) -> str | None:
    """Put back one unit after the other. `places` are offsets in `rewrite` by segment number."""
    edits = _Edits(user_input, rewrite)
    first_word, last_word = min(worded, default=len(segments)), max(worded, default=-1)
    for first, last in _units(segments, worded):
        start, end = segments[first].start, segments[last].end
        if first in places:
            edits.replace(user_input[start:end], segments[first].plain, *places[first])
            continue
        left = max((places[number][1] for number in places if number < first), default=None)
        right = min((places[number][0] for number in places if number > last), default=None)
        kinds = {segment.kind for segment in segments[first : last + 1]} & SEPARATOR_KINDS
        if last < first_word:
            edits.insert_first(start, end)
        elif first > last_word:
            edits.insert_last(start, end)
        elif not kinds or first in worded:
            edits.insert_between(start, end, left, right)
        elif not edits.separate(start, end, left, right, strict=kinds != {"newline"}):
            return None
    return edits.text()


def _units(segments: Sequence[Segment], worded: set[int]) -> list[tuple[int, int]]:
    """First and last segment of what goes back in one piece.

    A span with words is a unit; so are spans without words and without words between them.
    """
    units: list[tuple[int, int]] = []
    running = False
    for number, segment in enumerate(segments):
        if number in worded:
            running = False
            if segment.kind != "text":
                units.append((number, number))
        elif segment.kind != "text":
            units[-1:] = [(units[-1][0], number)] if running else [*units[-1:], (number, number)]
            running = True
    return units


class _Edits:
    """A rewrite being edited from left to right. Offsets are those of the unedited rewrite."""

    def __init__(self, user_input: str, rewrite: str):
        self.user_input = user_input
        self.rewrite = rewrite
        self.position = 0
        self.pieces: list[str] = []

    def text(self) -> str:
        return "".join(self.pieces) + self.rewrite[self.position :]

    def _put(self, start: int, end: int, text: str) -> None:
        start = max(start, self.position)
        self.pieces += [self.rewrite[self.position : start], text]
        self.position = max(start, end)

    def _joint(self, start: int, end: int) -> tuple[str, str]:
        """Separators as the person had them before and after user_input[start:end]."""
        low, high = start, end
        while low and self.user_input[low - 1] in EDGE_CHARACTERS:
            low -= 1
        while high < len(self.user_input) and self.user_input[high] in EDGE_CHARACTERS:
            high += 1
        comma_before = "," in self.user_input[low:start]
        comma_after = "," in self.user_input[end:high]
        return ", " if comma_before else " ", ", " if comma_after else " "

    def replace(self, raw: str, plain: str, low: int, high: int) -> None:
        """The words at rewrite[low:high], and the punctuation of `plain` around them, by `raw`."""
        words = list(WORD.finditer(plain))
        lead, trail = plain[: words[0].start()].strip(), plain[words[-1].end() :].strip()
        if self.rewrite[self.position : low].endswith(lead):
            low -= len(lead)
        if self.rewrite.startswith(trail, high):
            high += len(trail)
        self._put(low, high, raw)

    def insert_first(self, start: int, end: int) -> None:
        raw = self.user_input[start:end]
        self._put(0, 0, raw if raw[-1] in "\r\n" else raw + self._joint(start, end)[1])

    def insert_last(self, start: int, end: int) -> None:
        raw = self.user_input[start:end]
        length = len(self.rewrite)
        self._put(length, length, raw if raw[0] in "\r\n" else self._joint(start, end)[0] + raw)

    def insert_between(self, start: int, end: int, left: int | None, right: int | None) -> None:
        """Beside the neighbour that the person wrote it beside, else behind the next comma."""
        raw, (before, after) = self.user_input[start:end], self._joint(start, end)
        if right is not None and after == " ":
            self._put(right, right, raw + after)
        elif left is not None and before == " ":
            self._put(left, left, before + raw)
        elif left is not None:
            comma = self.rewrite.find(",", max(left, self.position), right)
            at = comma if comma >= 0 else len(self.rewrite) if right is None else left
            self._put(at, at, before + raw)
        elif right is not None:
            self._put(right, right, raw + after)
        else:
            self.insert_last(start, end)

    def separate(
        self, start: int, end: int, left: int | None, right: int | None, *, strict: bool
    ) -> bool:
        """A separator between the words on its sides; False where `strict` finds no such place."""
        raw = self.user_input[start:end]
        before = self._joint(start, end)[0].rstrip()
        if strict:
            raw = f" {raw} "
        if left is None or right is None:
            at = left if left is not None else right if right is not None else self.position
            self._put(at, at, raw)
            return not strict
        left = max(left, self.position)
        gap = self.rewrite[left:right]
        comma = gap.rfind(",")
        if strict and comma < 0 and gap.strip():
            return False
        low = left + max(comma, 0)
        rest = gap[comma + 1 :] if comma >= 0 else gap
        self._put(low, right - len(rest.lstrip()), before + raw)
        return True
