"""The lab's aesthetic head, and the folder of the whole scorer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("open_clip")

from promptadapt_core.lab.aesthetic import (  # noqa: E402
    HEAD_NAME,
    AestheticStage,
    assemble_scorer,
    calibrate_relevance,
    load_embedder,
)
from promptadapt_core.lab.clip import ClipStage  # noqa: E402
from promptadapt_core.lab.scenes import Scene, Thing  # noqa: E402
from promptadapt_core.scorers import OpenClipScorer, read_head  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


def ratings_of(number: int = 600, width: int = 8) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors, and ratings 5 + 2 * first - second."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(number, width, generator=generator))
    return embeddings, (5 + 2 * embeddings[:, 0] - embeddings[:, 1]).double().numpy()


def stage(num_steps: int = 300, **more: object) -> AestheticStage:
    return AestheticStage(*ratings_of(), num_steps=num_steps, num_valid=100, **more)  # type: ignore[arg-type]


def test_it_finds_the_linear_map_behind_the_ratings(tmp_path: Path) -> None:
    fitted = stage()
    for step in range(300):
        values = fitted.step(step)
    assert values["valid/rating_correlation"] > 0.99
    fitted.save(tmp_path)
    head = read_head(tmp_path / HEAD_NAME)
    expected = torch.tensor([2.0, -1.0, 0, 0, 0, 0, 0, 0])
    assert torch.allclose(head.weight, expected, atol=0.05)
    assert head.bias == pytest.approx(5.0, abs=0.02)


def test_the_file_has_the_names_of_laions_head(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/aesthetic_heads/sac+logos+ava1-l14-linearMSE.pth"
    laion = torch.load(path, map_location="cpu", weights_only=True)
    stage().save(tmp_path)
    own = load_file(tmp_path / HEAD_NAME)
    assert set(own) == set(laion)
    assert {name: tensor.dim() for name, tensor in own.items()} == {
        name: tensor.dim() for name, tensor in laion.items()
    }


def test_the_saved_head_scores_as_the_trained_layers(tmp_path: Path) -> None:
    fitted = stage(num_steps=50)
    for step in range(50):
        fitted.step(step)
    fitted.save(tmp_path)
    embeddings = ratings_of()[0]
    with torch.no_grad(), fitted.ema.applied(fitted.model):
        expected = fitted.model(embeddings)
    assert torch.allclose(read_head(tmp_path / HEAD_NAME)(embeddings), expected, atol=0.01)


def test_a_resumed_fit_ends_with_the_same_weights(
    untouched_generators: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    with untouched_generators():
        straight, first, second = (stage(num_steps=6, seed=2) for _ in range(3))
        for step in range(6):
            straight.step(step)
        for step in range(3):
            first.step(step)
        second.load_state(first.state())
        for step in range(3, 6):
            values = second.step(step)
    assert set(values) == set(AestheticStage.metrics)
    expected, found = straight.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("number", "shape", "num_valid"), [(20, (19,), 5), (20, (20, 1), 5), (20, (20,), 19)]
)
def test_ratings_that_do_not_fit_are_named(number: int, shape: tuple, num_valid: int) -> None:
    with pytest.raises(SettingsError, match="ratings"):
        AestheticStage(torch.ones(number, 4), np.ones(shape), num_steps=1, num_valid=num_valid)


def test_relevance_is_calibrated_by_hand() -> None:
    own, others = torch.tensor([0.3, 0.1, 0.2]), torch.tensor([-0.4, 0.1, 0.05])
    knee, slope = calibrate_relevance(own, others)
    assert knee == pytest.approx(0.2)
    assert slope == pytest.approx(20.0)  # 3 points over 0.2 - 0.05: cosines below 0 count as 0


@pytest.mark.parametrize("other", [0.9, 0.55, 0.4999, 0.46])
def test_a_clip_that_tells_nothing_apart_has_the_steepest_slope_that_may_be(other: float) -> None:
    found = calibrate_relevance(torch.tensor([0.5, 0.5]), torch.tensor([other]))
    assert found == (0.5, pytest.approx(60.0))  # 3 points over 0.05, not over 0.0001 or below 0


def test_just_above_the_least_distance_the_slope_is_measured() -> None:
    knee, slope = calibrate_relevance(torch.tensor([0.5]), torch.tensor([0.44]))
    assert slope == pytest.approx(3 / 0.06, rel=1e-5)


@pytest.mark.parametrize(
    ("own", "others"),
    [([], []), ([0.2], []), ([], [0.2]), ([math.nan], [0.2]), ([0.2], [0.1, math.inf])],
)
def test_relevances_that_are_none_are_refused(own: list[float], others: list[float]) -> None:
    with pytest.raises(SettingsError, match="relevances"):
        calibrate_relevance(torch.tensor(own), torch.tensor(others))


def test_the_scorer_folder_loads(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    scenes = [Scene((Thing("cat", "red"),), place="by the sea")] * 12
    clip = ClipStage(pictures, scenes, num_steps=1, batch_size=4, num_valid=4)
    for name in ("clip", "head"):
        (tmp_path / name).mkdir()
    clip.save(tmp_path / "clip")
    embeddings = load_embedder(tmp_path / "clip").embed_images(pictures)
    head = AestheticStage(embeddings, np.arange(12.0), num_steps=1, num_valid=4)
    head.save(tmp_path / "head")
    assemble_scorer(tmp_path / "scorer", tmp_path / "clip", tmp_path / "head", 0.5, 9.0)
    scorer = OpenClipScorer.load(tmp_path / "scorer")
    assert (scorer.relevance_knee, scorer.relevance_slope) == (0.5, 9.0)
    scores = scorer.score(["a red cat"] * 12, pictures)
    with torch.no_grad():
        expected = head.model(embeddings)
    assert torch.allclose(scores.aesthetic, expected, atol=0.01)
    sizes = [path.stat().st_size for path in (tmp_path / "scorer").iterdir()]
    assert sum(sizes) < 8_000_000
