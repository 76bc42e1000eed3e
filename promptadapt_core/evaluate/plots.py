"""The report's plots as inline SVG. Needs matplotlib; the page does without where it is missing.

Figures are made without pyplot: no window system, no state of the process.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

import numpy as np

from .measured import Measured, MeasuredRow
from .settings import BUILT_IN, ORACLE, PLAIN, POLICY

# Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"
PANEL_INCHES = 4.6
LEAST_OF_LENGTH = 5  # the interval of fewer would hide the others
SEEDS_BELOW = 0.25  # of the distance of two rows
TEXT_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.0}


def plots(measured: Measured, found: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it shows, its SVG); [] where matplotlib is not installed. found: as in report.json."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return []
    makers = (
        (
            "Mean reward of each row with its 95% interval. Dots in grey are the single training "
            "seeds.",
            rewards_plot,
        ),
        (
            "Gain of each user input over itself, sorted from the greatest loss to the greatest "
            "gain: how many user inputs a row helps, and how far. Means over training seeds.",
            gains_plot,
        ),
        (
            "Gain over the plain user input by the length of the user input in CLIP tokens, with "
            f"95% intervals; of lengths that {LEAST_OF_LENGTH} user inputs or more have.",
            lengths_plot,
        ),
    )
    drawn = []
    with matplotlib.rc_context(TEXT_STYLE), warnings.catch_warnings():
        # Letters that its own font lacks: the browser, which draws the text, has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for number, (text, make) in enumerate(makers):
            domains = measured.inputs.domains
            height = 1.1 + 0.34 * len(measured.rows) if make is rewards_plot else 3.4
            size = (PANEL_INCHES * len(domains), height)
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots(1, len(domains), sharex=True, sharey=True, squeeze=False)[0]
            if make(measured, found, axes):
                drawn.append((text, _svg(figure, f"evaluation {number}")))
    return drawn


def rewards_plot(measured: Measured, found: dict[str, Any], axes: Any) -> bool:
    for axis, domain in zip(axes, measured.inputs.domains, strict=True):
        for place, row in enumerate(measured.rows):
            if row.values["reward"].shape[0] > 1:
                means = [_mean(seed) for seed in measured.of_domain(row, "reward", domain)]
                axis.plot(means, [place + SEEDS_BELOW] * len(means), ".", color=GREY)
            estimate = _summary(found, domain, row)["metrics"]["reward"]
            _interval(axis, estimate, place, _colour(measured, row))
        axis.set_yticks(range(len(measured.rows)), [row.plan.name for row in measured.rows])
        _title(axis, domain)
        axis.set_xlabel("reward")
        _plain_frame(axis, "x")
    axes[0].invert_yaxis()
    return True


def gains_plot(measured: Measured, found: dict[str, Any], axes: Any) -> bool:
    plain = measured.row(PLAIN)
    rows = [row for row in measured.rows if row.plan.name != PLAIN]
    if plain is None or not rows:
        return False
    for axis, domain in zip(axes, measured.inputs.domains, strict=True):
        base = measured.of_domain(plain, "reward", domain)[0]
        for row in rows:
            gains = measured.of_domain(row, "reward", domain).mean(axis=0) - base
            gains = np.sort(gains[np.isfinite(gains)])
            if len(gains):
                shares = (np.arange(len(gains)) + 0.5) / len(gains) * 100
                axis.plot(
                    shares, gains, color=_colour(measured, row), label=row.plan.name,
                    linestyle="-" if row.plan.kind == POLICY else "--",
                )  # fmt: skip
        axis.axhline(0.0, color=GREY, linewidth=0.8)
        _title(axis, domain)
        axis.set_xlabel("% of the user inputs")
        _plain_frame(axis, "y")
    axes[0].set_ylabel("gain in reward")
    axes[0].legend(frameon=False, fontsize=8)
    return True


def lengths_plot(measured: Measured, found: dict[str, Any], axes: Any) -> bool:
    rows = [row for row in measured.rows if row.plan.name != PLAIN]
    num_points = 0
    for axis, domain in zip(axes, measured.inputs.domains, strict=True):
        for number, row in enumerate(rows):
            points = [
                part
                for part in found["by_length"]
                if (part["domain"], part["row"]) == (domain, row.plan.name)
                and part["gain"]["number"] >= LEAST_OF_LENGTH
            ]
            num_points += len(points)
            centres = [sum(part["tokens"]) / 2 + 0.12 * number for part in points]
            gains = [part["gain"] for part in points]
            colour = _colour(measured, row)
            values = [gain["value"] for gain in gains]
            axis.plot(centres, values, "o-", markersize=4, color=colour, label=row.plan.name)
            for centre, gain in zip(centres, gains, strict=True):
                if math.isfinite(gain["low"]):
                    axis.plot([centre] * 2, [gain["low"], gain["high"]], color=colour, alpha=0.5)
        axis.axhline(0.0, color=GREY, linewidth=0.8)
        _title(axis, domain)
        axis.set_xlabel("CLIP tokens of the user input")
        _plain_frame(axis, "y")
    axes[0].set_ylabel("gain in reward")
    if rows:
        axes[0].legend(frameon=False, fontsize=8)
    return num_points > 0


def _title(axis: Any, domain: str) -> None:
    """What the user calls a domain is text: no formula, whatever its "$" say."""
    axis.set_title(domain, fontsize=10, parse_math=False)


def _summary(found: dict[str, Any], domain: str, row: MeasuredRow) -> dict[str, Any]:
    return next(
        part for part in found["rows"] if (part["domain"], part["row"]) == (domain, row.plan.name)
    )


def _interval(axis: Any, estimate: dict[str, Any], place: int, colour: str) -> None:
    if math.isfinite(estimate["low"]):
        axis.plot([estimate["low"], estimate["high"]], [place] * 2, color=colour, linewidth=2)
    if math.isfinite(estimate["value"]):
        axis.plot([estimate["value"]], [place], "o", color=colour, zorder=3)


def _colour(measured: Measured, row: MeasuredRow) -> str:
    """Grey tones for the plain user input and the oracle, a colour for each other row."""
    if row.plan.name == PLAIN:
        return GREY
    if row.plan.name == ORACLE:
        return "#000000"
    others = [r.plan.name for r in measured.rows if r.plan.name not in (PLAIN, ORACLE)]
    others.sort(key=lambda name: name in BUILT_IN)  # policies have the strongest colours
    return COLOURS[others.index(row.plan.name) % (len(COLOURS) - 1)]


def _plain_frame(axis: Any, grid: str) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _svg(figure: Any, salt: str) -> str:
    """The figure as an <svg> element, the same for the same figure. salt: keeps the ids of the
    figures of one page apart."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return _unique_ids(text, salt.replace(" ", "-"))


def _unique_ids(svg: str, salt: str) -> str:
    """Element ids such as "axes_1" are the same in every figure; the page has several."""
    svg = re.sub(r'\bid="', f'id="{salt}-', svg)
    svg = re.sub(r"url\(#", f"url(#{salt}-", svg)
    return re.sub(r'(xlink:href|href)="#', rf'\1="#{salt}-', svg)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
