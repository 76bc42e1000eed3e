"""`demo --train`: the page of what a policy learned, with user inputs that it did not learn on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from .. import page, runs
from ..adapter import PromptAdapter
from ..decoding import Stopped
from ..policies import resolve_policy
from ..train.ppo import PpoResult
from . import curves, parts
from .comparing import Comparison, Workshop, adapted, image_seeds, mean_scores
from .learning import learn, tested_on
from .outputs import RUN_NAME, TRAINING_PAGE_NAME, prepare_folder, writing
from .settings import NUM_SHOWN, DemoSettings
from .showing import NOTE, whole_characters

NAMES = ("typed", "before training", "after training")
BEFORE, AFTER = 1, 2  # places among them


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What became of a run. tested: comparisons of NAMES over user inputs that training never saw.
    page: None where it was stopped before that."""

    result: PpoResult
    tested: list[Comparison]
    summary: str
    page: Path | None


def teach(
    settings: DemoSettings,
    texts: Sequence[str],
    make_report: Callable[[], runs.Reporter],
    should_stop: Callable[[], bool] = lambda: False,
) -> Lesson:
    """Train or go on training, then write the page. texts: shown instead of user inputs that
    training never saw. make_report: for the progress of each part. Raises SettingsError."""
    sft = resolve_policy(settings.policy_name)
    folder = prepare_folder(settings.out)
    result = learn(settings, folder, make_report(), should_stop)
    if result.status == "stopped":
        return Lesson(result, [], "", None)
    try:
        tested, shown = _compare(settings, texts, [sft, result.best], make_report(), should_stop)
    except Stopped:
        return Lesson(result, [], "", None)
    path = folder / TRAINING_PAGE_NAME
    rows = curves.read_rows(folder / RUN_NAME)
    with writing(path):
        runs.write_text(path, lesson_page(rows, tested, shown))
    return Lesson(result, tested, summary(rows, tested), path)


def _compare(
    settings: DemoSettings,
    texts: Sequence[str],
    policies: Sequence[Path],
    report: runs.Reporter,
    should_stop: Callable[[], bool],
) -> tuple[list[Comparison], list[Comparison]]:
    """(all tested user inputs with one seed, those that are shown with all seeds)."""
    report.say("rendering user inputs that training never saw, before and after")
    tested = tested_on(settings.seed)
    shown = [whole_characters(text) for text in texts] or tested[:NUM_SHOWN]
    together = [*tested, *shown]
    adapters = [PromptAdapter.load(policy, device=settings.device) for policy in policies]
    wordings = [adapted(adapter, together, settings.seed) for adapter in adapters]
    workshop = Workshop.load(settings.device, settings.num_steps)
    seeds = image_seeds(settings.seed, settings.num_images)
    found = []
    for rows, wanted in (
        (slice(0, len(tested)), seeds[:1]),
        (slice(len(tested), None), seeds),
    ):
        found.append(
            workshop.compare(
                together[rows],
                [row[rows] for row in wordings],
                wanted,
                lambda done, number: report.step(done, number, {}),
                should_stop,
            )
        )
    return found[0], found[1]


def lesson_page(
    rows: curves.Rows, tested: Sequence[Comparison], shown: Sequence[Comparison]
) -> str:
    """The whole page. rows: of the run's metrics.jsonl."""
    scores = [mean_scores(tested, place) for place in range(len(NAMES))]
    found = [
        page.paragraph(
            "A policy that only imitates people who write prompts is paid for its pictures. This "
            "is what it learns from that."
        ),
        page.paragraph(summary(rows, tested)),
        curves.curves_part(rows),
        page.heading(f"{len(tested)} user inputs that training never saw"),
        page.paragraph(
            "Half of them have a subject, a place or a phrasing that the writers, whom the policy "
            "imitated at first, never use.",
            "note",
        ),
        parts.scores_part(scores, NAMES, (BEFORE, AFTER)),
        page.heading("In pictures"),
        *(_section(comparison) for comparison in shown),
        page.paragraph(NOTE, "note"),
    ]
    return page.page("A policy learns, in minutes", found, parts.STYLE)


def summary(rows: curves.Rows, tested: Sequence[Comparison]) -> str:
    """What happened, in two sentences."""
    first, last = curves.first_and_last(rows, "rollout/reward")
    before, after = (
        [item.shown[place].scores["reward"] for item in tested] for place in (BEFORE, AFTER)
    )
    pairs = list(zip(before, after, strict=True))
    rose, fell = sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)
    return (
        f"In {len(rows)} iterations the mean reward of what it writes went from "
        f"{parts.value(first)} to {parts.value(last)}. Of {len(tested)} user inputs that training "
        f"never saw, {rose} now have a higher reward than before and {fell} a lower one; their "
        f"mean went from {parts.value(fmean(before))} to {parts.value(fmean(after))}."
    )


def _section(comparison: Comparison) -> str:
    whos = ("typed", "the policy before training", "the policy after training")
    inner = [
        *(
            parts.wording_part(who, item.wording)
            for who, item in zip(whos, comparison.shown, strict=True)
        ),
        parts.remarks_part(comparison),
        parts.pictures_part(comparison, NAMES),
        parts.seen_part(comparison, NAMES),
        parts.scores_part([item.scores for item in comparison.shown], NAMES, (BEFORE, AFTER)),
    ]
    return f"<section>{''.join(inner)}</section>"


def table(lesson: Lesson) -> list[str]:
    """What the command prints."""
    scores = [mean_scores(lesson.tested, place) for place in range(len(NAMES))]
    lines = [lesson.summary]
    lines.append(f"{'means over those':24}" + "".join(f"{name:>17}" for name in NAMES))
    for name, told in (
        ("reward", "reward"), ("aesthetic", "aesthetic"), ("cosine", "relevance"),
        ("taste", "judge's taste"), ("asked", "what was asked, seen"),
    ):  # fmt: skip
        lines.append(
            f"{told:24}" + "".join(f"{parts.value(row[name], name):>17}" for row in scores)
        )
    return lines
