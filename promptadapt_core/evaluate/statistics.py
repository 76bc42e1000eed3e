"""Means, differences and shares with 95% bootstrap intervals, paired by user input.

Values are (K, N): K training seeds of one method, N user inputs; nan where there is no value. The
bootstrap draws user inputs anew, the same ones for both sides of a difference. A user input counts
where all of both sides have a value.

A bootstrap of few gives intervals that are far too short: of 3 training seeds no mean can lie
outside the 3 that there are, and the interval holds the truth in 75% of all cases. So the draws
follow Student's t (1908, "The Probable Error of a Mean"): those of user inputs are spread by it,
and where a side has K training seeds each draw moves by spread / sqrt(K) * t of K - 1, each side by
its own. An interval then says what other seeds and other user inputs would give. With both it is
somewhat too long rather than too short: the noise of the user inputs is in the seeds' spread too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np

NUM_SMOOTHED = 101  # draws of the whole distribution of t behind each set of draws


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
        moved as other training seeds would move it, for each place by itself."""
        number, mean = values.shape[1], values.mean()
        drawn = _shares(number, self.seed, self.num_draws) @ values.mean(axis=0)
        drawn = mean + (drawn - mean) * _stretches(number, self.seed, self.num_draws)
        if len(values) == 1:
            return drawn
        spread = values.mean(axis=1).std(ddof=1) / math.sqrt(len(values))
        return drawn + spread * _students_t(len(values) - 1, self.seed, place, self.num_draws)


@functools.lru_cache(maxsize=64)
def _shares(number: int, seed: int, num_draws: int) -> np.ndarray:
    """(num_draws, number): how often each of `number` is drawn when as many are drawn with
    replacement, as shares of 1."""
    draws = np.random.Generator(np.random.PCG64([seed, 0, number]))
    drawn = draws.integers(number, size=(num_draws, number))
    rows = np.repeat(np.arange(num_draws) * number, number)
    counts = np.bincount(rows + drawn.ravel(), minlength=num_draws * number)
    return _frozen(counts.reshape(num_draws, number) / number)


@functools.lru_cache(maxsize=64)
def _stretches(number: int, seed: int, num_draws: int) -> np.ndarray:
    """(num_draws,): by which the distance of a bootstrapped mean of `number` from the mean is
    multiplied, so that it follows Student's t; near 1 where there are many."""
    draws = np.random.Generator(np.random.PCG64([seed, 1, number]))
    return _frozen(np.sqrt(number / draws.chisquare(number - 1, size=num_draws)))


@functools.lru_cache(maxsize=64)
def _students_t(freedom: int, seed: int, place: int, num_draws: int) -> np.ndarray:
    """(num_draws,) in random order, as evenly over the distribution as medians of many draws are:
    its tails decide on an interval."""
    draws = np.random.Generator(np.random.PCG64([seed, 2, freedom, place]))
    many = np.sort(draws.standard_t(freedom, size=(NUM_SMOOTHED, num_draws)), axis=1)
    return _frozen(draws.permutation(np.median(many, axis=0)))


def _frozen(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values


def seed_of(*parts: object) -> int:
    """A seed for the bootstrap that depends on the arguments alone."""
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
