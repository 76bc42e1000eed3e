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

from ..runs import CONFIG_NAME, METRICS_NAME
from .measured import Measured, MeasuredRow
from .settings import BEST_OF_N, ORACLE, PLAIN, SUFFIX
from .statistics import Estimate

SFT, RL = "sft", "rl"
LEAST_INPUTS, LEAST_SEEDS = 200, 3  # in each domain; training seeds of rl
GAP_TARGET, GAP_AIM = 0.7, 0.9
ACCURACY_TARGET = -0.02  # a judge's accuracy may fall by two points
MOST_MINUTES, MOST_OUTSIDE_SHARE = 30.0, 0.2
TASTE_METRICS = ("judge/taste", "judge/aesthetic", "judge/preference")
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


def _at_least(name: str, found: Estimate, target: float, note: str = "") -> Line:
    """Met by the value; a note says where the interval, or that there is none, leaves it open."""
    met = found.value >= target
    if met and not found.low >= target:
        note = "; ".join(part for part in (note, "not by the whole interval") if part)
    return _line(name, found, f"at least {target:g}", met, note)


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
        for domain in measured.inputs.domains:
            if num_failed := measured.num_failed(row, domain):
                yield Line(
                    f"candidates of rl that failed, {domain}", num_failed, "none", None,
                    note="their user inputs are in no line about rl",
                )  # fmt: skip


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
            name = f"share of the oracle gap closed by rl, {domain}"
            line = _at_least(name, found, GAP_TARGET, aim)
            yield _beside_the_oracle(line, measured, domain)


def _beside_the_oracle(line: Line, measured: Measured, domain: str) -> Line:
    """A share of the gap says little where a row that never saw the oracle's search does better:
    then the search was too small, and the true gap is wider."""
    ceiling = measured.row(ORACLE)
    assert ceiling is not None
    best = measured.of_domain(ceiling, "reward", domain)
    others = [row for row in measured.rows if row.plan.name not in (PLAIN, ORACLE, RL)]
    over = {
        row.plan.name: measured.resampling.difference(
            measured.of_domain(row, "reward", domain), best
        )
        for row in others
    }
    better = [name for name, found in over.items() if found.value > 0.0]
    if not better:
        return line
    note = f"{', '.join(better)} above the oracle, whose search was too small; {line.note}"
    wrong = any(over[name].above_0 for name in better)
    return dataclasses.replace(line, met=None if wrong else line.met, note=note)


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
                    yield _at_least(name, found, ACCURACY_TARGET)


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
        hours = _numbers(rows, "time/hours")
        if len(hours):
            minutes, left = 60.0 * float(hours[-1]), _left_of_run(folder, rows)
            yield Line(
                f"minutes of the run of {folder}", minutes,
                f"at most {MOST_MINUTES:g}, on 2 cores",
                None if left and minutes <= MOST_MINUTES else minutes <= MOST_MINUTES, note=left,
            )  # fmt: skip
        yield from _outside(folder, rows, hours)
        yield from _images(folder, rows)


def _left_of_run(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """What a run has still to do, in words; "" where it is over, or where nobody knows."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        planned = int(config["settings"]["num_episodes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    done = int(rows[-1]["train/episodes"])
    return f"{done:,} of its {planned:,} episodes" if done < planned else ""


def _outside(folder: Path, rows: Sequence[dict[str, Any]], hours: np.ndarray) -> Iterator[Line]:
    """The share of the whole time: an iteration counts as long as it took."""
    shares = _numbers(rows, "time/outside_reward_share")
    if len(shares) and len(shares) == len(hours):
        share = float(shares @ np.diff(hours, prepend=0.0) / hours[-1]) if hours[-1] > 0 else 0.0
        yield Line(
            f"share of its time outside renderer and scorer, {folder}", share,
            f"under {MOST_OUTSIDE_SHARE:g}", share < MOST_OUTSIDE_SHARE,
        )  # fmt: skip


def _images(folder: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """Rendered for candidates, where that is known, against what they ask for."""
    asked, episodes = (_numbers(rows[-1:], f"train/{name}") for name in ("images", "episodes"))
    rendered = _numbers(rows, "reward/num_rendered")
    if not len(asked) or not len(episodes) or episodes[0] <= 0:
        return
    name, each = f"images per episode, {folder}", float(asked[0] / episodes[0])
    if len(rendered):
        own, each = each, float(rendered.sum() / episodes[0])
        yield Line(name, each, f"the candidate's own, at most {own:g}", each <= own)
    else:
        yield Line(name, each, "the candidate's own, no more", None)


def _run_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; [] where it is no PPO run's."""
    try:
        lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and "train/episodes" in row]


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    found = [row.get(name) for row in rows]
    return np.array([value for value in found if isinstance(value, int | float)], dtype=float)
