"""Commands that stand in documents: whether they are ones."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import pytest

from promptadapt_core.alarms import AlarmSettings
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.export.settings import ExportSettings
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.settings import Settings, given
from promptadapt_core.train.planning import SETTINGS


class Parsed(Exception):
    """The arguments were read; nothing is to run."""


def main_of(command: list[str]) -> Any:
    """command: its words from the module's name on."""
    return importlib.import_module(f"{command[0]}.__main__").main


def check_command(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real parser takes it, and its settings are in range."""
    kept: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def keep(self: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(parse(self, *arguments, **options))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    with pytest.raises(Parsed):
        main_of(command)(command[1:])
    for cls in _classes_of(command):
        cls(**given(cls, kept[0]))


def _classes_of(command: list[str]) -> list[type[Settings]]:
    if command[0].endswith(".train"):
        return [SETTINGS[command[1]], RewardSettings, AlarmSettings]
    if command[0].endswith(".evaluate"):
        return [EvaluateSettings, EvaluationReward]
    return [ExportSettings] if command[0].endswith(".export") else []
