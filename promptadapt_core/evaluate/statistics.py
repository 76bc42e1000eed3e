"""Means, differences and shares with 95% bootstrap intervals, paired by user input.

Values are (K, N): K training seeds of one method, N user inputs; nan where there is no value. The
bootstrap draws user inputs anew, the same ones for both sides of a difference. Where a side has
several training seeds it draws those anew too, each side its own: an interval then says what other
seeds and other user inputs would give. A user input counts where all of both sides have a value.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """value: of what was measured. low, high: its 95% interval, nan where there is none. number:
    user inputs behind it; of none the value is nan."""

    value: float
    low: float
    high: float
    number: int

    @property
    def above_0(self) -> bool:
        """Whether the whole interval is."""
        return self.low > 0.0

    def as_json(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How often, and from which seed: the same seed gives the same intervals."""

    seed: int = 0
    num_draws: int = 1000

    def mean(self, values: np.ndarray) -> Estimate:
        """Of (K, N): the mean over user inputs of the mean over training seeds."""
        return self._estimate(lambda means: means, values)

    def difference(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """The mean of first (K, N) - second (L, N)."""
        return self._estimate(lambda one, other: one - other, first, second)

    def gap_share(self, row: np.ndarray, plain: np.ndarray, ceiling: np.ndarray) -> Estimate:
        """(row - plain) / (ceiling - plain) of the means; nan where the ceiling is no higher than
        the plain user input."""

        def share(row: np.ndarray, plain: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
            gap = ceiling - plain
            return np.where(gap > 0.0, (row - plain) / np.where(gap > 0.0, gap, 1.0), np.nan)

        return self._estimate(share, row, plain, ceiling)

    def gain_over_gain(self, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> Estimate:
        """(first - second) - (second - third) of the means: how much more the last step adds."""
        return self._estimate(lambda a, b, c: (a - b) - (b - c), first, second, third)

    def _estimate(self, statistic: Callable[..., np.ndarray], *sides: np.ndarray) -> Estimate:
        """statistic: of the means of the sides, (1,) or (num_draws,) each."""
        whole = np.logical_and.reduce([np.isfinite(side).all(axis=0) for side in sides])
        kept = [side[:, whole] for side in sides]
        number = int(whole.sum())
        if number == 0:
            return Estimate(math.nan, math.nan, math.nan, 0)
        value = float(statistic(*(side.mean(keepdims=True)[0] for side in kept))[0])
        if number == 1:
            return Estimate(value, math.nan, math.nan, 1)
        drawn = statistic(*(self._means(side, place) for place, side in enumerate(kept)))
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Estimate(value, math.nan, math.nan, number)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Estimate(value, float(low), float(high), number)

    def _means(self, values: np.ndarray, place: int) -> np.ndarray:
        """(num_draws,): the mean of (K, N) over user inputs drawn anew, the same for each place,
        and over training seeds, drawn anew for each place where there are several."""
        means = _shares(values.shape[1], self.seed, 0, self.num_draws) @ values.T
        return (means * _shares(len(values), self.seed, place + 1, self.num_draws)).sum(axis=1)


@functools.lru_cache(maxsize=64)
def _shares(number: int, seed: int, stream: int, num_draws: int) -> np.ndarray:
    """(num_draws, number): how often each of `number` is drawn when as many are drawn with
    replacement, as shares of 1."""
    draws = np.random.Generator(np.random.PCG64([seed, stream, number]))
    drawn = draws.integers(number, size=(num_draws, number))
    rows = np.repeat(np.arange(num_draws) * number, number)
    counts = np.bincount(rows + drawn.ravel(), minlength=num_draws * number)
    shares = counts.reshape(num_draws, number) / number
    shares.setflags(write=False)
    return shares


def seed_of(*parts: object) -> int:
    """A seed for the bootstrap that depends on the arguments alone."""
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
