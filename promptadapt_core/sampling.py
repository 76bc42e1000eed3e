"""Sampling with temperature and a nucleus, the same on every device and in every batch.

Every sample has one uniform number a step, drawn beforehand from the request's own generator on
the CPU, and takes the token at that place of the cumulative distribution in the order of token
ids. Rounding then changes a token only when the number falls within rounding of a boundary; in
the order of probability near-equal tokens would change places.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from itertools import accumulate

import torch

from .hypotheses import Completion, Hypothesis, Writer
from .settings import SettingsError

NUM_FIRST = 128  # tokens looked at before the nucleus is known to be larger


class Nucleus:
    """The tokens that may be drawn after each row: the likeliest that together have `top_p`."""

    def __init__(self, logits: torch.Tensor, temperature: float, top_p: float):
        """logits: (rows, vocabulary), on any device."""
        logits = logits.float().cpu()
        self._logprobs = logits - logits.logsumexp(-1, keepdim=True)
        if bool(self._logprobs[:, 0].isnan().any()):
            raise SettingsError("policy", "its scores are not finite (NaN)")
        self._scaled = logits / temperature
        self._top_p = top_p
        self._ids, self._weights = nucleus(self._scaled, top_p)
        self._cumulated = self._weights.cumsum(-1)

    def places(self, rows: list[int], uniforms: list[float]) -> list[int]:
        """Where in the nucleus of its row each number in [0, 1) falls."""
        cumulated = self._cumulated[rows]
        targets = torch.tensor(uniforms, dtype=torch.float64)[:, None] * cumulated[:, -1:]
        places = torch.searchsorted(cumulated, targets, right=True)[:, 0]
        last = (self._weights[rows] > 0).sum(-1) - 1
        return torch.minimum(places, last).tolist()

    def draw(
        self,
        row: int,
        uniform: float,
        place: int,
        extend: Callable[[int, float], Hypothesis | None],
    ) -> Hypothesis | None:
        """extend(token, log-prob) of the token drawn; None when every token is refused.

        A refused token's share of the unit interval is stretched to a fresh number, so that the
        others are drawn in their own proportions. With the nucleus used up, the next is that of
        the tokens left.
        """
        token = int(self._ids[row, place])
        found = extend(token, float(self._logprobs[row, token]))
        if found is not None:
            return found
        scaled = self._scaled[row].clone()
        ids, weights = self._ids[row].tolist(), self._weights[row].tolist()
        while True:
            uniform = _without(ids, weights, place, uniform, scaled)
            if not any(weights):
                if bool(scaled.isneginf().all()):
                    return None
                ids, weights = (part[0].tolist() for part in nucleus(scaled[None], self._top_p))
            cumulated = list(accumulate(weights))
            place = bisect.bisect_right(cumulated, uniform * cumulated[-1])
            place = min(place, bisect.bisect_left(cumulated, cumulated[-1]))
            found = extend(ids[place], float(self._logprobs[row, ids[place]]))
            if found is not None:
                return found


def _without(
    ids: list[int], weights: list[float], place: int, uniform: float, scaled: torch.Tensor
) -> float:
    """Take the refused token out of all three; return the number that is left to draw with."""
    below, total = sum(weights[:place]), sum(weights)
    share = (uniform * total - below) / weights[place]
    scaled[ids[place]] = -float("inf")
    del ids[place], weights[place]
    return min(max(share, 0.0), 1.0 - 2.0**-53)


def nucleus(scaled: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, weights), each (rows, K): the nucleus of each row of scaled logits in the order of
    ids, filled up with weight 0. Weights are float64 and sum to top_p or a little more."""
    vocab_size = scaled.shape[-1]
    mass = scaled.logsumexp(-1, keepdim=True).double()
    if top_p >= 1.0:
        ids = torch.arange(vocab_size).expand(scaled.shape)
        return ids, (scaled.double() - mass).exp()
    number = min(NUM_FIRST, vocab_size)
    while True:
        top = scaled.topk(number)
        shares = (top.values.double() - mass).exp()
        kept = (shares.cumsum(-1) - shares < top_p) & (shares > 0)
        if number == vocab_size or not bool(kept[:, -1].any()):
            break
        number = min(8 * number, vocab_size)
    ids, order = top.indices.masked_fill(~kept, vocab_size).sort(-1)
    weights = shares.masked_fill(~kept, 0.0).gather(-1, order)
    return ids.clamp(max=vocab_size - 1), weights


class SampleSearch:
    """The samples of one request."""

    def __init__(
        self,
        writer: Writer,
        *,
        seed: int,
        num_samples: int,
        max_new_tokens: int,
        length_penalty: float,
        limit: int,
    ):
        """limit: most tokens to choose; the context may leave fewer than max_new_tokens."""
        self._writer = writer
        self._length_penalty = length_penalty
        self._limit = limit
        generator = torch.Generator().manual_seed(seed)
        shape = (num_samples, max_new_tokens)
        self._uniforms = torch.rand(shape, dtype=torch.float64, generator=generator).tolist()
        self._length = 0
        self._samples = [Hypothesis() for _ in range(num_samples)]
        self._open = list(range(num_samples)) if limit > 0 else []

    @property
    def running(self) -> bool:
        return bool(self._open)

    def advance(self, nucleus: Nucleus, first_row: int) -> tuple[list[int], list[int]]:
        """(rows, tokens): every sample that runs on, as the row it came from and its new token.

        Before the first call all samples share one row; then each open one has its own.
        """
        shared = self._length == 0
        rows = [first_row + (0 if shared else i) for i in range(len(self._open))]
        uniforms = [self._uniforms[sample][self._length] for sample in self._open]
        places = nucleus.places(rows, uniforms)
        self._length += 1
        kept_rows: list[int] = []
        still_open: list[int] = []
        for sample, row, uniform, place in zip(self._open, rows, uniforms, places, strict=True):
            found = self._extend(sample, nucleus, row, uniform, place)
            if found and not found.finished and self._length < self._limit:
                still_open.append(sample)
                kept_rows.append(row)
        self._open = still_open
        return kept_rows, [self._samples[sample].ids[-1] for sample in still_open]

    def _extend(
        self, sample: int, nucleus: Nucleus, row: int, uniform: float, place: int
    ) -> Hypothesis | None:
        hypothesis = self._samples[sample]

        def extend(token: int, logprob: float) -> Hypothesis | None:
            total = hypothesis.logprob + logprob
            return self._writer.extended(hypothesis, token, logprob, total)

        found = nucleus.draw(row, uniform, place, extend)
        if found is not None:
            self._samples[sample] = found
        return found

    def completions(self) -> list[Completion]:
        """All samples, best first by length-normalised log-prob."""
        found = [self._writer.completion(sample) for sample in self._samples]
        return sorted(found, key=lambda one: -one.ranking_score(self._length_penalty))
