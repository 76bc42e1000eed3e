"""What was built: counts, sources, lengths, common modifiers, examples."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ..modifiers import normal
from .pairs import KINDS
from .reading import SPLITS
from .settings import DataSettings
from .targets import Target

NUM_EXAMPLES = 5
NUM_COMMON = 50


def summarise(
    settings: DataSettings,
    counts: Counter[str],
    sources: dict[str, Counter[str]],
    rows: Sequence[dict[str, str]],
    targets: Sequence[Target],
) -> dict[str, Any]:
    """The report as JSON types. `rows` are the pairs, `targets` the cleaned prompts used."""
    table = {kind: dict.fromkeys(SPLITS, 0) for kind in KINDS}
    for row in rows:
        table[row["kind"]][row["split"]] += 1
    reasons = {
        name: count
        for name, count in sorted(counts.items())
        if name != "read" and not name.startswith("pairs: ")
    }
    return {
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(settings).items()
        },
        "rows_read": counts["read"],
        "rows_used": len(targets),
        "rows_dropped": reasons,
        "pairs": len(rows),
        "pairs_by_kind_and_split": table,
        "pairs_dropped": {
            name.removeprefix("pairs: "): count
            for name, count in sorted(counts.items())
            if name.startswith("pairs: ")
        },
        "sources_used": dict(sorted(sources["used"].items())),
        "sources_left_out": dict(sorted(sources["left out"].items())),
        "words": {
            "main": quantiles([len(target.main.split()) for target in targets]),
            "target": quantiles([len(target.text().split()) for target in targets]),
            "user_input": quantiles([len(row["user_input"].split()) for row in rows]),
        },
        "modifiers_per_target": quantiles([len(target.modifiers) for target in targets]),
        "common_modifiers": common_modifiers(targets),
        "examples": examples(rows),
    }


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Mean, least, 10%, 50%, 90% and most of whole numbers (zeros when there are none)."""
    ordered = sorted(values) or [0]
    at = {f"p{part}": ordered[(len(ordered) - 1) * part // 100] for part in (10, 50, 90)}
    mean = round(sum(ordered) / len(ordered), 2)
    return {"mean": mean, "min": ordered[0], **at, "max": ordered[-1]}


def common_modifiers(targets: Sequence[Target]) -> list[list[Any]]:
    """The most common modifiers as they are usually written, with counts; spellings together."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for target in targets:
        for text in target.modifiers:
            spellings[normal(text)][text.lower()] += 1
    totals = [
        (sum(spelt.values()), min(spelt, key=lambda text: (-spelt[text], text)))
        for spelt in spellings.values()
    ]
    totals.sort(key=lambda item: (-item[0], item[1]))
    return [[text, count] for count, text in totals[:NUM_COMMON]]


def examples(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Some pairs of each kind, evenly spread over the file."""
    found = {}
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        step = max(1, len(of_kind) // NUM_EXAMPLES)
        found[kind] = [
            {"user_input": row["user_input"], "target": row["target"]}
            for row in of_kind[::step][:NUM_EXAMPLES]
        ]
    return found


def readable(summary: dict[str, Any]) -> str:
    """The report as a page of text."""
    lines = [f"{summary['rows_read']:,} rows read, {summary['rows_used']:,} used"]
    for name, count in sorted(summary["rows_dropped"].items(), key=lambda item: -item[1]):
        lines.append(f"  {count:8,} dropped: {name}")
    for title in ("sources_used", "sources_left_out"):
        named = ", ".join(f"{name} {count:,}" for name, count in summary[title].items())
        lines.append(f"{title.replace('_', ' ')}: {named or 'none'}")
    lines.append(f"{summary['pairs']:,} pairs    " + "".join(f"{name:>9}" for name in SPLITS))
    for kind, splits in summary["pairs_by_kind_and_split"].items():
        lines.append(f"  {kind:14}" + "".join(f"{splits[name]:9,}" for name in SPLITS))
    for name, count in summary["pairs_dropped"].items():
        lines.append(f"  {count:8,} dropped: {name}")
    for title, value in (*summary["words"].items(), ("modifiers", summary["modifiers_per_target"])):
        unit = "" if title == "modifiers" else " words"
        lines.append(
            f"{title}{unit}: mean {value['mean']}, from {value['min']} to {value['max']}, "
            f"half at most {value['p50']}"
        )
    common = ", ".join(f"{text} {count:,}" for text, count in summary["common_modifiers"][:12])
    lines.append(f"common modifiers: {common}")
    for kind, rows in summary["examples"].items():
        for row in rows[:2]:
            lines.append(f"{kind}: {row['user_input']}\n{'':>{len(kind)}}> {row['target']}")
    return "\n".join(lines)
