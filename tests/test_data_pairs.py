from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptadapt_core.data import pairs, rephrase
from promptadapt_core.data.targets import Target
from promptadapt_core.settings import SettingsError

MODIFIERS = ("8k", "sharp focus", "artstation", "intricate", "concept art", "fog", "bokeh")
TARGETS = st.builds(
    Target,
    st.sampled_from(["a cat on a roof", "Portrait of two old sailors", "castle, river, sky"]),
    st.lists(st.sampled_from(MODIFIERS), min_size=1, unique=True).map(tuple),
)


def test_kinds():
    assert pairs.parse_kinds(" steps, main") == ("main", "steps")
    for text in ("", "main,other", ","):
        with pytest.raises(SettingsError, match="kinds: expected some of main, subset"):
            pairs.parse_kinds(text)


def test_the_pair_of_main_content():
    target = Target("a cat", ("8k", "fog"))
    assert pairs.make_pairs("1", target, ("main",), 0) == [
        pairs.Pair("a cat", "a cat, 8k, fog", "main")
    ]


@given(TARGETS, st.integers(0, 2**64 - 1), st.text(max_size=5))
def test_properties_of_all_kinds(target, seed, row_id):
    made = pairs.make_pairs(row_id, target, pairs.KINDS, seed, rephrasings=["cat upon roof"])
    assert made == pairs.make_pairs(row_id, target, pairs.KINDS, seed, ["cat upon roof"])
    steps = []
    for pair in made:
        assert pair.user_input
        assert pair.target.startswith(target.main)
        if pair.kind != "rephrased":
            assert pair.target.startswith(pair.user_input)
        if pair.kind == "steps":
            steps.append(pair)
            assert f"{target.text()}, ".startswith(f"{pair.target}, ")
            added = pair.target.count(", ") - pair.user_input.count(", ")
            assert 1 <= added <= pairs.MAX_STEP
        if pair.kind == "subset":
            rest = pair.target.removeprefix(target.main + ", ").split(", ")
            assert sorted(rest) == sorted(target.modifiers)
            assert target.main != pair.user_input != pair.target
        if pair.kind in ("main", "rephrased"):
            assert pair.target == target.text()
    for before, after in zip(steps, steps[1:], strict=False):
        assert after.user_input.startswith(before.target)


def test_a_kind_does_not_change_the_others():
    target = Target("a cat on a roof", MODIFIERS)
    both = pairs.make_pairs("1", target, ("subset", "steps"), 5)
    assert both[1:] == pairs.make_pairs("1", target, ("steps",), 5)
    assert both != pairs.make_pairs("2", target, ("subset", "steps"), 5)


def test_rephrasings_are_varied_and_never_the_same_text():
    found = set()
    for seed in range(300):
        made = rephrase.rephrasings("a cat on a roof", random.Random(seed))
        assert 1 <= len(made) == len(set(made)) <= 2
        assert "a cat on a roof" not in made
        found.update(made)
    for text in ("cat, roof", "cat on roof", "A cat on a roof.", "there is a cat on a roof",
                 "can you draw a cat on a roof?", "I want a cat on a roof",
                 "please make a cat on a roof"):  # fmt: skip
        assert text in found


def test_rules_by_hand():
    source = random.Random(0)
    assert rephrase.label("a cat", source) == ""
    assert rephrase.without_articles("The cat and a dog", source) == "cat and dog"
    assert rephrase.without_articles("cat", source) == ""
    assert rephrase.in_sentence("A cat") == "a cat"
    assert rephrase.in_sentence("Emma Stone") == "Emma Stone"
    assert rephrase.in_sentence("oil painting of a cat") == "an oil painting of a cat"
    assert rephrase.in_sentence("portrait of Emma Stone") == "a portrait of Emma Stone"
    assert rephrase.in_sentence("cat looking at a painting") == "cat looking at a painting"
    for seed in range(50):
        assert "draw" not in rephrase.request("photo of a cat", random.Random(seed))
