"""Estimates in tables: the value, its interval in small print below it, never broken over lines."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from .. import page

Estimate = dict[str, Any]  # value, low and high, as statistics.Estimate.as_json
ROUNDING = 1e-9  # of sums of floats: a width of this share of a value is none
STYLE = """
.estimates th, .estimates td { padding: .3rem .5rem; vertical-align: top; }
.estimates td { white-space: nowrap; }
.interval { font-size: .75rem; color: #555; font-weight: normal; }
""".strip()  # of the page that has such tables


def digits(estimate: Estimate | None) -> tuple[str, str]:
    """("0.35", "0.23 to 0.47"): to two digits of the interval's width; "" where there is none."""
    if estimate is None or not math.isfinite(estimate["value"]):
        return "", ""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if not math.isfinite(low):
        return page.number(value), ""
    if high - low <= ROUNDING * max(abs(low), abs(high), 1.0):
        return page.number(value), f"{page.number(low)} to {page.number(high)}"
    places = min(max(1 - math.floor(math.log10(high - low)), 0), 9)
    return _fixed(value, places), f"{_fixed(low, places)} to {_fixed(high, places)}"


def estimate_text(estimate: Estimate | None) -> str:
    """ "0.35 (0.23 to 0.47)"; "" of none."""
    value, interval = digits(estimate)
    return f"{value} ({interval})" if interval else value


def estimate_table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], bold_clear: bool = False
) -> str:
    """A table whose cells are texts, numbers or estimates; None is an empty cell. bold_clear:
    estimates whose interval is on one side of 0 stand out."""
    lines = ["<tr>" + "".join(f"<th>{_head(head)}</th>" for head in heads) + "</tr>"]
    for row in rows:
        cells = "".join(_cell(value, bold_clear) for value in row)
        lines.append(f"<tr>{cells}</tr>")
    return '<div class="scroll"><table class="estimates">\n' + "\n".join(lines) + "\n</table></div>"


def label(name: str) -> str:
    """A metric's name as a head that can be broken: "judge/place_accuracy" -> "judge place
    accuracy"."""
    return name.replace("judge/", "judge ").replace("_", " ") if "/" in name else name


def _head(name: str) -> str:
    """A name may be broken at its underscores."""
    return html.escape(label(name)).replace("_", "_<wbr>")


def _cell(value: Any, bold_clear: bool) -> str:
    if isinstance(value, dict):
        text, interval = digits(value)
        clear = value["low"] > 0.0 or value["high"] < 0.0
        shown = f"<b>{text}</b>" if bold_clear and clear else text
        below = f'<div class="interval">{interval}</div>' if interval else ""
        return f"<td>{shown}{below}</td>"
    if isinstance(value, int | float):
        value = page.number(value)
    return f"<td>{html.escape(value or '')}</td>"


def _fixed(value: float, places: int) -> str:
    """Without the sign of a zero."""
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0.0 else text
