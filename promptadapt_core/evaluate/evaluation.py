"""One evaluation from its settings to its report."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__, runs
from ..clip_tokens import count_clip_tokens
from ..judging import judge_of_renderer, load_judge
from ..settings import SettingsError
from ..train.rendered_reward import (
    check_part_names,
    check_picture_options,
    load_renderer,
    load_scorer,
    picture_options,
)
from . import acceptance, plots, rows
from .gallery import Gallery, make_gallery
from .inputs import Inputs, described, load_inputs
from .measured import Measured, MeasuredRow
from .report import candidate_rows, markdown, report_page, row_text, write_report
from .reward import EvaluationReward
from .rows import Prompts
from .scoring import Parts, Plain, Scoring, ShouldStop
from .settings import (
    BEST_OF_N,
    ORACLE,
    PEOPLE,
    POLICY,
    SUFFIX,
    EvaluateSettings,
    RowPlan,
    planned_rows,
)
from .statistics import Resampling, seed_of

if TYPE_CHECKING:
    from .searches import Searches

KEPT_NAME = "kept"  # folder of what a killed evaluation goes on with
MOST_FAILURES = 20  # told on the page


@dataclasses.dataclass(frozen=True)
class Result:
    """found: what report.json holds. table: Markdown for the terminal."""

    found: dict[str, Any]
    table: str


def check(settings: EvaluateSettings) -> list[RowPlan]:
    """The planned rows, once everything that was named is there; before anything large is
    loaded. SettingsError names what is not."""
    plans = planned_rows(settings)
    if not settings.out:
        raise SettingsError("out", "expected a folder")
    if Path(settings.out).exists() and not Path(settings.out).is_dir():
        raise SettingsError("out", f"{settings.out} is a file, expected a folder")
    check_part_names(settings.renderer, settings.scorer)
    check_picture_options(picture_options(settings), settings.device)
    rows.check_policies([folder for plan in plans for folder in plan.folders])
    return plans


def load_parts(settings: EvaluateSettings) -> Parts:
    """SettingsError names what is missing or broken."""
    generator = load_renderer(
        settings.renderer,
        settings.device,
        batch_size=settings.render_batch_size,
        **picture_options(settings),
    )
    scorer = load_scorer(settings.scorer, settings.device, download=settings.download)
    judge = load_judge(
        judge_of_renderer(settings.judge, settings.renderer),
        settings.device,
        download=settings.download,
    )
    if judge is not None and judge.identity == scorer.identity:
        raise SettingsError("judge", "this is the scorer of the reward, which proves nothing")
    return Parts(generator, scorer, judge)


class Evaluation:
    """See the module. reporter: makes a new Reporter for every stage, whose time left it tells."""

    def __init__(
        self,
        settings: EvaluateSettings,
        reward: EvaluationReward | None = None,
        parts: Parts | None = None,
        reporter: Callable[[], runs.Reporter] = runs.Silent,
        should_stop: ShouldStop = lambda: False,
    ):
        """parts: None loads what the settings name."""
        self.settings, self.reward = settings, reward or EvaluationReward()
        self.plans = check(settings)
        self.reporter, self.should_stop = reporter, should_stop
        self.inputs: Inputs = load_inputs(settings)
        if any(plan.name == PEOPLE for plan in self.plans):
            rows.written_by_people(self.inputs)
        self.out = Path(settings.out)
        self.kept = self.out / KEPT_NAME
        self.say = reporter().say
        for note in self.inputs.notes:
            self.say(note)
        if parts is None:
            self.say("loading")
        for folder in dict.fromkeys(folder for plan in self.plans for folder in plan.folders):
            rows.load_policy(folder, settings)  # one that is broken is told of now, not in an hour
        self.parts = parts or load_parts(settings)
        for notice in getattr(self.parts.generator, "notices", ()):
            self.say(notice)
        self.scoring = Scoring(self.parts, self.reward, self.kept)
        self.user_inputs = [row.user_input for row in self.inputs.rows]
        self.plain: dict[str, Plain] = {}

    def run(self) -> Result:
        """Measure everything and write the report. decoding.Stopped once should_stop() is true:
        the same settings then go on where it was."""
        self._stage("the plain user inputs")
        self.plain = self.scoring.plain(self.user_inputs, self.should_stop, self.reporter())
        measured = Measured(
            self.inputs,
            [self._row(plan) for plan in self.plans],
            self.scoring.metrics,
            Resampling(seed_of(self.settings.seed), self.settings.num_draws),
            self.reward.num_images,
            count_clip_tokens,
        )
        gallery = self._gallery(measured)
        self.say("comparing the rows")
        found = self._found(measured)
        page = report_page(measured, found, plots.plots(measured, found), gallery)
        write_report(self.out, found, candidate_rows(measured), page)
        return Result(found, markdown(measured, found))

    def _stage(self, text: str) -> None:
        self.say(f"measuring {text}")

    def _row(self, plan: RowPlan) -> MeasuredRow:
        prompts, note = self._prompts(plan)
        self._stage(plan.name)
        metrics = list(self.scoring.metrics)
        if plan.name == BEST_OF_N:
            best = [
                self.plain[text].best if text in self.plain else None for text in self.user_inputs
            ]
            return MeasuredRow.of(plan, prompts, [best], metrics, note)
        found = []
        for some in prompts:
            present = [
                (place, prompt)
                for place, prompt in enumerate(some.adapted_prompts)
                if prompt is not None
            ]
            scores = self.scoring.score(
                [self.user_inputs[place] for place, _ in present],
                [prompt for _, prompt in present],
                self.should_stop,
                self.reporter(),
            )
            by_place = {place: one for (place, _), one in zip(present, scores, strict=True)}
            found.append([by_place.get(place) for place in range(len(self.user_inputs))])
        return MeasuredRow.of(plan, prompts, found, metrics, note)

    def _prompts(self, plan: RowPlan) -> tuple[list[Prompts], str]:
        """What the row renders, for each training seed; and a note on it."""
        if plan.kind == POLICY:
            return self._adapted(plan)
        if plan.name == PEOPLE:
            return [rows.written_by_people(self.inputs)], ""
        suffix = self.settings.suffix.strip(" ,")
        if plan.name == SUFFIX and suffix:
            texts = [f"{text}, {suffix}" for text in self.user_inputs]
            return [Prompts(list(texts))], f"{suffix!r}, as given"
        if plan.name in (SUFFIX, ORACLE):
            return self._searched(plan)
        return [Prompts(list(self.user_inputs))], ""

    def _searched(self, plan: RowPlan) -> tuple[list[Prompts], str]:
        self.say(f"searching for {plan.name}")
        if plan.name == SUFFIX:
            found = self.searches.tuned_suffix(self.inputs)
        else:
            found = self.searches.ceilings(self.inputs, set(self.plain), self._suffix())
        return [found], f"{found.source}; {found.num_search_rendered:,} pictures rendered for it"

    @functools.cached_property
    def searches(self) -> Searches:
        from .searches import Searches  # the lab's

        return Searches(
            self.parts, self.settings, self.reward, self.kept, self.should_stop, self.reporter
        )

    def _suffix(self) -> Sequence[str]:
        """The lab's modifiers in the constant suffix that is a row here; none where none is."""
        from ..lab.captions import read

        if all(plan.name != SUFFIX for plan in self.plans):
            return ()
        given = self.settings.suffix.strip(" ,")
        return read(given).modifiers if given else self.searches.suffix(self.inputs)[0]

    def _adapted(self, plan: RowPlan) -> tuple[list[Prompts], str]:
        found = []
        for folder in plan.folders:
            self.say(f"adapting with {folder}")
            found.append(
                rows.adapted(
                    folder, self.settings, self.user_inputs, self.kept, self.should_stop,
                    self.reporter(),
                )
            )  # fmt: skip
        notes = [", ".join(plan.folders)]
        if num_too_long := sum(some.num_too_long for some in found):
            notes.append(
                f"{num_too_long} user inputs were too long for it and were left as they are"
            )
        return found, "; ".join(notes)

    def _gallery(self, measured: Measured) -> Gallery:
        self.say("rendering the pictures of the page")
        seeds = {text: self.reward.seeds_of(text)[0] for text in self.user_inputs}
        return make_gallery(
            measured, self.plain, seeds, self.parts.generator, self.out, self.settings.num_shown,
            self.should_stop, self.reporter(),
        )  # fmt: skip

    def _found(self, measured: Measured) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "reward": dataclasses.asdict(self.reward),
            "identities": {
                name: self.scoring.identity[name] for name in ("renderer", "scorer", "judge")
            },
            "versions": {
                "promptadapt": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "inputs": described(self.inputs),
            "notes": self.inputs.notes,
            "metrics": measured.metrics,
            "definitions": [
                {
                    "row": row.plan.name,
                    "what": row_text(row.plan.name),
                    "note": row.note,
                    "folders": list(row.plan.folders),
                    "sources": [some.source for some in row.prompts],
                    "num_too_long": sum(some.num_too_long for some in row.prompts),
                    "num_search_rendered": sum(some.num_search_rendered for some in row.prompts),
                }
                for row in measured.rows
            ],
            "acceptance": acceptance.acceptance(measured),
            "rows": measured.summary(),
            "differences": measured.differences(),
            "by_length": measured.by_length(),
            "failures": list(dict.fromkeys(self.scoring.failures))[:MOST_FAILURES],
        }
