"""docs/method.md defines every metric that is logged, in the words of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core.judging import LabJudge, ScorerJudge
from promptadapt_core.rewards import REWARD_METRICS
from promptadapt_core.train.ppo_metrics import PPO_METRICS

DOCUMENT = Path(__file__).parents[1] / "docs" / "method.md"
ROW = re.compile(r"^\| `([a-z]+/[a-z_0-9]+)` \| (.+) \|$", re.MULTILINE)


def test_every_metric_is_defined() -> None:
    found = dict(ROW.findall(DOCUMENT.read_text("utf-8")))
    assert found == {**PPO_METRICS, **REWARD_METRICS, **LabJudge.metrics, **ScorerJudge.metrics}
