"""Parts of the demo's pages, as HTML. Nothing is loaded from anywhere: pictures are inside."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .. import page
from ..lab.grids import enlarged
from .comparing import SCORES, Comparison, Score, Shown, Wording

SCALE = 2  # pixels of the page's pictures for one of the renderer's

STYLE = """
h1 { margin-bottom: .3rem; } h1 + p { margin-top: 0; font-size: 1.1rem; }
section { border: 1px solid #ddd; border-radius: .7rem; padding: .2rem 1.1rem 1rem;
  margin: 1.6rem 0; }
.wording { margin: .9rem 0 0; max-width: none; font-size: 1.1rem; overflow-wrap: anywhere; }
.who { display: block; color: #666; font-size: .85rem; }
mark { background: #fff0b3; color: inherit; padding: .1em .2em; border-radius: .2em; }
.groups { display: flex; flex-wrap: wrap; gap: 1.1rem; margin: 1.1rem 0 .4rem; }
.group { display: grid; gap: .3rem; grid-auto-flow: column; grid-auto-columns: 1fr;
  flex: 1 1 var(--least); max-width: calc(1.5 * var(--least)); }
.group figure { margin: 0; } .group img { width: 100%; height: auto; display: block;
  border-radius: .3rem; }
.group figcaption { font-size: .8rem; line-height: 1.35; padding-top: .15rem; }
.better { color: #14722f; } .worse { color: #b3261e; } td .note { font-size: .85rem; }
summary { color: #555; cursor: pointer; } .charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts svg { flex: 1 1 18rem; min-width: 0; max-width: 28rem; height: auto; }
@media (max-width: 40rem) { body { margin: 1rem auto; } section { padding: 0 .8rem .8rem; }
  th, td { padding: .3rem .45rem; } td .note { display: none; } }
""".strip()


def value(score: float, name: str = "reward") -> str:
    """A score as a person reads it; "-" for nan."""
    if not math.isfinite(score):
        return "-"
    digits = SCORES[name].digits
    return f"{score:.0%}" if digits is None else f"{_rounded(score, digits):.{digits}f}"


def difference(after: float, before: float, name: str = "reward") -> str:
    """ "+0.93"; "0" where nothing shows; "" where one of them is nan."""
    change = after - before
    if not math.isfinite(change):
        return ""
    digits = SCORES[name].digits
    if digits is None:
        return f"{round(change * 100):+d} points" if round(change * 100) else "0"
    return f"{_rounded(change, digits):+.{digits}f}" if _rounded(change, digits) else "0"


def _rounded(number: float, digits: int) -> float:
    """Without the minus of -0.0."""
    return round(number, digits) + 0.0


def wording_part(who: str, wording: Wording) -> str:
    """A wording under who wrote it; what was added is marked."""
    text, added = wording.text, wording.added
    at = text.rfind(added) if added else -1
    if at < 0:
        shown = html.escape(text)
    else:
        before, after = text[:at], text[at + len(added) :]
        shown = f"{html.escape(before)}<mark>{html.escape(added)}</mark>{html.escape(after)}"
    remark = f' <span class="note">({html.escape(wording.remark)})</span>' if wording.remark else ""
    return f'<p class="wording"><span class="who">{html.escape(who)}</span>{shown}{remark}</p>'


def pictures_part(comparison: Comparison, names: Sequence[str]) -> str:
    """The pictures of one seed beside each other, seed after seed. names: of the wordings."""
    groups, least = [], 8 * len(names)
    for place, seed in enumerate(comparison.seeds):
        figures = [
            _figure(item, place, name, seed)
            for item, name in zip(comparison.shown, names, strict=True)
        ]
        groups.append(f'<div class="group" style="--least: {least}rem">{"".join(figures)}</div>')
    return f'<div class="groups">{"".join(groups)}</div>'


def _figure(item: Shown, place: int, name: str, seed: int) -> str:
    text = f"{name}, seed {seed}: {item.wording.text}"
    caption = f"{html.escape(name)} &middot; taste {item.tastes[place]:.1f}"
    return (
        f'<figure><img alt="{html.escape(text)}" title="{html.escape(text)}" '
        f'src="{_data(item.pictures[place])}"><figcaption>{caption}</figcaption></figure>'
    )


def _data(pixels: np.ndarray) -> str:
    content = base64.b64encode(page.png(enlarged(pixels, SCALE))).decode("ascii")
    return f"data:image/png;base64,{content}"


def seen_part(comparison: Comparison, names: Sequence[str]) -> str:
    """What the judge sees in the pictures of each wording."""
    parts = [
        f"{html.escape(name)}: <em>{html.escape(item.seen)}</em>"
        for name, item in zip(names, comparison.shown, strict=True)
    ]
    return f"<p>The judge sees &mdash; {'; '.join(parts)}.</p>"


def scores_part(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], over: tuple[int, int]
) -> str:
    """A table of scores, the reward's terms folded away. rows: one for each of the names. over:
    the two places whose difference the last column has."""
    whole = [name for name, score in SCORES.items() if score.source != "term"]
    terms = [name for name in SCORES if name not in whole]
    return (
        _table(whole, rows, names, over)
        + "<details><summary>terms of the reward</summary>"
        + _table(terms, rows, names, over)
        + "</details>"
    )


def _table(
    wanted: Sequence[str],
    rows: Sequence[Mapping[str, float]],
    names: Sequence[str],
    over: tuple[int, int],
) -> str:
    heads = ["", *names, "difference"]
    lines = ["<tr>" + "".join(_cell(head, "th", at > 0) for at, head in enumerate(heads)) + "</tr>"]
    for name in wanted:
        first, second = (rows[place][name] for place in over)
        change = difference(second, first, name)
        kind = "better" if change.startswith("+") else "worse" if change.startswith("-") else ""
        cells = [f"<td>{_told(SCORES[name])}</td>"]
        cells += [_cell(value(row[name], name)) for row in rows]
        lines.append("<tr>" + "".join([*cells, _cell(change, kind=kind)]) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _told(score: Score) -> str:
    whose = f" (the {score.source})" if score.source in ("scorer", "judge") else ""
    return (
        f"{html.escape(score.name)}{whose}"
        f'<span class="note"> &mdash; {html.escape(score.text)}</span>'
    )


def _cell(text: str, tag: str = "td", right: bool = True, kind: str = "") -> str:
    kinds = " ".join(part for part in ("number" if right else "", kind) if part)
    mark = f' class="{kinds}"' if kinds else ""
    return f"<{tag}{mark}>{html.escape(text)}</{tag}>"


def remarks_part(comparison: Comparison) -> str:
    """What the writer of the user input may not expect; "" where there is nothing."""
    return "".join(page.paragraph(remark, "note") for remark in comparison.remarks)
