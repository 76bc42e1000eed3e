"""What is written down of a PPO run: metrics.jsonl and TensorBoard, alarms.jsonl, samples/."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import runs
from ..alarms import AlarmSettings, Watch, added_text
from ..judging import Judge
from ..process_group import ALONE, ProcessGroup
from ..rollouts import RewardBatch, RewardFunction, Rollout
from ..settings import SettingsError
from .ppo_metrics import PPO_METRICS
from .ppo_settings import PpoSettings
from .samples import FOLDER_NAME, write_samples

ALARMS_NAME = "alarms.jsonl"
TENSORBOARD_NAME = "tensorboard"
MOST_FAILURES_TOLD = 20  # each different sentence once; all are counted in every row


class Record:
    """alarms: every one so far, as in alarms.jsonl. In a group of processes the main one writes,
    and only its alarms are kept."""

    def __init__(
        self,
        settings: PpoSettings,
        reward: RewardFunction,
        judge: Judge | None,
        alarm_settings: AlarmSettings | None,
        report: runs.Reporter,
        group: ProcessGroup = ALONE,
    ):
        self.settings, self.report, self.group = settings, report, group
        self.path = Path(settings.out)
        self.table = {**PPO_METRICS, **reward.metrics, **(judge.metrics if judge else {})}
        self.watch = Watch(
            alarm_settings,
            terms=[name for name in reward.metrics if _is_weighted_term(name)],
            judges=list(judge.metrics) if judge else [],
            length="rollout/num_tokens",
            spreads=["rollout/reward_std", *getattr(reward, "spreads", ())],
        )
        self.alarms: list[dict[str, Any]] = []
        self.metrics: runs.Metrics | None = None
        self._told: set[str] = set()

    def open(self, iteration: int) -> None:
        """Begin to write after so many iterations; rows and alarms after them are dropped."""
        if not self.group.is_main:
            return
        writer = None
        if self.settings.tensorboard:
            writer = runs.tensorboard_writer(self.path / TENSORBOARD_NAME, iteration + 1)
        self.metrics = runs.Metrics(self.path / runs.METRICS_NAME, self.table, writer)
        self.metrics.keep_until(iteration)
        self._write_alarms()

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def are_samples_due(self, iteration: int) -> bool:
        """iteration: from 1. Always of the first."""
        every = self.settings.samples_every
        return bool(every) and (iteration == 1 or iteration % every == 0)

    def write_samples(
        self,
        iteration: int,
        sampled: Rollout,
        batch: RewardBatch,
        judged: Mapping[str, np.ndarray],
        pictures: Sequence[np.ndarray | None] | None,
    ) -> None:
        """pictures: of the first candidates."""
        if self.group.is_main:
            folder, number = self.path / FOLDER_NAME, self.settings.num_samples
            write_samples(folder, iteration, sampled, batch, number, judged, pictures)

    def tell_failures(self, iteration: int, batch: RewardBatch) -> None:
        """Say why candidates were left out, as far as the batch knows and nobody was told."""
        failures = list(getattr(batch, "failures", ()))
        new = [sentence for sentence in failures if sentence not in self._told]
        if not new or len(self._told) >= MOST_FAILURES_TOLD:
            return
        self._told.update(new)
        number = int((~batch.ok).sum())
        self.report.say(
            f"iteration {iteration}: {number} of {len(batch.ok)} candidates are left out; {new[0]}"
        )

    def add_alarms(self, iteration: int, row: dict[str, float], rollout: Rollout) -> None:
        """Say what looks wrong with the reward, and write it down."""
        additions = list(map(added_text, rollout.user_inputs, rollout.adapted_prompts))
        for alarm in self.watch.add(iteration, row, additions):
            self.report.say(f"alarm ({alarm.name}): {alarm.sentence}")
            self.alarms.append(dataclasses.asdict(alarm))

    def write_row(self, iteration: int, row: Mapping[str, float]) -> None:
        """The row, and all alarms. SettingsError("out", ...) where the disk refuses."""
        if not self.group.is_main:
            return
        assert self.metrics is not None, "open comes first"
        try:
            self.metrics.write(iteration, row)
            if self.metrics.writer is not None:
                self.metrics.writer.flush()  # a killed process must not take rows with it
            self._write_alarms()
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError("out", f"{self.path} cannot be written ({reason})") from None

    def _write_alarms(self) -> None:
        path = self.path / ALARMS_NAME
        lines = [json.dumps(alarm, ensure_ascii=False) + "\n" for alarm in self.alarms]
        if lines or path.exists():
            runs.write_text(path, "".join(lines))


def _is_weighted_term(name: str) -> bool:
    """Whether a metric of a reward is the mean of one term, times its weight."""
    return name.endswith("_mean") and not name.endswith("_raw_mean") and name != "reward/mean"
