"""Means, differences and shares with 95% bootstrap intervals, paired by user input.

Values are (K, N): K training seeds of one method, N user inputs; nan where there is no value. The
bootstrap draws user inputs anew, the same ones for both sides of a difference. Where a side has
several training seeds it draws those anew too, each side its own: an interval then says what other
seeds and other user inputs would give. A user input counts where all of both sides have a value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable

import numpy as np

from ..intervals import bootstrap


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
        return self._estimate((values,), lambda means: means[0])

    def difference(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """The mean of first (K, N) - second (L, N)."""
        return self._estimate((first, second), lambda means: means[0] - means[1])

    def gap_share(self, row: np.ndarray, plain: np.ndarray, ceiling: np.ndarray) -> Estimate:
        """(row - plain) / (ceiling - plain) of the means; nan where the ceiling is no higher than
        the plain user input."""

        def share(means: list[float]) -> float:
            gap = means[2] - means[1]
            return (means[0] - means[1]) / gap if gap > 0.0 else math.nan

        return self._estimate((row, plain, ceiling), share)

    def gain_over_gain(self, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> Estimate:
        """(first - second) - (second - third) of the means: how much more the last step adds."""
        return self._estimate(
            (first, second, third), lambda means: means[0] - 2.0 * means[1] + means[2]
        )

    def _estimate(
        self, sides: tuple[np.ndarray, ...], statistic: Callable[[list[float]], float]
    ) -> Estimate:
        whole = np.logical_and.reduce([np.isfinite(side).all(axis=0) for side in sides])
        kept = [side[:, whole] for side in sides]
        number = int(whole.sum())
        if number == 0:
            return Estimate(math.nan, math.nan, math.nan, 0)
        value = statistic([float(side.mean()) for side in kept])
        if number == 1:
            return Estimate(value, math.nan, math.nan, 1)
        again = np.random.Generator(np.random.PCG64([self.seed, 1]))

        def drawn(rows: np.ndarray) -> float:
            return statistic([_drawn_mean(side, rows, again) for side in kept])

        low, high = bootstrap(drawn, number, self.seed, self.num_draws)
        return Estimate(value, low, high, number)


def _drawn_mean(values: np.ndarray, rows: np.ndarray, draws: np.random.Generator) -> float:
    """The mean over these user inputs, and training seeds drawn anew if there are several."""
    if len(values) == 1:
        return float(values[0, rows].mean())
    seeds = draws.integers(len(values), size=len(values))
    return float(values[np.ix_(seeds, rows)].mean())


def seed_of(*parts: object) -> int:
    """A seed for the bootstrap that depends on the arguments alone."""
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
