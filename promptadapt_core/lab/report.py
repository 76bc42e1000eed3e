"""Measures the lab and lets people look at it: report.json, report.html and the sheets in grids/.

    python -m promptadapt_core.lab report --out lab_report
    python -m promptadapt_core.lab report --out quick --num-pictures 50

The acceptance numbers are defined in measures.py. Rendered pictures are those of the standard
pipeline with its own sampler; the judge never saw one in training.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import page, runs
from ..settings import MAX_SEED, SettingsError
from . import measures
from .bench import Bench, load_bench
from .captions import describe
from .drawing import draw
from .galleries import Gallery, galleries, plain_caption
from .measures import Measure
from .scenes import Scene, sample_scene
from .settings import ReportSettings
from .taste import taste
from .vocabulary import EFFECTIVE
from .writers import write_pairs

JSON_NAME, PAGE_NAME, GRIDS_NAME = "report.json", "report.html", "grids"
AMONG = 100  # pictures among which a caption has to find its own
LEAST_PAIRS = 10  # of pictures with and without a modifier


def write_report(settings: ReportSettings, report: runs.Reporter | None = None) -> dict[str, Any]:
    """Measure and write; returns what report.json holds. Raises SettingsError for bad input,
    missing or broken weights and a folder that cannot be written."""
    report = report or runs.Silent()
    out = Path(settings.out)
    _writing(out, lambda: (out / GRIDS_NAME).mkdir(parents=True, exist_ok=True))
    report.say("loading")
    bench = load_bench(settings, report)
    report.say("measuring speed")
    speeds = bench.speeds()
    report.say("rendering and measuring")
    accepted, modifiers, others = measure(bench, settings)
    accepted += measures.size_measures(bench.file_sizes())
    report.say("drawing the sheets")
    sheets = galleries(bench.render, bench.autoencoded)
    found = {
        "settings": {**dataclasses.asdict(settings), **bench.image_settings()},
        "acceptance": [measure.row() for measure in accepted],
        "modifiers": [measure.row() for measure in modifiers],
        "others": [measure.row() for measure in others],
        "weights": bench.file_sizes(),
        "machine": bench.machine(),
        "speeds": speeds,
        "grids": {sheet.name: f"{GRIDS_NAME}/{sheet.name}.png" for sheet in sheets},
    }
    text = json.dumps(finite(found), indent=2, allow_nan=False) + "\n"
    _writing(out, lambda: runs.write_text(out / JSON_NAME, text))
    html = report_page(found, sheets)
    _writing(out, lambda: runs.write_text(out / PAGE_NAME, html))
    for sheet in sheets:
        path = out / GRIDS_NAME / f"{sheet.name}.png"
        data = page.png(sheet.picture)
        _writing(out, lambda path=path, data=data: path.write_bytes(data))
    report.say(f"wrote {out / PAGE_NAME} and {out / JSON_NAME}")
    return found


def measure(
    bench: Bench, settings: ReportSettings
) -> tuple[list[Measure], list[Measure], list[Measure]]:
    """(the acceptance numbers, one for each modifier, others without a target)."""
    number = settings.num_pictures
    scenes, captions = plain_scenes(number, settings.seed)
    seeds = row_seeds(settings.seed, number)
    pairs = max(number // 10, LEAST_PAIRS)
    num_described = -(-number // AMONG) * AMONG
    bench.expect(number + pairs * (len(EFFECTIVE) + 1) + num_described + number)
    rendered = bench.render(captions, seeds)
    accepted, others = content_measures(bench, scenes, rendered)
    by_modifier = modifier_measures(bench, settings.seed, pairs)
    accepted.append(measures.modifiers_told(by_modifier))
    accepted.append(retrieval_measure(bench, settings.seed, num_described))
    whole = number // AMONG * AMONG
    if whole:
        texts, images = bench.embed_texts(captions[:whole]), bench.embed_images(rendered[:whole])
        right = measures.retrieval(texts, images, AMONG)
        others.append(measures.share(f"plain caption finds its picture among {AMONG}", right))
    agreement, more = taste_measures(bench, settings.seed, number)
    return [*accepted, agreement], by_modifier, [*others, *more]


def row_seeds(seed: int, number: int) -> list[int]:
    """The seed and those after it; after the highest comes 0."""
    return [(seed + row) % (MAX_SEED + 1) for row in range(number)]


def plain_scenes(number: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes as the renderer learned them, but without modifiers, and a caption of each."""
    generator = random.Random(f"report scenes {seed}")
    scenes = [dataclasses.replace(sample_scene(generator), modifiers=()) for _ in range(number)]
    return scenes, [describe(scene, generator) for scene in scenes]


def content_measures(
    bench: Bench, scenes: Sequence[Scene], rendered: np.ndarray
) -> tuple[list[Measure], list[Measure]]:
    """What the judge reads off rendered pictures; and, as ceilings, off drawn and autoencoded
    ones, and by the number of things."""
    drawn = np.stack(
        [draw(scene, random.Random(f"report {row}")).pixels for row, scene in enumerate(scenes)]
    )
    reading = bench.judge.read(rendered)
    accepted = measures.content(reading, scenes, "rendered", asked=True)
    others: list[Measure] = []
    for number in (1, 2, 3):
        rows = [row for row, scene in enumerate(scenes) if len(scene.things) == number]
        if rows:
            source = f"rendered, {number} thing{'s' * (number > 1)}"
            part = bench.judge.read(rendered[rows])
            others += measures.content(part, [scenes[row] for row in rows], source, asked=False)
    for source, pictures in (("drawn", drawn), ("autoencoded", bench.autoencoded(drawn))):
        others += measures.content(bench.judge.read(pictures), scenes, source, asked=False)
    return accepted, others


def modifier_measures(bench: Bench, seed: int, number: int) -> list[Measure]:
    """For each effective modifier, `number` plain captions rendered without and with it."""
    generator = random.Random(f"report modifiers {seed}")
    plain = [dataclasses.replace(sample_scene(generator), modifiers=()) for _ in range(number)]
    captions = [plain_caption(scene) for scene in plain]
    seeds = row_seeds(seed, number)
    without = bench.judge.read(bench.render(captions, seeds))
    found = []
    for column, modifier in enumerate(EFFECTIVE):
        longer = [f"{caption}, {modifier.name}" for caption in captions]
        with_it = bench.judge.read(bench.render(longer, seeds))
        found.append(
            measures.modifier_measure(
                modifier.name, with_it.modifiers[:, column], without.modifiers[:, column]
            )
        )
    return found


def retrieval_measure(bench: Bench, seed: int, number: int) -> Measure:
    """Whole captions, modifiers included, and what was rendered from them."""
    generator = random.Random(f"report captions {seed}")
    captions = [describe(sample_scene(generator), generator) for _ in range(number)]
    rendered = bench.render(captions, row_seeds(seed, number))
    texts, images = bench.embed_texts(captions), bench.embed_images(rendered)
    right = measures.retrieval(texts, images, AMONG)
    return measures.share(
        f"CLIP: caption finds its rendered picture among {AMONG}",
        right,
        target=measures.RETRIEVAL_TARGET,
        note=f"{number // AMONG} sets of {AMONG}",
    )


def taste_measures(bench: Bench, seed: int, number: int) -> tuple[Measure, list[Measure]]:
    """The aesthetic head and the judge against the taste, on what simulated people wrote."""
    pairs = write_pairs(number, seed=seed + 1)
    rendered = bench.render([pair.target for pair in pairs], row_seeds(seed, number))
    rows = zip(pairs, rendered, strict=True)
    tastes = np.array([taste(pair.scene, pixels) for pair, pixels in rows])
    aesthetic = bench.aesthetic(rendered)
    agreement = measures.taste_agreement(
        aesthetic, tastes, "rank correlation of aesthetic head and taste, rendered"
    )
    judged = measures.taste_agreement(
        bench.judge.read(rendered).tastes, tastes, "rank correlation of judge and taste, rendered"
    )
    spread = Measure(
        "mean taste of what people wrote", float(tastes.mean()), number=number, unit="points",
        note=f"standard deviation {tastes.std():.2f}; aesthetic {aesthetic.mean():.2f}",
    )  # fmt: skip
    return agreement, [dataclasses.replace(judged, target=None), spread]


def report_page(found: dict[str, Any], sheets: Sequence[Gallery]) -> str:
    """The HTML page."""
    settings = found["settings"]
    parts = [
        page.paragraph(
            f"{settings['num_pictures']} pictures behind a measure, {settings['num_steps']} "
            f"sampling steps, guidance {settings['guidance_scale']:g}, seed {settings['seed']}. "
            "Intervals are 95%: Wilson's for shares, a bootstrap for the rest.",
            "note",
        ),
        page.heading("What must hold"),
        _measure_table(found["acceptance"], targets=True),
        page.heading("Each modifier: does the judge tell it?"),
        page.paragraph("Balanced accuracy; pictures of the same caption and seed.", "note"),
        _measure_table(found["modifiers"], targets=True),
        page.heading("Also measured"),
        _measure_table(found["others"], targets=False),
    ]
    for sheet in sheets:
        parts += [page.heading(sheet.text), page.figure(sheet.picture, sheet.text)]
    parts += [
        page.heading("Speed and memory"),
        page.paragraph(found["machine"], "note"),
        page.table(("", ""), [(name, value) for name, value in found["speeds"].items()]),
        page.heading("Weight files"),
        page.table(("file", "bytes"), list(found["weights"].items())),
    ]
    return page.page("The lab, measured", parts)


def readable(found: dict[str, Any]) -> str:
    """The acceptance table as text for a terminal."""
    lines = []
    for row in found["acceptance"]:
        verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
        interval = _interval(row)
        limit = f"{'at most' if row['at_most'] else 'at least'} {_value(row, row['target'])}"
        lines.append(
            f"{verdict:7}{_value(row, row['value']):>8}  {interval:17} {limit:17} {row['name']}"
        )
    return "\n".join(lines)


def finite(value: Any) -> Any:
    """The same with None for every number that JSON cannot write."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _measure_table(rows: Sequence[dict[str, Any]], targets: bool) -> str:
    heads = ("", "measured", "95% interval", "cases")
    cells = [
        (row["name"], _value(row, row["value"]), _interval(row), row["number"], row["note"])
        for row in rows
    ]
    if not targets:
        return page.table((*heads, "note"), cells)
    wanted = [
        f"{'at most' if row['at_most'] else 'at least'} {_value(row, row['target'])}"
        for row in rows
    ]
    found = [
        (*cell[:3], want, bool(row["met"]), *cell[3:])
        for cell, want, row in zip(cells, wanted, rows, strict=True)
    ]
    return page.table((*heads[:3], "target", "", *heads[3:], "note"), found)


def _value(row: dict[str, Any], value: float | None) -> str:
    if row["unit"] == "share":
        return page.percent(value)
    return page.number(value) + (" MB" if row["unit"] == "MB" else "")


def _interval(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return ""
    return f"{_value(row, row['low'])} to {_value(row, row['high'])}"


def _writing(out: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise SettingsError("out", f"{out} cannot be written ({error.strerror})") from None
