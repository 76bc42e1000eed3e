from __future__ import annotations

import math

import numpy as np
import pytest

from promptadapt_core.intervals import bootstrap, ranks, spearman, wilson


def test_wilson_matches_a_printed_table() -> None:
    # Newcombe 1998, table I: 81 of 263, method 3
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_stays_within_a_share() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert 0.8 < wilson(20, 20)[0] < 0.9


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_spearman_sees_order_only() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -(values**3)) == pytest.approx(-1.0)
    # by hand: squared rank differences 0, 1, 1, 0, so 1 - 6 * 2 / (4 * 15)
    assert spearman(values, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(spearman(values, np.ones(4)))


def test_bootstrap_of_a_mean() -> None:
    values = np.arange(400) / 399.0
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 400, seed=1)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(0.5 - 1.96 * error, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * error, abs=0.01)
    assert bootstrap(lambda rows: float(values[rows].mean()), 400, seed=1) == (low, high)
    assert all(map(math.isnan, bootstrap(lambda rows: math.nan, 5, seed=1, num_draws=10)))
