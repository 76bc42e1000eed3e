"""Every command in docs/training.md is one, and those of the lab run, smaller than they stand."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("diffusers")

from written_commands import check_command, main_of

from promptadapt_core.alarms import AlarmSettings
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.export.settings import ExportSettings
from promptadapt_core.judging import LabJudge, ScorerJudge
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.rewards import REWARD_METRICS
from promptadapt_core.train.dpo_metrics import DPO_METRICS
from promptadapt_core.train.metrics import SFT_METRICS
from promptadapt_core.train.mining_metrics import MINING_METRICS
from promptadapt_core.train.planning import SETTINGS
from promptadapt_core.train.ppo_metrics import PPO_METRICS

DOCUMENT = Path(__file__).parents[1] / "docs" / "training.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"promptadapt_core[.\w]*")
# What makes a command of the lab's section a matter of seconds.
SMALLER = {
    "lab pairs": ["--num-pairs=60"],
    "lab inputs": ["--num-inputs=6"],
    "train sft": ["--num-layers=1", "--hidden-size=32", "--vocab-size=400", "--num-epochs=1"],
    "train ppo": ["--num-episodes=8", "--rollout-size=8", "--num-steps=1", "--num-images=1",
                  "--max-length-limit=16", "--no-tensorboard"],
    "evaluate": ["--num-inputs=2", "--num-steps=1", "--num-images=1", "--num-shown=0",
                 "--num-draws=100"],
}  # fmt: skip


def blocks() -> list[list[list[str]]]:
    """The commands of every block, each as the words after the module's name, that first."""
    found = []
    for block in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines()
        words = [shlex.split(line) for line in lines]
        at = [next(i for i, word in enumerate(row) if MODULE.fullmatch(word)) for row in words]
        for row, place in zip(words, at, strict=True):
            assert row[0] in ("python", "accelerate", "torchrun"), row
            assert row[place - 1] == "-m", row
        found.append([row[place:] for row, place in zip(words, at, strict=True)])
    return found


COMMANDS = [command for block in blocks() for command in block]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:3]))
def test_the_command_is_one(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(command, monkeypatch)


def test_the_labs_commands_work_as_they_stand_but_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in blocks()[0]:
        module = command[0].removeprefix("promptadapt_core").strip(".")
        has_subcommand = module in ("lab", "train")
        kind = f"{module} {command[1]}" if has_subcommand else module
        assert main_of(command)([*command[1:], *SMALLER.get(kind, [])]) == 0, capsys.readouterr()
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("a red cat")
    card = Path("models/promptadapt/my-lab/README.md").read_text(encoding="utf-8")
    assert "**rl**" in card


def test_the_metrics_it_explains_are_logged() -> None:
    known = {**PPO_METRICS, **MINING_METRICS, **DPO_METRICS, **SFT_METRICS, **REWARD_METRICS,
             **LabJudge.metrics, **ScorerJudge.metrics}  # fmt: skip
    text = DOCUMENT.read_text(encoding="utf-8").split("## 6.")[1].split("## 7.")[0]
    groups = {name.split("/")[0] for name in known}
    named = {
        name for name in re.findall(r"`([a-z]+/[a-z_]+)`", text) if name.split("/")[0] in groups
    }
    assert len(named) > 15
    assert named <= {*known}


def test_the_flags_it_names_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    classes = [*SETTINGS.values(), RewardSettings, AlarmSettings, EvaluateSettings, ExportSettings]
    fields = {
        field.name.replace("_", "-")
        for cls in classes
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    named = set(re.findall(r"`--([a-z-]+)", text))
    assert named - fields <= {"help", "plan"}


def test_the_estimates_follow_from_their_arithmetic() -> None:
    """Of the table: steps = pictures x steps each; hours = steps / speed / 3600."""
    rows = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            rows[cells[0]] = cells[1:]
    for column in range(3):
        asked = rows["episodes, pictures each, user inputs"][column].replace(", ", " ").split()
        episodes, each, inputs = (int(number.replace(",", "")) for number in asked)
        pictures, steps, whole, speed = (
            int(rows[name][column].replace(",", ""))
            for name in ("pictures, about", "steps each", "steps in all",
                         "assumed steps a second")
        )  # fmt: skip
        assert pictures == (episodes + inputs) * each
        assert whole == pictures * steps
        hours = float(rows["time, estimated"][column].removesuffix(" h"))
        assert hours == pytest.approx(whole / speed / 3600, abs=0.05)
