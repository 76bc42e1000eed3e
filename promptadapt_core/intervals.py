"""95% intervals and rank correlation of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Z_95 = 1.959963984540054  # of the normal distribution


def wilson(num_right: int, number: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) of nothing."""
    if number == 0:
        return 0.0, 1.0
    share, z2 = num_right / number, Z_95**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    spread = math.sqrt(share * (1 - share) / number + z2 / (4 * number**2))
    half = Z_95 * spread / (1 + z2 / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    statistic: Callable[[np.ndarray], float], number: int, seed: int, num_draws: int = 1000
) -> tuple[float, float]:
    """The 95% percentile interval of a statistic of `number` rows.

    statistic: gets row numbers (number,), drawn with replacement. A draw whose statistic is not
    finite is left out; (nan, nan) when none is.
    """
    draws = np.random.Generator(np.random.PCG64(seed))
    values = [statistic(draws.integers(number, size=number)) for _ in range(num_draws)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 of a vector; equal values share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    return (ends - (sizes + 1) / 2)[group]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two vectors; nan where one of them is constant."""
    first, second = ranks(first), ranks(second)
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / spread if spread else math.nan
