"""Votes: which of two adapted prompts of a user input somebody liked better."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import runs
from ..adapter import PromptAdapter, Work
from ..restoration import WORD
from ..rollouts import readable
from ..settings import AdaptSettings, SettingsError
from ..syntax import plain_text
from .mining import learned_texts
from .user_inputs import lines_of

NAMES = ("user_input", "chosen", "rejected")


class Vote(NamedTuple):
    user_input: str
    chosen: str
    rejected: str


def read_votes(path: str | Path) -> tuple[list[Vote], int]:
    """The votes of a .jsonl file, one a line, and how many were left out because both texts are
    the same.

    SettingsError("votes", ...) for a file that is missing, empty, not UTF-8 or without any vote
    between different texts, and for a line that is no object with the texts user_input, chosen and
    rejected; the line is named.
    """
    lines = lines_of(path, "votes")
    votes = [_vote(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    if not votes:
        raise SettingsError("votes", f"{path} holds no votes")
    different = [vote for vote in votes if vote.chosen.strip() != vote.rejected.strip()]
    if not different:
        raise SettingsError("votes", f"in every line of {path} chosen and rejected are the same")
    return different, len(votes) - len(different)


def _vote(line: str, number: int, path: str | Path) -> Vote:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        reason = f"line {number} of {path} is not JSON; expected one object a line (.jsonl)"
        raise SettingsError("votes", reason) from None
    texts = [row.get(name) for name in NAMES] if isinstance(row, dict) else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise SettingsError("votes", f"line {number} of {path} needs the texts {', '.join(NAMES)}")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        reason = f"line {number} of {path} holds half a character (a surrogate)"
        raise SettingsError("votes", reason) from None
    return Vote(*texts)


def vote_rows(
    votes: Sequence[Vote], adapter: PromptAdapter, asked: AdaptSettings, report: runs.Reporter
) -> list[dict[str, Any]]:
    """Rows of pairs.jsonl: what the policy reads, and the texts as it would write them.

    Left out, and told of: user inputs that the policy cannot read, texts that a policy which begins
    with the user's own text cannot write, and pairs that are the same once syntax is gone.
    SettingsError("votes", ...) where none is left.
    """
    works, unreadable = readable(adapter, list(dict.fromkeys(v.user_input for v in votes)), asked)
    by_input = {work.typed.user_input: work for work in works}
    continues = adapter.policy.manifest.start == "user_input"
    rows: list[dict[str, Any]] = []
    left_out: list[tuple[Vote, str]] = []
    for vote in votes:
        work = by_input.get(vote.user_input)
        why = unreadable.get(vote.user_input, "") if work is None else ""
        row, why = _row(vote, work, continues) if work is not None else (None, why)
        if row is None:
            left_out.append((vote, why))
        else:
            rows.append(row)
    if left_out:
        first, why = left_out[0]
        report.say(
            f"left out {len(left_out):,} votes; the first, on {first.user_input!r:.60}: {why}"
        )
    if not rows:
        raise SettingsError("votes", f"none can be learned from; the first: {left_out[0][1]}")
    _tell_contradictions(rows, report)
    return rows


def _tell_contradictions(rows: Sequence[dict[str, Any]], report: runs.Reporter) -> None:
    """They stay: with as many votes for either side nothing is preferred, which is what was
    voted."""
    known = {tuple(row[name] for name in NAMES) for row in rows}
    number = sum((user_input, worse, better) in known for user_input, better, worse in known) // 2
    if number:
        report.say(f"{number:,} pairs of texts got votes both ways; all of them count")


def _row(vote: Vote, work: Work, continues: bool) -> tuple[dict[str, Any] | None, str]:
    """The row, or None and why there is none."""
    policy_text, chosen = learned_texts(work, vote.chosen, continues)
    rejected = learned_texts(work, vote.rejected, continues)[1]
    if chosen == rejected:
        return None, "without syntax both texts are the same"
    if continues:
        for text in (vote.chosen, vote.rejected):
            if work.parsed.lost_spans(text) or not words_of(work.parsed.plain) <= words_of(text):
                return None, "a text lacks what the user input says, which the policy always keeps"
    return {"user_input": policy_text, "chosen": chosen, "rejected": rejected}, ""


def words_of(text: str) -> set[str]:
    """The different words of a text in one case, without its syntax and punctuation."""
    return {word.group().casefold() for word in WORD.finditer(plain_text(text))}
