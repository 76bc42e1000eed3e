"""Rounds of mining and learning: what rejection sampling and DPO have in common.

A round samples and rewards candidates of the policy as it is, chooses what to learn from, and
learns it in a folder of its own:

    rounds/001/candidates.jsonl   all that was sampled, and what it was worth (mined.py)
    rounds/001/pairs.jsonl        what was learned from
    rounds/001/learning/          the run that learned it

A run that goes on finds each of these as far as it was, so that nothing is rendered twice but what
a batch that was broken off had begun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import runs
from ..adapter import PromptAdapter
from ..decoding import Stopped
from ..judging import Judge
from ..manifest import Manifest
from ..policy import Policy
from ..rollouts import RewardFunction
from ..settings import SettingsError
from .mined import Batch, Group, finished_batches, groups_of
from .mining import Mine
from .mining_metrics import MINING_METRICS, mining_metrics
from .mining_plan import make_plan
from .rounds_preparing import Prepared, load_policy
from .sft import write_row

STATE_FORMAT = 1
TENSORBOARD_NAME = "tensorboard"
CANDIDATES_NAME, PAIRS_NAME, LEARNING_NAME = "candidates.jsonl", "pairs.jsonl", "learning"


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a round learns from. rows: of pairs.jsonl. reward, gain: means of the texts that are
    to be written, and above their plain user inputs; nan where nothing was rewarded."""

    rows: list[dict[str, Any]]
    reward: float = math.nan
    gain: float = math.nan


@dataclasses.dataclass(frozen=True)
class Learned:
    """status: "done" or "stopped". folder: of the weights that go on. metrics: of the round."""

    status: str
    folder: Path
    metrics: dict[str, float]


class Method(Protocol):
    """One way of learning from candidates. metrics: what `learn` adds to a round's row, defined.
    texts_per_input: that it learns from for each user input of a round, passes counted in."""

    trainer: str
    metrics: Mapping[str, str]
    texts_per_input: float

    def choose(self, groups: list[Group], policy: Policy | None) -> Lesson:
        """SettingsError names the condition that left nothing. policy: whose tokens count."""

    def learn(
        self,
        start: Path,
        manifest: Manifest,
        folder: Path,
        report: runs.Reporter,
        should_stop: Callable[[], bool],
    ) -> Learned:
        """From the policy in `start`, what stands in folder/PAIRS_NAME, in folder/LEARNING_NAME,
        going on with what is there."""


@dataclasses.dataclass(frozen=True)
class RoundsResult:
    """status: "done" or "stopped" (asked to; it can be resumed). best: folder of the weights with
    the highest mean reward of their own candidates, and that reward; nan where best/ is the last
    because it was not measured."""

    status: str
    round: int
    num_rounds: int
    best: Path
    best_reward: float


class RoundReport:
    """A Reporter that puts the round before every line, and tells no steps of the learning: they
    are of another count than the batches of mining."""

    def __init__(self, report: runs.Reporter, number: int):
        self.report, self.number = report, number

    def say(self, text: str) -> None:
        self.report.say(f"round {self.number}: {text}")

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        pass


class Rounds:
    """One run: what it has mined, and how far it is."""

    def __init__(
        self,
        prepared: Prepared,
        method: Method,
        reward: RewardFunction | None,
        judge: Judge | None,
        report: runs.Reporter,
        num_rounds: int,
    ):
        """reward: None for a method that needs no candidates."""
        self.prepared, self.method, self.report = prepared, method, report
        self.settings, self.run_folder = prepared.settings, prepared.run_folder
        self.reward, self.num_rounds = reward, num_rounds
        self.mine: Mine | None = None
        if reward is not None:
            self.mine = Mine(
                self.settings, prepared.works, prepared.asked, reward, judge, report
            )  # fmt: skip
        self.progress: dict[str, Any] = {
            "round": 0, "policy": "", "seconds": 0.0, "best_reward": -math.inf, "measured": False,
        }  # fmt: skip
        self.began = time.monotonic()
        self.run_folder.restore(STATE_FORMAT, lambda state: self.progress.update(state["progress"]))
        self.run_folder.finish_replacing("best", "last")
        path, done = self.run_folder.path, self.progress["round"] + self.progress["measured"]
        tables = (reward.metrics if reward else {}), (judge.metrics if judge else {})
        self.table = {**MINING_METRICS, **tables[0], **tables[1], **method.metrics}
        writer = None
        if self.settings.tensorboard:
            writer = runs.tensorboard_writer(path / TENSORBOARD_NAME, done + 1)
        self.metrics = runs.Metrics(path / runs.METRICS_NAME, self.table, writer)
        self.metrics.keep_until(done)

    def run(self, should_stop: Callable[[], bool]) -> RoundsResult:
        """To the end, or until asked to stop."""
        progress = self.progress
        measures = self.mine is not None and self.settings.measure_inputs > 0
        try:
            if self.mine is not None:
                self._check_images()
                self._recall()
            if self.mine is not None and progress["round"] < self.num_rounds:
                self._say_plan(should_stop)
            while progress["round"] < self.num_rounds:
                self._round(should_stop)
                if should_stop():
                    raise Stopped
            if measures and not progress["measured"]:
                self._measure(should_stop)
        except Stopped:
            self._save_state()
        done = progress["round"] == self.num_rounds and (progress["measured"] or not measures)
        if done and not measures:
            self._save_policy("best", self._policy(), torch.float16)
        best_reward = progress["best_reward"] if measures else math.nan
        return RoundsResult(
            "done" if done else "stopped",
            progress["round"],
            self.num_rounds,
            self.run_folder.path / "best",
            best_reward,
        )

    def folder(self, number: int) -> Path:
        """Of a round, from 1."""
        return self.run_folder.path / "rounds" / f"{number:03d}"

    def _policy(self) -> Policy:
        return load_policy(self._start(), self.prepared.manifest, self.prepared.device)

    def _start(self) -> Path:
        """The folder of the policy as it is."""
        name = self.progress["policy"]
        return self.run_folder.path / name if name else self.prepared.folder

    def _check_images(self) -> None:
        """SettingsError("max_images", ...) for too few, before anything is rendered."""
        assert self.reward is not None
        some_input = self.prepared.works[0].typed.user_input
        self.settings.most_images(1, len(self.reward.seeds_of(some_input)))

    def _recall(self) -> None:
        """What earlier rounds rendered costs nothing any more."""
        assert self.mine is not None
        for number in range(1, self.progress["round"] + 1 + self.progress["measured"]):
            for batch in finished_batches(self.folder(number) / CANDIDATES_NAME):
                self.mine.remember(batch)

    def _say_plan(self, should_stop: Callable[[], bool]) -> None:
        assert self.reward is not None
        plan = make_plan(
            self.prepared,
            PromptAdapter(self._policy()),
            self.reward,
            self.progress["round"],
            self.method.texts_per_input,
            should_stop,
            judge=self.mine.judge if self.mine else None,
        )
        for sentence in (*plan.sentences(), *getattr(self.reward, "sentences", list)()):
            self.report.say(sentence)
        if self.mine is not None and self.mine.judge is not None:
            names = ", ".join(self.mine.judge.metrics)
            self.report.say(f"judged, with no part in the reward: {names}")
        if should_stop():
            raise Stopped

    def _round(self, should_stop: Callable[[], bool]) -> None:
        """Mine, choose, learn, write down."""
        number, times = self.progress["round"] + 1, [time.monotonic()]
        policy, row, groups = None, {}, []
        if self.mine is not None:
            policy = self._policy()
            row, groups = self._mined(number, policy, self.settings.round_inputs, should_stop)
            self._keep_best(row["mined/reward"], policy)
        times.append(time.monotonic())
        lesson = self._choose(number, groups, policy)
        del policy, groups  # their memory is needed for learning
        learned = self.method.learn(
            self._start(), self.prepared.manifest, self.folder(number),
            RoundReport(self.report, number), should_stop,
        )  # fmt: skip
        if learned.status == "stopped":
            raise Stopped
        row["learned/num_pairs"] = float(len(lesson.rows))
        if math.isfinite(lesson.reward):
            row |= {"learned/reward": lesson.reward, "learned/gain": lesson.gain}
        self.progress["policy"] = learned.folder.relative_to(self.run_folder.path).as_posix()
        self._save_policy("last", self._policy(), torch.float32)
        times.append(time.monotonic())
        self.progress["round"] = number
        self._write(number, {**row, **learned.metrics}, times)
        self._save_state()
        left = self.folder(number) / LEARNING_NAME / runs.STATE_NAME
        with contextlib.suppress(OSError):  # moments of an optimizer that nobody goes on with
            left.unlink()

    def _measure(self, should_stop: Callable[[], bool]) -> None:
        """Candidates of the last policy, for their rewards alone."""
        number, times = self.num_rounds + 1, [time.monotonic()]
        policy = self._policy()
        row, _ = self._mined(number, policy, self.settings.measure_inputs, should_stop)
        self._keep_best(row["mined/reward"], policy)
        times += [time.monotonic()] * 2
        self.progress["measured"] = True
        self._write(number, row, times)
        self._save_state()

    def _mined(
        self, number: int, policy: Policy, num_inputs: int, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], list[Group]]:
        """A round's metrics of mining, and its candidates by user input."""
        assert self.mine is not None
        assert self.reward is not None
        some_input = self.prepared.works[0].typed.user_input
        num_images = len(self.reward.seeds_of(some_input))
        path = self.folder(number) / CANDIDATES_NAME
        batches: list[Batch] = self.mine.dig(
            PromptAdapter(policy),
            path,
            (number - 1) * self.settings.round_chunks,
            num_inputs,
            self.settings.most_images(number, num_images),
            should_stop,
        )
        groups = groups_of(batches)
        row = mining_metrics(batches, groups, self.table)
        if not math.isfinite(row["mined/reward"]):
            with contextlib.suppress(OSError):  # a run that goes on tries them again
                path.unlink()
            raise SettingsError(
                "renderer", f"no candidate of round {number} has a reward; what was saved is whole"
            )
        mine = self.mine
        row |= {
            "train/candidates": float(mine.num_candidates), "train/images": float(mine.num_asked),
            "train/rendered": float(mine.num_images),
            "train/plain_rendered": float(mine.num_plain_images),
        }  # fmt: skip
        self.report.say(
            f"round {number}: {int(row['mined/num_candidates']):,} candidates, mean reward "
            f"{row['mined/reward']:.3f}, best of each user input {row['mined/best_reward']:.3f}; "
            f"{mine.num_images:,} images rendered so far"
        )
        return row, groups

    def _choose(self, number: int, groups: list[Group], policy: Policy | None) -> Lesson:
        """What to learn from, written down. SettingsError where nothing is left."""
        try:
            lesson = self.method.choose(groups, policy)
        except SettingsError as error:
            if number == 1:
                raise
            kept = "what was learned before is in last/"
            raise SettingsError(error.name, f"{error.reason}, in round {number}; {kept}") from None
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                       for row in lesson.rows)  # fmt: skip
        path = self.folder(number) / PAIRS_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            runs.write_text(path, text)
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError("out", f"{path} cannot be written ({reason})") from None
        return lesson

    def _keep_best(self, reward: float, policy: Policy) -> None:
        if reward > self.progress["best_reward"]:
            self.progress["best_reward"] = reward
            self._save_policy("best", policy, torch.float16)

    def _save_policy(self, name: str, policy: Policy, dtype: torch.dtype) -> None:
        self.run_folder.save_folder(name, lambda folder: policy.save(folder, dtype))

    def _write(self, step: int, row: dict[str, float], times: list[float]) -> None:
        self._count_time()
        row["time/hours"] = self.progress["seconds"] / 3600
        row["time/mining_seconds"] = times[1] - times[0]
        row["time/learning_seconds"] = times[2] - times[1]
        if self.mine is not None:
            row["train/best_reward"] = self.progress["best_reward"]
        write_row(self.metrics, step, row)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress["seconds"] += now - self.began
        self.began = now

    def _save_state(self) -> None:
        self._count_time()
        self.run_folder.save_state({"format": STATE_FORMAT, "progress": self.progress})
