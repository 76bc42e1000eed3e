"""What reinforcement learning must show, as measured: met, missed, or not measured at all.

The rows are found by their names: `sft` and `rl`. Beside what the pictures say, `rl` policies that
stand in the folder of their training run bring the run's own figures along.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .measured import Measured, MeasuredRow
from .settings import BEST_OF_N, ORACLE, PLAIN, SUFFIX
from .statistics import Estimate

SFT, RL = "sft", "rl"
LEAST_INPUTS, LEAST_SEEDS = 200, 3  # in each domain; training seeds of rl
GAP_TARGET, GAP_AIM = 0.7, 0.9
ACCURACY_TARGET = -0.02  # a judge's accuracy may fall by two points
MOST_MINUTES, MOST_OUTSIDE_SHARE = 30.0, 0.2
TASTE_METRICS = ("judge/taste", "judge/aesthetic")
CONTENT_METRICS = ("accuracy", "relevance")  # ends of the names of what a judge must not lose
OUT_OF_DOMAIN = "out-of-domain"


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing to show. asked: in words. met: None where it was only measured. low, high: a 95%
    interval where there is one."""

    name: str
    value: float
    asked: str
    met: bool | None
    low: float = math.nan
    high: float = math.nan
    number: int = 0
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def acceptance(measured: Measured) -> list[dict[str, Any]]:
    """All lines for whose rows there are numbers."""
    lines = [
        *_sizes(measured),
        *_gains(measured),
        *_growth(measured),
        *_gaps(measured),
        *_judged(measured),
        *_runs(measured),
    ]
    return [line.as_json() for line in lines]


def _line(name: str, found: Estimate, asked: str, met: bool, note: str = "") -> Line:
    return Line(name, found.value, asked, met, found.low, found.high, found.number, note)


def _sizes(measured: Measured) -> Iterator[Line]:
    for domain in measured.inputs.domains:
        number = len(measured.inputs.places_of(domain))
        yield Line(
            f"user inputs, {domain}", number, f"at least {LEAST_INPUTS}", number >= LEAST_INPUTS
        )
    row = measured.row(RL)
    if row is not None:
        number = len(row.plan.folders)
        yield Line("training seeds of rl", number, f"at least {LEAST_SEEDS}", number >= LEAST_SEEDS)


def _gains(measured: Measured) -> Iterator[Line]:
    for first, second in ((SFT, PLAIN), (RL, SFT), (RL, SUFFIX), (RL, BEST_OF_N)):
        for domain, rows in _of_domains(measured, first, second):
            found = measured.resampling.difference(*rows)
            if found.number:
                name = f"reward, {first} over {second}, {domain}"
                yield _line(name, found, "interval above 0", found.above_0)


def _growth(measured: Measured) -> Iterator[Line]:
    for domain, rows in _of_domains(measured, RL, SFT, PLAIN):
        found = measured.resampling.gain_over_gain(*rows)
        if domain == OUT_OF_DOMAIN and found.number:
            name = f"reward, what rl adds to sft over what sft added, {domain}"
            yield _line(name, found, "interval above 0", found.above_0)


def _gaps(measured: Measured) -> Iterator[Line]:
    for domain, rows in _of_domains(measured, RL, PLAIN, ORACLE):
        found = measured.resampling.gap_share(*rows)
        if math.isfinite(found.value):
            aim = "and at the aim" if found.value >= GAP_AIM else f"the aim is {GAP_AIM:g}"
            yield _line(
                f"share of the oracle gap closed by rl, {domain}", found,
                f"at least {GAP_TARGET:g}", found.value >= GAP_TARGET, aim,
            )  # fmt: skip


def _judged(measured: Measured) -> Iterator[Line]:
    for metric in measured.metrics:
        if metric in TASTE_METRICS:
            for domain, rows in _of_domains(measured, RL, PLAIN, metric=metric):
                found = measured.resampling.difference(*rows)
                if found.number:
                    name = f"{metric}, rl over user_input, {domain}"
                    yield _line(name, found, "interval above 0", found.above_0)
        elif metric.startswith("judge/") and metric.endswith(CONTENT_METRICS):
            for domain, rows in _of_domains(measured, RL, PLAIN, metric=metric):
                found = measured.resampling.difference(*rows)
                if found.number:
                    name = f"{metric}, rl over user_input, {domain}"
                    asked = f"at least {ACCURACY_TARGET:g}"
                    yield _line(name, found, asked, found.value >= ACCURACY_TARGET)


def _of_domains(
    measured: Measured, *names: str, metric: str = "reward"
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(domain, the values of each named row); nothing where a row is missing."""
    rows = [measured.row(name) for name in names]
    present: list[MeasuredRow] = [row for row in rows if row is not None]
    if len(present) < len(names):
        return
    for domain in measured.inputs.domains:
        yield domain, [measured.of_domain(row, metric, domain) for row in present]


def _runs(measured: Measured) -> Iterator[Line]:
    """Of the training runs whose folders the rl policies stand in."""
    row = measured.row(RL)
    folders = row.plan.folders if row is not None else ()
    for folder in dict.fromkeys(Path(folder).parent for folder in folders):
        rows = _run_metrics(folder)
        if not rows:
            continue
        minutes = _numbers(rows, "time/hours")[-1:] * 60.0
        outside = _numbers(rows, "time/outside_reward_share")
        images, episodes = (_numbers(rows, f"train/{name}")[-1:] for name in ("images", "episodes"))
        if len(minutes):
            yield Line(
                f"minutes of the run of {folder}", float(minutes[0]),
                f"at most {MOST_MINUTES:g}, on 2 cores", bool(minutes[0] <= MOST_MINUTES),
            )  # fmt: skip
        if len(outside):
            share = float(outside.mean())
            yield Line(
                f"share of its time outside renderer and scorer, {folder}", share,
                f"under {MOST_OUTSIDE_SHARE:g}", share < MOST_OUTSIDE_SHARE,
            )  # fmt: skip
        if len(images) and len(episodes) and episodes[0] > 0:
            each = float(images[0] / episodes[0])
            yield Line(f"images per episode, {folder}", each, "the candidate's own, no more", None)


def _run_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; [] where it is no PPO run's."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and "train/episodes" in row]


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    found = [row.get(name) for row in rows]
    return np.array([value for value in found if isinstance(value, int | float)], dtype=float)
