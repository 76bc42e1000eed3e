from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptadapt_core.lab.stages import (
    Ema,
    build_seeded,
    cosine_lr,
    is_finished,
    make_adamw,
    run_stage,
    set_lr,
    step_generator,
)
from promptadapt_core.settings import SettingsError


class Line:
    """Fits a small network to a sum, with all that a real stage has."""

    name = "line"
    metrics = {"train/loss": "squared error", "valid/number": "what is seen now and then"}

    def __init__(self, num_steps: int = 30, breaks_at: int = -1):
        self.num_steps, self.breaks_at = num_steps, breaks_at
        self.model = build_seeded(lambda: torch.nn.Linear(4, 3), seed=1)
        self.optimizer = make_adamw(self.model, 0.1)
        self.ema = Ema(self.model, 0.9)

    def step(self, step: int) -> dict[str, float]:
        set_lr(self.optimizer, cosine_lr(step, self.num_steps, 0.1))
        inputs = torch.randn(8, 4, generator=step_generator(3, step))
        loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        values = {"train/loss": math.nan if step == self.breaks_at else loss.item()}
        return values | ({"valid/number": float(step)} if step % 7 == 6 else {})

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state(state["ema"])

    def save(self, folder: Path) -> None:
        torch.save(self.ema.weights, folder / "line.pt")


class StopAfter:
    def __init__(self, number: int):
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights" / "line.pt", weights_only=True)


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what the clock says."""
    text = (folder / "metrics.jsonl").read_text()
    parsed = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in parsed]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of a training that was never stopped."""
    assert run_stage(Line(), tmp_path / "whole", log_every=4) == "done"
    return tmp_path / "whole"


def test_a_stopped_training_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    for number in (3, 1, 11):
        assert run_stage(Line(), folder, should_stop=StopAfter(number), log_every=4) == "stopped"
    assert not is_finished(Line(), folder)
    assert run_stage(Line(), folder, log_every=4) == "done"
    assert same(weights(folder), weights(whole))
    assert rows(folder) == rows(whole)


def test_a_killed_training_goes_on_from_any_older_state(whole: Path, tmp_path: Path) -> None:
    folder, kept = tmp_path / "killed", tmp_path / "kept.pt"
    run_stage(Line(), folder, should_stop=StopAfter(9), log_every=4)
    shutil.copy(folder / "state.pt", kept)
    run_stage(Line(), folder, should_stop=StopAfter(9), save_every_seconds=0.0, log_every=4)
    # killed: the state is older than the rows and the weights, and one row was cut off
    shutil.copy(kept, folder / "state.pt")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "train')
    (folder / "state.pt.partial").write_bytes(b"half")
    (folder / "weights.new").mkdir()
    assert run_stage(Line(), folder, log_every=4) == "done"
    assert same(weights(folder), weights(whole))
    assert rows(folder) == rows(whole)


def test_rows_are_means_since_the_last_row(tmp_path: Path) -> None:
    losses = []

    class Seen:
        def say(self, text: str) -> None:
            pass

        def step(self, step: int, num_steps: int, metrics: dict[str, float]) -> None:
            losses.append((step, num_steps, bool(metrics)))

    run_stage(Line(6), tmp_path / "all", log_every=1)
    run_stage(Line(6), tmp_path / "means", log_every=4, report=Seen())
    single = [row["train/loss"] for row in rows(tmp_path / "all")]
    means = rows(tmp_path / "means")
    assert [row["step"] for row in means] == [4, 6]
    assert means[0]["train/loss"] == pytest.approx(sum(single[:4]) / 4)
    assert means[1]["train/loss"] == pytest.approx(sum(single[4:]) / 2)
    assert losses == [(n, 6, n in (4, 6)) for n in range(1, 7)]


def test_a_finished_training_is_left_alone(whole: Path) -> None:
    before = (whole / "state.pt").stat().st_mtime_ns
    assert run_stage(Line(), whole) == "done"
    assert (whole / "state.pt").stat().st_mtime_ns == before
    assert is_finished(Line(), whole)
    assert not is_finished(Line(31), whole)


@pytest.mark.parametrize("fault", ["lost", "empty", "short", "no folder", "old note"])
def test_weights_that_are_lost_are_written_again(whole: Path, fault: str) -> None:
    path, before = whole / "weights" / "line.pt", weights(whole)
    if fault == "lost":
        path.unlink()
    elif fault == "no folder":
        shutil.rmtree(path.parent)
    elif fault == "old note":
        (whole / "finished.json").write_text('{"stage": "line", "num_steps": 30}')
    else:
        path.write_bytes(b"" if fault == "empty" else path.read_bytes()[:-1])
    assert not is_finished(Line(), whole)
    assert run_stage(Line(), whole, should_stop=StopAfter(1)) == "done"  # no step is made anew
    assert is_finished(Line(), whole)
    assert same(weights(whole), before)


def test_more_steps_go_on_from_the_end(whole: Path) -> None:
    assert run_stage(Line(34), whole, log_every=4) == "done"
    assert rows(whole)[-1]["step"] == 34


def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path: Path) -> None:
    run_stage(Line(), tmp_path / "run", should_stop=StopAfter(5))
    state = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(SettingsError, match="not finite at step 8"):
        run_stage(Line(breaks_at=7), tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").read_bytes() == state


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    class Steep(Line):
        metrics = {**Line.metrics, "optim/grad_norm": "of the gradient"}

        def step(self, step: int) -> dict[str, float]:
            return {**super().step(step), "optim/grad_norm": math.inf if step == 3 else 1.0}

    with pytest.raises(SettingsError, match=r"optim/grad_norm of line is not finite at step 4"):
        run_stage(Steep(), tmp_path / "run", save_every_seconds=0.0)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 3


def test_a_broken_state_is_named_by_a_flag_that_there_is(tmp_path: Path) -> None:
    run_stage(Line(), tmp_path / "run", should_stop=StopAfter(5))
    (tmp_path / "run" / "state.pt").write_bytes(b"broken")
    with pytest.raises(SettingsError, match=r"state\.pt is broken") as caught:
        run_stage(Line(), tmp_path / "run")
    assert caught.value.name == "out"


def test_the_speed_counts_what_was_before_a_stop(tmp_path: Path) -> None:
    class Slow(Line):
        def step(self, step: int) -> dict[str, float]:
            time.sleep(0.02)
            return super().step(step)

    run_stage(Slow(), tmp_path, should_stop=StopAfter(19), log_every=20)
    run_stage(Slow(), tmp_path, should_stop=StopAfter(1), log_every=20)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["time/steps_per_second"] <= 50


def test_a_full_disk_leaves_the_last_state(tmp_path: Path) -> None:
    class Full(Line):
        def save(self, folder: Path) -> None:
            (folder / "line.pt").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    run_stage(Line(), folder, should_stop=StopAfter(5))
    state, before = (folder / "state.pt").read_bytes(), weights(folder)
    with pytest.raises(SettingsError, match="No space left"):
        run_stage(Full(), folder)
    assert (folder / "state.pt").read_bytes() == state
    assert same(weights(folder), before)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(SettingsError, match="is a file"):
        run_stage(Line(), tmp_path / "file")
    with pytest.raises(SettingsError, match="cannot be written"):
        run_stage(Line(), tmp_path / "file" / "below")


@pytest.mark.parametrize("fault", ["name", "shape", "broken"])
def test_a_state_of_something_else_is_refused(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "run"
    run_stage(Line(), folder, should_stop=StopAfter(2))
    other = Line()
    if fault == "name":
        other.name = "circle"
    elif fault == "shape":
        other.model = torch.nn.Linear(5, 3)
    else:
        (folder / "state.pt").write_bytes(b"broken")
    with pytest.raises(SettingsError):
        run_stage(other, folder)


def test_a_metric_needs_a_definition(tmp_path: Path) -> None:
    stage = Line(2)
    stage.metrics = {"train/loss": "squared error"}
    stage.step = lambda step: {"train/other": 1.0}  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="without a definition"):
        run_stage(stage, tmp_path / "run")


def test_the_average_moves_slowly_but_not_from_its_start() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, 0.5)
    torch.nn.init.ones_(model.weight)
    ema.update(model)
    assert ema.weights["weight"].item() == pytest.approx(1 - 2 / 11)  # decay (1 + 1) / (10 + 1)
    ema.num_updates = 1000
    ema.weights["weight"].zero_()
    ema.update(model)
    assert ema.weights["weight"].item() == 0.5
    with ema.applied(model):
        assert model.weight.item() == 0.5
    assert model.weight.item() == 1.0


def test_learning_rate_warms_up_and_falls() -> None:
    assert cosine_lr(0, 10_000, 1.0) == 0.01
    assert cosine_lr(99, 10_000, 1.0) == 1.0
    assert cosine_lr(9_999, 10_000, 1.0) == pytest.approx(0.02)
    assert cosine_lr(0, 5, 1.0) == 1.0  # too short to warm up
    assert all(0 < cosine_lr(step, 1, 1.0) <= 1 for step in range(3))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first = build_seeded(lambda: torch.nn.Linear(4, 3), 2**64 - 1).weight
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(build_seeded(lambda: torch.nn.Linear(4, 3), 2**64 - 1).weight, first)
    assert not torch.equal(build_seeded(lambda: torch.nn.Linear(4, 3), 1).weight, first)


def test_each_step_and_seed_has_its_own_numbers() -> None:
    drawn = {
        (seed, step): torch.rand(2, generator=step_generator(seed, step)).tolist()
        for seed in (0, 1)
        for step in (-1, 0, 1)
    }
    assert len({tuple(numbers) for numbers in drawn.values()}) == 6
    assert torch.rand(2, generator=step_generator(1, 1)).tolist() == drawn[1, 1]
