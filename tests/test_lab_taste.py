from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

np = pytest.importorskip("numpy")

from promptadapt_core.lab import taste, taste_tables  # noqa: E402
from promptadapt_core.lab.captions import read  # noqa: E402
from promptadapt_core.lab.scenes import Scene, Thing, sample_scene  # noqa: E402
from promptadapt_core.lab.vocabulary import (  # noqa: E402
    COLOURS,
    EFFECTIVE,
    MODIFIER_BY_NAME,
    MODIFIERS,
    PLACES,
    SIZES,
    SUBJECT_BY_NAME,
    SUBJECTS,
)

GREY = np.full((64, 64, 3), 128, np.uint8)
PRAISE = [modifier.name for modifier in MODIFIERS if modifier.effect == "none"]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    generator = random.Random("taste")
    return [sample_scene(generator) for _ in range(300)]


@pytest.fixture(scope="module")
def best(scenes) -> list[tuple[str, ...]]:
    return [taste.best_modifiers(taste.modifier_values(scene)) for scene in scenes]


def of_text(text: str) -> float:
    return taste.taste_of_scene(read(text))


def added(content: str, modifiers: str) -> float:
    return of_text(f"{content}, {modifiers}") - of_text(content)


def test_numbers_by_hand():
    assert of_text("a red cat by the sea") == pytest.approx(5.2)
    assert of_text("a red cat") == pytest.approx(5.0 - 0.35)
    # golden hour: any -0.5, outdoors 0.9, by the sea 0.5
    assert added("a red cat by the sea", "golden hour") == pytest.approx(0.9)
    # any -0.5, in a room -1.0
    assert added("a red cat in a room", "golden hour") == pytest.approx(-1.5)
    # lens flare: any -0.4, by the sea 0.3; with golden hour 0.6
    assert added("a red cat by the sea", "golden hour, lens flare") == pytest.approx(1.4)
    # rain: any -0.3, half of umbrella 1.4, half of butterfly -0.4
    assert added("an umbrella beside a butterfly in a meadow", "rain") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("modifiers", "good", "bad"),
    [
        ("golden hour", "a red house by the sea", "a red house in a room"),
        ("candlelight", "a red cup in a room", "a red cup in a city"),
        ("at night", "a red lighthouse in a city", "a red flower in a meadow"),
        ("at night, starry sky", "a red rocket in a desert", "a red flower in a meadow"),
        ("film grain", "a red cat, black and white", "a red cat, watercolor"),
        ("foggy", "a red house in a forest", "a red house in a room"),
        ("foggy", "a red house in the mountains", "a red house in a desert"),
        ("neon colors", "a red robot in a city", "a red flower in a meadow"),
        ("pastel colors", "a pink rabbit in a meadow", "a black car in a city"),
        ("stained glass", "a red castle in a city", "a red car in a city"),
        ("rain", "a red umbrella in a city", "a red umbrella in a room"),
        ("snowfall", "a red house in the snow", "a red house in a desert"),
        ("close-up", "a red apple", "a red castle in the mountains"),
        ("bokeh", "a red cat, close-up", "a red house in the mountains"),
    ],
)
def test_a_modifier_suits_one_picture_and_spoils_the_other(modifiers, good, bad):
    assert added(good, modifiers) > 0.3
    assert added(bad, modifiers) < -0.3


def test_what_excludes_each_other():
    content = "a red cat in a meadow"
    for one, other in (
        ("watercolor", "pixel art"),
        ("sepia", "neon colors"),
        ("golden hour", "at night"),
        ("close-up", "wide shot"),
    ):
        together = added(content, f"{one}, {other}")
        assert together < added(content, one) + added(content, other) - 0.5
    assert added(content, "golden hour, backlit") > (
        added(content, "golden hour") + added(content, "backlit")
    )


def test_what_changes_nothing_in_the_picture_does_not_crowd_it():
    assert added("a cat", ", ".join(PRAISE)) == 0
    assert added("a cat", ", ".join(("vignette", *PRAISE))) == added("a cat", "vignette")
    assert [taste.crowding(number) for number in range(6)] == [0, 0, 0, 0, -0.25, -1.0]


def test_spoilers_cost_everywhere(scenes):
    for scene in scenes[:50]:
        values = dict(zip(taste.NAMES, taste.modifier_values(scene), strict=True))
        assert values["blurry"] < -0.5 > values["low quality"]
        assert values["overexposed"] < -0.5
        assert values["film grain"] < 0


def test_plain_pictures_are_about_five(scenes):
    plain = [taste.taste_of_scene(Scene(s.things, s.relation, s.place)) for s in scenes]
    assert statistics.mean(plain) == pytest.approx(5.0, abs=0.2)


def test_the_best_choice_and_the_best_constant(scenes, best):
    gains = [taste.gain(scene, names) for scene, names in zip(scenes, best, strict=True)]
    assert 2.5 < statistics.mean(gains) < 3.2
    assert all(3 <= len(names) <= 5 for names in best)
    means = np.mean([taste.modifier_values(scene) for scene in scenes], axis=0)
    constant = taste.best_modifiers(means, num_starts=300)
    share = statistics.mean(taste.gain(s, constant) for s in scenes) / statistics.mean(gains)
    assert 0.1 < share < 0.45


def test_every_modifier_is_good_somewhere(scenes, best):
    values = np.array([taste.modifier_values(scene) for scene in scenes])
    chosen = {name for names in best for name in names}
    useful = {modifier.name for modifier in EFFECTIVE if modifier.effect == "plain"}
    good = {name for name in useful if values[:, taste.NAMES.index(name)].max() >= 0.4}
    assert useful <= good | chosen
    assert len(useful - chosen) <= 3
    assert not chosen & set(PRAISE)
    families = {MODIFIER_BY_NAME[name].family for name in chosen}
    assert families >= {modifier.family for modifier in EFFECTIVE} - {"quality"}


def test_the_search_finds_the_best_pair(scenes):
    for scene in scenes[:2]:
        by_hand = max(taste.gain(scene, two) for two in itertools.combinations(taste.NAMES, 2))
        found = taste.best_modifiers(taste.modifier_values(scene), most=2)
        assert taste.gain(scene, found) == pytest.approx(by_hand)


def test_the_search_beats_random_sets_and_ends(scenes, best):
    generator = random.Random("sets")
    for scene, names in zip(scenes[:20], best, strict=False):
        worth = taste.gain(scene, names)
        for _ in range(20):
            assert taste.gain(scene, generator.sample(taste.NAMES, 3)) <= worth
    assert taste.best_modifiers(np.full(len(taste.NAMES), -5.0)) == ()
    assert taste.best_modifiers(taste.modifier_values(scenes[0]), most=0) == ()


def test_the_tables_name_only_what_is_there():
    known = {"any", "outdoors", "nowhere", "one thing", "several things", *PLACES, *COLOURS, *SIZES}
    known |= {*SUBJECT_BY_NAME} | {subject.kind for subject in SUBJECTS}
    assert set(taste_tables.WORTH) == {modifier.name for modifier in EFFECTIVE}
    for worth in (taste_tables.PLAIN, *taste_tables.WORTH.values()):
        assert set(worth) <= known
    pairs = [frozenset(pair) for pair in taste_tables.COMBINATIONS]
    assert len(pairs) == len(set(pairs))
    assert {name for pair in pairs for name in pair} <= set(MODIFIER_BY_NAME)
    assert set(taste_tables.FAMILY_CLASH) <= {modifier.family for modifier in MODIFIERS}
    table = taste.combination_values()
    assert np.array_equal(table, table.T)
    assert not table.diagonal().any()


def test_the_order_of_modifiers_and_saying_them_twice_change_nothing(scenes):
    for scene in scenes[:50]:
        turned = Scene(scene.things, scene.relation, scene.place, scene.modifiers[::-1] * 2)
        assert taste.taste_of_scene(turned) == pytest.approx(taste.taste_of_scene(scene))


def test_an_empty_scene_has_a_taste():
    assert 1 < taste.taste(Scene(()), GREY) < 10


def test_measures_by_hand():
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    measured = taste.measures(half)
    assert measured["contrast"] == pytest.approx(0.5)
    assert measured["colourfulness"] == pytest.approx(0, abs=1e-9)
    assert measured["sharpness"] == pytest.approx((1 / 63) / 2)  # one step across, none down
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    # red - green is 1 and (red + green) / 2 - blue is a half, everywhere
    assert taste.measures(red)["colourfulness"] == pytest.approx(0.3 * math.hypot(1, 0.5))


def test_a_flat_grey_picture_is_dull_and_the_part_of_pixels_is_minor():
    assert taste.taste_of_pixels(GREY) == pytest.approx(-0.63, abs=0.01)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert 0.4 < taste.taste_of_pixels(noise) <= 0.8


def test_a_pixel_changes_little():
    changed = GREY.copy()
    changed[10, 10] += 1
    assert abs(taste.taste_of_pixels(changed) - taste.taste_of_pixels(GREY)) < 1e-3


def test_a_lost_relation_costs():
    scene = read("a red cat beside a blue house by the sea")
    cost = taste.taste(scene, GREY) - taste.taste(scene, GREY, relation_kept=False)
    assert 0.6 < cost <= 0.8


def test_taste_stays_between_1_and_10(scenes):
    worst = Scene((Thing("cup"),), None, "in a room", taste.NAMES)
    assert taste.taste(worst, GREY) == pytest.approx(1.0, abs=0.01)
    for scene in scenes[:50]:
        assert 1 <= taste.taste(scene, GREY) <= 10


def test_ratings_scatter_around_the_taste():
    scene = read("a red cat by the sea, golden hour")
    generator = random.Random(0)
    ratings = [taste.rating(scene, GREY, generator) for _ in range(400)]
    assert statistics.mean(ratings) == pytest.approx(taste.taste(scene, GREY), abs=0.1)
    assert statistics.stdev(ratings) == pytest.approx(0.6, abs=0.08)
    assert taste.rating(scene, GREY, random.Random(5)) == taste.rating(
        scene, GREY, random.Random(5)
    )
    worst = Scene((Thing("cup"),), None, "in a room", taste.NAMES)
    assert min(taste.rating(worst, GREY, generator) for _ in range(20)) == 1
