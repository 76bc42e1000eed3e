from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from promptadapt_core.lab.captions import read
from promptadapt_core.lab.clip_captions import (
    NO_COLOURS,
    NO_MODIFIERS,
    NO_PLACE,
    caption_pair,
    misdescribed,
    user_side,
)
from promptadapt_core.lab.scenes import Scene, Thing, sample_scene
from promptadapt_core.lab.vocabulary import HIDES_COLOURS, MODIFIER_BY_NAME

SEEN = Scene((Thing("cat", "red"), Thing("dog", "blue")), "beside", "in a room")


def scenes(number: int) -> list[Scene]:
    generator = random.Random(1)
    return [sample_scene(generator) for _ in range(number)]


def differences(one: Scene, other: Scene) -> set[str]:
    """What is told otherwise, of two scenes with as many things."""
    found = {name for name in ("relation", "place", "modifiers")
             if getattr(one, name) != getattr(other, name)}  # fmt: skip
    assert len(one.things) == len(other.things)
    for mine, its in zip(one.things, other.things, strict=True):
        found |= {name for name in ("subject", "colour", "size")
                  if getattr(mine, name) != getattr(its, name)}  # fmt: skip
    return found


def test_a_caption_leaves_out_and_adds_nothing() -> None:
    words, whole = random.Random(2), scenes(4000)
    said = [user_side(scene, words) for scene in whole]
    for before, after in zip(whole, said, strict=True):
        assert [thing.subject for thing in after.things] == [t.subject for t in before.things]
        assert after.relation == before.relation
        assert after.place in (before.place, None)
        left = iter(before.modifiers)
        assert all(name in left for name in after.modifiers)
        for thing, drawn in zip(after.things, before.things, strict=True):
            assert thing.colour in (drawn.colour, None)
            assert thing.size in (drawn.size, None)

    def share(lost: Callable[[Scene, Scene], bool], some: Callable[[Scene], bool]) -> float:
        pairs = [pair for pair in zip(whole, said, strict=True) if some(pair[0])]
        return sum(lost(*pair) for pair in pairs) / len(pairs)

    four = lambda scene: len(scene.modifiers) == 4  # noqa: E731
    shown = lambda scene: HIDES_COLOURS.isdisjoint(scene.modifiers)  # noqa: E731
    assert share(lambda a, b: not b.modifiers, four) == pytest.approx(NO_MODIFIERS, abs=0.08)
    assert share(lambda a, b: not b.place, lambda s: bool(s.place)) == pytest.approx(
        NO_PLACE, abs=0.03
    )
    assert share(lambda a, b: not b.things[0].colour, shown) == pytest.approx(NO_COLOURS, abs=0.03)


def test_no_colour_is_named_that_cannot_be_seen() -> None:
    hidden = [s for s in scenes(4000) if not HIDES_COLOURS.isdisjoint(s.modifiers)]
    assert len(hidden) > 100
    for scene in hidden:
        said = user_side(scene, random.Random(0))
        assert all(thing.colour is None for thing in said.things)
    assert set(MODIFIER_BY_NAME) >= HIDES_COLOURS


def test_a_scene_of_which_nothing_can_be_left_out_stays() -> None:
    scene = Scene((Thing("cat"),))
    assert user_side(scene, random.Random(0)) == scene


def test_one_fact_is_wrong() -> None:
    words, found = random.Random(3), Counter()
    for _ in range(2000):
        wrong = misdescribed(SEEN, words)
        (fact,) = differences(SEEN, wrong)
        swapped = [t.colour for t in wrong.things] == ["blue", "red"]
        changed = sum(a != b for a, b in zip(SEEN.things, wrong.things, strict=True))
        assert changed == (0 if fact == "place" else 2 if swapped else 1)
        found["swapped" if swapped else fact] += 1
    assert found["subject"] == pytest.approx(500, abs=100)
    assert found["place"] == pytest.approx(500, abs=100)
    assert found["swapped"] == pytest.approx(500, abs=100)
    assert found["colour"] == pytest.approx(500, abs=100)


def test_where_no_colour_shows_any_colour_is_wrong() -> None:
    words, said = random.Random(4), Scene((Thing("cat"), Thing("dog")))
    found = [misdescribed(said, words, hides_colours=True) for _ in range(300)]
    coloured = [one for one in found if differences(said, one) == {"colour"}]
    assert len(coloured) == pytest.approx(200, abs=40)
    assert all(thing.colour for one in coloured for thing in one.things)
    plain = [misdescribed(said, words) for _ in range(100)]
    assert all(differences(said, one) == {"subject"} for one in plain)


def test_a_scene_of_nothing_gets_a_thing() -> None:
    assert misdescribed(Scene(()), random.Random(0)).things
    assert differences(Scene((), place="in a room"), Scene((), place="in a city")) == {"place"}


def test_both_captions_use_the_same_words_but_one() -> None:
    words = random.Random(5)
    for scene in scenes(500):
        right, wrong = caption_pair(scene, words)
        assert right != wrong
        mine, its = read(right), read(wrong)
        facts = differences(mine, its)
        assert len(facts) == 1, (right, wrong)
        assert facts <= {"subject", "colour", "place"}
