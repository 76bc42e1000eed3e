"""Beam search and diverse beam search of one request, given the policy's scores of each step.

The rules are those of beam search in the newest transformers (generation/utils.py,
_beam_search): 2 * width candidates a step at most, a text that ends counts only among the best
`width`, texts are compared by score / length ** length_penalty, and the search stops once its
best running beam could not, at its present length, beat the worst of `width` finished ones
(early_stopping=False). At the last step the best `width` candidates all count, ended or not.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

import torch

from .hypotheses import Completion, Hypothesis, Writer, length_normalised
from .settings import SettingsError


class RankedTokens:
    """The tokens of each row by falling log-prob, looked up only as far as they are asked for."""

    def __init__(self, logits: torch.Tensor, num_first: int):
        """logits: (rows, vocabulary). num_first: how many tokens a row are usually needed."""
        self._logits = logits.float()
        self._totals = self._logits.logsumexp(-1, keepdim=True)
        top = self._logits.topk(min(num_first, logits.shape[-1]))
        self._logprobs = (top.values - self._totals).tolist()
        self._tokens = top.indices.tolist()
        if any(row[0] != row[0] for row in self._logprobs):
            raise SettingsError("policy", "its scores are not finite (NaN)")

    def row(self, row: int) -> Iterator[tuple[float, int]]:
        """(log-prob, token) of one row; tokens of no probability are left out."""
        logprobs, tokens = self._logprobs[row], self._tokens[row]
        seen: set[int] = set()
        while True:
            for logprob, token in zip(logprobs, tokens, strict=True):
                if logprob == -float("inf"):
                    return
                if token not in seen:
                    yield logprob, token
            if len(tokens) == self._logits.shape[-1]:
                return
            seen.update(tokens)
            logprobs, tokens = self._wider(row, 8 * len(tokens))

    def _wider(self, row: int, number: int) -> tuple[list[float], list[int]]:
        top = self._logits[row].topk(min(number, self._logits.shape[-1]))
        return (top.values - self._totals[row]).tolist(), top.indices.tolist()

    def penalised(
        self, row: int, penalties: Mapping[int, float]
    ) -> Iterator[tuple[float, float, int]]:
        """(log-prob less penalty, log-prob, token) of one row, by falling first value."""
        held: list[tuple[float, float, int]] = []  # penalised tokens whose turn has not come
        for logprob, token in self.row(row):
            while held and -held[0][0] >= logprob:
                negative, own, earlier = heapq.heappop(held)
                yield -negative, own, earlier
            if token in penalties:
                heapq.heappush(held, (penalties[token] - logprob, logprob, token))
            else:
                yield logprob, logprob, token
        while held:
            negative, own, earlier = heapq.heappop(held)
            yield -negative, own, earlier


class BeamGroup:
    """`width` beams that compete with each other."""

    def __init__(self, writer: Writer, width: int, length_penalty: float, limit: int):
        """limit: most tokens to choose, the end token included; 0 gives one empty text."""
        self._writer = writer
        self._width = width
        self._length_penalty = length_penalty
        self._limit = limit
        self._length = 0
        self.running = [Hypothesis()]
        self.went_on_with: list[int] = []  # tokens of this step, the end token left out
        self.finished: list[tuple[float, Hypothesis]] = []  # best first
        if limit < 1:
            self._finish(self.running.pop())

    def advance(
        self, ranked: RankedTokens, first_row: int, penalties: Mapping[int, float]
    ) -> list[int]:
        """Choose the next token of every beam. Beam i is row first_row + i of `ranked`.

        Returns, for each beam that runs on, which beam it came from; [] when the group is done.
        """
        self._length += 1
        running: list[Hypothesis] = []
        parents: list[int] = []
        self.went_on_with = []
        with_successor: set[int] = set()
        rank, last = 0, self._length == self._limit
        for negative, beam, token, logprob in self._candidates(ranked, first_row, penalties):
            found = self._writer.extended(self.running[beam], token, logprob, -negative)
            if found is None:
                continue
            with_successor.add(beam)
            if not found.finished:
                self.went_on_with.append(token)
            if last or found.finished:
                if rank < self._width:
                    self._finish(found)
            else:
                running.append(found)
                parents.append(beam)
            rank += 1
            if len(running) == self._width or (last and rank == self._width):
                break
        else:  # the whole vocabulary was looked at
            for beam, hypothesis in enumerate(self.running):
                if beam not in with_successor:
                    self._finish(hypothesis)
        self.running = running
        if self._cannot_improve():
            self.running = []
        return parents[: len(self.running)]

    def _candidates(
        self, ranked: RankedTokens, first_row: int, penalties: Mapping[int, float]
    ) -> Iterator[tuple[float, int, int, float]]:
        """(-score, beam, token, log-prob of the token) over all beams, by falling score."""

        def of_beam(beam: int, score: float) -> Iterator[tuple[float, int, int, float]]:
            for value, logprob, token in ranked.penalised(first_row + beam, penalties):
                yield -(score + value), beam, token, logprob

        return heapq.merge(*(of_beam(i, beam.score) for i, beam in enumerate(self.running)))

    def _finish(self, hypothesis: Hypothesis) -> None:
        value = length_normalised(hypothesis.score, hypothesis.num_tokens, self._length_penalty)
        self.finished.append((value, hypothesis))
        self.finished.sort(key=lambda pair: -pair[0])
        del self.finished[self._width :]

    def _cannot_improve(self) -> bool:
        if len(self.finished) < self._width or not self.running:
            return False
        best = length_normalised(self.running[0].score, self._length, self._length_penalty)
        return best <= self.finished[-1][0]


class BeamSearch:
    """All beams of one request: one group, or for diverse beams one group for each beam.

    Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424, Hamming diversity): groups
    choose one after another, and a token loses `diversity_penalty` nats for each earlier group
    that goes on with it at this step. The penalty steers the search; it is in no log-prob.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        num_groups: int,
        width: int,
        length_penalty: float,
        limit: int,
        diversity_penalty: float = 0.0,
    ):
        self._writer = writer
        self._length_penalty = length_penalty
        self._diversity_penalty = diversity_penalty
        self._started = False
        self._groups = [BeamGroup(writer, width, length_penalty, limit) for _ in range(num_groups)]

    @property
    def running(self) -> bool:
        return any(group.running for group in self._groups)

    def advance(self, ranked: RankedTokens, first_row: int) -> tuple[list[int], list[int]]:
        """(rows, tokens): every beam that runs on, as the row it came from and its new token.

        Before the first call all groups share one row; then every beam has its own, in order.
        """
        rows: list[int] = []
        tokens: list[int] = []
        penalties: Counter[int] = Counter()
        next_row = first_row
        for group in self._groups:
            if not group.running:
                continue
            row, next_row = next_row, next_row + len(group.running)
            if not self._started:
                row = first_row
            rows += [row + parent for parent in group.advance(ranked, row, penalties)]
            tokens += [hypothesis.ids[-1] for hypothesis in group.running]
            for token in group.went_on_with:
                penalties[token] += self._diversity_penalty
        self._started = True
        return rows, tokens

    def completions(self) -> list[Completion]:
        """All groups' texts, best first by the policy's own length-normalised log-prob."""
        found = [
            self._writer.completion(hypothesis)
            for group in self._groups
            for _, hypothesis in group.finished
        ]
        return sorted(found, key=lambda one: -one.ranking_score(self._length_penalty))
