"""Whole evaluations in the lab: one sampling step, so that they take seconds."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core.decoding import Stopped
from promptadapt_core.evaluate import __main__ as command
from promptadapt_core.evaluate.evaluation import Evaluation, Result, load_parts
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.scoring import Parts
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.policies import BUNDLED_FOLDER, DEFAULT_POLICY
from promptadapt_core.settings import SettingsError

REWARD = EvaluationReward(num_images=2)
ROWS = [
    {"user_input": "a red cat by the sea", "domain": "known", "target": "a red cat, foggy"},
    {"user_input": "a blue house in a forest", "domain": "known"},
    {"user_input": "a large green whale and a small yellow boat by the sea", "domain": "new"},
]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(EvaluateSettings(num_steps=1, device="cpu"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inputs") / "inputs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two that differ by the seed of their decoding."""
    folder = tmp_path_factory.mktemp("policies")
    for number in (1, 2):
        place = folder / f"policy{number}"
        shutil.copytree(BUNDLED_FOLDER / DEFAULT_POLICY, place)
        manifest = json.loads((place / "promptadapt.json").read_text(encoding="utf-8"))
        manifest["decoding"]["seed"] = number
        (place / "promptadapt.json").write_text(json.dumps(manifest), encoding="utf-8")
    return [str(folder / f"policy{number}") for number in (1, 2)]


class Killed(BaseException):
    pass


class Dying:
    """A generator that is killed after so many calls, and counts its pictures."""

    def __init__(self, generator: Any, left: int = 10**9):
        self.generator, self.left, self.number = generator, left, 0
        self.identity, self.settings = generator.identity, generator.settings

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise Killed
        self.number += len(prompts)
        return self.generator.generate(prompts, seeds, should_stop=should_stop)


def settings(inputs: str, out: Path, **more: Any) -> EvaluateSettings:
    usual: dict[str, Any] = {
        "user_inputs": inputs, "out": str(out), "num_draws": 100, "num_shown": 1, "device": "cpu",
        "suffix": "golden hour, foggy", "num_oracle_inputs": 1, "num_oracle_renders": 2,
    }  # fmt: skip
    return EvaluateSettings(**{**usual, **more})


def evaluated(made: EvaluateSettings, parts: Parts, left: int = 10**9) -> tuple[Result, int]:
    """The result, and how many pictures it took."""
    dying = Dying(parts.generator, left)
    run = Evaluation(made, REWARD, Parts(dying, parts.scorer, parts.judge))
    return run.run(), dying.number


def json_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found["settings"].pop("out")
    return found


def test_all_rows_of_the_lab(
    parts: Parts, inputs: str, policies: list[str], tmp_path: Path
) -> None:
    rows = f"suffix,best_of_n,people,oracle,sft={DEFAULT_POLICY},rl={policies[0]},rl={policies[1]}"
    result, _ = evaluated(settings(inputs, tmp_path, rows=rows), parts)
    found = json_of(tmp_path)
    names = ["user_input", "suffix", "best_of_n", "people", "oracle", "sft", "rl"]
    assert [row["row"] for row in found["definitions"]] == names
    by_row = {(e["domain"], e["row"]): e for e in found["rows"]}
    assert set(by_row) == {(domain, name) for domain in ("known", "new") for name in names}
    of = {name: by_row["known", name]["metrics"] for name in names}
    assert of["user_input"]["aesthetic_gain"]["value"] == 0.0
    assert of["best_of_n"]["reward"]["value"] >= of["user_input"]["reward"]["value"]
    assert [of[name]["reward"]["number"] for name in names] == [2, 2, 2, 1, 1, 2, 2]
    assert by_row["new", "people"]["metrics"]["reward"]["value"] is None
    assert len(by_row["new", "rl"]["by_seed"]) == 2
    seeds = [part["metrics"]["reward"]["value"] for part in by_row["new", "rl"]["by_seed"]]
    assert by_row["new", "rl"]["metrics"]["reward"]["value"] == pytest.approx(sum(seeds) / 2)
    for name, metric in of["rl"].items():
        assert metric["value"] is not None, name
    terms = ("aesthetic_gain", "relevance", "length", "copy")
    for name in names:
        total = sum(of[name][term]["value"] for term in terms)
        assert of[name]["reward"]["value"] == pytest.approx(total, abs=1e-5)
    (difference,) = [
        e for e in found["differences"]
        if (e["domain"], e["row"], e["minus"], e["metric"]) == ("known", "rl", "suffix", "reward")
    ]  # fmt: skip
    assert difference["value"] == pytest.approx(
        of["rl"]["reward"]["value"] - of["suffix"]["reward"]["value"]
    )
    assert "| known | reward |" in result.table
    lines = (tmp_path / "candidates.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 + 3 + 3 + 1 + 2 + 3 + 2 * 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 7 + 6  # one user input of each domain; no people in the new one
    assert "http" not in page.replace("http://www.w3.org", "")


def test_killed_at_any_picture_it_ends_alike(parts: Parts, inputs: str, tmp_path: Path) -> None:
    rows = f"suffix,best_of_n,oracle,rl={DEFAULT_POLICY}"
    _, number = evaluated(settings(inputs, tmp_path / "whole", rows=rows), parts)
    whole = json_of(tmp_path / "whole")
    for left in (2, 5):
        out = tmp_path / f"killed{left}"
        made = settings(inputs, out, rows=rows)
        with pytest.raises(Killed):
            evaluated(made, parts, left)
        evaluated(made, parts)
        assert json_of(out) == whole
        pages = [(folder / "report.html").read_bytes() for folder in (tmp_path / "whole", out)]
        assert pages[0] == pages[1]
    assert number > 20
    assert evaluated(settings(inputs, tmp_path / "whole", rows=rows), parts)[1] == 0


def test_more_rows_cost_only_themselves(parts: Parts, inputs: str, tmp_path: Path) -> None:
    made = settings(inputs, tmp_path, rows="user_input", num_shown=0)
    assert evaluated(made, parts)[1] == 6
    made = settings(inputs, tmp_path, rows="best_of_n,suffix", num_shown=0)
    assert evaluated(made, parts)[1] == 6
    made = settings(inputs, tmp_path, rows="suffix", suffix="oil painting", num_shown=0)
    assert evaluated(made, parts)[1] == 6


def test_a_row_that_changes_nothing_is_worth_the_same(
    parts: Parts, inputs: str, tmp_path: Path
) -> None:
    """The policy's context does not hold this input: it is left as it is, which is counted."""
    path = tmp_path / "long.txt"
    path.write_text("a cat in a forest " * 60 + "\n", encoding="utf-8")
    made = settings(str(path), tmp_path / "out", rows=f"rl={DEFAULT_POLICY}")
    found = evaluated(made, parts)[0].found
    assert found["definitions"][1]["num_too_long"] == 1
    assert "1 user inputs were too long" in found["definitions"][1]["note"]
    plain, rl = found["rows"]
    assert rl["left_alone_share"] == 1.0
    assert rl["metrics"]["reward"]["value"] == plain["metrics"]["reward"]["value"]


def test_it_stops_when_asked(parts: Parts, inputs: str, tmp_path: Path) -> None:
    run = Evaluation(settings(inputs, tmp_path), REWARD, parts, should_stop=lambda: True)
    with pytest.raises(Stopped):
        run.run()
    assert not (tmp_path / "report.json").exists()


def test_people_must_have_written_something(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a cat\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="^rows: people"):
        Evaluation(settings(str(path), tmp_path, rows="people"), REWARD, parts)


def test_the_command_line(inputs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--user-inputs", inputs, "--rows", "user_input,suffix", "--suffix", "foggy",
                 "--num-steps", "1", "--num-images", "1", "--device", "cpu", "--num-draws", "100",
                 "--num-shown", "0", "--out", str(tmp_path / "out")]  # fmt: skip
    assert command.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("| known | reward |")
    assert "report.html" in shown.out
    assert "measuring suffix" in shown.err
    assert json_of(tmp_path / "out")["reward"]["num_images"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows", "user_input"], "--out: expected a folder"),
        (["--out", "x", "--rows", "rl=nowhere"], "--rows: there is no policy 'nowhere'"),
        (["--out", "x", "--user-inputs", "none.txt"], "--user-inputs: there is no file none.txt"),
        (["--out", "x", "--num-images", "0"], "--num-images: expected a number from 1 to 64"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in shown.err
    assert len(shown.err.splitlines()) == 1


def test_ctrl_c_is_130(
    inputs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "interruptible", lambda: contextlib.nullcontext(lambda: True))
    arguments = ["--user-inputs", inputs, "--rows", "user_input", "--out", str(tmp_path)]
    assert command.main([*arguments, "--device", "cpu"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
