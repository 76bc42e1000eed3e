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
from ..images import DiffusersGenerator, ImageGenerator, make_settings
from ..judging import Judge, judge_of_renderer, load_judge
from ..policies import resolve_policy
from ..reward_settings import RewardSettings
from ..scorers import OpenClipScorer, Scorer
from ..settings import SettingsError
from .ppo_settings import PICTURE_SETTINGS, PpoSettings
from .user_inputs import read_user_inputs

LAB = "lab"


class RenderedReward:
    """A RewardFunction (rollouts.py) made of a Rewarder. config: what it is made of, by parts."""

    metrics: Mapping[str, str] = rewards.REWARD_METRICS

    def __init__(
        self,
        generator: ImageGenerator,
        scorer: Scorer,
        settings: RewardSettings,
        baselines: Path | str | None = None,
    ):
        """baselines: the folder where scores of plain pictures are kept; None: in memory."""
        cache = BaselineCache(baselines, generator.identity, scorer.identity)
        self.settings, self.num_kept = settings, len(cache)
        self.rewarder = rewards.Rewarder(generator, scorer, settings, cache)
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
        ]


def load_parts(
    settings: PpoSettings, reward_settings: RewardSettings
) -> tuple[RenderedReward, Judge | None]:
    """The reward and the judge of a run. SettingsError for what cannot be used; the run folder is
    made last."""
    check_names(settings)
    chosen = {name: getattr(settings, name) for name in PICTURE_SETTINGS}
    make_settings({name: value for name, value in chosen.items() if value is not None})
    judge = load_judge(judge_of_renderer(settings.judge, settings.renderer), settings.device)
    scorer = load_scorer(settings.scorer, settings.device)
    if judge is not None and judge.identity == scorer.identity:
        raise SettingsError("judge", "this is the scorer of the reward, which proves nothing")
    generator = load_renderer(
        settings.renderer, settings.device, batch_size=settings.render_batch_size, **chosen
    )
    runs.RunFolder(settings.out, settings.resume)
    baselines = Path(settings.baselines or Path(settings.out) / "baselines")
    return RenderedReward(generator, scorer, reward_settings, baselines), judge


def check_names(settings: PpoSettings) -> None:
    """Before anything large is loaded: that what the run needs was named, exists and fits."""
    for name, value in (("policy", settings.policy), ("out", settings.out)):
        if not value:
            raise SettingsError(name, "expected a folder")
    if settings.resume and not os.path.isdir(settings.out):
        raise SettingsError("resume", f"there is no run in {settings.out}")
    read_user_inputs(settings.user_inputs)
    resolve_policy(settings.policy)
    for name, value in (("renderer", settings.renderer), ("scorer", settings.scorer)):
        if value != LAB and not os.path.isdir(value):
            raise SettingsError(name, f"expected {LAB} or a folder, got {value!r}")
    if os.path.exists(settings.out):
        runs.RunFolder(settings.out, settings.resume)


def load_renderer(name: str, device: str, **options: Any) -> DiffusersGenerator:
    """The lab's renderer, or the diffusers pipeline of a folder. options: of
    DiffusersGenerator.load."""
    if name == LAB:
        from ..lab.folders import renderer_folder

        name = str(renderer_folder())
    try:
        return DiffusersGenerator.load(name, device=device, **options)
    except SettingsError as error:
        told = "renderer" if error.name == "folder" else error.name
        raise SettingsError(told, error.reason) from None


def load_scorer(name: str, device: str) -> OpenClipScorer:
    """The lab's scorer, or that of a folder with scorer.json; one without an aesthetic head has no
    aesthetic term."""
    folder = Path(__file__).parents[1] / "lab" / "weights" / "scorer" if name == LAB else name
    scorer = OpenClipScorer.load(folder, device)
    if scorer.head is None:
        raise SettingsError("scorer", f"{name} has no aesthetic head, so it can score no pictures")
    return scorer
