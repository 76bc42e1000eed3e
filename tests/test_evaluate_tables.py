from __future__ import annotations

import math

import pytest

from promptadapt_core.evaluate.tables import digits, estimate_table, estimate_text, label


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.34712, 0.2319, 0.4741, "0.35 (0.23 to 0.47)"),
        (0.00451, 0.0040, 0.0051, "0.0045 (0.0040 to 0.0051)"),
        (0.5, -0.001, 0.0009, "0.5000 (-0.0010 to 0.0009)"),
        (61.2, 40.4, 83.9, "61 (40 to 84)"),
        (-0.001, -0.31, 0.28, "0.00 (-0.31 to 0.28)"),
        (1.0, 1.0, 1.0, "1 (1 to 1)"),
        (14.0, 14.0 - 2e-15, 14.0 + 2e-15, "14 (14 to 14)"),
        (0.512, math.nan, math.nan, "0.512"),
        (3, math.nan, math.nan, "3"),
        (math.nan, math.nan, math.nan, ""),
    ],
)
def test_as_many_digits_as_the_interval_is_worth(
    value: float, low: float, high: float, text: str
) -> None:
    assert estimate_text({"value": value, "low": low, "high": high}) == text


def test_none_is_nothing() -> None:
    assert digits(None) == ("", "")


def test_a_clear_difference_stands_out() -> None:
    rows = [
        ["a & b", {"value": 1.0, "low": 0.5, "high": 1.5}, None, 1234],
        ["c", {"value": 0.0, "low": -0.5, "high": 0.5}, None, 0.25],
        ["d", {"value": -1.0, "low": -1.5, "high": -0.5}, None, ""],
    ]
    text = estimate_table(("", "judge/place_accuracy", "x", "n"), rows, bold_clear=True)
    assert text.count("<b>") == 2
    assert text.count("<td") == 12
    assert "a &amp; b" in text
    assert "1,234" in text
    assert ">-1.5 to -0.5</div>" in text
    assert "<th>judge place accuracy</th>" in text
    assert "<b>" not in estimate_table(("", "x", "y", "n"), rows)


def test_a_name_of_a_metric_can_be_broken() -> None:
    assert label("judge/place_accuracy") == "judge place accuracy"
    assert label("num_tokens") == "num_tokens"
