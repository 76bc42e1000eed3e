from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from promptadapt_core.lab import judge as judging
from promptadapt_core.lab.dataset import numbered_picture, numbered_scene
from promptadapt_core.lab.judge import Judge, JudgeReading
from promptadapt_core.lab.judge_network import (
    COLOUR_NAMES,
    MODIFIER_NAMES,
    PLACE_NAMES,
    SUBJECT_NAMES,
    JudgeNetwork,
    Outputs,
)
from promptadapt_core.lab.judge_training import (
    UNKNOWN,
    JudgeStage,
    loss_terms,
    make_targets,
    modifier_accuracies,
    vary,
)
from promptadapt_core.lab.scenes import Scene, Thing
from promptadapt_core.lab.stages import run_stage
from promptadapt_core.lab.vocabulary import EFFECTIVE, MODIFIERS, PLACES, SUBJECTS
from promptadapt_core.settings import SettingsError

NUM_PICTURES = 24


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([numbered_picture(5, i).pixels for i in range(NUM_PICTURES)])


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [numbered_scene(5, i) for i in range(NUM_PICTURES)]


def make_stage(pictures: np.ndarray, scenes: list[Scene], num_steps: int = 3, **more) -> JudgeStage:
    options = {"batch_size": 6, "num_valid": 8, "validate_every": 2, "precision": "float32"}
    return JudgeStage(pictures, scenes, num_steps=num_steps, **(options | more))


def reading(number: int) -> JudgeReading:
    """One that sees nothing."""
    sizes = [(len(SUBJECT_NAMES),), (len(SUBJECT_NAMES), len(COLOUR_NAMES)), (len(PLACE_NAMES),)]
    shapes = [*sizes, (len(MODIFIER_NAMES),), ()]
    return JudgeReading(*(np.zeros((number, *shape), dtype=np.float32) for shape in shapes))


def test_it_reads_all_that_the_world_can_show() -> None:
    assert tuple(subject.name for subject in SUBJECTS) == SUBJECT_NAMES
    assert (*PLACES, None) == PLACE_NAMES
    assert set(MODIFIER_NAMES) == {modifier.name for modifier in EFFECTIVE}
    assert len(MODIFIER_NAMES) < len(MODIFIERS)


def test_the_network_is_small() -> None:
    with torch.random.fork_rng(devices=[]):
        network = JudgeNetwork()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 800_000
    with torch.no_grad():
        out = network.eval()(torch.zeros(2, 3, 64, 64))
    shapes = [tuple(value.shape) for value in vars(out).values()]
    number, colours = len(SUBJECT_NAMES), len(COLOUR_NAMES)
    assert shapes == [(2, number), (2, number, colours), (2, 9), (2, len(MODIFIER_NAMES)), (2,)]


def test_the_targets_of_a_scene() -> None:
    cat, dog, tree = (SUBJECT_NAMES.index(name) for name in ("cat", "dog", "tree"))
    scenes = [
        Scene((Thing("cat", "red"), Thing("dog")), "beside", "in a room", ("8k", "foggy")),
        Scene((Thing("tree", "blue"), Thing("tree", "pink"))),
        Scene((Thing("tree", "blue"), Thing("tree", "blue"))),
        Scene((Thing("tree", "blue"), Thing("tree"))),
    ]
    targets = make_targets(scenes, np.array([5.0, 6.5, 3.5, 5.0]))
    assert targets.subjects.sum(1).tolist() == [2, 1, 1, 1]
    assert targets.subjects[0, [cat, dog]].tolist() == [1, 1]
    assert targets.colours[0, cat] == COLOUR_NAMES.index("red")
    assert targets.colours[:, tree].tolist() == [
        UNKNOWN, UNKNOWN, COLOUR_NAMES.index("blue"), UNKNOWN
    ]  # fmt: skip
    assert targets.colours[0, dog] == UNKNOWN
    assert targets.places.tolist() == [PLACES.index("in a room"), 8, 8, 8]
    assert targets.modifiers.sum(1).tolist() == [1, 0, 0, 0]
    assert targets.modifiers[0, MODIFIER_NAMES.index("foggy")] == 1
    assert targets.tastes.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_the_loss_ignores_what_is_unknown(scenes: list[Scene]) -> None:
    """Zero logits: log 2 for each yes or no, log 9 for the place; no colour is known."""
    uncoloured = [
        dataclasses.replace(scene, things=tuple(Thing(thing.subject) for thing in scene.things))
        for scene in scenes
    ]
    targets = make_targets(uncoloured, np.full(NUM_PICTURES, 5.0))
    out = Outputs(*(torch.zeros(NUM_PICTURES, *value.shape[1:]) for value in _one_output()))
    terms = {name: float(value) for name, value in loss_terms(out, targets).items()}
    assert terms["subjects"] == pytest.approx(len(SUBJECT_NAMES) * np.log(2))
    assert terms["modifiers"] == pytest.approx(len(MODIFIER_NAMES) * np.log(2))
    assert terms["places"] == pytest.approx(np.log(9))
    assert terms["colours"] == terms["taste"] == 0.0


def _one_output() -> list[torch.Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return list(vars(JudgeNetwork().eval()(torch.zeros(1, 3, 64, 64))).values())


def test_pictures_are_varied_a_little() -> None:
    picture = torch.zeros(64, 3, 64, 64)
    picture[:, :, 30:34, 30:34] = 1.0
    varied = vary(picture, torch.Generator().manual_seed(1))
    assert varied.shape == picture.shape
    assert torch.equal(varied, vary(picture, torch.Generator().manual_seed(1)))
    centres = (varied.mean(1) > 0.4).nonzero()
    for row in range(64):
        found = centres[centres[:, 0] == row][:, 1:].float()
        assert (found.mean(0) - 31.5).abs().max() <= 3.6
    assert (varied.mean((1, 2, 3)) - picture.mean((1, 2, 3))).abs().max() < 0.1
    assert len({round(float(value), 4) for value in varied.mean((1, 2, 3))}) > 32


def test_it_learns(pictures: np.ndarray, scenes: list[Scene]) -> None:
    stage = make_stage(pictures, scenes, 25, batch_size=8, validate_every=100)
    losses = [stage.step(step)["train/loss"] for step in range(25)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_a_stopped_training_ends_with_the_same_weights(
    pictures: np.ndarray, scenes: list[Scene], tmp_path: Path
) -> None:
    run_stage(make_stage(pictures, scenes), tmp_path / "whole")
    stops = iter([False, True])
    status = run_stage(
        make_stage(pictures, scenes), tmp_path / "part", should_stop=lambda: next(stops)
    )
    assert status == "stopped"
    assert run_stage(make_stage(pictures, scenes), tmp_path / "part") == "done"
    whole, part = (tmp_path / name / "weights" / judging.WEIGHTS_NAME for name in ("whole", "part"))
    assert whole.read_bytes() == part.read_bytes()
    assert whole.stat().st_size <= 1_600_000


def test_the_global_generators_stay_as_they_were(
    pictures: np.ndarray, scenes: list[Scene], tmp_path: Path
) -> None:
    before = torch.get_rng_state(), random.getstate()
    stage = make_stage(pictures, scenes)
    stage.step(0)
    stage.save(tmp_path)
    Judge.load(tmp_path).read(pictures)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_what_was_saved_reads_the_same(
    pictures: np.ndarray, scenes: list[Scene], tmp_path: Path
) -> None:
    stage = make_stage(pictures, scenes)
    for step in range(3):
        values = stage.step(step)
    assert values.keys() <= stage.metrics.keys()
    stage.save(tmp_path)
    loaded, own = Judge.load(tmp_path).read(pictures), stage.judge().read(pictures)
    for name in ("subjects", "colours", "places", "modifiers"):
        values = getattr(loaded, name)
        assert np.abs(values - getattr(own, name)).max() < 0.01
        assert values.min() >= 0
        assert values.max() <= 1
    np.testing.assert_allclose(loaded.places.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(loaded.colours.sum(2), 1, rtol=1e-5)
    assert np.abs(loaded.tastes - own.tastes).max() < 0.02
    np.testing.assert_array_equal(Judge.load(tmp_path).taste(pictures), loaded.tastes)
    assert len(loaded.subject) == len(loaded.colour) == len(loaded.place) == NUM_PICTURES


def test_a_picture_is_read_alone_as_in_company(pictures: np.ndarray, scenes: list[Scene]) -> None:
    judge = make_stage(pictures, scenes).judge()
    alone, together = judge.read(pictures[3:4]), judge.read(pictures)
    np.testing.assert_allclose(alone.subjects[0], together.subjects[3], atol=1e-5)
    assert judge.read(pictures[:0]).subjects.shape == (0, len(SUBJECT_NAMES))


def test_the_share_of_the_asked_content() -> None:
    seen = reading(3)
    for row, name, colour, probability in (
        (0, "cat", "red", 0.9), (0, "dog", "blue", 0.4), (0, "tree", "pink", 0.2),
        (1, "fish", "green", 0.3), (1, "boat", "black", 0.2),
    ):  # fmt: skip
        index = SUBJECT_NAMES.index(name)
        seen.subjects[row, index] = probability
        seen.colours[row, index, COLOUR_NAMES.index(colour)] = 1.0
    seen.places[0, PLACES.index("in a room")] = 0.6
    seen.places[1, 8] = 0.6
    scenes = [
        Scene((Thing("cat", "red"), Thing("tree", "pink")), "beside", "in a room"),
        Scene((Thing("fish", "black"),), place="in a room"),
        Scene((Thing("cat"),)),
    ]
    found = judging.measured_content(scenes, seen)
    np.testing.assert_array_equal(found.subjects, [0.5, 1.0, 1.0])  # all zero: the first, a cat
    np.testing.assert_array_equal(found.colours, [1.0, 0.0, np.nan])
    np.testing.assert_array_equal(found.places, [1.0, 0.0, np.nan])
    assert (found.subject, found.colour, found.place) == (pytest.approx(2.5 / 3), 0.5, 0.5)
    assert np.isnan(judging.measured_content([Scene(())], reading(1)).place)
    assert seen.subject == ["cat", "fish", "cat"]
    assert seen.colour[:2] == ["red", "green"]
    assert seen.place[:2] == ["in a room", None]


def test_the_accuracy_of_a_modifier_is_fair_to_rare_ones() -> None:
    shown = np.zeros((8, len(MODIFIER_NAMES)), dtype=np.float32)
    foggy, rain = MODIFIER_NAMES.index("foggy"), MODIFIER_NAMES.index("rain")
    shown[:2, foggy] = 1
    shown[:, rain] = 1
    read = np.full_like(shown, 0.1)
    read[0, foggy] = read[7, foggy] = 0.9
    assert modifier_accuracies(read, shown) == {"foggy": pytest.approx((1 / 2 + 5 / 6) / 2)}


def test_a_reading_is_weighed_by_how_rare_a_modifier_is(
    pictures: np.ndarray, scenes: list[Scene]
) -> None:
    """A network that says a modifier's share in training for every picture learned nothing."""
    judge = make_stage(pictures, scenes).judge()
    judge.rates = np.full(len(MODIFIER_NAMES), 0.04, dtype=np.float32)
    last = judge.network.modifiers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(float(np.log(0.04 / 0.96)))
    np.testing.assert_allclose(judge.read(pictures).modifiers, 0.5, atol=1e-5)
    with torch.no_grad():
        last.bias.add_(0.1)
    assert judge.read(pictures).has("foggy").all()


def test_bad_input_is_named(pictures: np.ndarray, scenes: list[Scene], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="judge: .* is missing"):
        Judge.load(tmp_path)
    stage = make_stage(pictures, scenes)
    stage.save(tmp_path)
    path = tmp_path / judging.WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SettingsError, match="judge: .* is not a judge"):
        Judge.load(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match="judge: .* is not a judge"):
        Judge.load(tmp_path)
    judge = stage.judge()
    with pytest.raises(SettingsError, match="pixels: expected uint8"):
        judge.read(pictures.astype(np.float32))
    with pytest.raises(SettingsError, match="pixels: expected uint8"):
        judge.read(pictures[0])
    with pytest.raises(SettingsError, match="modifier: .* 'masterpiece'"):
        judge.read(pictures).has("masterpiece")
    with pytest.raises(SettingsError, match="scenes: expected one per picture"):
        judge.content_accuracy(scenes[:3], pictures)
    with pytest.raises(SettingsError, match="scenes: expected one per picture"):
        make_stage(pictures, scenes[:3])
    with pytest.raises(SettingsError, match="pictures: expected more than the 24 held out"):
        make_stage(pictures, scenes, num_valid=24)
