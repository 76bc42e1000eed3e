from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from promptadapt_core.export.evaluation_table import Report, code, table_row
from promptadapt_core.export.finished import Run
from promptadapt_core.settings import SettingsError


def estimate(value: float | None, half: float = 0.1) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "number": 20}


def found() -> dict[str, Any]:
    def row(name: str, reward: float) -> dict[str, Any]:
        metrics = {"reward": estimate(reward), "aesthetic": estimate(5.0), "length": estimate(0.0),
                   "cosine": estimate(0.3, 0.01), "judge/taste": estimate(None)}  # fmt: skip
        return {"domain": "cats", "row": name, "metrics": metrics}

    return {
        "inputs": {"cats": 20, "dogs": 3},
        "settings": {"renderer": "/home/jane/model.safetensors"},
        "reward": {"num_images": 2},
        "definitions": [
            {"row": "user_input", "folders": []},
            {"row": "rl", "folders": ["runs/other/best", "runs/ppo/best"]},
        ],
        "rows": [row("user_input", 0.0), row("rl", 1.25)],
        "differences": [
            {"domain": "cats", "row": "rl", "minus": "user_input", "metric": "reward",
             **estimate(1.2)},
        ],
    }  # fmt: skip


def report(tmp_path: Path, content: Any) -> Report:
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return Report(str(tmp_path))


def run(path: Path) -> Run:
    return Run(path, "ppo", {"settings": {}, "data": {}}, [], {})


def test_the_table_has_what_the_report_has(tmp_path: Path) -> None:
    made = report(tmp_path, found())
    text = made.markdown(made.row_of(run(tmp_path / "ppo"), "best"))
    lines = text.splitlines()
    assert "with `model.safetensors`, 2 pictures of each candidate" in lines[0]
    assert "`rl` is the mean of 2 training runs" in lines[0]
    assert "cats, 20 user inputs:" in lines
    assert "dogs" not in text  # nothing was measured there
    assert (
        "| row | reward over the user input | reward | aesthetic | cosine | judge/taste |" in text
    )
    assert (
        "| **rl** | 1.20 (1.10 to 1.30) | 1.25 (1.15 to 1.35) | 5.00 (4.90 to 5.10) | "
        "0.300 (0.290 to 0.310) |  |" in lines
    )
    assert any(line.startswith("| user_input |  | 0.00 (-0.10 to 0.10) |") for line in lines)


def test_a_row_of_another_run_is_not_taken(tmp_path: Path) -> None:
    made = report(tmp_path, found())
    assert made.row_of(run(tmp_path / "elsewhere" / "ppo"), "best") == "rl"
    for path, checkpoint in ((tmp_path / "ppo2", "best"), (tmp_path / "ppo", "last")):
        with pytest.raises(SettingsError, match="no row of the report is .*rl .runs/other/best"):
            made.row_of(run(path), checkpoint)


@pytest.mark.parametrize("content", [[], {}, {"rows": 3}, {**found(), "definitions": [1]}])
def test_what_is_no_report_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SettingsError, match="evaluation: .* is not a report of an evaluation"):
        report(tmp_path, content)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [{}]},
        {"rows": [3]},
        {"rows": [{"domain": "cats", "row": "rl", "metrics": {"reward": {"value": "much"}}}]},
        {"definitions": [{"row": "rl", "folders": [None]}]},
        {"differences": [None]},
    ],
)
def test_a_report_with_odd_rows_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = report(tmp_path, {**found(), **changes})
    with pytest.raises(SettingsError, match="evaluation: "):
        made.markdown(made.row_of(run(tmp_path / "ppo"), "best"))


def test_code_stays_code() -> None:
    assert code("a | b") == "`a | b`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`a`\n# b") == "`` `a` # b ``"


def test_a_cell_cannot_break_its_table() -> None:
    assert table_row(["a | b", "two\nlines"]) == "| a \\| b | two lines |"
