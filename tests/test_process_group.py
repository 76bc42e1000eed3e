"""A group of one process, and what processes know of each other. Groups of several: see
test_train_processes.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from promptadapt_core import process_group as groups
from promptadapt_core.decoding import Stopped
from promptadapt_core.process_group import ALONE, ProcessGroup, num_launched
from promptadapt_core.settings import SettingsError


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*groups.NUM_PROCESSES_NAMES, "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", [0, 1, 5, 6, 7, 256])
def test_shares_are_even_and_leave_nothing_out(number: int) -> None:
    for num_processes in (1, 2, 3, 8):
        shares = [ProcessGroup(rank, num_processes).share(number) for rank in range(num_processes)]
        assert [one for share in shares for one in share] == list(range(number))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_one_process_is_a_group_of_its_own() -> None:
    assert ALONE.is_main
    assert ALONE.gather(lambda: "a") == ["a"]
    assert ALONE.from_main(lambda: "a") == ALONE.together(lambda: "a") == "a"
    assert ALONE.agree(lambda: True)
    assert not ALONE.agree(lambda: False)
    done: list[int] = []
    ALONE.on_main(lambda: done.append(1))
    assert done == [1]
    parameter = torch.nn.Parameter(torch.zeros(2))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None


def test_what_was_not_launched_needs_no_accelerate() -> None:
    code = (
        "import sys, torch\n"
        "sys.modules['accelerate'] = None  # as if it were not installed\n"
        "from promptadapt_core.process_group import ALONE, process_group\n"
        "with process_group('cpu', 1.0) as group:\n"
        "    assert group is ALONE\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)


@pytest.mark.parametrize("name", groups.NUM_PROCESSES_NAMES)
def test_launchers_say_how_many_they_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_launched() == 1
    monkeypatch.setenv(name, "1")
    assert num_launched() == 1
    groups.refuse_several("sft")
    monkeypatch.setenv(name, "4")
    assert num_launched() == 4
    with pytest.raises(SettingsError, match="num_processes: sft runs in one process"):
        groups.refuse_several("sft")


def launched(monkeypatch: pytest.MonkeyPatch, place: int, num_gpus: int) -> groups.LaunchedGroup:
    """A process of a machine with so many GPUs, which has met nobody."""
    monkeypatch.setenv("LOCAL_RANK", str(place))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    made = object.__new__(groups.LaunchedGroup)
    ProcessGroup.__init__(made, place, 4)
    return made


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    group = launched(monkeypatch, place=1, num_gpus=2)
    assert group.own_device("auto") == group.own_device("cuda") == "cuda:1"
    assert group.own_device("cpu") == "cpu"
    assert group.own_device("cuda:0") == "cuda:0"
    assert ALONE.own_device("auto") == "auto"
    with pytest.raises(
        SettingsError, match="device: there is no GPU for process 3 of this machine"
    ):
        launched(monkeypatch, place=2, num_gpus=2).own_device("auto")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    group = launched(monkeypatch, place=1, num_gpus=2)
    assert group.own_device("auto") == ALONE.own_device("auto") == "cpu"
    assert group.own_device("cuda") == "cuda:1"
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    without = launched(monkeypatch, place=0, num_gpus=0)
    assert without.own_device("auto") == "auto"  # pick_device takes the CPU
    assert without.own_device("cuda") == "cuda"  # and says that there is none


def test_errors_come_to_the_others_as_what_they_are() -> None:
    accounts = [
        groups._account_of(error)
        for error in (SettingsError("lr", "too high"), Stopped(), TypeError("one\ntwo"))
    ]
    bad, stop, fault = (groups._error_of(3, account) for account in accounts)
    assert isinstance(bad, SettingsError)
    assert (bad.name, bad.reason) == ("lr", "process 3: too high")
    assert isinstance(stop, Stopped)
    assert isinstance(fault, groups.ProcessFailed)
    assert str(fault).startswith("process 3 failed: TypeError: one; what was saved before is whole")


def test_messages_are_exact_and_hold_no_programs() -> None:
    value = {"a": [0.1, None, True, -(2**62), "ä\n"], "b": (torch.tensor([1e-45, -0.0]),)}
    read = groups._decoded(torch.frombuffer(groups._encoded(value), dtype=torch.uint8))
    assert read["a"] == value["a"]
    assert torch.equal(read["b"][0], value["b"][0])
    assert read["b"][0][1].signbit()
    program = torch.frombuffer(groups._encoded(ALONE), dtype=torch.uint8)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        groups._decoded(program)


@pytest.mark.parametrize(
    "names",
    [
        {"WORLD_SIZE": "2"},  # of a cluster, where nothing was launched
        {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_what_no_launcher_set_is_one_sentence(names: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from promptadapt_core.command_line import run\n"
        "from promptadapt_core.process_group import process_group\n"
        "def work():\n"
        "    with process_group('cpu', 0.05):\n"
        "        pass\n"
        "sys.exit(run('train', work))\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, **names}, timeout=120,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "without a launcher, unset WORLD_SIZE, which says that there are 2" in done.stderr


def test_a_number_that_is_none_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("\u00b2", "", "-3", "many"):
        monkeypatch.setenv("WORLD_SIZE", text)
        assert num_launched() == 1
