"""The reward of the command line: pictures of a renderer, terms on the scores of a scorer.

`load_parts` loads what a run needs, in the order that finds mistakes soonest.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import rewards, runs
from ..baselines import BaselineCache
from ..devices import pick_device
from ..images import DiffusersGenerator, ImageGenerator, make_settings
from ..judging import Judge, judge_of_renderer, load_judge
from ..lab.folders import WEIGHTS as LAB_WEIGHTS
from ..lab.folders import renderer_folder
from ..lab.plain_renderer import PlainRenderer
from ..pipeline_loading import HUB_NAME, check_options
from ..pipeline_settings import PipelineOptions, PipelineRendering, option_names
from ..policies import resolve_policy
from ..process_group import ALONE, ProcessGroup
from ..render_memory import USUAL_BATCH, probe_batch_size
from ..reward_settings import RewardSettings
from ..scorer_folders import AnyScorer, can_score, load_scorer_folder
from ..scorers import Scorer
from ..settings import SettingsError
from .ppo_settings import PICTURE_SETTINGS, PpoSettings
from .shared_run import SharedRun
from .user_inputs import read_user_inputs

LAB = "lab"
SEEN_TERMS = ("aesthetic_gain", "relevance")  # that pictures decide


class RenderedReward:
    """A RewardFunction (rollouts.py) made of a Rewarder. config: what it is made of, by parts.
    spreads: of the terms that pictures decide and that have a weight, see alarms.Watch."""

    metrics: Mapping[str, str] = rewards.REWARD_METRICS

    def __init__(
        self,
        generator: ImageGenerator,
        scorer: Scorer,
        settings: RewardSettings,
        baselines: Path | str | None = None,
        group: ProcessGroup = ALONE,
    ):
        """baselines: the folder where scores of plain pictures are kept; None: in memory. group:
        of processes that share the pictures; all have to ask for the same rewards."""
        cache = BaselineCache(baselines, generator.identity, scorer.identity, group)
        self.settings, self.num_kept = settings, len(cache)
        self.rewarder = rewards.Rewarder(generator, scorer, settings, cache, group=group)
        weights = settings.weights()
        self.spreads = tuple(f"reward/{name}_std" for name in SEEN_TERMS if weights[name])
        terms = json.dumps(dataclasses.asdict(settings), sort_keys=True)
        self.identity = f"{generator.identity} {scorer.identity} {terms}"
        self.config: dict[str, dict[str, Any]] = {
            "renderer": dataclasses.asdict(generator.settings),
            "scorer": {
                "relevance_knee": scorer.relevance_knee,
                "relevance_slope": scorer.relevance_slope,
            },
            "terms": dataclasses.asdict(settings),
        }

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        return self.settings.seeds_of(user_input, visit)

    def reward(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        seeds: Sequence[Sequence[int]],
        should_stop: Callable[[], bool] | None = None,
        keep_pictures: bool = False,
    ) -> rewards.RewardBatch:
        """See Rewarder. Where every candidate failed, a batch of which none is ok."""
        try:
            return self.rewarder.reward(
                user_inputs, adapted_prompts, seeds, should_stop, keep_pictures
            )
        except rewards.NothingRewarded as error:
            return error.batch

    def describe(self, batch: Any) -> Mapping[str, float]:
        return rewards.describe(batch)

    def sentences(self) -> list[str]:
        """For the plan of a run: how pictures are drawn, and what counts."""
        pictures, terms = self.rewarder.generator.settings, self.settings
        size = f"{pictures.size} pixels" if pictures.size else "the model's own size"
        weights = [f"{weight:g} {name}" for name, weight in terms.weights().items() if weight]
        return [
            f"pictures: {terms.num_images} per candidate, {size}, {pictures.num_steps} steps, "
            f"guidance {pictures.guidance_scale:g}; {self.num_kept:,} scores of plain user inputs "
            "were kept before",
            f"reward: {' + '.join(weights)}",
            *getattr(self.rewarder.generator, "notices", ()),
        ]


def load_parts(
    settings: PpoSettings, reward_settings: RewardSettings, group: ProcessGroup = ALONE
) -> tuple[RenderedReward, Judge | None]:
    """The reward and the judge of a run. SettingsError for what cannot be used; the run folder is
    made last. group: of processes that train together."""
    check_names(settings, group)
    chosen, device = picture_options(settings), group.own_device(settings.device)
    check_picture_options(chosen, device)
    judge = load_judge(
        judge_of_renderer(settings.judge, settings.renderer), device, download=settings.download
    )
    scorer = load_scorer(settings.scorer, device, download=settings.download)
    if judge is not None and judge.identity == scorer.identity:
        raise SettingsError("judge", "this is the scorer of the reward, which proves nothing")
    generator = load_renderer(
        settings.renderer, device, batch_size=settings.render_batch_size, **chosen
    )
    SharedRun(settings.out, settings.resume, group)
    baselines = Path(settings.baselines or Path(settings.out) / "baselines")
    return RenderedReward(generator, scorer, reward_settings, baselines, group), judge


def check_names(settings: PpoSettings, group: ProcessGroup = ALONE) -> None:
    """Before anything large is loaded: that what the run needs was named, exists and fits."""
    for name, value in (("policy", settings.policy), ("out", settings.out)):
        if not value:
            raise SettingsError(name, "expected a folder")
    if group.is_main and settings.resume and not os.path.isdir(settings.out):
        raise SettingsError("resume", f"there is no run in {settings.out}")
    read_user_inputs(settings.user_inputs)
    resolve_policy(settings.policy)
    check_part_names(settings.renderer, settings.scorer)
    if group.is_main and os.path.exists(settings.out):
        runs.RunFolder(settings.out, settings.resume)


def check_part_names(renderer: str, scorer: str) -> None:
    """SettingsError("renderer" or "scorer", ...) for a name that can stand for neither. A hub name
    is looked up when it is loaded."""
    if renderer != LAB and not os.path.exists(renderer) and not HUB_NAME.fullmatch(renderer):
        reason = f"expected {LAB} or a folder, or a .safetensors file, got {renderer!r}"
        raise SettingsError("renderer", reason)
    if scorer != LAB and not os.path.isdir(scorer):
        raise SettingsError("scorer", f"expected {LAB} or a folder, got {scorer!r}")


def picture_options(settings: PipelineRendering) -> dict[str, Any]:
    """What `load_renderer` takes of the settings, beside renderer, device and batch size."""
    return {name: getattr(settings, name) for name in PICTURE_SETTINGS}


def check_picture_options(chosen: dict[str, Any], device: str) -> None:
    """SettingsError for what can be refused before anything large is loaded."""
    known = (*option_names(), "render_precision")
    pictures = {name: chosen[name] for name in chosen if name not in known}
    make_settings({name: value for name, value in pictures.items() if value is not None})
    options = PipelineOptions(**{name: chosen[name] for name in option_names()})
    check_options(options, pick_device(device))


def load_renderer(
    name: str,
    device: str,
    *,
    batch_size: int = 8,
    render_precision: str = "auto",
    **options: Any,
) -> DiffusersGenerator | PlainRenderer:
    """The lab's renderer, or any that DiffusersGenerator.load takes. batch_size: 0 probes the
    GPU's memory. options: fields of PipelineOptions and of ImageSettings.

    The lab's is a PlainRenderer on a CPU, where that is twice as fast, and where nothing else is
    asked of the pipeline; a DiffusersGenerator else."""
    known = option_names()
    pipeline = PipelineOptions(**{key: options[key] for key in options if key in known})
    settings = {key: options[key] for key in options if key not in known}
    on_cpu = pick_device(device).type == "cpu" and render_precision in ("auto", "float32")
    as_it_is = dataclasses.replace(pipeline, download=False) == PipelineOptions()
    try:
        if name == LAB and on_cpu and as_it_is:
            at_once = batch_size or USUAL_BATCH
            return PlainRenderer(LAB_WEIGHTS, "cpu", batch_size=at_once, **settings)
        generator = DiffusersGenerator.load(
            renderer_folder() if name == LAB else name, device=device, precision=render_precision,
            batch_size=batch_size or 1, options=pipeline, **settings,
        )  # fmt: skip
    except SettingsError as error:
        told = {"folder": "renderer", "weights": "renderer", "precision": "render_precision"}
        raise SettingsError(told.get(error.name, error.name), error.reason) from None
    if batch_size == 0:
        generator.batch_size = probe_batch_size(generator)
    return generator


def load_scorer(name: str, device: str, *, download: bool = False) -> AnyScorer:
    """The lab's scorer, or that of a folder; one without an aesthetic head scores no pictures.
    download: as load_scorer_folder."""
    folder = LAB_WEIGHTS / "scorer" if name == LAB else name
    scorer = load_scorer_folder(folder, device, download=download)
    if not can_score(scorer):
        raise SettingsError("scorer", f"{name} has no aesthetic head, so it can score no pictures")
    return scorer
