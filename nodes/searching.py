"""What joins a refinement of the core to ComfyUI: its memory, its progress bar, its interrupt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..promptadapt_core.picture_memory import PictureMemory
from ..promptadapt_core.refine.outcome import Refinement
from ..promptadapt_core.refine.refining import Progress, Refiner
from ..promptadapt_core.refine.settings import RefineSettings
from ..promptadapt_core.reward_settings import RewardSettings
from ..promptadapt_core.rewards import Rewarder
from ..promptadapt_core.scorers import Scores
from ..promptadapt_core.settings import MAX_SEED, SettingsError
from .inputs import settings_from
from .memory import LoadedPolicy, LoadedReward, ManagedModel, interruptible, raising_stopped
from .rendering import ComfyGenerator, progress_bar
from .rewarding import WEIGHTS


class ScorerAtHand:
    """A Scorer that is on its device only while it scores."""

    def __init__(self, reward_models: LoadedReward):
        self._reward_models = reward_models
        scorer = reward_models.scorer
        self.identity = scorer.identity
        self.relevance_knee, self.relevance_slope = scorer.relevance_knee, scorer.relevance_slope

    def score(self, user_inputs: Any, pixels: np.ndarray) -> Scores:
        with raising_stopped(), self._reward_models.loaded() as scorer:
            return scorer.score(user_inputs, pixels)


class OnDevice:
    """The AtHand of a refinement: ComfyUI makes room for its networks by itself, and here for what
    learning takes beside them. device: see ManagedModel."""

    def __init__(self, device: str):
        self.num_bytes_to_learn = 0
        self._device, self._managed = device, None

    @contextlib.contextmanager
    def __call__(self, networks: torch.nn.Module) -> Iterator[None]:
        import comfy.model_management as management

        self._managed = self._managed or ManagedModel(networks, self._device)
        needed, device = self.num_bytes_to_learn, self._managed.device
        if needed and device.type != "cpu":
            whole = needed + sum(p.nbytes for p in networks.parameters())
            management.free_memory(whole, device)
        with self._managed.loaded():
            yield


class SearchBar:
    """The progress bar of the node, in steps of the sampler. num_images: pictures at the most."""

    def __init__(self, num_images: int, num_steps: int):
        self._num_steps, self._total = num_steps, num_images * num_steps
        self._bar = progress_bar(self._total)
        self._done = 0

    def step(self, number: int, preview: Any) -> None:
        self._done = min(self._done + number, self._total)
        self._bar.update_absolute(self._done, self._total, preview)

    def report(self, progress: Progress) -> None:
        """After a batch: the best picture so far, in the place of the last preview."""
        from PIL import Image

        self._done = progress.num_images * self._num_steps
        picture = Image.fromarray(progress.best.pictures[0])
        self._bar.update_absolute(self._done, self._total, ("JPEG", picture, 512))


class Search:
    """One run of RL Refine. memory: the pictures of runs before, and of this one. Nothing that it
    holds knows it, so that its networks go with it, and not when garbage is collected."""

    def __init__(
        self,
        generator: ComfyGenerator,
        reward_models: LoadedReward,
        policy: LoadedPolicy,
        user_input: str,
        image_seed: int,
        adapt: dict[str, Any],
        values: dict[str, Any],
        lora_rank: int,
        memory: PictureMemory | None,
    ):
        if lora_rank and policy.adapter.policy.folder is None:
            reason = "a LoRA belongs to a policy that is saved as a folder; this one is not"
            raise SettingsError("save_policy", reason)
        weights = {name: values.pop(name) for name in WEIGHTS}
        budget = adapt.pop("token_budget")
        given = settings_from(RefineSettings, values)
        settings = RefineSettings(**given, token_budget=budget, lora_rank=lora_rank)
        terms = RewardSettings(**weights, length_budget=budget, num_images=settings.num_images)
        self.memory = PictureMemory() if memory is None else memory
        self._device, on_device = policy.device, OnDevice(policy.device)
        self._refiner = Refiner(
            policy.adapter,
            Rewarder(generator, ScorerAtHand(reward_models), terms),
            user_input,
            settings,
            adapt=adapt,
            image_seeds=[(image_seed + i) % (MAX_SEED + 1) for i in range(settings.num_images)],
            memory=self.memory,
            batch_size=generator.batch_size,
            at_hand=on_device,
        )
        on_device.num_bytes_to_learn = self._refiner.copy.num_bytes_to_learn
        bar = SearchBar(self._refiner.most_images, generator.sampling.steps)
        self._refiner.report, generator.on_step = bar.report, bar.step

    def run(self) -> Refinement:
        with interruptible() as should_stop:
            self._refiner.should_stop = should_stop
            return self._refiner.run()

    def refined_policy(self) -> LoadedPolicy:
        from ..promptadapt_core.adapter import PromptAdapter

        return LoadedPolicy(PromptAdapter(self._refiner.refined_policy()), self._device)

    def save(self, kind: str, folder: Path, name: str) -> Path:
        """kind: "folder" or "lora". The new folder."""
        from ..promptadapt_core.refine.saving import save_lora, save_policy

        save = save_lora if kind == "lora" else save_policy
        return save(self._refiner, folder, name)
