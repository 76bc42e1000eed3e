"""The reward of the command line: pictures of a renderer, terms on the scores of a scorer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import rewards
from ..baselines import BaselineCache
from ..images import DiffusersGenerator, ImageGenerator
from ..scorers import OpenClipScorer, Scorer
from ..settings import SettingsError
from .ppo_settings import PpoSettings

LAB = "lab"


class RenderedReward:
    """A RewardFunction (rollouts.py) made of a Rewarder."""

    metrics: Mapping[str, str] = rewards.REWARD_METRICS

    def __init__(
        self,
        generator: ImageGenerator,
        scorer: Scorer,
        settings: rewards.RewardSettings,
        baselines: Path | str | None = None,
    ):
        """baselines: the folder where scores of plain pictures are kept; None: in memory."""
        cache = BaselineCache(baselines, generator.identity, scorer.identity)
        self.settings = settings
        self.rewarder = rewards.Rewarder(generator, scorer, settings, cache)
        terms = json.dumps(dataclasses.asdict(settings), sort_keys=True)
        self.identity = f"{generator.identity} {scorer.identity} {terms}"

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
        return self.rewarder.reward(user_inputs, adapted_prompts, seeds, should_stop, keep_pictures)

    def describe(self, batch: Any) -> Mapping[str, float]:
        return rewards.describe(batch)


def check_names(settings: PpoSettings) -> None:
    """Before anything large is loaded: that what the run needs was named, and exists."""
    for name, value in (("policy", settings.policy), ("out", settings.out)):
        if not value:
            raise SettingsError(name, "expected a folder")
    if settings.resume and not Path(settings.out).is_dir():
        raise SettingsError("resume", f"there is no run in {settings.out}")
    if not Path(settings.user_inputs).is_file():
        raise SettingsError("user_inputs", f"there is no file {settings.user_inputs!r}")
    for name, value in (("renderer", settings.renderer), ("scorer", settings.scorer)):
        if value != LAB and not Path(value).is_dir():
            raise SettingsError(name, f"expected {LAB} or a folder, got {value!r}")


def load_renderer(name: str, device: str) -> DiffusersGenerator:
    """The lab's renderer, or the diffusers pipeline of a folder."""
    if name == LAB:
        from ..lab.folders import renderer_folder

        name = str(renderer_folder())
    try:
        return DiffusersGenerator.load(name, device=device)
    except SettingsError as error:
        told = "renderer" if error.name == "folder" else error.name
        raise SettingsError(told, error.reason) from None


def load_scorer(name: str, device: str) -> OpenClipScorer:
    """The lab's scorer, or that of a folder with scorer.json."""
    folder = Path(__file__).parents[1] / "lab" / "weights" / "scorer" if name == LAB else name
    return OpenClipScorer.load(folder, device)
