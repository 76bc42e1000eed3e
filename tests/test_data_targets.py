from __future__ import annotations

import pytest

from promptadapt_core.data.reading import Row
from promptadapt_core.data.targets import (
    MAX_CLIP_TOKENS,
    Target,
    count_pieces,
    finished,
    fit,
    keep_modifiers,
    make_target,
    tidy,
    whole_segments,
)


def target_of(text: str, **fields) -> Target | str:
    return make_target(Row("id", text, **fields), artists=False)


def test_a_typed_prompt_becomes_main_content_and_modifiers():
    target = target_of(
        "a cat on a roof , highly detailed , 8 k, highly - detailed, by greg rutkowski, artstation"
    )
    assert target.main == "a cat on a roof"
    assert target.modifiers == ("highly detailed", "8k", "artstation")
    assert target.text() == "a cat on a roof, highly detailed, 8k, artstation"


@pytest.mark.parametrize(
    ("text", "flags", "reason"),
    [
        ("a cat, 8k", ("minor",), "flagged minor"),
        ("a cat, 8k", ("syntax",), "flagged syntax"),
        ("   ", (), "empty"),
        ("by " * 10_000, (), "too long"),
        ("!!!, ???", (), "no main content"),
        ("cat cat cat cat cat, 8k, artstation", (), "repeats itself"),
        (" ".join(f"word{number}" for number in range(40)), (), "main content too long"),
    ],
)
def test_why_a_row_makes_no_target(text, flags, reason):
    assert target_of(text, flags=flags) == reason


def test_artists_stay_only_when_asked_for():
    row = Row("id", "a lighthouse by greg rutkowski, highly detailed, 8k")
    assert "rutkowski" not in make_target(row, artists=False).text().lower()
    assert "rutkowski" in make_target(row, artists=True).text().lower()


def test_main_content_that_was_torn_is_told_from_whole():
    assert whole_segments("a cat", "a cat by john doe, 8k") == "a cat"
    assert whole_segments("a minimalist", "a minimalist painting by john doe") == ""
    assert whole_segments("a house on", "a house on fire") == ""
    assert whole_segments("a man, a matte", "a man, a matte painting by john") == "a man"
    assert whole_segments("a robot in the shell", "a robot inspired by ghost in the shell") == ""
    assert whole_segments("a girl with hair", "a beautiful girl with hair") == "a girl with hair"
    assert whole_segments("a image of x", "an award-winning image of x") == "a image of x"


def test_tidy():
    assert tidy(' ( ( red ) ) "cat" !!! ,, ') == "red cat"
    assert tidy("and sharp focus,") == "sharp focus"


def test_repeats_and_what_the_main_content_says_are_left_out():
    found = ["8K", "hyper-detailed", "hyper detailed", "a cat", "lit by", "8k", "..."]
    assert keep_modifiers("a cat, 8k", found, artists=False) == ["hyper-detailed"]


def test_a_target_is_cut_at_a_modifier():
    many = [f"sharp focus number {number}" for number in range(40)]
    kept = fit("a cat", many)
    assert kept == many[: len(kept)]
    assert count_pieces(", ".join(["a cat", *kept])) <= MAX_CLIP_TOKENS
    assert count_pieces(", ".join(["a cat", *many[: len(kept) + 1]])) > MAX_CLIP_TOKENS


def test_pieces_by_hand():
    assert count_pieces("a cat, 35mm") == 6  # a cat , 3 5 mm
    assert count_pieces("photorealistic") == 2


def test_too_few_modifiers():
    assert finished(Target("a cat", ("8k",)), 2) == "too few modifiers"
    assert finished(Target("a cat", ("8k", "sharp focus")), 2).modifiers == ("8k", "sharp focus")
