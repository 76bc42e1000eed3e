from __future__ import annotations

import math

import numpy as np
import pytest

from promptadapt_core.evaluate.statistics import Resampling, seed_of
from promptadapt_core.intervals import bootstrap

NAN = math.nan
RESAMPLING = Resampling(seed=3, num_draws=2000)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape)


def test_a_mean_is_over_inputs_and_training_seeds() -> None:
    found = RESAMPLING.mean(np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]]))
    assert found.value == 3.0
    assert found.number == 3
    assert found.low < 3.0 < found.high


def test_an_input_without_a_value_somewhere_does_not_count() -> None:
    first = np.array([[1.0, NAN, 3.0, 5.0], [1.0, 0.0, 3.0, 5.0]])
    second = np.array([[0.0, 0.0, 0.0, NAN]])
    found = RESAMPLING.difference(first, second)
    assert (found.value, found.number) == (2.0, 2)
    nothing = RESAMPLING.difference(first, np.full((1, 4), NAN))
    assert nothing.number == 0
    assert math.isnan(nothing.value)
    assert not nothing.above_0


def test_one_input_has_no_interval() -> None:
    found = RESAMPLING.mean(np.array([[2.0]]))
    assert (found.value, found.number) == (2.0, 1)
    assert math.isnan(found.low)
    assert not found.above_0


def test_a_difference_is_paired() -> None:
    """Inputs differ by 10, the two sides everywhere by 1: unpaired nothing could be told."""
    base = 10.0 * noise(1, 40)
    found = RESAMPLING.difference(base + 1.0, base)
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))
    assert found.above_0
    assert not RESAMPLING.difference(base, base).above_0
    assert RESAMPLING.mean(base + 1.0).high - RESAMPLING.mean(base + 1.0).low > 3.0


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = noise(1, 400, seed=1)
    found = RESAMPLING.mean(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.high - found.value == pytest.approx(half, rel=0.12)
    assert found.value - found.low == pytest.approx(half, rel=0.12)
    low, high = bootstrap(lambda rows: float(values[0, rows].mean()), 400, seed=8, num_draws=2000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * half)


def test_training_seeds_that_differ_widen_the_interval() -> None:
    inputs = noise(1, 300)
    alike, apart = (inputs + np.array(part)[:, None] for part in ([0, 0, 0], [-1.0, 0.0, 1.0]))
    narrow, wide = RESAMPLING.difference(alike, inputs), RESAMPLING.difference(apart, inputs)
    assert narrow.value == pytest.approx(0.0)
    assert wide.value == pytest.approx(0.0)
    assert narrow.high - narrow.low == pytest.approx(0.0)
    # The spread of (-1, 0, 1) is 1, the 97.5% point of Student's t with 2 degrees of freedom 4.303.
    half = 4.303 / math.sqrt(3)
    assert (wide.low, wide.high) == pytest.approx((-half, half), rel=0.03)


@pytest.mark.parametrize(
    ("num_seeds", "number", "of_seeds", "of_inputs", "of_both"),
    [(1, 200, 0.0, 1.0, 0.0), (1, 4, 0.0, 1.0, 0.0), (3, 60, 1.0, 0.1, 0.1), (3, 60, 0.2, 1, 0.5)],
)
def test_95_of_100_intervals_hold_the_truth(
    num_seeds: int, number: int, of_seeds: float, of_inputs: float, of_both: float
) -> None:
    """The spreads of what a training seed, a user input and a pair of them add to the truth, 0."""
    num_worlds, held = 400, 0
    for world in range(num_worlds):
        draws = np.random.Generator(np.random.PCG64([world, num_seeds, number]))
        values = (
            of_seeds * draws.normal(size=(num_seeds, 1))
            + of_inputs * draws.normal(size=(1, number))
            + of_both * draws.normal(size=(num_seeds, number))
        )
        found = Resampling(world % 5, 400).difference(values, np.zeros((1, number)))
        held += found.low <= 0.0 <= found.high
    assert 0.92 <= held / num_worlds <= 0.995


def test_the_share_of_the_gap_is_of_means() -> None:
    plain = np.array([[0.0, 1.0, 2.0, 0.0]])
    ceiling = np.array([[4.0, 1.0, 4.0, NAN]])
    row = np.array([[2.0, 1.0, 4.0, 9.0]])
    found = RESAMPLING.gap_share(row, plain, ceiling)
    assert (found.value, found.number) == (pytest.approx(4 / 6), 3)
    assert found.low < 4 / 6 < found.high
    assert math.isnan(RESAMPLING.gap_share(row, plain, plain).value)
    assert math.isnan(RESAMPLING.gap_share(row, plain, plain).low)


def test_what_the_last_step_adds_over_the_step_before() -> None:
    found = RESAMPLING.gain_over_gain(
        np.array([[5.0, 6.0]]), np.array([[2.0, 3.0]]), np.array([[1.0, 2.0]])
    )
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_same_seed_gives_the_same_intervals() -> None:
    values = noise(3, 50)
    assert RESAMPLING.mean(values) == RESAMPLING.mean(values)
    assert RESAMPLING.mean(values) != Resampling(4, 2000).mean(values)
    assert seed_of(1, "a") == seed_of(1, "a") != seed_of(1, "b")
