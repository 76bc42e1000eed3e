"""The effects of the lab: each is seen, none breaks another."""

from __future__ import annotations

import random

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from promptadapt_core.lab import effects, effects_light, effects_media  # noqa: E402
from promptadapt_core.lab.effects import DRAWN, Layers, finish  # noqa: E402
from promptadapt_core.lab.vocabulary import EFFECTIVE, MODIFIERS  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

HERE = [modifier.name for modifier in EFFECTIVE if modifier.name not in DRAWN]
NOTHING = [modifier.name for modifier in MODIFIERS if modifier.effect == "none"]
LEAST_CHANGE = 0.025  # mean difference of a value, 0 to 1


def layers(sky=(0.5, 0.7, 0.95), ground=(0.4, 0.6, 0.3), colour=(0.8, 0.2, 0.2)) -> Layers:
    """A two-tone place with a striped square in the middle."""
    background = np.empty((64, 64, 3), np.float32)
    background[:40], background[40:] = sky, ground
    things = np.zeros((64, 64, 4), np.float32)
    things[20:52, 16:48] = (*colour, 1)
    things[20:52, 24:32, :3] *= 0.5
    return Layers(background, things, indoors=False, horizon=40 / 64)


PLACES = {
    "day": layers(),
    "snow": layers((0.75, 0.8, 0.88), (0.93, 0.94, 0.97), (0.2, 0.6, 0.3)),
    "forest": layers((0.2, 0.4, 0.25), (0.25, 0.3, 0.15), (0.95, 0.85, 0.2)),
}


def finished(place: Layers, *modifiers: str, seed: int = 0):
    return finish(place, modifiers, random.Random(seed))


def test_every_effective_modifier_is_here_and_no_other():
    tables = (
        effects_light.BEFORE,
        effects_light.OVER,
        effects_light.CAMERA,
        effects_media.MEDIA,
        effects.PALETTE,
        effects.QUALITY,
        effects.FRAME,
    )
    assert {name for table in tables for name in table} == set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_a_modifier_is_seen_in_every_place(name):
    for place in PLACES.values():
        changed = finished(place, name)
        assert changed.shape == (64, 64, 3)
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert np.abs(changed - finished(place)).mean() > LEAST_CHANGE


def test_no_two_modifiers_look_alike():
    for place in PLACES.values():
        pictures = np.stack([finished(place, name) for name in HERE]).reshape(len(HERE), -1)
        for number, picture in enumerate(pictures[:-1]):
            differences = np.abs(pictures[number + 1 :] - picture).mean(axis=1)
            closest = HERE[number + 1 + int(differences.argmin())]
            assert differences.min() > LEAST_CHANGE, (HERE[number], closest)


@pytest.mark.parametrize("name", [*NOTHING, *DRAWN])
def test_some_words_change_nothing(name):
    place = PLACES["day"]
    assert np.array_equal(finished(place, name), finished(place))
    assert np.array_equal(finished(place, "rain", name), finished(place, "rain"))


def test_without_modifiers_the_things_lie_over_the_background():
    place = layers()
    place.things[..., 3] *= 0.5
    picture = finished(place)
    assert picture[0, 0] == pytest.approx((0.5, 0.7, 0.95))
    assert picture[30, 20] == pytest.approx((0.65, 0.45, 0.575))


def test_any_combination_works_in_any_order_and_leaves_the_layers_alone():
    generator = random.Random(5)
    names = [modifier.name for modifier in MODIFIERS]
    for seed in range(150):
        place = list(PLACES.values())[seed % 3]
        before = place.copy()
        chosen = generator.sample(names, generator.randint(2, 9))
        picture = finished(place, *chosen, seed=seed)
        assert np.isfinite(picture).all()
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert np.array_equal(picture, finished(place, *reversed(chosen), *chosen[:1], seed=seed))
        assert np.array_equal(place.background, before.background)
        assert np.array_equal(place.things, before.things)
        assert place.drift == (0, 0)
    assert finished(PLACES["day"], *names).shape == (64, 64, 3)


def test_the_generator_moves_on_alike_whatever_is_said():
    plain, busy = random.Random(3), random.Random(3)
    finish(PLACES["day"], (), plain)
    finish(PLACES["day"], HERE, busy)
    assert plain.getstate() == busy.getstate()
    assert not all(
        np.array_equal(
            finished(PLACES["day"], "snowfall"), finished(PLACES["day"], "snowfall", seed=seed)
        )
        for seed in range(1, 9)
    )


def test_a_starry_sky_leaves_the_ground_and_the_things():
    place = PLACES["day"]
    changed = np.abs(finished(place, "starry sky") - finished(place)).max(axis=2)
    assert changed[43:].max() < 1e-6
    assert changed[20:52, 16:48].max() < 1e-6
    assert changed[:36, :16].min() > 0.2


def test_what_each_family_promises():
    place = PLACES["day"]
    grey = finished(place, "black and white")
    assert np.ptp(grey, axis=2).max() < 1e-6
    blocks = finished(place, "pixel art").reshape(16, 4, 16, 4, 3)[:, :3, :, :3]
    assert np.ptp(blocks, axis=(1, 3)).max() < 1e-6
    assert finished(place, "silhouette")[20:52, 16:48].max() < 0.06
    assert finished(place, "rain", "white border")[:5].min() == 1
    grain = finished(place, "film grain") - finished(place) * 0.9 - 0.05
    assert np.allclose(grain[:8, :8], grain[8:16, 8:16], atol=1e-6)
    night = finished(place, "at night")
    assert night.mean() < 0.5 * finished(place).mean()
    assert night[10, 54].min() > 0.8  # the moon


def test_only_words_of_the_vocabulary():
    with pytest.raises(SettingsError, match="'sparkles' is not in the vocabulary"):
        finished(PLACES["day"], "rain", "sparkles")
