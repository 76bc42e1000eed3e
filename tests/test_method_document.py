"""docs/method.md defines every metric that is logged, in the words of the code; the tests that it
names exist, and its commands are some, as are those of the card of the lab's policies."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from written_commands import check_command

from promptadapt_core.judging import LabJudge, PreferenceJudge, ScorerJudge
from promptadapt_core.policies import LAB_FOLDERS
from promptadapt_core.rewards import REWARD_METRICS
from promptadapt_core.train.dpo_metrics import DPO_METRICS, DPO_ROUND_METRICS
from promptadapt_core.train.metrics import SFT_METRICS
from promptadapt_core.train.mining_metrics import MINING_METRICS
from promptadapt_core.train.ppo_metrics import PPO_METRICS
from promptadapt_core.train.rejection import REJECTION_METRICS

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "method.md"
CARD = next(iter(LAB_FOLDERS.values())).parent / "README.md"
ROW = re.compile(r"^\| `([a-z]+/[a-z_0-9]+)` \| (.+) \|$", re.MULTILINE)
COMMAND = re.compile(
    r"^    (?:python|torchrun .*) -m (promptadapt_core(?:[^\n\\]|\\\n)*)", re.MULTILINE
)
JUDGES = {**LabJudge.metrics, **ScorerJudge.metrics, **PreferenceJudge.metrics}


def commands(path: Path) -> list[list[str]]:
    """Their words, from the module's name on."""
    found = COMMAND.findall(path.read_text("utf-8"))
    return [shlex.split(text.replace("\\\n", " ")) for text in found]


def test_every_metric_is_defined() -> None:
    _, *tables = DOCUMENT.read_text("utf-8").split("| metric | what it is |")
    found = [dict(ROW.findall(table.replace("\\|", "|"))) for table in tables]
    assert found == [
        {**PPO_METRICS, **REWARD_METRICS, **JUDGES},
        SFT_METRICS,
        {**MINING_METRICS, **REJECTION_METRICS, **DPO_ROUND_METRICS},
        DPO_METRICS,
    ]


def test_no_cell_is_cut_in_two_by_its_text() -> None:
    text = DOCUMENT.read_text("utf-8")
    for name, told in ROW.findall(text):
        assert not re.search(r"(?<!\\)\|", told), name


def test_the_tests_that_guard_against_the_defects_exist() -> None:
    text = DOCUMENT.read_text("utf-8").split("The defects of the released code")[1]
    named = {*re.findall(r"`(test_\w+)`", text)}
    rows = re.findall(r"^\| (\d) \| .*`test_", text, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 10)]
    files = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert named - {*re.findall(r"^def (test_\w+)", files, re.MULTILINE)} == set()


@pytest.mark.parametrize(
    "command", commands(DOCUMENT) + commands(CARD), ids=lambda command: " ".join(command[:2])
)
def test_the_command_is_one(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(command, monkeypatch)


def test_there_are_commands() -> None:
    assert {command[0] for command in commands(DOCUMENT)} >= {"promptadapt_core.evaluate"}
    assert [command[:2] for command in commands(CARD)] == [
        ["promptadapt_core.lab", "pairs"], ["promptadapt_core.train", "sft"],
        ["promptadapt_core.lab", "inputs"], ["promptadapt_core.train", "ppo"],
    ]  # fmt: skip
