"""How long a picture takes, measured on few of them and in bounded time.

Pictures are rendered in the batches of the run. Where a whole batch would take too long, fewer
sampling steps and fewer pictures are rendered: two renderings of different length tell the time of
a step from that of text encoder and decoder. Nothing of a probe is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..judging import Judge
from ..picture_scores import Picture, PictureScores, Row
from .costs import Probe
from .probing import MOST_TRIED, ShouldStop, nothing_rewarded

FEW_STEPS = 2  # sampling steps of the first pictures
USUAL_BATCH = 8  # pictures at once, where a renderer does not say


@dataclasses.dataclass(frozen=True)
class PictureCost:
    """Seconds of one picture, in renderer, scorer and judge."""

    rendering: float
    scoring: float
    judging: float
    probe: Probe


class Measured(NamedTuple):
    """Of some pictures together. pictures: (N, H, W, 3) uint8."""

    number: int
    num_steps: int
    rendering: float
    scoring: float
    pictures: np.ndarray


class PictureProbe:
    """Renders and scores pictures of one text, and looks at the clock."""

    def __init__(self, rewarder: Any, seconds: float, should_stop: ShouldStop):
        """rewarder: with a generator and a scorer, as rewards.Rewarder."""
        self.generator, self.scorer = rewarder.generator, rewarder.scorer
        self.should_stop, self.seconds = should_stop, seconds
        self.began = time.monotonic()
        self.num_steps = self.generator.settings.num_steps
        # another renderer need not heed a changed number of steps
        self.has_steps = getattr(self.generator, "settings_may_change", False)
        self.failures: list[str] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.began)

    def measure(self, user_input: str, text: str, number: int, num_steps: int) -> Measured | None:
        """None where a picture failed."""
        generator = _Timed(self._with_steps(num_steps, number), "generate")
        scorer = _Timed(self.scorer, "score")
        work = PictureScores(generator, scorer, self.should_stop, keep_pictures=True)
        rows = [Row(user_input, Picture(text, seed)) for seed in range(number)]
        scores = work.run(rows)
        self.failures += work.failures
        if len(scores) < number:
            return None
        pictures = np.stack([work.pictures[row.picture] for row in rows])
        return Measured(number, num_steps, generator.seconds, scorer.seconds, pictures)

    def first(self, texts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], Measured]:
        """The first of (user input, text) that gets a score, warmed up. SettingsError where none
        of the first few does."""
        tried = list(texts[:MOST_TRIED])
        few = min(FEW_STEPS, self.num_steps) if self.has_steps else self.num_steps
        for user_input, text in tried:
            found = self.measure(user_input, text, 1, few)
            if found is None:
                continue
            if self.left > 2 * (found.rendering + found.scoring):  # without what only starts once
                found = self.measure(user_input, text, 1, few) or found
            return (user_input, text), found
        raise nothing_rewarded(len(tried), self.failures)

    def _with_steps(self, num_steps: int, number: int) -> Any:
        if not self.has_steps:
            return self.generator
        short = copy.copy(self.generator)
        short.settings = dataclasses.replace(self.generator.settings, num_steps=num_steps)
        short.batch_size = min(self.generator.batch_size, number)
        return short


def probe_pictures(
    rewarder: Any,
    texts: Sequence[tuple[str, str]],
    most: int,
    seconds: float,
    should_stop: ShouldStop = None,
    judge: Judge | None = None,
) -> PictureCost:
    """Seconds of a picture, from about so many seconds of rendering. texts: (user input, adapted
    prompt). most: pictures that a call of the run has at most. SettingsError where nothing gets a
    score; decoding.Stopped."""
    probe = PictureProbe(rewarder, seconds, should_stop)
    (user_input, text), one = probe.first(texts)
    batch = max(1, min(getattr(probe.generator, "batch_size", USUAL_BATCH), most))
    each = one.rendering + one.scoring
    steps_left = probe.num_steps / one.num_steps
    if each * batch * steps_left <= probe.left:
        found = probe.measure(user_input, text, batch, probe.num_steps) or one
        if found is not one and found.rendering + found.scoring <= probe.left:
            again = probe.measure(user_input, text, batch, probe.num_steps)
            found = min(found, again or found, key=lambda m: m.rendering)
        rendering = found.rendering * probe.num_steps / found.num_steps / found.number
    else:
        rendering, found = _from_few_steps(probe, user_input, text, one, batch)
    judging = 0.0
    if judge is not None:
        began = time.monotonic()
        pictures = [picture[None] for picture in found.pictures]
        judge.judge_each([user_input] * found.number, [text] * found.number, pictures)
        judging = (time.monotonic() - began) / found.number
    told = Probe(
        time.monotonic() - probe.began, 0, found.number,
        found.number, batch, found.num_steps if probe.has_steps else 0,
        probe.num_steps if probe.has_steps else 0,
    )  # fmt: skip
    return PictureCost(rendering, found.scoring / found.number, judging, told)


def _from_few_steps(
    probe: PictureProbe, user_input: str, text: str, one: Measured, batch: int
) -> tuple[float, Measured]:
    """(seconds of a whole picture, the pictures that they come from)."""
    few, more = one.num_steps, min(2 * one.num_steps, probe.num_steps)
    each = one.rendering + one.scoring
    number = min(batch, max(1, int(probe.left / (each * (few + more) / few))))
    alone = one.rendering * probe.num_steps / few  # encoder and decoder counted with every step
    if more == few or each * number * (few + more) / few > probe.left:
        return alone, one
    short = probe.measure(user_input, text, number, few)
    long = probe.measure(user_input, text, number, more)
    if short is None or long is None:
        return alone, one
    step = (long.rendering - short.rendering) / (more - few)
    if step <= 0.0:  # nothing but noise: as if a step took its share of all
        step = long.rendering / more
    whole = long.rendering + step * (probe.num_steps - more)
    return whole / number, long


class _Timed:
    """A renderer or a scorer that counts the seconds of one of its methods, where it returns."""

    def __init__(self, inner: Any, name: str):
        self._inner, self.seconds = inner, 0.0

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            result = getattr(inner, name)(*arguments, **options)
            self.seconds += time.monotonic() - began
            return result

        setattr(self, name, timed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
