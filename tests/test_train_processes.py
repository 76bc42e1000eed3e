"""Groups of two processes that train, on this machine and on its CPU."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import launched_runs
import torch
from training_runs import NUM_KILLS, num_rows, rows_of

from promptadapt_core.policy import Policy

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
TINY: dict[str, Any] = {
    "device": "cpu", "rollout_size": 8, "num_episodes": 32, "group_size": 2, "num_epochs": 2,
    "minibatch_size": 4, "micro_batch_size": 3, "lr": 1e-3, "value_lr": 1e-3, "tensorboard": False,
    "min_length_limit": 4, "max_length_limit": 10, "checkpoint_every": 1, "samples_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A folder with inputs.txt and policy/, an SFT policy that writes styles."""
    return policy_for(SUBJECTS)


def tiny(inputs: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {**TINY, "policy": str(inputs / "policy"), "out": str(out),
            "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip


def saved(folder: Path) -> dict[str, bytes]:
    """The files whose bytes equal runs must share: the weights and the samples."""
    files = [path for kind in ("*.safetensors", "samples/*") for path in folder.rglob(kind)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Pair:
    """Two processes that do the jobs together."""

    def __init__(self, folder: Path, jobs: list[dict[str, Any]]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, path = folder, folder / "jobs.json"
        path.write_text(json.dumps(jobs), encoding="utf-8")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        shared = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "USE_LIBUV": "0",
        }  # fmt: skip
        self.processes = [
            subprocess.Popen(
                [sys.executable, launched_runs.__file__, str(path)],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            for rank in range(2)
        ]

    def wait_until_ready(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=60)[1]

    def end(self, timeout_seconds: float = 300.0) -> list[tuple[int, str]]:
        """The exit code of each process and what it wrote to stderr."""
        told = [process.communicate(timeout=timeout_seconds)[1] for process in self.processes]
        return [(one.returncode, text) for one, text in zip(self.processes, told, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate(timeout=60)

    def outcomes(self) -> list[list[dict[str, Any]]]:
        """Of each process, by rank, and each job."""
        names = [self.folder / f"outcomes-{rank}.json" for rank in range(2)]
        return [json.loads(name.read_text(encoding="utf-8")) for name in names]


@pytest.fixture(scope="module")
def done(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs of one process and of two, and what each process of the pair said, by their names."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "file").write_text("no folder", encoding="utf-8")

    def job(name: str, of_1: dict[str, Any] | None = None, trouble: Any = None, **changes: Any):
        settings = tiny(inputs, folder / name / "run", **changes)
        fault = dict(zip(("rank", "fault", "iteration"), trouble or (), strict=False))
        return {"settings": settings, "settings_of_1": of_1 or {}, **fault}

    one = {"one": launched_runs.run(tiny(inputs, folder / "one" / "run"))}
    launched_runs.run(tiny(inputs, folder / "began with one" / "run", num_episodes=16))
    jobs = {
        "two": job("two"),
        "began with one": job("began with one", resume=True),
        "began with two": job("began with two", num_episodes=16),
        "stopped": job("parts", trouble=(1, "stop", 2), checkpoint_every=3),
        "interrupted": job("parts", trouble=(1, "interrupt", 2), checkpoint_every=3, resume=True),
        "resumed": job("parts", checkpoint_every=3, resume=True),
        "bad setting": job("bad setting", trouble=(1, "setting", 2)),
        "bad setting of main": job("bad setting of main", trouble=(0, "setting", 2)),
        "bad program": job("bad program", trouble=(1, "program", 2)),
        "bad folder": {"settings": tiny(inputs, folder / "file")},
        "bad copy": job("bad copy", of_1={"lr": 0.5}),
        "bad samples": job("bad samples", of_1={"samples_every": 0, "checkpoint_every": 7}),
    }
    pair = Pair(folder / "jobs", [*jobs.values()])
    ended = pair.end()
    assert [code for code, _ in ended] == [0, 0], ended
    found = {name: list(both) for name, *both in zip(jobs, *pair.outcomes(), strict=True)}
    one["continued"] = launched_runs.run(
        tiny(inputs, folder / "began with two" / "run", resume=True)
    )
    return {"folder": folder, "one": one, "pair": found, "told": [text for _, text in ended]}


def statuses(done: dict[str, Any], name: str) -> list[str]:
    return [outcome["status"] for outcome in done["pair"][name]]


def assert_alike(one: Path, other: Path) -> None:
    """Equal but for rounding: same texts and rewards, same losses, same weights."""
    rows, others = rows_of(one), rows_of(other)
    assert len(rows) == len(others) == 4
    for row, expected in zip(rows, others, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    texts = [[path.read_text("utf-8") for path in sorted(f.glob("samples/*.jsonl"))]
             for f in (one, other)]  # fmt: skip
    assert texts[0] == texts[1]
    weights = [Policy.load(folder / "last").weights for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], rtol=0, atol=2e-5), name


def test_two_processes_learn_what_one_does(done: dict[str, Any]) -> None:
    assert statuses(done, "two") == ["done", "done"]
    assert_alike(done["folder"] / "two" / "run", done["folder"] / "one" / "run")


def test_every_picture_is_drawn_once_and_each_draws_some(done: dict[str, Any]) -> None:
    alone, pair = done["one"]["one"]["drawn"], done["pair"]["two"]
    both = [[tuple(picture) for picture in outcome["drawn"]] for outcome in pair]
    # The probe of the plan, which every process makes for itself, draws seeds from 0 on.
    runs_own = [[picture for picture in drawn if picture[1] > 100] for drawn in both]
    expected = [picture for picture in alone if picture[1] > 100]
    assert sorted(runs_own[0] + runs_own[1]) == sorted(expected)
    assert 0.3 < len(runs_own[0]) / len(expected) < 0.7


def test_one_process_writes(done: dict[str, Any]) -> None:
    out = done["folder"] / "two" / "run"
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "state.pt", "best", "last", "samples"}
    assert len([*out.with_suffix(".baselines").rglob("*.jsonl")]) == 1
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["judge/brightness"] > 0 for row in rows)
    sheets = {path.name for path in (out / "samples").iterdir()}
    assert sheets == {f"0000{n}.{kind}" for n in (1, 2, 4) for kind in ("jsonl", "png")}
    one = done["folder"] / "one" / "run" / "samples"  # pictures of both processes are on it
    assert (out / "samples" / "00001.png").read_bytes() == (one / "00001.png").read_bytes()


def test_a_run_goes_on_in_another_number_of_processes(done: dict[str, Any]) -> None:
    assert statuses(done, "began with one") == ["done", "done"]
    assert done["one"]["continued"]["status"] == "done"
    for name in ("began with one", "began with two"):
        assert_alike(done["folder"] / name / "run", done["folder"] / "one" / "run")


def test_a_run_that_is_stopped_in_one_process_ends_equal(done: dict[str, Any]) -> None:
    """All stop together; in as many processes it goes on bit for bit."""
    assert statuses(done, "stopped") == ["stopped"] * 2  # after iteration 2
    assert statuses(done, "interrupted") == ["stopped"] * 2  # amid the pictures of iteration 4
    assert statuses(done, "resumed") == ["done"] * 2
    whole, parts = (done["folder"] / name / "run" for name in ("two", "parts"))
    assert saved(parts) == saved(whole)
    assert rows_of(parts) == rows_of(whole)


def test_what_one_process_finds_wrong_stops_all_with_the_cause(done: dict[str, Any]) -> None:
    enough = "it has had enough"
    assert statuses(done, "bad setting") == [
        f"SettingsError: scorer: process 1: {enough}", f"SettingsError: scorer: {enough}",
    ]  # fmt: skip
    assert statuses(done, "bad setting of main") == [
        f"SettingsError: scorer: {enough}", f"SettingsError: scorer: process 0: {enough}",
    ]  # fmt: skip
    main, own = statuses(done, "bad program")
    assert main.startswith("ProcessFailed: process 1 failed: TypeError: a fault; what was saved")
    assert own == "TypeError: a fault\nof two lines"
    assert all("is a file, expected a folder" in status for status in statuses(done, "bad folder"))
    assert statuses(done, "bad copy") == [
        f"SettingsError: lr: {place}is not that of the main process: lr"
        for place in ("process 1: ", "")
    ]
    assert statuses(done, "bad samples") == [
        f"SettingsError: checkpoint_every: {place}is not that of the main process: "
        "checkpoint_every, samples_every"
        for place in ("process 1: ", "")
    ]
    for name in ("bad setting", "bad program"):  # the iteration before is whole
        assert [row["step"] for row in rows_of(done["folder"] / name / "run")] == [1]
        assert (done["folder"] / name / "run" / "state.pt").is_file()


def test_the_others_end_with_the_cause_when_one_is_killed(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = {"settings": tiny(inputs, out), "rank": 1, "fault": "kill", "iteration": 3}
    pair = Pair(tmp_path / "jobs", [job])
    pair.wait_until_ready()
    (code, told), (killed, _) = pair.end()
    assert killed != 0
    assert code == 0  # launched_runs writes down what train_ppo raised
    (outcome,) = json.loads((pair.folder / "outcomes-0.json").read_text(encoding="utf-8"))
    assert outcome["status"].startswith(
        "ProcessFailed: process 0 stops: another process of the group has ended; what was saved"
    )
    assert "Traceback" not in told
    assert [row["step"] for row in rows_of(out)] == [1, 2]
    result = launched_runs.run(tiny(inputs, out, resume=True))
    assert result["status"] == "done"
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3, 4]


def test_a_process_that_hangs_is_not_waited_for_without_end(inputs: Path, tmp_path: Path) -> None:
    job = {"settings": tiny(inputs, tmp_path / "run"), "rank": 1, "fault": "wait",
           "timeout_minutes": 0.1}  # fmt: skip
    pair = Pair(tmp_path / "jobs", [job])
    pair.wait_until_ready()
    pair.processes[0].communicate(timeout=50)
    assert pair.processes[1].poll() is None
    pair.kill()
    (outcome,) = json.loads((pair.folder / "outcomes-0.json").read_text(encoding="utf-8"))
    assert "another process of the group did not come within 0.1 minutes" in outcome["status"]


def test_a_group_killed_again_and_again_ends_equal(inputs: Path, tmp_path: Path) -> None:
    """At moments drawn at random; on Windows `kill` is TerminateProcess, as sudden as SIGKILL."""
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    changes = {"num_episodes": 8 * (10 + 5 * NUM_KILLS), "checkpoint_every": 2}
    first = Pair(tmp_path / "whole jobs", [{"settings": tiny(inputs, whole, **changes)}])
    moments, num_killed = random.Random(1), 0
    for number in range(NUM_KILLS):
        settings = tiny(inputs, out, resume=(out / "config.json").is_file(), **changes)
        pair = Pair(tmp_path / f"jobs {number}", [{"settings": settings}])
        pair.wait_until_ready()
        wanted = num_rows(out) + moments.randint(0, 6)
        while pair.processes[0].poll() is None and num_rows(out) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.2))
        num_killed += all(process.poll() is None for process in pair.processes)
        pair.kill()
    settings = tiny(inputs, out, resume=(out / "config.json").is_file(), **changes)
    final = Pair(tmp_path / "jobs", [{"settings": settings}])
    assert [code for code, _ in final.end()] == [0, 0]
    assert [code for code, _ in first.end()] == [0, 0]
    assert [[job["status"] for job in both] for both in final.outcomes()] == [["done"]] * 2
    print(f"killed at {num_killed} moments of {NUM_KILLS}")
    assert num_killed > 0
    assert saved(whole) == saved(out)
    # What a killed process had scored of plain inputs is kept: it is not rendered anew.
    rows = [rows_of(folder) for folder in (whole, out)]
    num_plain = [[row.pop("reward/num_baselines_rendered") for row in some] for some in rows]
    assert rows[0] == rows[1]
    assert all(again in (once, 0) for once, again in zip(*num_plain, strict=True))
