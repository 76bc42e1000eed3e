"""What the demo's pages say: scores, wordings, what the judge sees, curves."""

from __future__ import annotations

import dataclasses
import html.parser
import math
import re
import sys

import numpy as np
import pytest

pytest.importorskip("open_clip")

from promptadapt_core.demo import curves, parts
from promptadapt_core.demo.comparing import SCORES, Comparison, Shown, Wording
from promptadapt_core.demo.seeing import seen
from promptadapt_core.lab import captions
from promptadapt_core.lab.judge import JudgeReading
from promptadapt_core.lab.judge_network import (
    COLOUR_NAMES,
    MODIFIER_NAMES,
    PLACE_NAMES,
    SUBJECT_NAMES,
)

NAN = math.nan


def reading(*pictures: tuple[dict[str, float], str, str | None, dict[str, float]]) -> JudgeReading:
    """Of pictures that are (subjects, the colour of all, place, modifiers)."""
    number = len(pictures)
    subjects = np.zeros((number, len(SUBJECT_NAMES)), dtype=np.float32)
    colours = np.zeros((number, len(SUBJECT_NAMES), len(COLOUR_NAMES)), dtype=np.float32)
    places = np.zeros((number, len(PLACE_NAMES)), dtype=np.float32)
    modifiers = np.zeros((number, len(MODIFIER_NAMES)), dtype=np.float32)
    for row, (seen_subjects, colour, place, seen_modifiers) in enumerate(pictures):
        for name, share in seen_subjects.items():
            subjects[row, SUBJECT_NAMES.index(name)] = share
        colours[row, :, COLOUR_NAMES.index(colour)] = 1.0
        places[row, PLACE_NAMES.index(place)] = 1.0
        for name, share in seen_modifiers.items():
            modifiers[row, MODIFIER_NAMES.index(name)] = share
    return JudgeReading(subjects, colours, places, modifiers, np.zeros(number, dtype=np.float32))


def test_what_is_seen_is_told_in_words() -> None:
    found = reading(
        ({"cat": 0.9, "apple": 0.8}, "orange", "by the sea", {"foggy": 0.9, "rain": 0.95}),
        ({"cat": 0.7, "apple": 0.6, "dog": 0.9}, "orange", "by the sea", {"foggy": 0.8}),
        ({"dog": 1.0}, "blue", None, {}),
    )
    two = captions.read("a cat and an apple")
    assert seen(found, slice(0, 2), two) == "an orange cat and an orange apple by the sea, foggy"
    assert seen(found, slice(0, 1), captions.read("a cat")) == (
        "an orange cat by the sea, rain, foggy"
    )
    assert seen(found, slice(2, 3), captions.read("zxqv")) == "a blue dog"


@pytest.mark.parametrize(
    ("name", "after", "before", "change", "shown"),
    [
        ("taste", 6.0, 5.0, "+1.00", "6.00"),
        ("taste", 5.004, 5.0, "0", "5.00"),
        ("reward", -0.001, 0.2, "-0.20", "0.00"),
        ("cosine", 0.6789, 0.68, "-0.001", "0.679"),
        ("asked", 0.75, 1.0, "-25 points", "75%"),
        ("asked", 1.0, 1.0, "0", "100%"),
        ("asked", NAN, 1.0, "", "-"),
    ],
)
def test_scores_and_differences_are_rounded_alike(
    name: str, after: float, before: float, change: str, shown: str
) -> None:
    assert parts.difference(after, before, name) == change
    assert parts.value(after, name) == shown


def test_a_score_table_colours_what_shows_only() -> None:
    before = dict.fromkeys(SCORES, 1.0)
    after = {**before, "taste": 1.5, "cosine": 0.5, "reward": 1.001, "asked": NAN}
    text = parts.scores_part([before, after], ["x", "<y>"], (0, 1))
    assert '<td class="number better">+0.50</td>' in text
    assert '<td class="number worse">-0.500</td>' in text
    assert text.count("better") == text.count("worse") == 1
    assert "<y>" not in text
    visible, folded = text.split("<details>")
    assert "aesthetic gain" not in visible
    assert "aesthetic gain" in folded


def test_what_was_added_is_marked_and_everything_is_escaped() -> None:
    def inner(*wording: str) -> str:
        text = parts.wording_part("<who>", Wording(*wording))
        assert "<who>" not in text
        return text[text.index("</span>") + len("</span>") : -len("</p>")]

    assert inner("a <cat>, foggy", "foggy") == "a &lt;cat&gt;, <mark>foggy</mark>"
    assert inner("foggy cat, foggy", "foggy") == "foggy cat, <mark>foggy</mark>"
    assert inner("a cat, a & b BREAK x", "a & b") == "a cat, <mark>a &amp; b</mark> BREAK x"
    assert inner("a cat") == "a cat"
    assert inner("a cat", "not there") == "a cat"
    assert inner("a cat", "", "left <alone>").endswith(
        '<span class="note">(left &lt;alone&gt;)</span>'
    )


def comparison() -> Comparison:
    pictures = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    scores = dict.fromkeys(SCORES, 1.0)
    shown = [
        Shown(Wording(text), pictures, np.array([5.0, 6.04]), scores, f"seen {text}")
        for text in ('a "cat"', "a cat, foggy")
    ]
    return Comparison('a "cat"', [3, 4], ["words that mean nothing in the lab: <zxqv>"], shown)


class Tags(html.parser.HTMLParser):
    """Which tags are open in the end, and the attributes of the pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_pictures_stand_in_groups_of_one_seed() -> None:
    text = parts.pictures_part(comparison(), ["before", "after"])
    tags = Tags(text)
    assert tags.open == []
    assert [picture["alt"] for picture in tags.pictures] == [
        'before, seed 3: a "cat"', "after, seed 3: a cat, foggy",
        'before, seed 4: a "cat"', "after, seed 4: a cat, foggy",
    ]  # fmt: skip
    assert all(picture["src"].startswith("data:image/png;") for picture in tags.pictures)
    assert text.count('<div class="group"') == 2
    assert text.count("taste 6.0") == 2


def test_remarks_are_escaped_notes() -> None:
    assert parts.remarks_part(comparison()) == (
        '<p class="note">words that mean nothing in the lab: &lt;zxqv&gt;</p>'
    )
    assert parts.remarks_part(dataclasses.replace(comparison(), remarks=[])) == ""


# --- curves ---

ROWS = [
    {"step": step, "rollout/reward": float(step), "judge/taste": None if step == 2 else 5.0}
    for step in range(1, 31)
]


def test_a_moving_mean_takes_fewer_at_the_ends() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert curves.moving_mean(values, window=3).tolist() == [1.5, 3.0, 11 / 3, 4.5]
    assert curves.moving_mean(np.array([])).tolist() == []


def test_the_ends_of_a_curve_are_means_of_a_window() -> None:
    assert curves.first_and_last(ROWS, "rollout/reward") == (4.0, 27.0)
    assert curves.first_and_last(ROWS[:1], "rollout/reward") == (1.0, 1.0)
    assert all(map(math.isnan, curves.first_and_last([], "rollout/reward")))


def test_rows_without_a_value_are_left_out() -> None:
    steps, values = curves.series(ROWS, "judge/taste")
    assert steps.tolist() == [1, *range(3, 31)]
    assert set(values.tolist()) == {5.0}


def test_curves_are_drawn_inside_the_page() -> None:
    pytest.importorskip("matplotlib")
    text = curves.curves_part(ROWS)
    assert text == curves.curves_part(ROWS)
    assert text.count("<svg ") == len(curves.CURVES)
    ids = re.findall(r'\bid="([^"]*)', text)
    assert len(ids) == len(set(ids))
    assert "<metadata>" not in text
    assert "the judge's taste" in text
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)', text))
    curves.curves_part([])


def test_without_matplotlib_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = curves.curves_part(ROWS)
    assert text.count("<tr>") == 1 + curves.MOST_ROWS
    assert '<td class="number">2.5</td>' in text  # the mean of 1, 2, 3 and 4
    assert "matplotlib" not in text
    assert curves.curves_part([]).count("<tr>") == 1
    assert curves.curves_part(ROWS[1:2]).count("<td>-</td>") == 1
