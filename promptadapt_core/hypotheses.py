"""What decoding is asked for, what it gives back, and the unfinished texts in between."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

UNFINISHED_CHARACTER = "\ufffd"  # what tokenizers show for bytes that are no character (yet)
LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


@dataclass(frozen=True)
class DecodingRequest:
    """One text to continue.

    prompt_ids: what the policy continues. forced_ids: how the completion has to begin; they are
    fed with the prompt and never counted in a score. seed: of mode sample, 0 to 2**64 - 1.
    allow(completion_text, token_text): whether a token may follow. completion_text is the text
    of the tokens chosen so far (not of the forced ones), token_text what the token adds: "" asks
    for the end token, U+FFFD stands for a token that is only a part of a character. It is asked
    only about tokens that would be chosen otherwise.
    """

    prompt_ids: list[int]
    forced_ids: list[int] = field(default_factory=list)
    seed: int = 0
    allow: Callable[[str, str], bool] | None = None

    @property
    def fed_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.forced_ids]


@dataclass(frozen=True)
class Completion:
    """One continuation.

    ids, text: the chosen tokens, without the forced ones and without the end token. logprob:
    their sum, the end token's included, in nats, under the policy as it is (no temperature, no
    truncation, no penalty). num_tokens: how many tokens that sum covers. finished: the end token
    was chosen; False for a text that was cut off.
    """

    ids: list[int]
    text: str
    logprob: float
    num_tokens: int
    finished: bool

    def ranking_score(self, length_penalty: float) -> float:
        """logprob / num_tokens ** length_penalty."""
        return length_normalised(self.logprob, self.num_tokens, length_penalty)


class Hypothesis(NamedTuple):
    """A text under way. `score` is what the search compares: the log-prob, less any penalty.
    `pending` are the last tokens, whose bytes are no whole character yet and not in `text`."""

    ids: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0
    text: str = ""
    pending: tuple[int, ...] = ()
    finished: bool = False

    @property
    def num_tokens(self) -> int:
        """Chosen tokens, the end token included."""
        return len(self.ids) + self.finished


def length_normalised(score: float, num_tokens: int, length_penalty: float) -> float:
    """score / num_tokens ** length_penalty, of an empty text the score itself.

    num_tokens counts generated tokens with the end token, as transformers does since 4.36;
    earlier versions counted the prompt too.
    """
    return score / max(num_tokens, 1) ** length_penalty


class Writer:
    """Extends the hypotheses of one request, within what the request allows."""

    def __init__(self, request: DecodingRequest, tokenizer: Any, eos_id: int):
        self._eos_id = eos_id
        self._allow = request.allow
        self._tokenizer = tokenizer  # keeps it alive: the table of texts holds it weakly
        self._texts = _token_texts(tokenizer)
        self._before = tuple(request.fed_ids[-1:])

    def extended(
        self, hypothesis: Hypothesis, token: int, logprob: float, score: float
    ) -> Hypothesis | None:
        """The hypothesis with one more token and this new score; None where that is refused."""
        total = hypothesis.logprob + logprob
        if token == self._eos_id:
            if self._allow and not self._allow(hypothesis.text, ""):
                return None
            return hypothesis._replace(logprob=total, score=score, finished=True)
        ids = (*hypothesis.ids, token)
        if self._allow is None:
            return Hypothesis(ids, total, score)
        pending = (*hypothesis.pending, token)
        added = self._texts.text(self._before, pending)
        partial = not added or added.endswith(UNFINISHED_CHARACTER)
        if partial and len(pending) < LONGEST_CHARACTER:
            added, text = UNFINISHED_CHARACTER, hypothesis.text
        else:
            added, text = added or UNFINISHED_CHARACTER, hypothesis.text + added
            pending = ()
        if not self._allow(hypothesis.text, added):
            return None
        return Hypothesis(ids, total, score, text, pending)

    def completion(self, hypothesis: Hypothesis) -> Completion:
        ids = list(hypothesis.ids)
        text = self._texts.read(self._before, tuple(ids)) if ids else ""
        return Completion(
            ids=ids,
            text=text.rstrip(UNFINISHED_CHARACTER),
            logprob=hypothesis.logprob,
            num_tokens=hypothesis.num_tokens,
            finished=hypothesis.finished,
        )


class _TokenTexts:
    """What tokens of one tokenizer say. Some tokenizers eat the space at the start of a text, so
    tokens are read behind another one."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = weakref.ref(tokenizer)
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}

    def text(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        """`read`, remembered."""
        found = self._known.get((before, ids))
        if found is None:
            found = self._known[before, ids] = self.read(before, ids)
        return found

    def read(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        """The text that `ids` add behind `before`."""
        start, whole = self._decode(before), self._decode(before + ids)
        return whole[len(start) :] if whole.startswith(start) else self._decode(ids)

    def _decode(self, ids: tuple[int, ...]) -> str:
        return self._tokenizer().decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


_TEXTS: weakref.WeakKeyDictionary[Any, _TokenTexts] = weakref.WeakKeyDictionary()


def _token_texts(tokenizer: Any) -> _TokenTexts:
    texts = _TEXTS.get(tokenizer)
    if texts is None:
        texts = _TEXTS[tokenizer] = _TokenTexts(tokenizer)
    return texts
