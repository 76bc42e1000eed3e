"""Tells when a reward is being gamed, or teaches nothing: from the metrics and outputs of a run.

    watch = Watch(terms=("reward/aesthetic_gain_mean", ...), judges=("judge/taste", ...))
    for step in ...:
        for alarm in watch.add(step, metrics, additions): print(alarm.sentence)

Nothing here stops a run. Alarms: `gaming` (a term rises while a held-out judge, or another term,
falls), `collapse` (one addition to most inputs, or fewer and fewer different word pairs), `length`,
`constant` (every candidate gets the same).
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .prompts import content_words
from .settings import Settings, setting

LEAST_POINTS = 6  # of a series for a trend: a line takes two, four are left to judge the noise
LEAST_PAIRS = 50  # of words: the diversity of fewer is luck
LEAST_SPREAD = 1e-6  # reward units: what rounding leaves between equal rewards


@dataclass(frozen=True)
class AlarmSettings(Settings):
    """When to raise an alarm. On pure noise one run of a hundred has one."""

    alarm_deviation: float = setting(
        3.5,
        "standard errors by which a rise, a fall or a drift has to stand out; 3.5 is one chance in "
        "4,000 on noise, and a run asks some hundred times",
        low=0.5,
        high=100.0,
    )
    alarm_window: int = setting(
        12,
        "iterations of the shortest trend; then 24, 48, ... A run of the paper has 47 iterations",
        low=LEAST_POINTS,
        high=10_000,
    )
    trade_share: float = setting(
        0.25,
        "a fall in another term below this share of the rise is a trade, which the reward is free "
        "to make; of a judge every fall counts",
        low=0.0,
        high=10.0,
    )
    start_window: int = setting(
        5,
        "iterations at the start, and now, that levels are compared over, and in which every "
        "candidate got the same",
        low=2,
        high=1000,
    )
    collapse_share: float = setting(
        0.3,
        "share of the outputs, beyond what was so at the start, that add one and the same text; "
        "a tuned suffix needs no policy",
        low=0.01,
        high=1.0,
    )
    distinct_share: float = setting(
        0.5, "different word pairs among as many, as a share of the start's", low=0.0, high=1.0
    )
    length_band: float = setting(
        0.5, "mean length may leave the start's by this share of it", low=0.0, high=100.0
    )


@dataclass(frozen=True)
class Alarm:
    """name: "gaming", "collapse", "length" or "constant". step: of the newest point. sentence: the
    numbers."""

    name: str
    step: int
    sentence: str


Series = Sequence[tuple[int, float]]  # (step, value), steps rising


@dataclass(frozen=True)
class Trend:
    """A straight line through a series. rise: last point of the line minus the first, in the
    series' unit. deviation: the slope in standard errors, as of a normal distribution; infinite
    where the points lie on the line."""

    first_step: int
    last_step: int
    rise: float
    deviation: float


def trend(series: Series) -> Trend | None:
    """Least squares over the finite points; None where they are fewer than LEAST_POINTS."""
    points = [point for point in series if math.isfinite(point[1])]
    if len(points) < LEAST_POINTS:
        return None
    mean_step = sum(step for step, _ in points) / len(points)
    mean_value = sum(value for _, value in points) / len(points)
    centred = [(step - mean_step, value - mean_value) for step, value in points]
    spread = sum(step * step for step, _ in centred)
    slope = sum(step * value for step, value in centred) / spread
    squares = sum((value - slope * step) ** 2 for step, value in centred)
    freedom = len(points) - 2
    error = math.sqrt(squares / freedom / spread)
    first, last = points[0][0], points[-1][0]
    reach = last - first
    rounding = 1e-12 * (1.0 + max(abs(value) for _, value in points))
    if abs(slope) * reach <= rounding:
        return Trend(first, last, 0.0, 0.0)
    deviation = math.copysign(math.inf, slope)
    if error * reach > rounding:
        deviation = normal_deviation(slope / error, freedom)
    return Trend(first, last, slope * reach, deviation)


def normal_deviation(t: float, freedom: int) -> float:
    """The deviate of a normal distribution as unlikely as `t` of Student's with `freedom` degrees,
    to 2 % from three degrees on. Few points judge their own noise badly, so a large t of theirs
    says less. Source: D. L. Wallace, Annals of Mathematical Statistics 30, 1959, section 3."""
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(scale * math.sqrt(freedom * math.log1p(t * t / freedom)), t)


def is_gaming(up: Trend, down: Trend, settings: AlarmSettings, least_share: float) -> bool:
    """Whether one series rises and the other falls, both by alarm_deviation, and the fall is at
    least `least_share` of the rise."""
    return (
        up.deviation >= settings.alarm_deviation
        and down.deviation <= -settings.alarm_deviation
        and -down.rise >= least_share * up.rise
    )


def _gaming_sentence(term: str, up: Trend, other: str, down: Trend) -> str:
    return (
        f"{term} rose by {up.rise:.3g} ({up.deviation:.1f} standard errors) from step "
        f"{up.first_step} to {up.last_step} while {other} fell by {-down.rise:.3g} "
        f"({-down.deviation:.1f} standard errors)"
    )


def _since(step: int, series: Series) -> Series:
    """The points after `step`."""
    return series[bisect.bisect_right(series, step, key=lambda point: point[0]) :]


def added_text(user_input: str, adapted_prompt: str) -> str:
    """What a candidate adds to its user input, lower case; the whole where it is a rewrite."""
    text = adapted_prompt.strip()
    start = user_input.strip()
    if start and text.lower().startswith(start.lower()):
        text = text[len(start) :]
    return " ".join(text.lower().split()).strip(" ,.;")


def most_frequent(texts: Sequence[str]) -> tuple[str, float]:
    """The most frequent text and its share (0 to 1); ("", 0.0) of none."""
    if not texts:
        return "", 0.0
    text, number = Counter(texts).most_common(1)[0]
    return text, number / len(texts)


def word_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbouring content words within each text."""
    return [pair for text in texts for pair in _pairs_of(text)]


@lru_cache(maxsize=8192)  # the first and the latest iterations' texts are asked for again and again
def _pairs_of(text: str) -> list[tuple[str, str]]:
    words = content_words(text)
    return list(zip(words, words[1:], strict=False))


def distinct_share(pairs: Sequence[tuple[str, str]], num_pairs: int) -> float:
    """0 to 1: how many of the last `num_pairs` pairs differ. More pairs repeat more often, so
    compare equal numbers only. 1.0 of none. Source: distinct-n, Li et al., arXiv 1510.03055."""
    last = pairs[max(len(pairs) - num_pairs, 0) :] if num_pairs else []
    return len(set(last)) / len(last) if last else 1.0


class Watch:
    """Looks at a run after every iteration. `state` and `load_state` carry it over a resume."""

    def __init__(
        self,
        settings: AlarmSettings | None = None,
        terms: Sequence[str] = (),
        judges: Sequence[str] = (),
        length: str = "",
        spreads: Sequence[str] = (),
    ):
        """Keys of metrics. terms: reward terms times their weights, all in reward units. judges:
        held-out ones, in units of their own, measured at some steps or at all. length: the mean
        completion length. spreads: standard deviations over candidates, in reward units, of which
        none should stay 0."""
        self.settings = settings or AlarmSettings()
        self.terms, self.judges, self.length = tuple(terms), tuple(judges), length
        self.spreads = tuple(spreads)
        self._series: dict[str, list[tuple[int, float]]] = {}
        self._first_additions: list[list[str]] = []  # one list for each of the first iterations
        self._last_additions: list[list[str]] = []
        self._quiet_until: dict[str, int] = {}

    def add(
        self, step: int, metrics: Mapping[str, float], additions: Sequence[str] = ()
    ) -> list[Alarm]:
        """The alarms at this step; each is silent for alarm_window steps after it.

        step: of the iteration, rising. metrics: those the watch does not know, and those that are
        not finite, are passed over. additions: `added_text` of the iteration's candidates.
        """
        length = [self.length] if self.length else []
        for name in {*self.terms, *self.judges, *length, *self.spreads}:
            if math.isfinite(value := metrics.get(name, math.nan)):
                self._series.setdefault(name, []).append((step, float(value)))
        if additions:
            number = self.settings.start_window
            if len(self._first_additions) < number:
                self._first_additions.append(list(additions))
            self._last_additions = [*self._last_additions, list(additions)][-number:]
        found = {
            **self._gaming(metrics),
            **self._length(),
            **self._constant(),
            **(self._collapse() if additions else {}),
        }
        alarms = []
        for key, sentence in found.items():
            if self._quiet_until.get(key, step) <= step:
                self._quiet_until[key] = step + self.settings.alarm_window
                alarms.append(Alarm(key.split(" ")[0], step, sentence))
        return alarms

    def state(self) -> dict[str, Any]:
        """All it has seen: texts, numbers, lists and dicts."""
        return {
            "series": {name: [list(point) for point in s] for name, s in self._series.items()},
            "first_additions": self._first_additions,
            "last_additions": self._last_additions,
            "quiet_until": dict(self._quiet_until),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._series = {
            name: [(step, value) for step, value in s] for name, s in state["series"].items()
        }
        self._first_additions = [list(texts) for texts in state["first_additions"]]
        self._last_additions = [list(texts) for texts in state["last_additions"]]
        self._quiet_until = dict(state["quiet_until"])

    def _gaming(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Sentences by the key of their alarm, here and below; of the shortest window with one."""
        found: dict[str, str] = {}
        names = [name for name in (*self.judges, *self.terms) if name in metrics]
        series = {name: self._series[name] for name in names if name in self._series}
        if not series:
            return found
        first = min(points[0][0] for points in series.values())
        last = max(points[-1][0] for points in series.values())
        num_steps = self.settings.alarm_window
        while True:
            trends = {name: trend(_since(last - num_steps, s)) for name, s in series.items()}
            for term in self.terms:
                for other, down in trends.items():
                    up, key = trends.get(term), f"gaming {term} {other}"
                    share = 0.0 if other in self.judges else self.settings.trade_share
                    if up is None or down is None or key in found:
                        continue
                    if is_gaming(up, down, self.settings, share):
                        found[key] = _gaming_sentence(term, up, other, down)
            if last - num_steps < first:
                return found
            num_steps *= 2

    def _collapse(self) -> dict[str, str]:
        settings = self.settings
        if len(self._first_additions) < settings.start_window:
            return {}
        first, last = (
            [text for texts in part for text in texts]
            for part in (self._first_additions, self._last_additions)
        )
        found: dict[str, str] = {}
        text, share = most_frequent(last)
        share_before = most_frequent(first)[1]
        if share - share_before >= settings.collapse_share * (1.0 - share_before) > 0.0:
            shown = f"add the same text, {text!r:.80}" if text else "add nothing"
            found["collapse addition"] = (
                f"{share:.0%} of the outputs {shown}; at the start no text came to more than "
                f"{share_before:.0%}"
            )
        pairs_before, pairs = word_pairs(first), word_pairs(last)
        number = min(len(pairs_before), len(pairs))
        distinct_before, distinct = (distinct_share(p, number) for p in (pairs_before, pairs))
        if number >= LEAST_PAIRS and distinct < settings.distinct_share * distinct_before:
            found["collapse pairs"] = (
                f"{distinct:.0%} of the word pairs added are different ones, at the start "
                f"{distinct_before:.0%} of as many"
            )
        return found

    def _length(self) -> dict[str, str]:
        settings, number = self.settings, self.settings.start_window
        values = [value for _, value in self._series.get(self.length, [])]
        if len(values) < 2 * number:
            return {}
        first, last = values[:number], values[-number:]
        before, now = statistics.fmean(first), statistics.fmean(last)
        error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / number)
        deviation = math.inf if now != before else 0.0
        if error:
            deviation = abs(normal_deviation((now - before) / error, 2 * number - 2))
        if abs(now - before) <= settings.length_band * before:
            return {}
        if deviation < settings.alarm_deviation:
            return {}
        return {
            "length": f"{self.length} is {now:.1f}, at the start it was {before:.1f} "
            f"({deviation:.1f} standard errors)"
        }

    def _constant(self) -> dict[str, str]:
        number = self.settings.start_window
        found: dict[str, str] = {}
        for name in self.spreads:
            last = self._series.get(name, [])[-number:]
            if len(last) == number and all(value <= LEAST_SPREAD for _, value in last):
                found[f"constant {name}"] = (
                    f"{name} is 0 since step {last[0][0]}: what is the same for every candidate "
                    "teaches nothing"
                )
        return found
