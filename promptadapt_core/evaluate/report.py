"""The report: report.json with every number, report.html to read, Markdown for the terminal."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import page, runs
from ..settings import SettingsError
from . import tables
from .gallery import STYLE as gallery_style
from .gallery import Gallery
from .measured import Measured
from .settings import BEST_OF_N, ORACLE, PEOPLE, PLAIN, SUFFIX
from .tables import digits, estimate_table, estimate_text

JSON_NAME, PAGE_NAME, CANDIDATES_NAME = "report.json", "report.html", "candidates.jsonl"
STYLE = "body { max-width: 80rem; }"  # for tables of many metrics
ROW_TEXTS = {
    PLAIN: "the user input as it was typed",
    SUFFIX: "one constant text after every user input",
    BEST_OF_N: "the user input as it was typed; of its pictures the one with the highest reward, "
    "as many rendered as for every other row",
    PEOPLE: "what a person wrote of it",
    ORACLE: "the best modifiers that a search with the true reward finds for each user input, on "
    "other pictures' seeds than those it is measured on; the suffix, where it is a row, is among "
    "what it chooses from",
}


def write_report(out: Path, found: dict[str, Any], candidates: Sequence[dict], html: str) -> None:
    """SettingsError("out", ...) where the disk refuses."""
    text = json.dumps(plain_values(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    lines = "".join(json.dumps(plain_values(row)) + "\n" for row in candidates)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ((JSON_NAME, text), (CANDIDATES_NAME, lines), (PAGE_NAME, html)):
            runs.write_text(out / name, content.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise SettingsError("out", f"{out} cannot be written ({error.strerror})") from None


def candidate_rows(measured: Measured) -> list[dict[str, Any]]:
    """One entry for each row, training seed and user input: the prompt and all its values."""
    rows = []
    for row in measured.rows:
        for seed, prompts in enumerate(row.prompts):
            for place, asked in enumerate(measured.inputs.rows):
                prompt = prompts.adapted_prompts[place]
                if prompt is None:
                    continue
                values = {name: float(row.values[name][seed, place]) for name in measured.metrics}
                rows.append(
                    {
                        "row": row.plan.name,
                        "folder": row.plan.folders[seed] if row.plan.folders else None,
                        "domain": asked.domain,
                        "user_input": asked.user_input,
                        "adapted_prompt": prompt,
                        "values": values,
                    }
                )
    return rows


def report_page(
    measured: Measured, found: dict[str, Any], plots: Sequence[tuple[str, str]], gallery: Gallery
) -> str:
    """The HTML page."""
    parts = [
        page.paragraph(_about(measured, found), "note"),
        *(page.paragraph(note, "note") for note in found["notes"]),
        page.heading("What must show"),
        acceptance_table(found["acceptance"]),
        page.heading("Rows"),
        page.table(
            ("row", "what it is", ""),
            [(row.plan.name, row_text(row.plan.name), row.note) for row in measured.rows],
        ),
    ]
    parts += _plot_parts(plots)
    for domain in measured.inputs.domains:
        pictures = gallery.html_of(measured, domain)
        if pictures:
            parts += [
                page.heading(f"Pictures, {domain}"),
                page.paragraph(_about_pictures(measured), "note"),
                pictures,
            ]
    for domain in measured.inputs.domains:
        parts += _domain_parts(measured, found, domain)
    parts += _length_parts(measured, found)
    parts += [
        page.heading("What each number is"),
        page.table(("name", "definition"), list(measured.metrics.items())),
    ]
    if found["failures"]:
        failures = [(text,) for text in found["failures"]]
        parts += [page.heading("Pictures that failed"), page.table(("",), failures)]
    styles = (STYLE, tables.STYLE, gallery_style)
    return page.page("Prompt adaptation, evaluated", parts, "\n".join(styles))


def row_text(name: str) -> str:
    return ROW_TEXTS.get(name, "a policy")


def _about(measured: Measured, found: dict[str, Any]) -> str:
    numbers = ", ".join(f"{number} {domain}" for domain, number in found["inputs"].items())
    return (
        f"User inputs: {numbers}. {measured.num_images} pictures of every candidate, of the same "
        "seeds in all rows. Intervals are 95%, bootstrapped over user inputs, paired; where a row "
        "has several training seeds, for other seeds too (Student's t)."
    )


def _about_pictures(measured: Measured) -> str:
    number = measured.num_images
    if number == 1:
        return "Each picture with its reward; of a row with several training seeds the first."
    return (
        f"The first of {number} pictures each, all of one seed; rewards are means over the "
        f"{number}. Of best_of_n it is the one that was chosen, with the reward of that one. Of a "
        "row with several training seeds the first is shown."
    )


def acceptance_table(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return page.paragraph("None of the rows that it is about was asked for.", "note")
    rows = []
    for line in lines:
        value, interval = (text.replace(" ", "\N{NO-BREAK SPACE}") for text in digits(line))
        count = line["number"] or None
        rows.append(
            (line["name"], value, interval, line["asked"], line["met"], count, line["note"])
        )
    return page.table(("", "measured", "95% interval", "asked", "", "user inputs", ""), rows)


def _plot_parts(plots: Sequence[tuple[str, str]]) -> list[str]:
    if not plots:
        return [page.paragraph("There are no plots: matplotlib is not installed.", "note")]
    return [page.heading("Plots"), *(_figure(text, svg) for text, svg in plots)]


def _domain_parts(measured: Measured, found: dict[str, Any], domain: str) -> list[str]:
    entries = [entry for entry in found["rows"] if entry["domain"] == domain]
    names = list(measured.metrics)
    rows: list[list[Any]] = []
    for entry in entries:
        values = [entry["metrics"][name] for name in names]
        rows.append([entry["row"], values[0], entry["gap_share"], *values[1:]])
        for place, part in enumerate(entry.get("by_seed", ()), start=1):
            values = [part["metrics"][name] for name in names]
            rows.append([f"· seed {place}", values[0], part["gap_share"], *values[1:]])
    return [
        page.heading(f"Means, {domain}"),
        estimate_table(("row", "reward", "gap closed", *names[1:]), rows),
        page.heading(f"Differences, {domain}"),
        page.paragraph(
            "Row minus earlier row. Bold where the whole 95% interval is on one side of 0.", "note"
        ),
        _difference_table(measured, found, domain),
        page.heading(f"Texts, {domain}"),
        page.table(
            ("row", "user inputs", "failed", "left alone", "pictures", "different additions",
             "different word pairs", "most frequent addition", "its share"),
            [_text_row(entry) for entry in entries],
        ),
    ]  # fmt: skip


def _text_row(entry: dict[str, Any]) -> tuple[Any, ...]:
    diversity = entry["diversity"]
    return (
        entry["row"], entry["num_inputs"], entry["num_failed"],
        page.percent(entry["left_alone_share"]), entry["num_rendered"],
        page.percent(diversity["distinct_additions"]), page.percent(diversity["distinct_pairs"]),
        diversity["most_frequent"][:120], page.percent(diversity["most_frequent_share"]),
    )  # fmt: skip


def _difference_table(measured: Measured, found: dict[str, Any], domain: str) -> str:
    """Pairs of rows down, metrics across."""
    metrics = [n for n in measured.metrics if n in ("reward", "aesthetic", "cosine", "num_tokens")]
    metrics += [name for name in measured.metrics if name.startswith("judge/")]
    by_pair: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for entry in found["differences"]:
        if entry["domain"] == domain:
            by_pair.setdefault((entry["row"], entry["minus"]), {})[entry["metric"]] = entry
    rows = [
        [f"{row} − {minus}", *(of_metric[name] for name in metrics)]
        for (row, minus), of_metric in by_pair.items()
    ]
    return estimate_table(("", *metrics), rows, bold_clear=True)


def _length_parts(measured: Measured, found: dict[str, Any]) -> list[str]:
    parts = [page.heading("By length of the user input: gain in reward over it")]
    names = [row.plan.name for row in measured.rows if row.plan.name != PLAIN]
    for domain in measured.inputs.domains:
        by_bucket: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
        for entry in found["by_length"]:
            if entry["domain"] == domain:
                by_bucket.setdefault(tuple(entry["tokens"]), {})[entry["row"]] = entry
        rows = [
            (
                f"{low} to {high}",
                next(iter(of_row.values()))["num_inputs"],
                *(of_row[name]["gain"] for name in names),
            )
            for (low, high), of_row in by_bucket.items()
        ]
        heads = (f"CLIP tokens, {domain}", "user inputs", *names)
        parts.append(estimate_table(heads, rows, bold_clear=True))
    return parts


def _figure(text: str, svg: str) -> str:
    return (
        f'<figure><div class="scroll">{svg}</div>'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def markdown(measured: Measured, found: dict[str, Any]) -> str:
    """The main tables for a terminal."""
    judged = [name for name in measured.metrics if name.startswith("judge/")]
    names = ["aesthetic", "cosine", *judged, "num_tokens"]
    lines = []
    for domain in measured.inputs.domains:
        heads = [domain, "reward", "over user_input", "gap closed", *names]
        lines += ["", _markdown_row(heads), _markdown_row(["---"] + ["---:"] * (len(heads) - 1))]
        for entry in found["rows"]:
            if entry["domain"] != domain:
                continue
            metrics = entry["metrics"]
            cells = [
                entry["row"],
                estimate_text(metrics["reward"]),
                _over_plain(found, domain, entry["row"]),
                estimate_text(entry["gap_share"]),
                *(page.number(metrics[name]["value"]) for name in names),
            ]
            lines.append(_markdown_row(cells))
    if found["acceptance"]:
        lines += ["", _markdown_row(["", "measured", "95% interval", "asked", "what"])]
        lines.append(_markdown_row(["---"] * 5))
    verdicts = {True: "met", False: "**missed**", None: ""}
    for line in found["acceptance"]:
        cells = [
            verdicts[line["met"]], *digits(line), line["asked"],
            line["name"],
        ]  # fmt: skip
        lines.append(_markdown_row(cells))
    return "\n".join(lines).strip()


def _over_plain(found: dict[str, Any], domain: str, row: str) -> str:
    wanted = (domain, row, PLAIN, "reward")
    for entry in found["differences"]:
        if tuple(entry[name] for name in ("domain", "row", "minus", "metric")) == wanted:
            return estimate_text(entry)
    return ""


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def plain_values(value: Any) -> Any:
    """The same with None for every number that JSON cannot write."""
    if isinstance(value, dict):
        return {name: plain_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
