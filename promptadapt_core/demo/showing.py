"""`demo`: texts before and after a policy, on one page, in one picture and in a table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import page, runs
from ..adapter import PromptAdapter
from ..policies import resolve_policy
from . import parts
from .comparing import Comparison, Workshop, adapted, image_seeds, mean_scores
from .outputs import PAGE_NAME, PICTURE_NAME, prepare_folder, writing
from .settings import DEFAULT_TEXTS, DemoSettings
from .sheets import before_and_after

NAMES = ("before", "after")
TABLE_SCORES = ("aesthetic", "cosine", "reward", "taste")
TABLE_HEADS = ("aesthetic", "relevance", "reward", "judge's taste")
MOST_CHARACTERS = 36  # of a text in the table
NOTE = (
    "The scorer is what a policy is paid by. The judge is another model, which no policy learned "
    "from: its taste tells whether pictures really became better, and what it sees whether they "
    "still show what was asked. All of it is the lab, a small world of 64 pixels, trained from "
    "nothing, with the classes that run Stable Diffusion."
)


@dataclasses.dataclass(frozen=True)
class Demo:
    """What was made: the comparisons of (before, after), and the files."""

    policy: str
    comparisons: list[Comparison]
    page: Path
    picture: Path


def show(settings: DemoSettings, texts: Sequence[str], report: runs.Reporter) -> Demo:
    """Adapt the texts, render before and after, score, write. Raises SettingsError for bad input,
    missing weights and a folder that cannot be written."""
    began = time.monotonic()
    policy = resolve_policy(settings.policy_name)
    folder = prepare_folder(settings.out)
    report.say("loading the lab")
    workshop = Workshop.load(settings.device, settings.num_steps)
    adapter = PromptAdapter.load(policy, device=settings.device)
    report.say("adapting and rendering")
    user_inputs = [whole_characters(text) for text in texts or DEFAULT_TEXTS]
    wordings = adapted(adapter, user_inputs, settings.seed)
    comparisons = workshop.compare(
        user_inputs,
        [wordings],
        image_seeds(settings.seed, settings.num_images),
        lambda done, number: report.step(done, number, {}),
    )
    demo = Demo(
        adapter.policy.manifest.name, comparisons, folder / PAGE_NAME, folder / PICTURE_NAME
    )
    text = demo_page(demo, settings, time.monotonic() - began)
    with writing(demo.page):
        runs.write_text(demo.page, text)
    with writing(demo.picture):
        picture = page.png(before_and_after(comparisons, picture_heads(demo.policy)))
        runs.replace_file(demo.picture, lambda partial: partial.write_bytes(picture))
    return demo


def whole_characters(text: str) -> str:
    """A console may pass on halves of characters, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def picture_heads(policy: str) -> list[str]:
    return ["before: as it was typed", f"after: adapted by the policy {policy}"]


def demo_page(demo: Demo, settings: DemoSettings, seconds: float) -> str:
    """The whole page."""
    found = [
        page.paragraph(
            "Each text is rendered as a person typed it and as the policy adapted it, with the "
            "same seeds: whatever differs comes from the words."
        ),
        summary_part(demo.comparisons),
        *(_section(comparison, demo.policy) for comparison in demo.comparisons),
        page.paragraph(NOTE, "note"),
        page.paragraph(
            f"Policy {demo.policy}, seeds from {settings.seed}, on {settings.device} in "
            f"{seconds:.0f} s: python -m promptadapt_core demo",
            "note",
        ),
    ]
    return page.page("Prompt adaptation, before and after", found, parts.STYLE)


def summary_part(comparisons: Sequence[Comparison]) -> str:
    """One sentence on all texts."""
    before, after = (mean_scores(comparisons, place) for place in (0, 1))
    changes = [
        f"{told} from {parts.value(before[name], name)} to {parts.value(after[name], name)}"
        for name, told in (("aesthetic", "the scorer's aesthetic"), ("taste", "the judge's taste"))
    ]
    number = len(comparisons)
    whole = f"Over {number} texts: " if number > 1 else "In short: "
    return page.paragraph(f"{whole}{' and '.join(changes)}.")


def _section(comparison: Comparison, policy: str) -> str:
    before, after = comparison.shown
    inner = [
        parts.wording_part("typed", before.wording),
        parts.wording_part(f"adapted by the policy {policy}", after.wording),
        parts.remarks_part(comparison),
        parts.pictures_part(comparison, NAMES),
        parts.seen_part(comparison, NAMES),
        parts.scores_part([before.scores, after.scores], NAMES, (0, 1)),
    ]
    return f"<section>{''.join(inner)}</section>"


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """What the command prints: the scores of each text before and after, its adapted prompt, and
    the words that the lab does not know."""
    lines = [" " * MOST_CHARACTERS + "".join(f"{head:>20}" for head in TABLE_HEADS)]
    for comparison in comparisons:
        before, after = comparison.shown
        lines.append(_table_row(_shortened(comparison.user_input), before.scores, after.scores))
        lines.append(f"  -> {after.wording.remark or after.wording.text}")
        lines += [f"  {remark}" for remark in comparison.remarks]
    if len(comparisons) > 1:
        lines.append(_table_row("mean", *(mean_scores(comparisons, place) for place in (0, 1))))
    return lines


def _table_row(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    cells = [
        f"{parts.value(before[score], score)} -> {parts.value(after[score], score)}"
        for score in TABLE_SCORES
    ]
    return f"{name:{MOST_CHARACTERS}}" + "".join(f"{cell:>20}" for cell in cells)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) < MOST_CHARACTERS else text[: MOST_CHARACTERS - 4] + "..."
