"""Scenes become pictures: every subject, place and relation is there, and only chance moves."""

from __future__ import annotations

import dataclasses
import random
from itertools import combinations

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from PIL import Image, ImageDraw  # noqa: E402

from promptadapt_core.lab.drawing import SIZE, arrange, draw  # noqa: E402
from promptadapt_core.lab.pen import Pen, shade, tint  # noqa: E402
from promptadapt_core.lab.places import PLACE_DRAWINGS, draw_place  # noqa: E402
from promptadapt_core.lab.scenes import Scene, Thing, sample_modifiers, sample_scene  # noqa: E402
from promptadapt_core.lab.subjects import DRAWINGS  # noqa: E402
from promptadapt_core.lab.vocabulary import (  # noqa: E402
    COLOURS,
    MODIFIER_BY_NAME,
    PLACES,
    RELATIONS,
    SUBJECTS,
)


def picture(scene: Scene, seed: int = 0) -> np.ndarray:
    return draw(scene, random.Random(seed)).pixels


def pair(relation: str) -> Scene:
    return Scene((Thing("cat", "red"), Thing("house", "blue")), relation)


def test_every_word_has_its_drawing() -> None:
    assert set(DRAWINGS) == {subject.name for subject in SUBJECTS}
    assert set(PLACE_DRAWINGS) == {*PLACES, None}
    assert len(SUBJECTS) >= 24
    assert len(COLOURS) == 10
    assert len(PLACES) == 8


def test_a_pen_draws_inside_its_box() -> None:
    canvas = Image.new("L", (20, 20))
    draws = ImageDraw.Draw(canvas)
    Pen(draws, (10, 0, 10, 10)).rectangle(0.0, 0.0, 0.4, 0.9, 255)  # type: ignore[arg-type]
    assert canvas.getbbox() == (10, 0, 15, 10)  # PIL counts the last row and column in


def test_shades() -> None:
    assert shade((100, 50, 0), 0.5) == (50, 25, 0)
    assert tint((155, 255, 55), 0.5) == (205, 255, 155)


def test_a_picture_is_that_of_its_scene_and_generator() -> None:
    scene = Scene((Thing("cat"), Thing("car", "blue")), "beside", "in a city", ("rain",))
    first, again = draw(scene, random.Random(5)), draw(scene, random.Random(5))
    assert first.pixels.shape == (SIZE, SIZE, 3)
    assert first.pixels.dtype == np.uint8
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, picture(scene, 6))


def test_subjects_look_unlike_each_other() -> None:
    """Every two subjects in the same colour on the same backdrop differ on 4% of the values."""
    pictures = {
        subject.name: picture(Scene((Thing(subject.name, "green"),))).astype(int)
        for subject in SUBJECTS
    }
    for a, b in combinations(pictures, 2):
        differing = np.abs(pictures[a] - pictures[b]) > 25
        assert differing.mean() > 0.04, (a, b)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_the_colour_that_was_said(colour: str) -> None:
    for subject in SUBJECTS:
        pixels = picture(Scene((Thing(subject.name, colour),))).reshape(-1, 3).astype(int)
        near = np.abs(pixels - COLOURS[colour]).max(axis=1) < 24
        assert near.sum() > 20, subject.name


def test_places_look_unlike_each_other() -> None:
    views = {
        place: np.asarray(draw_place(place, 64, random.Random(1))[0]).astype(int)
        for place in PLACE_DRAWINGS
    }
    for a, b in combinations(views, 2):
        assert np.abs(views[a] - views[b]).mean() > 15, (a, b)


@pytest.mark.parametrize("place", PLACE_DRAWINGS)
@pytest.mark.parametrize("seed", range(5))
def test_a_place_covers_the_whole_canvas(place: str | None, seed: int) -> None:
    canvas, horizon = draw_place(place, 96, random.Random(seed))
    assert (np.asarray(canvas).sum(axis=2) > 0).all()
    assert 0.3 < horizon < 0.9


@pytest.mark.parametrize("seed", range(20))
def test_relations_are_respected(seed: int) -> None:
    generator = random.Random(seed)
    spots = {relation: arrange(pair(relation), generator) for relation in RELATIONS}
    cat, house = spots["left of"]
    assert cat.x < house.x - 0.2
    cat, house = spots["right of"]
    assert cat.x > house.x + 0.2
    cat, house = spots["above"]
    assert cat.foot < house.foot - house.height * 0.7
    cat, house = spots["behind"]
    assert cat.foot < house.foot - 0.1
    assert abs(cat.x - house.x) < 0.4
    cat, house = spots["beside"]
    assert abs(cat.x - house.x) > 0.2


def test_sizes_and_distances_change_the_height() -> None:
    def height(size: str | None, *modifiers: str) -> float:
        scene = Scene((Thing("cat", "red", size),), modifiers=modifiers)
        return arrange(scene, random.Random(0))[0].height

    assert height("small") < height(None) < height("large")
    assert height(None, "wide shot") < height(None) < height(None, "close-up")


def test_labels_name_what_covers_a_patch() -> None:
    labels = draw(Scene((Thing("apple", "red", "large"),)), random.Random(0)).labels
    apple = [subject.name for subject in SUBJECTS].index("apple") + 1
    assert labels.shape == (8, 8)
    assert set(np.unique(labels)) == {0, apple}
    assert 16 <= (labels == apple).sum() <= 60
    assert (labels[0, 0], labels[7, 0]) == (0, 0)


def test_an_empty_scene_is_a_backdrop() -> None:
    empty = draw(Scene(()), random.Random(0))
    assert empty.labels.max() == 0
    assert empty.pixels.std() < 30


@pytest.mark.parametrize("seed", range(60))
def test_any_sampled_scene_can_be_drawn(seed: int) -> None:
    generator = random.Random(seed)
    scene = sample_scene(generator)
    assert 1 <= len(scene.things) <= 3
    assert (scene.relation is None) == (len(scene.things) == 1)
    assert len(set(scene.modifiers)) == len(scene.modifiers)
    media = [name for name in scene.modifiers if MODIFIER_BY_NAME[name].family == "medium"]
    assert len(media) <= 1
    draw(scene, generator)


def test_more_modifiers_than_there_are_gives_all_that_go_together() -> None:
    chosen = sample_modifiers(random.Random(0), 1000)
    media = [modifier for modifier in MODIFIER_BY_NAME.values() if modifier.family == "medium"]
    assert len(chosen) == len(MODIFIER_BY_NAME) - len(media) + 1


def test_words_that_praise_change_nothing() -> None:
    scene = Scene((Thing("cat", "red"),), None, "in a meadow")
    praised = dataclasses.replace(scene, modifiers=("8k", "masterpiece"))
    assert np.array_equal(picture(scene), picture(praised))
