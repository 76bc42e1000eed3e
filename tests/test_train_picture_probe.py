"""The probe against a renderer whose time is known: it moves the clock itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("diffusers")

from promptadapt_core.images import ImageSettings
from promptadapt_core.lab.folders import WEIGHTS
from promptadapt_core.lab.plain_renderer import PlainRenderer
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import picture_probe
from promptadapt_core.train.picture_probe import PictureCost, probe_pictures

FIXED, STEP, SCORE = 0.2, 0.1, 0.05  # seconds of a picture: around the steps, each step, scoring
TEXTS = [("a cat", "a cat, detailed"), ("a dog", "a dog, detailed")]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Renderer:
    """Like a pipeline: copies of it may have other settings. Foxes cannot be drawn."""

    settings_may_change = True
    identity = "renderer"
    batch_size = 8

    def __init__(self, clock: Clock, num_steps: int = 20):
        self.clock, self.settings = clock, ImageSettings(num_steps=num_steps, size=8)
        self.asked: list[tuple[int, int]] = []

    def generate(self, texts: Any, seeds: Any, *, should_stop: Any = None) -> np.ndarray:
        if any("fox" in text for text in texts):
            raise RuntimeError("the fox has run away")
        self.asked.append((len(texts), self.settings.num_steps))
        self.clock.now += len(texts) * (FIXED + STEP * self.settings.num_steps)
        return np.full((len(texts), 8, 8, 3), 9, dtype=np.uint8)


class Critic:
    identity = "critic"

    def __init__(self, clock: Clock):
        self.clock = clock

    def score(self, user_inputs: Any, pixels: np.ndarray) -> Any:
        self.clock.now += SCORE * len(pixels)
        return Scores(torch.ones(len(pixels)), torch.ones(len(pixels)))


class Judge:
    metrics = {"judge/taste": "taste"}
    identity = "judge"

    def __init__(self, clock: Clock):
        self.clock = clock

    def judge_each(self, user_inputs: Any, texts: Any, pictures: Any) -> dict[str, np.ndarray]:
        assert all(picture.shape == (1, 8, 8, 3) for picture in pictures)
        self.clock.now += 0.3 * len(pictures)
        return {"judge/taste": np.ones(len(pictures))}


class Parts:
    def __init__(self, clock: Clock, num_steps: int = 20):
        self.generator, self.scorer = Renderer(clock, num_steps), Critic(clock)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(picture_probe, "time", made)
    return made


def probed(parts: Parts, seconds: float, texts: Any = None, **more: Any) -> PictureCost:
    return probe_pictures(parts, texts or TEXTS, 64, seconds, **more)


def test_with_time_enough_a_whole_batch_is_measured(clock: Clock) -> None:
    parts = Parts(clock)
    cost = probed(parts, 100.0)
    assert cost.rendering == pytest.approx(FIXED + 20 * STEP)
    assert cost.scoring == pytest.approx(SCORE)
    assert (cost.probe.num_pictures, cost.probe.num_steps) == (8, 20)
    assert (8, 20) in parts.generator.asked
    assert cost.judging == 0.0


@pytest.mark.parametrize("seconds", [4.0, 8.0, 15.0])
def test_with_less_time_the_steps_are_counted_up(clock: Clock, seconds: float) -> None:
    """Exactly, for the renderer takes as long for each step; and in bounded time."""
    parts, began = Parts(clock), clock.now
    cost = probed(parts, seconds)
    assert cost.rendering == pytest.approx(FIXED + 20 * STEP)
    assert max(steps for _, steps in parts.generator.asked) == 4
    assert cost.probe.planned_steps == 20
    assert cost.probe.batch_size <= cost.probe.planned_batch == 8
    assert clock.now - began <= seconds


def test_with_hardly_any_time_it_is_at_most(clock: Clock) -> None:
    parts, began = Parts(clock), clock.now
    cost = probed(parts, 0.5)
    assert parts.generator.asked == [(1, 2)]
    assert cost.rendering == pytest.approx((FIXED + 2 * STEP) * 10)
    assert cost.rendering >= FIXED + 20 * STEP
    assert clock.now - began < 0.5


def test_few_steps_are_not_made_fewer(clock: Clock) -> None:
    parts = Parts(clock, num_steps=1)
    assert probed(parts, 0.4).rendering == pytest.approx(FIXED + STEP)
    assert {steps for _, steps in parts.generator.asked} == {1}


def test_the_judge_is_timed_too(clock: Clock) -> None:
    assert probed(Parts(clock), 100.0, judge=Judge(clock)).judging == pytest.approx(0.3)


def test_the_renderer_stays_as_it_was(clock: Clock) -> None:
    parts = Parts(clock)
    before = parts.generator.settings
    probed(parts, 4.0)
    assert parts.generator.settings is before
    assert parts.generator.batch_size == 8


def test_a_renderer_whose_settings_stay_is_never_cut_short(clock: Clock) -> None:
    parts = Parts(clock)
    parts.generator.__class__ = type("Other", (Renderer,), {"settings_may_change": False})
    cost = probed(parts, 1.0)
    assert {steps for _, steps in parts.generator.asked} == {20}
    assert cost.rendering == pytest.approx(FIXED + 20 * STEP)
    assert cost.probe.num_steps == 0


def test_the_labs_own_renderer_is_cut_short(clock: Clock) -> None:
    parts = Parts(clock)
    parts.generator = PlainRenderer(WEIGHTS, num_steps=5)
    probe = picture_probe.PictureProbe(parts, 9.0, None)
    _, first = probe.first(TEXTS)
    assert (first.num_steps, first.pictures.shape) == (2, (1, 64, 64, 3))
    assert parts.generator.settings.num_steps == 5


def test_one_that_cannot_be_drawn_is_passed_over(clock: Clock) -> None:
    foxes = [(f"fox {number}", f"fox {number}, detailed") for number in range(5)]
    assert probed(Parts(clock), 100.0, [foxes[0], TEXTS[0]]).rendering > 0.0
    with pytest.raises(SettingsError, match="none of the first 4 user inputs .* run away"):
        probed(Parts(clock), 100.0, [*foxes, TEXTS[0]])
