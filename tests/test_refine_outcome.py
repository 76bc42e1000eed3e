from __future__ import annotations

import numpy as np
import pytest

from promptadapt_core.refine.curve import HEIGHT, WIDTH, reward_curve
from promptadapt_core.refine.outcome import (
    MOST_CELLS,
    PLAIN,
    SAMPLED,
    Refinement,
    Round,
    Tried,
    best_of,
)


def tried(text: str, reward: float, number: int = 1) -> Tried:
    source = PLAIN if number == 0 else SAMPLED
    picture = np.full((1, 8, 8, 3), 90, dtype=np.uint8)
    return Tried(text, source, number, reward, {"aesthetic_gain": reward}, 5.0, 0.3, picture)


def refinement(*rewards: float, accepted: bool = True, plain: float = 0.0) -> Refinement:
    first = tried("a cat", plain, 0)
    everything = [first, *(tried(f"a cat, {i}", r, 1 + i // 2) for i, r in enumerate(rewards))]
    numbers = range(1, 1 + (len(rewards) + 1) // 2)
    rounds = [
        Round(n, list(rewards[2 * n - 2 : 2 * n]), max(rewards[: 2 * n]), 2, {}) for n in numbers
    ]
    return Refinement(
        "a cat", accepted, first, best_of(everything, first), everything, rounds, 0.05, [7],
        len(everything), len(everything), 1.5, [],
    )  # fmt: skip


def test_the_earliest_of_equals_is_the_best() -> None:
    one, two, plain = tried("one", 1.0), tried("two", 1.0), tried("plain", 9.0, 0)
    assert best_of([plain, one, two], plain) is one
    assert best_of([plain], plain) is plain


def test_what_is_said_when_nothing_could_be_tried() -> None:
    assert "nothing else could be tried" in refinement(accepted=False).sentence()


def test_ranks_hold_the_plain_input_too() -> None:
    found = refinement(-1.0, 2.0)
    assert [one.reward for one in found.ranked] == [2.0, 0.0, -1.0]
    assert found.answer.adapted_prompt == "a cat, 1"
    assert refinement(-1.0, 2.0, accepted=False).answer.adapted_prompt == "a cat"


def test_the_sheet_always_shows_the_plain_input() -> None:
    many = refinement(*(1.0 + i / 100 for i in range(MOST_CELLS + 10)))
    assert many.plain not in many.ranked[:MOST_CELLS]
    few = refinement(1.0, 2.0)
    assert many.sheet().shape[0] > few.sheet().shape[0] > 8
    assert many.sheet().dtype == np.uint8


@pytest.mark.parametrize(
    "rewards", [(1.0, 2.0), (0.0, 0.0), (-3.25,), (1e-9, 2e-9), (1e4, -1e4), tuple(range(-60, 60))]
)
def test_a_curve_of_any_rewards(rewards: tuple[float, ...]) -> None:
    curve = reward_curve(refinement(*map(float, rewards)))
    assert curve.shape == (HEIGHT, WIDTH, 3)
    assert len(np.unique(curve.reshape(-1, 3), axis=0)) > 4


def test_the_curve_is_where_the_numbers_are() -> None:
    """Rewards of 0 and 1: the line of the plain input is at 0, the best of the round at 1."""
    curve = reward_curve(refinement(0.0, 1.0)).astype(int)
    orange = np.abs(curve - (190, 90, 0)).sum(-1) < 60
    green = np.abs(curve - (24, 122, 62)).sum(-1) < 60
    rows = [np.flatnonzero(mask[40:, 100:].any(axis=1)).mean() for mask in (orange, green)]
    middle = np.flatnonzero((np.abs(curve - (0, 114, 178)).sum(-1) < 60)[40:, 100:].sum(1) > 6)
    assert rows[1] < middle.mean() < rows[0]
    assert middle.mean() == pytest.approx(sum(rows) / 2, abs=3)  # the mean, 0.5


def test_a_curve_without_rounds() -> None:
    assert reward_curve(refinement(accepted=False)).shape == (HEIGHT, WIDTH, 3)
