"""A report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, figcaption { max-width: 48rem; } figcaption, .note { color: #555; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
th { font-weight: 600; background: #f6f6f6; } td.number, th.number { text-align: right; }
.met { color: #14722f; } .missed { color: #b3261e; font-weight: 600; }
.scroll { overflow-x: auto; } figure { margin: 1.5rem 0; } img { max-width: none; }
code { background: #f3f3f3; padding: .1rem .3rem; }
""".strip()


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole page of parts that are already HTML. style: CSS beside that of all pages."""
    sheet = f"{STYLE}\n{style}".strip()
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{sheet}\n</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{html.escape(text)}</p>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; True and False become met and missed, numbers stand right."""
    numbers = [
        any(_is_number(row[column]) for row in rows if column < len(row))
        for column in range(len(heads))
    ]
    lines = [_row([_cell(head, "th", right) for head, right in zip(heads, numbers, strict=True)])]
    for row in rows:
        cells = [_cell(v, "td", right) for v, right in zip(row, numbers, strict=False)]
        lines.append(_row(cells))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def figure(picture: Image.Image, text: str) -> str:
    """A picture inside the page, shown in its own size, with the text below."""
    data = base64.b64encode(png(picture)).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<figure><div class="scroll"><img {size} alt="{html.escape(text)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def number(value: float | int | None) -> str:
    """A number as a person reads it: 3 significant digits; counts in full, "-" for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, tag: str, right: bool) -> str:
    kinds = ["number"] if right else []
    if isinstance(value, bool):
        value = "met" if value else "missed"
        kinds.append(value)
    text = number(value) if _is_number(value) else str("" if value is None else value)
    mark = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{mark}>{html.escape(text)}</{tag}>"


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(cells) + "</tr>"
