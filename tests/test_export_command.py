from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from promptadapt_core.export.command import train_command
from promptadapt_core.export.finished import Run, last_part
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.settings import Settings, given
from promptadapt_core.train import __main__ as trainers
from promptadapt_core.train.dpo_settings import DpoSettings
from promptadapt_core.train.ppo_settings import PpoSettings
from promptadapt_core.train.sft_settings import SftSettings


class Parsed(Exception):
    pass


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the trainers' own parser reads."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "promptadapt_core.train"]
    kept: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def keep(self: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(parse(self, *arguments, **options))
        raise Parsed

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", keep)
        with pytest.raises(Parsed):
            trainers.main(words[3:])
    return kept[0]


def run_of(trainer: str, settings: Settings, terms: RewardSettings | None = None) -> Run:
    config = {"settings": dataclasses.asdict(settings), "data": {}}  # type: ignore[call-overload]
    if terms is not None:
        config["reward"] = {"terms": dataclasses.asdict(terms)}
    return Run(Path("somewhere") / "mine", trainer, config, [], {})


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ("ppo", PpoSettings(lr=1e-3, algorithm="grpo", group_size=4, negative_prompt="a 'b' \"c\"",
                            policy="lab-sft", render_lora=("a b.safetensors=0.5", "c.safetensors"),
                            attention_slicing=True, kl_target=0.0, renderer="owner/model")),
        ("dpo", DpoSettings(floor=("relevance=-0.5",), votes="votes.jsonl", tensorboard=False)),
        ("sft", SftSettings(pairs="pairs.jsonl", base="scratch", lr=1e-3)),
    ],
)  # fmt: skip
def test_the_command_gives_the_same_settings(
    trainer: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = None if trainer == "sft" else RewardSettings(relevance_weight=3.0, num_images=1)
    options = parsed(train_command(run_of(trainer, settings, terms)), monkeypatch)
    wanted = dataclasses.replace(settings, out="mine")  # type: ignore[type-var]
    assert type(settings)(**given(type(settings), options)) == wanted
    if terms is not None:
        assert RewardSettings(**given(RewardSettings, options)) == terms


def test_where_files_lie_is_left_out() -> None:
    settings = PpoSettings(
        policy="/home/jane/secret/runs/sft/best", user_inputs="C:\\Users\\jane\\inputs.txt",
        renderer="/home/jane/model.safetensors",
    )  # fmt: skip
    command = train_command(run_of("ppo", settings))
    assert "jane" not in command
    for part in ("--policy sft/best", "inputs.txt", "--renderer model.safetensors", "--out mine"):
        assert part in command


def test_a_long_command_has_lines_that_can_be_read() -> None:
    fields = {f.name: f.default + 1 for f in dataclasses.fields(PpoSettings) if f.type == "int"}
    fields |= {"min_length_limit": 15, "rollout_size": 256, "group_size": 2}
    lines = train_command(run_of("ppo", PpoSettings(**fields))).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 100
    assert all(line.endswith(" \\") for line in lines[:-1])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/c.txt", "c.txt"),
        ("a\\b\\c.txt", "c.txt"),
        ("runs/ppo/best/", "ppo/best"),
        ("./last", "last"),
        ("", ""),
    ],
)
def test_the_last_part_is_the_name(path: str, name: str) -> None:
    assert last_part(path) == name
