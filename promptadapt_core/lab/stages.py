"""The training loop of every part of the lab: resumable, and never half saved.

The folder of a stage holds state.pt (all that training needs to go on), weights/ (the finished
weights as far as they are), metrics.jsonl and, at the end, finished.json, with the size of each
file of the weights. A process that is stopped or killed at any moment goes on from its last state,
and on a CPU ends with the same weights, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import runs
from ..settings import SettingsError

STATE_FORMAT = 1
WEIGHTS_NAME = "weights"
FINISHED_NAME = "finished.json"
LOOP_METRICS = {
    "time/hours": "wall time of training so far, over all resumed parts",
    "time/steps_per_second": "training steps per second since the last row, saving not counted",
}


class Stage(Protocol):
    """One part of the lab in training. metrics: every key that `step` may return, and its
    definition; keys are `group/name` and one of them is train/loss."""

    name: str
    num_steps: int
    metrics: Mapping[str, str]

    def step(self, step: int) -> dict[str, float]:
        """Step 0 .. num_steps - 1: one optimizer step; a key may be missing in most steps. All
        that is random comes from `step_generator(seed, step)`."""

    def state(self) -> dict[str, Any]:
        """All that the next step depends on: tensors, numbers, texts, lists and dicts of those."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, its tensors now on the CPU."""

    def save(self, folder: Path) -> None:
        """Write the weights as they are used afterwards into an empty folder."""


def run_stage(
    stage: Stage,
    folder: Path,
    *,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
    save_every_seconds: float = 60.0,
    log_every: int = 20,
) -> str:
    """Train the stage to its end in the folder, or go on with what is there.

    report: gets every step, and the means since the last row in every `log_every`-th. should_stop:
    asked after every step. Returns "done", or "stopped" when should_stop said so. Raises
    SettingsError("out", ...) for a folder that cannot be written, a full disk and a folder of
    another stage, SettingsError("lr", ...) for a loss that is not finite; the last state that was
    saved stays whole.
    """
    report = report or runs.Silent()
    should_stop = should_stop or (lambda: False)
    if is_finished(stage, folder):
        return "done"
    run_folder = runs.RunFolder(str(folder), resume=Path(folder).is_dir())
    runs.finish_replacing(run_folder.path / WEIGHTS_NAME)
    loop = _Loop(stage, run_folder, log_every)
    if loop.step:
        report.say(f"{stage.name}: going on after step {loop.step:,} of {stage.num_steps:,}")
    saved_at = time.monotonic()
    while loop.step < stage.num_steps:
        row = loop.advance()
        report.step(loop.step, stage.num_steps, row)
        stop = should_stop() and loop.step < stage.num_steps
        if stop or time.monotonic() - saved_at >= save_every_seconds:
            loop.save()
            saved_at = time.monotonic()
        if stop:
            return "stopped"
    loop.save()
    loop.finish()
    return "done"


def is_finished(stage: Stage, folder: Path) -> bool:
    """Whether the folder holds this stage trained for its number of steps, with all its weights in
    their sizes. Where they are not, `run_stage` writes them again from the state."""
    try:
        found = json.loads((Path(folder) / FINISHED_NAME).read_text(encoding="utf-8"))
        return found == _marker(stage, Path(folder))
    except (OSError, ValueError):
        return False


def _marker(stage: Stage, folder: Path) -> dict[str, Any]:
    """What finished.json says; OSError where there are no weights."""
    sizes = runs.file_sizes(folder / WEIGHTS_NAME)
    return {"stage": stage.name, "num_steps": stage.num_steps, "files": sizes}


class _Loop:
    """A stage, its folder, and where it is."""

    def __init__(self, stage: Stage, run_folder: runs.RunFolder, log_every: int):
        self.stage, self.run_folder, self.log_every = stage, run_folder, log_every
        self.step, self.seconds = 0, 0.0
        self.window: dict[str, list[float]] = {}  # sum and number of values since the last row
        self.window_began = 0
        self.window_seconds = 0.0
        self._load()
        table = {**LOOP_METRICS, **stage.metrics}
        self.metrics = runs.Metrics(run_folder.path / runs.METRICS_NAME, table)
        self._writing(lambda: self.metrics.keep_until(self.step))

    def advance(self) -> dict[str, float]:
        """One step; the row that it wrote, or {}."""
        began = time.monotonic()
        values = self.stage.step(self.step)
        seconds = time.monotonic() - began
        self.step += 1
        self.seconds += seconds
        self.window_seconds += seconds
        for name, value in values.items():
            if name.startswith(("train/", "optim/")) and not math.isfinite(value):
                raise SettingsError(
                    "lr",
                    f"{name} of {self.stage.name} is not finite at step {self.step}; the state "
                    "that was saved before is whole: start anew with a lower learning rate or "
                    "another seed",
                )
            total = self.window.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
        if self.step % self.log_every and self.step < self.stage.num_steps:
            return {}
        return self._write_row()

    def save(self) -> None:
        """The weights, then the state: a state never runs ahead of its weights."""
        self.run_folder.save_folder(WEIGHTS_NAME, self.stage.save)
        self.run_folder.save_state(
            {
                "format": STATE_FORMAT,
                "name": self.stage.name,
                "step": self.step,
                "seconds": self.seconds,
                "window": self.window,
                "window_began": self.window_began,
                "window_seconds": self.window_seconds,
                "stage": self.stage.state(),
            }
        )

    def finish(self) -> None:
        path = self.run_folder.path

        def write() -> None:
            marker = json.dumps(_marker(self.stage, path)) + "\n"
            runs.write_text(path / FINISHED_NAME, marker)

        self._writing(write)

    def _load(self) -> None:
        try:
            state = self.run_folder.load_state()
        except SettingsError as error:  # its name is a flag that a build does not have
            raise SettingsError("out", error.reason) from None
        if state is None:
            return
        path = self.run_folder.path
        if state.get("format") != STATE_FORMAT or state.get("name") != self.stage.name:
            raise SettingsError(
                "out", f"{path} holds no state of {self.stage.name} of this version"
            )
        try:
            self.stage.load_state(state["stage"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.window, self.window_began = state["window"], state["window_began"]
            self.window_seconds = state.get("window_seconds", 0.0)  # states of before lack it
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SettingsError(
                "out", f"the state in {path} was saved under other settings: {reason}"
            ) from None

    def _write_row(self) -> dict[str, float]:
        row = {name: total / number for name, (total, number) in self.window.items()}
        row["time/hours"] = self.seconds / 3600
        num_steps = self.step - self.window_began
        row["time/steps_per_second"] = num_steps / max(self.window_seconds, 1e-9)
        self.window, self.window_began, self.window_seconds = {}, self.step, 0.0
        self._writing(lambda: self.metrics.write(self.step, row))
        return row

    def _writing(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            path = self.run_folder.path
            reason = f"{path} cannot be written ({error.strerror}); what was saved before is whole"
            raise SettingsError("out", reason) from None


class Ema:
    """The moving average of a model's parameters, float32; buffers are those of the last update.

    The decay grows with the updates, (1 + n) / (10 + n), until it reaches `decay`: an average that
    starts at the first random weights would remember them too long.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise SettingsError("ema_decay", f"expected 0 up to below 1, got {decay}")
        self.decay, self.num_updates = decay, 0
        self.weights = {
            name: value.detach().float().clone() if value.is_floating_point() else value.clone()
            for name, value in model.state_dict().items()
        }
        self.trained = [name for name, _ in model.named_parameters()]

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Move towards the model's weights of now."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = model.state_dict()
        averages = [self.weights[name] for name in self.trained]
        torch._foreach_lerp_(averages, [current[n].float() for n in self.trained], 1 - decay)
        for name in self.weights.keys() - set(self.trained):
            self.weights[name].copy_(current[name])

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["weights"].keys() != self.weights.keys():
            raise ValueError("the average is one of another model")
        self.num_updates = state["num_updates"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


def step_generator(seed: int, step: int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for one step: the same numbers whenever the step is made."""
    mixed = random.Random(f"{seed} {step}").getrandbits(63)
    return torch.Generator(device).manual_seed(mixed)


def cosine_lr(
    step: int, num_steps: int, peak: float, num_warmup: int = 100, final_share: float = 0.02
) -> float:
    """The learning rate of step 0 .. num_steps - 1: a linear warm-up of num_warmup steps (a tenth
    of a short training at most), then a cosine that ends at final_share of the peak."""
    num_warmup = min(num_warmup, num_steps // 10)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    done = (step - num_warmup) / max(num_steps - 1 - num_warmup, 1)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def make_adamw(
    model: torch.nn.Module, lr: float, weight_decay: float = 0.01, beta2: float = 0.99
) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients, weight decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = can_fuse(trained[0].device)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=(0.9, beta2), eps=1e-8, fused=fused
    )


def can_fuse(device: torch.device) -> bool:
    """Whether torch has a fused AdamW for the device; for CPUs since 2.4."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" or (device.type == "cpu" and version >= (2, 4))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_seeded(build: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """The model that `build` makes, its first weights from this seed; the global generator that
    they are drawn from is put back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed % 2**63).get_state())
        return build()


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether training under bfloat16 autocast is faster here: on CUDA with the hardware, and on
    CPUs that multiply bfloat16 (others emulate it slowly)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    if kind != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
