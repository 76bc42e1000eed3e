"""How reward and taste went while the policy learned, drawn as SVG or told as a table.

Drawn with matplotlib where it is installed, without pyplot: no window system, no global figure.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import page, runs

CURVES = (("rollout/reward", "reward"), ("judge/taste", "the judge's taste"))  # metric, name
COLOUR, GREY = "#0072B2", "#dddddd"
WINDOW = 7  # iterations in the mean that the line shows
MOST_ROWS = 12  # of the table
STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.0}

Rows = Sequence[Mapping[str, Any]]


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; [] where there is none."""
    path = run / runs.METRICS_NAME
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curves_part(rows: Rows) -> str:
    """The curves as HTML, or a table where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return curves_table(rows)
    drawn = []
    for metric, name in CURVES:
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": metric}):
            figure = Figure(figsize=(4.4, 3.0), layout="constrained")
            _draw(figure.subplots(), rows, metric, name)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        drawn.append(_inline(buffer.getvalue()))
    text = f"Mean of the candidates of each iteration (dots) and of {WINDOW} iterations (line)."
    return (
        f'<figure class="chart"><div class="charts">{"".join(drawn)}</div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _inline(svg: str) -> str:
    """The <svg> element alone. Names of its groups, the same in every figure, are left out."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def _draw(axis: Any, rows: Rows, metric: str, name: str) -> None:
    steps, values = series(rows, metric)
    axis.plot(steps, values, "o", color=COLOUR, alpha=0.35, markersize=3.5, markeredgewidth=0)
    axis.plot(steps, moving_mean(values), color=COLOUR, linewidth=2)
    axis.set_title(name, fontsize=10, loc="left")
    axis.set_xlabel("iteration")
    axis.locator_params(axis="x", integer=True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="y", color=GREY, linewidth=0.6)
    axis.set_axisbelow(True)


def curves_table(rows: Rows) -> str:
    """The moving means at no more than MOST_ROWS iterations, the first and the last among them."""
    columns = [series(rows, metric) for metric, _ in CURVES]
    places = np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int))
    lines = []
    for place in places:
        step = rows[place]["step"]
        lines.append([str(step), *(_at(steps, moving_mean(v), step) for steps, v in columns)])
    heads = ["iteration", *(name for _, name in CURVES)]
    text = f"Means of {WINDOW} iterations."
    return page.table(heads, lines) + page.paragraph(text, "note")


def _at(steps: np.ndarray, values: np.ndarray, step: int) -> float | str:
    found = values[steps == step]
    return round(float(found[0]), 2) if len(found) else "-"


def series(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(iterations, values) of the rows in which the metric is known."""
    known = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    steps = np.array([step for step, _ in known], dtype=int)
    return steps, np.array([value for _, value in known], dtype=float)


def moving_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """The mean over each value and its neighbours, up to `window`; fewer at the ends."""
    half = window // 2
    return np.array([values[max(at - half, 0) : at + half + 1].mean() for at in range(len(values))])


def first_and_last(rows: Rows, metric: str) -> tuple[float, float]:
    """The means of the first and of the last WINDOW rows; nan where nothing is known."""
    _, values = series(rows, metric)
    if not len(values):
        return math.nan, math.nan
    return float(values[:WINDOW].mean()), float(values[-WINDOW:].mean())
