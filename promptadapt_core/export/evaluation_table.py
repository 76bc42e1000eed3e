"""The table of an evaluation, from its report.json, as Markdown for a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluate.tables import estimate_text
from ..settings import SettingsError
from .finished import Run, last_part

REPORT_NAME = "report.json"
SHOWN = ("reward", "aesthetic", "cosine", "num_tokens")  # and whatever a judge says
PLAIN = "user_input"


class Report:
    """What report.json holds of one evaluation."""

    def __init__(self, path: str):
        """A file, or the folder that it lies in. SettingsError("evaluation", ...)."""
        file = Path(path) / REPORT_NAME if Path(path).is_dir() else Path(path)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self.found: dict[str, Any] = found
            self.rows: list[dict[str, Any]] = found["rows"]
            self.folders = {
                str(one["row"]): [str(folder) for folder in one["folders"]]
                for one in found["definitions"]
            }
            self.domains: Mapping[str, int] = dict(found["inputs"])
            self.settings: Mapping[str, Any] = dict(found["settings"])
            self.num_images = found["reward"]["num_images"]
        except FileNotFoundError:
            raise SettingsError("evaluation", f"there is no file {file}") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise SettingsError("evaluation", f"{file} is not a report of an evaluation") from None

    def row_of(self, run: Run, checkpoint: str) -> str:
        """The name of the row that is this checkpoint; SettingsError where there is none."""
        wanted = run.path / checkpoint
        for name, folders in self.folders.items():
            for folder in folders:
                same = Path(folder).is_dir() and Path(folder).resolve() == wanted.resolve()
                if same or last_part(folder) == f"{run.path.name}/{checkpoint}":
                    return name
        rows = ", ".join(f"{name} ({', '.join(f)})" for name, f in self.folders.items() if f)
        raise SettingsError(
            "evaluation", f"no row of the report is {wanted}; its policies are {rows or 'none'}"
        )

    def markdown(self, row: str) -> str:
        """The tables of all domains, this row in bold. SettingsError("evaluation", ...)."""
        try:
            return self._markdown(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"the report is not one of an evaluation: {type(error).__name__}: {error}"
            raise SettingsError("evaluation", reason) from None

    def _markdown(self, row: str) -> str:
        parts = []
        for domain, number in self.domains.items():
            entries = [entry for entry in self.rows if entry["domain"] == domain]
            if entries:
                parts.append(f"{domain}, {number} user inputs:\n\n{self._table(entries, row)}")
        seeds = len(self.folders.get(row, ()))
        pictures = "1 picture" if self.num_images == 1 else f"{self.num_images} pictures"
        renderer = last_part(str(self.settings.get("renderer", "")))
        about = (
            f"By `python -m promptadapt_core.evaluate` with {code(renderer)}, {pictures} of each "
            "candidate, the same seeds in all rows; 95% intervals in parentheses."
        )
        if seeds > 1:
            about += f" {code(row)} is the mean of {seeds} training runs, this one among them."
        return "\n\n".join([about, *parts])

    def _table(self, entries: Sequence[Mapping[str, Any]], row: str) -> str:
        judged = [name for name in entries[0]["metrics"] if name.startswith("judge/")]
        names = [name for name in (*SHOWN, *judged) if name in entries[0]["metrics"]]
        lines = [table_row(["row", "reward over the user input", *names])]
        lines.append(table_row(["---"] * (len(names) + 2)))
        for entry in entries:
            name = f"**{entry['row']}**" if entry["row"] == row else entry["row"]
            estimates = [_text(entry["metrics"][metric]) for metric in names]
            lines.append(table_row([name, self._over_plain(entry), *estimates]))
        return "\n".join(lines)

    def _over_plain(self, entry: Mapping[str, Any]) -> str:
        wanted = (entry["domain"], entry["row"], PLAIN, "reward")
        for one in self.found.get("differences", ()):
            if tuple(one.get(name) for name in ("domain", "row", "minus", "metric")) == wanted:
                return _text(one)
        return ""


def _text(estimate: Mapping[str, Any] | None) -> str:
    """As in the report; what JSON could not write is no number."""
    if not estimate:
        return ""
    names = ("value", "low", "high")
    known = {n: float("nan") if estimate.get(n) is None else estimate[n] for n in names}
    return estimate_text(known)


def code(text: str) -> str:
    """As it is, on one line, in Markdown: fenced by more backticks than it has in a row."""
    text = " ".join(text.split())
    fence = "`"
    while fence in text:
        fence += "`"
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    clean = (" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(clean) + " |"
