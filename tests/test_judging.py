from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from promptadapt_core import judging
from promptadapt_core.lab.captions import read
from promptadapt_core.lab.drawing import draw
from promptadapt_core.lab.folders import WEIGHTS
from promptadapt_core.settings import SettingsError

TEXTS = ("a red cat by the sea", "a house and a blue boat", "something else", "a dog")


@pytest.fixture(scope="module")
def judge() -> judging.Judge:
    found = judging.load_judge("lab")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray | None]:
    """Two drawn pictures of each text but the last."""
    drawn = [
        np.stack([draw(read(text), random.Random(seed)).pixels for seed in (1, 2)])
        for text in TEXTS[:3]
    ]
    return [*drawn, None]


def test_the_lab_judge_reads_what_the_user_asked(
    judge: judging.Judge, pictures: list[np.ndarray | None]
) -> None:
    judged = judge.judge_each(TEXTS, ["x, 8k"] * 4, pictures)
    assert list(judged) == list(judge.metrics)
    assert all(values.shape == (4,) and values.dtype == np.float64 for values in judged.values())
    subject, colour, place = (judged[f"judge/{n}_accuracy"] for n in ("subject", "colour", "place"))
    assert subject[:2] == pytest.approx([1.0, 1.0])
    assert colour[:2] == pytest.approx([1.0, 1.0])
    assert place[0] == 1.0
    assert np.isnan([place[1], subject[2], colour[2], place[2]]).all()  # nothing of it was asked
    assert all(np.isnan(values[3]) for values in judged.values())  # there is no picture
    assert np.isfinite(judged["judge/taste"][:3]).all()
    wrong = judge.judge_each(["a dog in the forest"], [TEXTS[0]], pictures[:1])
    assert wrong["judge/subject_accuracy"] == wrong["judge/place_accuracy"] == 0.0


def test_pictures_of_a_candidate_are_averaged(
    judge: judging.Judge, pictures: list[np.ndarray | None]
) -> None:
    assert isinstance(judge, judging.LabJudge)
    some = pictures[0]
    assert some is not None
    tastes = judge.judge.taste(some)
    assert tastes[0] != tastes[1]
    judged = judge.judge_each(TEXTS[:1], TEXTS[:1], [some])
    assert judged["judge/taste"][0] == pytest.approx(float(tastes.mean()), abs=1e-5)


def test_candidates_are_judged_apart(
    judge: judging.Judge, pictures: list[np.ndarray | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge.judge_each(TEXTS, TEXTS, pictures)
    monkeypatch.setattr(judging, "CANDIDATES_AT_ONCE", 1)
    parts = judge.judge_each(TEXTS[::-1], TEXTS, pictures[::-1])
    for name, values in whole.items():
        assert parts[name][::-1] == pytest.approx(values, abs=1e-4, nan_ok=True)


def test_pictures_of_other_sizes_are_scaled(
    judge: judging.Judge, pictures: list[np.ndarray | None]
) -> None:
    some = pictures[0]
    assert some is not None
    large = some.repeat(3, axis=1).repeat(3, axis=2)
    one, other = (judge.judge_each(TEXTS[:1], TEXTS[:1], [pixels]) for pixels in (some, large))
    assert one["judge/taste"] == pytest.approx(other["judge/taste"])


def test_nothing_is_known_of_no_pictures(judge: judging.Judge) -> None:
    judged = judge.judge_each(TEXTS, TEXTS, [None] * 4)
    assert all(np.isnan(values).all() for values in judged.values())
    assert {name: values.shape for name, values in judge.judge_each([], [], []).items()} == (
        dict.fromkeys(judge.metrics, (0,))
    )
    with pytest.raises(SettingsError, match="user_inputs: expected one for each of 1"):
        judge.judge_each(TEXTS, TEXTS, [None])


def test_the_global_generators_are_left_alone(
    judge: judging.Judge,
    pictures: list[np.ndarray | None],
    untouched_generators: Callable[[], AbstractContextManager[None]],
) -> None:
    with untouched_generators():
        judge.judge_each(TEXTS, TEXTS, pictures)
        judging.load_judge("lab")


def test_metrics_are_means_of_what_is_known() -> None:
    judged = {"judge/a": np.array([1.0, np.nan, 2.0]), "judge/b": np.array([np.nan] * 3)}
    means = judging.mean_metrics(judged)
    assert means["judge/a"] == 1.5
    assert np.isnan(means["judge/b"])
    assert judging.mean_metrics({}) == {}


def test_auto_is_the_lab_where_the_lab_draws() -> None:
    assert judging.judge_of_renderer("auto", "lab") == "lab"
    assert judging.judge_of_renderer("auto", "sd15") == "none"
    assert judging.judge_of_renderer("none", "lab") == "none"
    assert judging.judge_of_renderer("lab", "sd15") == "lab"


def test_the_identity_is_that_of_the_weights(judge: judging.Judge, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(WEIGHTS / "judge", folder)
    same = judging.load_judge(str(folder))
    assert same is not None
    assert same.identity == judge.identity
    weights = load_file(folder / "judge.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, folder / "judge.safetensors")
    other = judging.load_judge(str(folder))
    assert other is not None
    assert other.identity != judge.identity


def test_any_scorer_can_judge(pictures: list[np.ndarray | None]) -> None:
    pytest.importorskip("open_clip")
    judge = judging.load_judge(str(WEIGHTS / "scorer"))
    assert isinstance(judge, judging.ScorerJudge)
    judged = judge.judge_each(TEXTS, TEXTS, pictures)
    assert list(judged) == list(judge.metrics)
    some = pictures[1]
    assert some is not None
    scores = judge.scorer.score([TEXTS[1]] * 2, some)
    for name, column in (("aesthetic", scores.aesthetic), ("relevance", scores.relevance)):
        assert judged[f"judge/{name}"][1] == pytest.approx(column.double().mean().item(), abs=1e-4)
        assert np.isnan(judged[f"judge/{name}"][3])
    assert judge.identity == judge.scorer.identity


def test_a_name_that_is_no_judge_is_refused(tmp_path: Path) -> None:
    assert judging.load_judge("none") is None
    pytest.importorskip("open_clip")
    for name in ("nowhere", str(tmp_path)):
        with pytest.raises(SettingsError, match="judge: expected none, lab or a folder with"):
            judging.load_judge(name)
    shutil.copytree(WEIGHTS / "scorer", tmp_path / "headless")
    path = tmp_path / "headless" / "scorer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    del told["head"]
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(SettingsError, match="judge: .*headless has no aesthetic head"):
        judging.load_judge(str(path.parent))
    (tmp_path / "scorer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match="judge: .*scorer.json cannot be used"):
        judging.load_judge(str(tmp_path))
    (tmp_path / "judge.safetensors").write_bytes(b"nothing")
    with pytest.raises(SettingsError, match="judge: .* is not a judge"):
        judging.load_judge(str(tmp_path))
    with pytest.raises(SettingsError, match="device"):
        judging.load_judge("lab", "nodevice")


def test_it_judges_on_the_device_it_was_given() -> None:
    judge = judging.load_judge("lab", "cpu")
    assert isinstance(judge, judging.LabJudge)
    assert next(judge.judge.network.parameters()).device == torch.device("cpu")
