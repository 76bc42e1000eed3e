"""An interpolated Kneser-Ney n-gram model over token ids: the baseline a policy has to beat.

Chen and Goodman (1998), equation 4.3 with one discount per order, estimated as n1 / (n1 + 2 n2).
It works on the policy's own tokens, so the vocabulary is closed and both spread the same mass.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


class NgramModel:
    """P(token | the `order - 1` tokens before it)."""

    def __init__(self, order: int, vocab_size: int):
        self.order = order
        self.vocab_size = vocab_size
        self._counts: list[Counter] = [Counter() for _ in range(order)]
        self._totals: list[dict] = []
        self._followers: list[dict] = []
        self._discounts: list[float] = []

    def fit(self, sequences: Iterable[Sequence[int]]) -> NgramModel:
        """Count n-grams of token id sequences; each is padded with -1 on the left."""
        highest = self._counts[-1]
        for sequence in sequences:
            padded = (-1,) * (self.order - 1) + tuple(sequence)
            for end in range(self.order, len(padded) + 1):
                highest[padded[end - self.order : end]] += 1
        for n in range(self.order - 1, 0, -1):  # lower orders count distinct left contexts
            lower = self._counts[n - 1]
            for gram in self._counts[n]:
                lower[gram[1:]] += 1
        for counts in self._counts:
            totals: dict = defaultdict(int)
            followers: dict = defaultdict(int)
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                followers[gram[:-1]] += 1
            ones = sum(1 for count in counts.values() if count == 1)
            twos = sum(1 for count in counts.values() if count == 2)
            self._discounts.append(ones / (ones + 2 * twos) if ones else 0.0)
            self._totals.append(dict(totals))
            self._followers.append(dict(followers))
        return self

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """`context` holds the `order - 1` tokens before, padded with -1 on the left."""
        probability = 1.0 / self.vocab_size
        for n in range(self.order):
            history = context[len(context) - n :]
            total = self._totals[n].get(history)
            if not total:
                break
            discount = self._discounts[n]
            seen = max(self._counts[n].get((*history, token), 0) - discount, 0.0)
            probability = (seen + discount * self._followers[n][history] * probability) / total
        return probability

    def nll(self, sequence: Sequence[int], start: int) -> float:
        """Nats of sequence[start:], given all that is before."""
        padded = (-1,) * (self.order - 1) + tuple(sequence)
        total = 0.0
        for i in range(start, len(sequence)):
            total -= math.log(
                self.probability(padded[i : i + self.order - 1], padded[i + self.order - 1])
            )
        return total
