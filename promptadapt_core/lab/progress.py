"""Progress of a build: the time left for the part in hand and for the whole."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from .. import runs


@dataclasses.dataclass(frozen=True)
class Work:
    """One part of a build. seconds: what it took in all on the machine where it was timed; only
    the proportions matter, as this machine's speed is measured against them."""

    name: str
    seconds: float


class BuildProgress(runs.Progress):
    """A Progress over several parts. `plan` first, then `begin` before each part."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = 30.0):
        super().__init__(stream, every_seconds)
        self.works: list[Work] = []  # the one in hand first
        self.began = time.monotonic()
        self.spent = 0.0  # seconds here on what the timed machine did in `timed` seconds
        self.timed = 0.0
        self.place = (0, 1)

    def plan(self, works: Sequence[Work]) -> None:
        """What is to be done, in order."""
        self.works = [Work("", 0.0), *works]

    def begin(self, name: str) -> None:
        """The next part, which is one of the plan; parts before it are done."""
        self._close()
        while self.works and self.works[0].name != name:
            self.works.pop(0)
        self.first, self.place, self.last_shown = None, (0, 1), -math.inf
        self.metrics.clear()
        self.say(name)

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        self.place = (step, num_steps)
        super().step(step, num_steps, metrics)

    def whole_left(self) -> float:
        """Seconds until the whole build is done; nan before the first step."""
        spent, timed = self._measured()
        step, num_steps = self.place
        if not self.works or timed <= 0:
            return math.nan
        left = self.works[0].seconds * (1 - step / num_steps)
        left += sum(work.seconds for work in self.works[1:])
        return left * spent / timed

    def _measured(self) -> tuple[float, float]:
        """Seconds spent on steps here, and what those steps took where they were timed."""
        if self.first is None or not self.works:
            return self.spent, self.timed
        first_step, first_time = self.first
        step, num_steps = self.place
        share = (step - first_step) / num_steps
        seconds = time.monotonic() - first_time if share else 0.0
        return self.spent + seconds, self.timed + share * self.works[0].seconds

    def _close(self) -> None:
        self.spent, self.timed = self._measured()
        self.first = None

    def _figures(self) -> str:
        whole = self.whole_left()
        step, num_steps = self.place
        several = len(self.works) > 1 and math.isfinite(whole) and step < num_steps
        parts = f", {runs.duration(whole)} for all parts" if several else ""
        return parts + super()._figures()
