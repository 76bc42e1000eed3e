"""How the chief metrics of a run went, as one PNG. Needs matplotlib; there is none without it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ..demo.curves import WINDOW, moving_mean, series
from .finished import Run

COLOUR, GREY = "#0072B2", "#dddddd"
STYLE = {"font.family": "sans-serif", "font.size": 9.0}
MOST_PANELS = 4
# (metric, what it is); the first four that the run knows are drawn.
PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    "sft": (
        ("valid/loss", "validation loss, nats a token"),
        ("train/loss", "training loss, nats a token"),
        ("valid/nll_per_word_added", "validation, nats an added word"),
    ),
    "ppo": (
        ("rollout/reward", "reward"),
        ("judge/taste", "held-out judge: taste"),
        ("judge/preference", "held-out judge: preference"),
        ("judge/aesthetic", "held-out judge: aesthetic"),
        ("kl/ref_kl", "KL to the start, nats a completion"),
        ("rollout/num_tokens", "tokens of a completion"),
        ("rollout/distinct_share", "share of different prompts"),
    ),
    "rounds": (
        ("mined/reward", "reward of the candidates"),
        ("judge/taste", "held-out judge: taste"),
        ("judge/preference", "held-out judge: preference"),
        ("judge/aesthetic", "held-out judge: aesthetic"),
        ("mined/best_reward", "reward of each input's best"),
        ("mined/num_tokens", "tokens of a completion"),
        ("mined/distinct_share", "share of different prompts"),
    ),
}
AXES = {"sft": "step", "ppo": "iteration", "rounds": "round"}


def curves_png(run: Run) -> bytes | None:
    """None where matplotlib is missing, or where there are not two points to a metric."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    kind = run.trainer if run.trainer in PANELS else "rounds"
    known = [panel for panel in PANELS[kind] if len(series(run.rows, panel[0])[0]) > 1]
    panels = known[:MOST_PANELS]
    if not panels:
        return None
    with rc_context(STYLE):
        num_rows = -(-len(panels) // 2)
        figure = Figure(figsize=(8.0, 2.6 * num_rows), layout="constrained", dpi=110)
        axes = figure.subplots(num_rows, min(2, len(panels)), squeeze=False).reshape(-1)
        for axis, (metric, name) in zip(axes, panels, strict=False):
            _draw(axis, run.rows, metric, name, AXES[kind])
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axis: Any, rows: Sequence[dict[str, Any]], metric: str, name: str, along: str) -> None:
    steps, values = series(rows, metric)
    axis.plot(steps, values, "o", color=COLOUR, alpha=0.35, markersize=3, markeredgewidth=0)
    window = min(WINDOW, len(values) // 4 * 2 + 1)  # a line through few points is the points
    axis.plot(steps, moving_mean(values, window), color=COLOUR, linewidth=1.8)
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_xlabel(along)
    axis.locator_params(axis="x", integer=True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="y", color=GREY, linewidth=0.6)
    axis.set_axisbelow(True)
