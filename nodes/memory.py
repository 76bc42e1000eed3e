"""Our models in ComfyUI's memory management. The one module that knows comfy's models.

A model is on the GPU only inside `with ....loaded():`, so that nothing of ours is there while a
picture renders; ComfyUI makes the room for it, and may take it back at any time.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

CPU = "cpu"
DEVICES = ("default", CPU)


class PromptAdaptModel(torch.nn.Module):
    """ComfyUI sets attributes on what it manages, `device` among them, which the models of
    transformers refuse. It gets this plain module around them."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


class ManagedModel:
    """A model that ComfyUI moves. device: one of DEVICES; "default" is where its text encoders
    run."""

    def __init__(self, module: torch.nn.Module, device: str):
        import comfy.model_management as management
        import comfy.model_patcher

        on_cpu = device == CPU
        self.device = torch.device(CPU) if on_cpu else management.text_encoder_device()
        rests_on = torch.device(CPU) if on_cpu else management.text_encoder_offload_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            PromptAdaptModel(module), load_device=self.device, offload_device=rests_on
        )

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """The model on its device; afterwards it rests again."""
        import comfy.model_management as management

        try:
            # Weights moved in inference mode, in which nodes run, could never be trained.
            with torch.inference_mode(False):
                management.load_models_gpu([self._patcher])
                # With little memory it leaves layers behind, which only its own modules fetch.
                self._patcher.model.to(self.device)
            yield
        finally:
            with torch.inference_mode(False):
                self._rest()

    def _rest(self) -> None:
        import comfy.model_management as management

        if hasattr(self._patcher, "detach"):
            self._patcher.detach()
        else:  # ComfyUI before December 2024 takes what is in its list for loaded: off the list
            management.unload_model_clones(self._patcher)
            self._patcher.unpatch_model(self._patcher.offload_device)


class LoadedPolicy:
    """What a PROMPT_POLICY is. adapter: to be used inside `with loaded()` only."""

    def __init__(self, adapter: Any, device: str = DEVICES[0]):
        self.adapter = adapter
        self.device = device
        self._managed: tuple[torch.nn.Module, ManagedModel] | None = None

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Any]:
        """The adapter, its model on its device."""
        decoder = self.adapter.policy.decoder
        if self._managed is None or self._managed[0] is not decoder:
            self._managed = (decoder, ManagedModel(decoder, self.device))
        with self._managed[1].loaded():
            yield self.adapter


class LoadedReward:
    """What a PROMPT_REWARD is. scorer: to be used inside `with loaded()` only."""

    def __init__(self, scorer: Any, device: str = DEVICES[0]):
        self.scorer = scorer
        self._managed = ManagedModel(scorer.model, device)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Any]:
        """The scorer, its model on its device."""
        with self._managed.loaded():
            self.scorer.device = self._managed.device
            yield self.scorer


def load_policy(folder: Path, device: str = DEVICES[0]) -> LoadedPolicy:
    """The policy of a folder. SettingsError("policy", ...) for a broken one."""
    from ..promptadapt_core.adapter import PromptAdapter

    with torch.inference_mode(False):  # see ManagedModel.loaded
        return LoadedPolicy(PromptAdapter.load(folder), device)


def load_reward(folder: Path, device: str = DEVICES[0]) -> LoadedReward:
    """The scorer of a folder. SettingsError("scorer", ...) says what it lacks."""
    from ..promptadapt_core.settings import SettingsError

    try:
        from ..promptadapt_core.scorers import OpenClipScorer
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        python = f'"{sys.executable}" -m pip install open_clip_torch'
        raise SettingsError("scorer", f"it needs the package open_clip: {python}") from None
    with torch.inference_mode(False):
        return LoadedReward(OpenClipScorer.load(folder), device)


_bundled: list[LoadedPolicy] = []


def bundled_policy() -> LoadedPolicy:
    """The policy of a node that none is linked to. Loaded once."""
    if not _bundled:
        from ..promptadapt_core.model_folders import DEFAULT_POLICY, policy_folder

        _bundled.append(load_policy(policy_folder(DEFAULT_POLICY)))
    return _bundled[0]


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """`with interruptible() as should_stop:` When the user cancels, should_stop() is true, and the
    core's Stopped leaves the block as ComfyUI's own exception."""
    import comfy.model_management as management

    from ..promptadapt_core.decoding import Stopped

    try:
        yield management.processing_interrupted
    except Stopped:
        management.throw_exception_if_processing_interrupted()
        raise


@contextlib.contextmanager
def raising_stopped() -> Iterator[None]:
    """Inside `with interruptible()`: ComfyUI's own exception leaves the block as the core's
    Stopped. To the core every other exception of a renderer or scorer means one picture that
    failed, and it goes on with the next."""
    import comfy.model_management as management

    from ..promptadapt_core.decoding import Stopped

    try:
        yield
    except management.InterruptProcessingException:
        management.interrupt_current_processing(True)  # which raising it had set back
        raise Stopped from None
