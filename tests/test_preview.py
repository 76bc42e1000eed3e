"""Candidates as a page shows them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from promptadapt_core.controls import rank_of  # noqa: E402
from promptadapt_core.job_settings import ADAPTING_NAMES  # noqa: E402
from promptadapt_core.loaded_models import LoadedModels  # noqa: E402
from promptadapt_core.preview import candidates_html, preview  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

models = LoadedModels()


def test_what_was_added_is_bold_and_nothing_is_markup() -> None:
    one = SimpleNamespace(adapted_prompt="a <b> cat, 8k, fog", added="8k, fog", num_clip_tokens=9)
    free = SimpleNamespace(adapted_prompt="fog over a cat", added="8k", num_clip_tokens=4)
    shown = candidates_html([one, free], "left alone: <why>", 7)
    assert "<li>a &lt;b&gt; cat, <b>8k, fog</b> " in shown
    assert "<li>fog over a cat " in shown
    assert "left alone: &lt;why&gt;" in shown
    assert shown.count("<b>") == 1
    assert "(9 tokens)" in shown
    assert "left alone" not in candidates_html([one], "adapted", 7)


def test_the_seed_is_the_controls_or_the_images_or_drawn() -> None:
    values = ["promptadapt-sd", "auto", 2, 5]
    fixed = preview(models, "a cat on a roof", 9, values, ADAPTING_NAMES)
    assert fixed.seed == 5
    tied = preview(models, "a cat on a roof", "5", values[:3], ADAPTING_NAMES)
    assert (tied.seed, tied.choices) == (5, fixed.choices)
    assert [rank_of(choice) for choice in fixed.choices] == [1, 2]
    seeds = {
        preview(models, "a cat on a roof", seed, ["promptadapt-sd"], ADAPTING_NAMES).seed
        for seed in (-1, None, "", "many", float("inf"))
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 - 1 for seed in seeds)


def test_it_shows_every_candidate_and_why_a_prompt_was_left_alone() -> None:
    found = preview(models, "a cat on a roof", 7, ["promptadapt-sd", "auto", 3], ADAPTING_NAMES)
    assert len(re.findall("<li>a cat on a roof, <b>", found.html)) == 3
    engineered = "a cat, highly detailed, 8k, trending on artstation, sharp focus"
    left = preview(models, engineered, 7, [], ADAPTING_NAMES)
    assert "left alone" in left.html
    assert left.choices == [f"1. {engineered}"]
    empty = preview(models, "", 7, [], ADAPTING_NAMES)
    assert "it is empty" in empty.html


def test_bad_controls_raise() -> None:
    with pytest.raises(SettingsError, match="mode"):
        preview(models, "a cat", 7, ["promptadapt-sd", "wild"], ADAPTING_NAMES)
