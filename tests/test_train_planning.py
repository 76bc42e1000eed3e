"""--plan: the trainers' own preparation and probe, with the lab's renderer, and nothing is kept."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("diffusers")

from promptadapt_core.train import __main__ as command

INPUTS = ("a red cat by the sea", "a blue house in a forest", "a green boat by the sea")
PICTURES = ["--renderer=lab", "--num-steps=1", "--size=32", "--num-images=2", "--device=cpu"]
SHORT = ["--min-length-limit=4", "--max-length-limit=8"]
ROLLOUTS = ["--num-episodes=24", "--rollout-size=8", "--group-size=2", "--micro-batch-size=4"]


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    return policy_for(INPUTS)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder for temporary files, so that what is left behind is seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def flags(trainer: str, inputs: Path, out: Path, *more: str) -> list[str]:
    return [
        trainer, f"--policy={inputs / 'policy'}", f"--user-inputs={inputs / 'inputs.txt'}",
        f"--out={out}", *PICTURES, *SHORT, *more,
    ]  # fmt: skip


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The plan as JSON."""
    capsys.readouterr()
    assert command.main([*arguments, "--plan", "json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_plan_of_ppo_leaves_nothing_behind(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags("ppo", inputs, tmp_path / "run", *ROLLOUTS)
    assert command.main([*arguments, "--plan"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == (
        "plan: 3 iterations, 24 episodes, at most 48 images of candidates and 6 of plain user "
        "inputs"
    )
    assert [line.split()[0] for line in lines[1:8]] == [
        "rendering", "scoring", "plain", "judging", "sampling", "estimates", "updates",
    ]  # fmt: skip
    assert "pictures: 2 per candidate, 32 pixels, 1 steps" in captured.err
    assert not (tmp_path / "run").exists()
    assert all_files(tmp_path) == {}
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_above_is_not_written_to(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(flags("ppo", inputs, Path(".."), *ROLLOUTS, "--judge=none"), capsys)
    assert all_files(tmp_path) == {}


def test_a_plan_of_fine_tuning_can_be_broken_off(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from promptadapt_core.train.sft import Trainer

    step, steps = Trainer._train_step, []

    def interrupted(self: Trainer) -> object:
        steps.append(1)
        signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    arguments = ["sft", f"--pairs={inputs / 'pairs.jsonl'}", f"--out={tmp_path / 'run'}",
                 "--device=cpu", "--vocab-size=330", "--hidden-size=32", "--num-layers=2",
                 "--num-heads=2"]  # fmt: skip
    assert command.main([*arguments, "--plan"]) == 130
    assert len(steps) == 1
    assert capsys.readouterr().out == ""
    assert all_files(tmp_path) == {}


def test_it_needs_no_run_folder(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [one for one in flags("ppo", inputs, Path()) if not one.startswith("--out")]
    assert planned([*arguments, *ROLLOUTS, "--judge=none"], capsys)["iterations"] == 3


def test_what_is_kept_and_done_is_not_planned_again(
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run's plain pictures are known, and two of its five iterations are done."""
    out = tmp_path / "run"
    arguments = flags("ppo", inputs, out, *ROLLOUTS, "--judge=none", "--no-tensorboard")
    assert command.main([*arguments, "--num-episodes=16"]) == 0
    before = all_files(out)
    found = planned([*arguments, "--resume", "--num-episodes=40"], capsys)
    assert (found["iterations"], found["episodes"], found["images"]) == (3, 24, 48)
    assert found["plain_images"] == 0
    assert all_files(out) == before
    with open(out / "metrics.jsonl", "ab") as file:  # killed in its fourth, with nothing saved
        file.write(b'{"step": 3}\n{"step": 4}\n')
    before = all_files(out)
    assert planned([*arguments, "--resume", "--num-episodes=40"], capsys)["iterations"] == 3
    (out / "baselines" / "large.bin").write_bytes(b"of somebody else")
    before = all_files(out)
    monkeypatch.setattr(shutil, "copytree", lambda *_: pytest.fail("all of it was copied"))
    shared = [*arguments[:3], f"--out={tmp_path / 'new'}", *arguments[4:]]
    found = planned([*shared, f"--baselines={out / 'baselines'}"], capsys)
    assert (found["iterations"], found["plain_images"]) == (3, 0)
    assert all_files(out) == before


@pytest.mark.parametrize("trainer", ["rejection", "dpo"])
def test_rounds_are_planned(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    found = planned(
        flags(
            trainer, inputs, tmp_path / "run", "--num-rounds=2", "--round-inputs=3",
            "--group-size=4", "--mining-batch=8", "--measure-inputs=2", "--batch-size=4",
        ),
        capsys,
    )  # fmt: skip
    assert found["trainer"] == trainer
    assert (found["rounds"], found["user_inputs"], found["candidates"]) == (2, 8, 32)
    assert (found["images"], found["plain_images"]) == (64, 6)
    assert found["seconds_at_most"] >= found["seconds_as_the_policy_repeats_itself_now"] > 0
    learned = next(part for part in found["parts"] if part["name"] == "learning")
    assert learned["number"] == {"rejection": 6 * 2, "dpo": 6 * 2 * 2 * 2}[trainer]
    assert all_files(tmp_path) == {}


def test_votes_cost_no_pictures(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = tmp_path / "votes.jsonl"
    rows = [
        {"user_input": text, "chosen": f"{text}, watercolor", "rejected": f"{text}, 8k"}
        for text in INPUTS
    ]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = planned(
        ["dpo", f"--policy={inputs / 'policy'}", f"--votes={votes}", "--device=cpu",
         f"--out={tmp_path / 'run'}", "--num-epochs=3", *SHORT],
        capsys,
    )  # fmt: skip
    assert (found["rounds"], found["texts"]) == (1, 2 * 3 * 3)
    assert found["renderer_and_scorer_share"] == 0.0
    assert list(all_files(tmp_path)) == ["votes.jsonl"]


def test_fine_tuning_is_planned(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(
        ["sft", f"--pairs={inputs / 'pairs.jsonl'}", f"--out={tmp_path / 'run'}", "--device=cpu",
         "--precision=fp32", "--num-epochs=2", "--batch-size=24", "--max-length=60",
         "--vocab-size=330", "--hidden-size=32", "--num-layers=2", "--num-heads=2"],
        capsys,
    )  # fmt: skip
    assert found["steps"] == 6  # 60 pairs in batches of 24, twice
    assert found["seconds_at_most"] > 0
    assert all_files(tmp_path) == {}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--plan=xml"], "--plan"),
        (["--plan", "--policy=nowhere"], "--policy: there is no policy 'nowhere'"),
        (["--plan", "--resume"], "--resume: there is no run in"),
        (["--plan", "--scorer=nowhere"], "--scorer: expected lab or a folder"),
    ],
)
def test_it_refuses_what_the_run_would(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    arguments = flags("ppo", inputs, tmp_path / "run", *ROLLOUTS, *more)
    try:
        code = command.main(arguments)
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == 2
    assert told in capsys.readouterr().err
    assert all_files(tmp_path) == {}
