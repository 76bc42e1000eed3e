"""Requests as plain objects: what is answered, and what is refused and why."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from promptadapt_core.adapter import PromptAdapter  # noqa: E402
from promptadapt_core.http_requests import (  # noqa: E402
    ANSWERS,
    adapt_answer,
    policies_answer,
    score_answer,
)
from promptadapt_core.loaded_models import LoadedModels, weights_hash  # noqa: E402
from promptadapt_core.policies import BUNDLED_FOLDER, DEFAULT_POLICY  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

models = LoadedModels()


def encoded(red: int, kind: str = "PNG", size: int = 64) -> str:
    with io.BytesIO() as file:
        Image.new("RGB", (size, size), (red, 0, 0)).save(file, kind)
        return base64.b64encode(file.getvalue()).decode()


def test_what_there_is_is_told_without_a_path(tmp_path: Path) -> None:
    found = policies_answer(models, None, [tmp_path])
    assert found["policies"][0] == {"name": DEFAULT_POLICY, "default": True}
    assert str(BUNDLED_FOLDER) not in json.dumps(found)
    assert str(tmp_path) not in json.dumps(found)
    assert set(ANSWERS) == {"policies", "adapt", "score"}


def test_candidates_are_those_of_the_adapter() -> None:
    request = {"user_input": ["a cat", "a dog"], "seed": 7, "num_candidates": 2, "mode": None}
    found = adapt_answer(models, request)
    assert json.loads(json.dumps(found)) == found
    expected = PromptAdapter.load().adapt_all(["a cat", "a dog"], seed=7, num_candidates=2)
    assert found["adaptations"] == [one.as_json() for one in expected]
    assert found["policy_hash"] == weights_hash(BUNDLED_FOLDER / DEFAULT_POLICY)
    assert request == {
        "user_input": ["a cat", "a dog"], "seed": 7, "num_candidates": 2, "mode": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (None, "request"),
        ([], "request"),
        ({}, "user_input"),
        ({"user_input": []}, "user_input"),
        ({"user_input": ["a", 3]}, "user_input"),
        ({"user_input": ["a"] * 257}, "user_input"),
        ({"user_input": " "}, "user_input"),
        ({"user_input": "a", "policy": 3}, "policy"),
        ({"user_input": "a", "policy": "../policies"}, "policy"),
        ({"user_input": "a", "policy": str(BUNDLED_FOLDER / DEFAULT_POLICY)}, "policy"),
        ({"user_input": "a", "mode": "auto"}, "mode"),
        ({"user_input": "a", "keep": ["b"]}, "keep"),
        ({"user_input": "a", "ban": "b"}, "ban"),
        ({"user_input": "a", "device": "cuda"}, "device"),
    ],
)
def test_adapt_refuses(request_: Any, name: str) -> None:
    with pytest.raises(SettingsError) as error:
        adapt_answer(models, request_)
    assert error.value.name == name


def test_pictures_are_scored_in_any_coat() -> None:
    pytest.importorskip("open_clip")
    plain = encoded(200)
    request = {
        "images": [plain, f"data:image/png;base64,{plain}", encoded(20, size=48)],
        "user_input": "a (red house:1.2)", "scorer": "lab", "relevance_weight": None,
    }  # fmt: skip
    found = score_answer(models, request)
    first, second, _ = found["scores"]
    assert first["aesthetic"] == pytest.approx(second["aesthetic"], abs=1e-5)
    assert sorted(found["order"]) == [0, 1, 2]
    assert json.loads(json.dumps(found)) == found
    gains = score_answer(models, {**request, "baseline_images": [plain]})["scores"]
    assert [row["aesthetic_gain"] for row in gains[:2]] == pytest.approx([0.0, 0.0], abs=1e-5)
    weighted = score_answer(models, {**request, "aesthetic_weight": 0.0, "relevance_weight": 0.0})
    assert [row["reward"] for row in weighted["scores"]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "images"),
        ({"images": "x"}, "images"),
        ({"images": [3]}, "images"),
        ({"images": ["not base64!"]}, "images"),
        ({"images": [base64.b64encode(b"no picture").decode()]}, "images"),
        ({"images": [encoded(1)[:-40]]}, "images"),
        ({"images": []}, "images"),
        ({"images": [encoded(1, "GIF")]}, "images"),
        ({"images": [encoded(1, "EPS")]}, "images"),  # Pillow would run a program for it
        ({"images": [encoded(1)], "baseline_images": ["x"]}, "baseline_images"),
        ({"images": [encoded(1)], "user_input": ["a", "b"]}, "user_input"),
        ({"images": [encoded(1)], "user_input": ""}, "user_input"),
        ({"images": [encoded(1)], "scorer": "nobody"}, "scorer"),
        ({"images": [encoded(1)], "aesthetic_weight": "1"}, "aesthetic_weight"),
        ({"images": [encoded(1)], "num_images": 3}, "num_images"),
    ],
)
def test_score_refuses(given: dict[str, Any], name: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(SettingsError) as error:
        score_answer(models, {"user_input": "a cat", **given})
    assert error.value.name == name


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1)])
def test_a_picture_of_any_shape_has_scores(size: tuple[int, int]) -> None:
    pytest.importorskip("open_clip")
    with io.BytesIO() as file:
        Image.new("RGB", size, (9, 8, 7)).save(file, "WEBP")
        image = base64.b64encode(file.getvalue()).decode()
    (row,) = score_answer(models, {"images": [image], "user_input": "a cat"})["scores"]
    assert np.isfinite([row["reward"], row["aesthetic"], row["relevance"]]).all()


def test_pictures_must_fit_into_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptadapt_core import http_requests

    monkeypatch.setattr(http_requests, "MOST_PIXELS", 2 * 64 * 64)
    assert len(http_requests._pictures("images", [encoded(1)] * 2)) == 2
    with pytest.raises(SettingsError, match=r"images: .* 8,192 pixels .* picture 3"):
        http_requests._pictures("images", [encoded(1)] * 3)


def test_a_picture_of_another_mode_is_made_rgb() -> None:
    from promptadapt_core.http_requests import _pictures

    with io.BytesIO() as file:
        Image.new("RGBA", (4, 2), (9, 8, 7, 0)).save(file, "PNG")
        (pixels,) = _pictures("images", [base64.b64encode(file.getvalue()).decode()])
    assert (pixels.shape, pixels.dtype) == ((2, 4, 3), np.uint8)
    assert pixels[0, 0].tolist() == [9, 8, 7]
