from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from promptadapt_core.decoding import Stopped  # noqa: E402
from promptadapt_core.picture_rewards import (  # noqa: E402
    PICTURES_AT_ONCE,
    compare_pictures,
    comparison_cells,
    one_for_each,
    reward_pictures,
    sheet_cells,
)
from promptadapt_core.reward_settings import RewardSettings  # noqa: E402
from promptadapt_core.scorers import Scores  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


class Reader:
    """Aesthetic is the red value, relevance a hundredth of the green one; a blue of 1 is NaN."""

    identity = "reader"
    relevance_knee, relevance_slope = 0.5, 10.0

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], tuple[int, ...]]] = []

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        self.calls.append((list(user_inputs), pixels.shape))
        values = torch.from_numpy(pixels[:, 0, 0].astype(np.float32))
        aesthetic = torch.where(values[:, 2] == 1, torch.nan, values[:, 0])
        return Scores(aesthetic, values[:, 1] / 100)


def picture(red: int, green: int = 50, blue: int = 0, side: int = 2) -> np.ndarray:
    return np.full((side, side, 3), (red, green, blue), dtype=np.uint8)


def test_rewards_are_the_weighted_sum() -> None:
    # the relevance term is 10 * min(cosine - 0.5, 0): -1 at 0.4, and 0 above the knee
    pictures = [picture(5, 40), picture(6, 90), picture(3, 50)]
    found = reward_pictures(Reader(), ["a"] * 3, pictures)
    assert found.aesthetic == [5.0, 6.0, 3.0]
    assert found.relevance == pytest.approx([0.4, 0.9, 0.5])
    assert found.rewards == pytest.approx([4.0, 6.0, 3.0])
    assert found.order == [1, 0, 2]
    assert [found.rank(i) for i in range(3)] == [2, 1, 3]
    weighted = RewardSettings(aesthetic_weight=2.0, relevance_weight=3.0)
    found = reward_pictures(Reader(), ["a"] * 3, pictures, settings=weighted)
    assert found.rewards == pytest.approx([7.0, 12.0, 6.0])


def test_with_baselines_the_aesthetic_is_a_gain() -> None:
    pictures = [picture(5), picture(6), picture(7), picture(9)]
    found = reward_pictures(Reader(), ["a"] * 4, pictures, [picture(4), picture(8)])
    assert found.gains == [1.0, -2.0, 3.0, 1.0]  # baselines take turns
    assert found.rewards == found.gains
    assert found.order == [2, 0, 3, 1]  # equals stay in order
    assert found.as_json()[2] == {
        "image": 2, "rank": 1, "reward": 3.0, "aesthetic": 7.0, "relevance": 0.5,
        "aesthetic_gain": 3.0,
    }  # fmt: skip


def test_a_gain_of_nothing_is_not_the_aesthetic() -> None:
    found = reward_pictures(Reader(), ["a"], [picture(5)], [picture(5)])
    assert found.gains == found.rewards == [0.0]


def test_pictures_of_one_size_are_scored_together() -> None:
    reader = Reader()
    pictures = [picture(1), picture(2, side=1), picture(3)]
    found = reward_pictures(reader, ["a", "b", "c"], pictures)
    assert found.aesthetic == [1.0, 2.0, 3.0]
    assert reader.calls == [(["a", "c"], (2, 2, 2, 3)), (["b"], (1, 1, 1, 3))]


def test_between_pictures_it_may_be_stopped() -> None:
    reader = Reader()
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        reward_pictures(reader, ["a"] * 30, [picture(1)] * 30, should_stop=lambda: next(answers))
    assert [shape[0] for _, shape in reader.calls] == [PICTURES_AT_ONCE] * 2
    with pytest.raises(Stopped):
        compare_pictures(reader, "a", [picture(1)], [picture(2)], should_stop=lambda: True)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SettingsError, match="got none"):
        reward_pictures(Reader(), [], [])
    with pytest.raises(SettingsError, match="one for each of 2 pictures"):
        reward_pictures(Reader(), ["a"], [picture(1)] * 2)
    with pytest.raises(SettingsError, match="3 pictures cannot take turns with 2"):
        reward_pictures(Reader(), ["a"] * 3, [picture(1)] * 3, [picture(1)] * 2)
    with pytest.raises(SettingsError, match="user_input: expected what was asked for"):
        reward_pictures(Reader(), ["a", " \n"], [picture(1)] * 2)
    looks_only = RewardSettings(relevance_weight=0.0)
    assert reward_pictures(Reader(), [""], [picture(1)], settings=looks_only).rewards == [1.0]
    with pytest.raises(SettingsError, match="picture 2 has scores"):
        reward_pictures(Reader(), ["a"] * 2, [picture(1), picture(1, blue=1)])


def test_one_value_for_all_for_each_picture_or_for_each_batch() -> None:
    assert one_for_each(["a"], [2, 1], "t") == ["a", "a", "a"]
    assert one_for_each(["a", "b"], [2, 1], "t") == ["a", "a", "b"]
    assert one_for_each(["a", "b", "c"], [2, 1], "t") == ["a", "b", "c"]
    with pytest.raises(SettingsError, match="t: expected one for each of 3 pictures, got 4"):
        one_for_each(["a"] * 4, [2, 1], "t")


def test_the_sheet_shows_the_best_first() -> None:
    pictures = [picture(5), picture(6)]
    found = reward_pictures(Reader(), ["a"] * 2, pictures, [picture(4)])
    cells = sheet_cells(found, pictures, ["one", "two"])
    assert [cell.text for cell in cells] == ["two", "one"]
    assert cells[0].heads == ("1. reward 2.00", "aesthetic 6.00 (+2.00)", "relevance 0.500")
    assert [cell.best for cell in cells] == [True, False]


def test_two_pictures_are_compared_in_pairs() -> None:
    first, second = [picture(5), picture(6)], [picture(7), picture(5)]
    compared = compare_pictures(Reader(), "a", first, second)
    assert compared.b_is_better == [True, False]
    assert compared.difference == pytest.approx(0.5)
    assert compared.as_json()[0] == {
        "pair": 0,
        "better": "b",
        "a": {"reward": 5.0, "aesthetic": 5.0, "relevance": 0.5},
        "b": {"reward": 7.0, "aesthetic": 7.0, "relevance": 0.5},
    }
    cells = comparison_cells(compared, first, second, ("plain", "adapted"))
    assert [cell.text for cell in cells] == ["plain", "adapted"] * 2
    assert [cell.best for cell in cells] == [False, True, True, False]
    assert cells[1].heads[0] == "B  reward 7.00"
    assert compared.verdict() == "B is better by 0.50"
    assert compare_pictures(Reader(), "a", second, first).verdict() == "A is better by 0.50"
    assert compare_pictures(Reader(), "a", first, first).verdict() == "A and B score the same"
    with pytest.raises(SettingsError, match="image_b: expected as many"):
        compare_pictures(Reader(), "a", first, second[:1])
