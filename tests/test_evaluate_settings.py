from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.settings import EvaluateSettings, RowPlan, planned_rows
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.settings import SettingsError

ROOT = Path(__file__).resolve().parents[1]


def plans(rows: str, **more: str) -> list[RowPlan]:
    return planned_rows(EvaluateSettings(rows=rows, **more))


def test_rows_keep_their_order_and_names_given_twice_are_training_seeds() -> None:
    assert plans("sft=S, best_of_n,rl=A,rl=B,people") == [
        RowPlan("user_input", "user_input"),
        RowPlan("sft", "policy", ("S",)),
        RowPlan("best_of_n", "best_of_n"),
        RowPlan("rl", "policy", ("A", "B")),
        RowPlan("people", "people"),
    ]


def test_a_folder_may_hold_an_equals_sign_and_a_colon() -> None:
    assert plans(r"rl=C:\a=b")[1].folders == (r"C:\a=b",)


def test_a_folder_may_hold_a_comma() -> None:
    assert plans('suffix, "rl=runs/a, b",rl=c')[2].folders == ("runs/a, b", "c")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("", "an empty one"),
        ("suffix,,best_of_n", "an empty one"),
        ("sufix", "or NAME=FOLDER, got 'sufix'"),
        ("rl=", "the folder of a policy after rl="),
        ("oracle=F", "a policy cannot be called 'oracle'"),
        ("r l=F", "a policy cannot be called 'r l'"),
        ("rl=F,rl=F", "rl=F is there twice"),
        ('suffix,"rl=F', "expected rows separated by commas"),
    ],
)
def test_rows_that_make_no_sense_are_told(rows: str, told: str) -> None:
    with pytest.raises(SettingsError, match="^rows: ") as raised:
        plans(rows)
    assert told in raised.value.reason


def test_outside_the_lab_a_suffix_is_a_text_and_there_is_no_oracle() -> None:
    assert plans("suffix", renderer="F", suffix="8k")[1].name == "suffix"
    with pytest.raises(SettingsError, match="^suffix: only the lab tunes one"):
        plans("suffix", renderer="F", suffix=" , ")
    with pytest.raises(SettingsError, match="^rows: the oracle knows"):
        plans("oracle", renderer="F")


def test_the_reward_is_that_of_training_on_seeds_of_its_own() -> None:
    ours, theirs = EvaluationReward(), RewardSettings(num_images=4)
    assert ours.weights() == theirs.weights()
    assert ours.length_budget == theirs.length_budget
    assert "num_seeds" not in {field.name for field in dataclasses.fields(ours)}
    seeds = [
        set(made.seeds_of("a cat"))
        for made in (theirs, ours, *(ours.of_search(number, 4) for number in (1, 2, 3)))
    ]
    assert [len(some) for some in seeds] == [4] * 5
    assert len(set.union(*seeds)) == 20
    assert ours.seeds_of("a cat", visit=3) == ours.seeds_of("a cat")


def test_help_needs_no_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "promptadapt_core.evaluate", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    for name in ("--rows", "--num-oracle-renders", "--relevance-weight", "--num-images"):
        assert name in run.stdout
    assert "--num-seeds" not in run.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "diffusers", "open_clip", "matplotlib"}
