"""ComfyUI's own sampler as an ImageGenerator of the core. The one module that knows comfy's
sampling and its progress bar."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..promptadapt_core.decoding import Stopped
from ..promptadapt_core.devices import is_out_of_memory
from ..promptadapt_core.images import ImageSettings
from ..promptadapt_core.settings import SettingsError
from .memory import raising_stopped
from .tensors import pictures_of

MOST_STEPS, MOST_GUIDANCE = 1000, 100.0  # that ImageSettings takes; here they only tell
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # of LATENTs since 2026
# In these a step draws no noise, so that a picture does not depend on its place in the batch.
BATCHED_SAMPLERS = frozenset(
    "euler euler_cfg_pp heun heunpp2 dpm_2 lms dpm_fast dpmpp_2m dpmpp_2m_cfg_pp ddim uni_pc "
    "uni_pc_bh2 deis ipndm ipndm_v res_multistep res_multistep_cfg_pp gradient_estimation".split()
)
_numbers = itertools.count()


def sampler_choices() -> tuple[list[str], list[str]]:
    """(samplers, schedulers) of KSampler."""
    from comfy.samplers import KSampler

    return KSampler.SAMPLERS, KSampler.SCHEDULERS


def progress_bar(total: int) -> Any:
    """ComfyUI's, on the node that is running: update_absolute(value, total, preview)."""
    from comfy.utils import ProgressBar

    return ProgressBar(total)


@dataclass(frozen=True)
class Sampling:
    """What the widgets of a KSampler say, but for the seed. batch_size: pictures at once.
    SettingsError for what a link brought and no widget takes."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, number in (("steps", self.steps), ("render_batch_size", self.batch_size)):
            if number < 1:
                raise SettingsError(name, f"expected 1 or more, got {number}")


class ComfyGenerator:
    """MODEL, CLIP, VAE, negative CONDITIONING and LATENT of a graph.

    A picture with seed n is what KSampler and VAEDecode make of the same inputs with seed n, one
    picture at a time. latent: of its samples only the first, and only its size matters.
    on_step(number of steps times pictures that were done since the last call, preview or None).
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        negative: Any,
        latent: dict[str, Any],
        sampling: Sampling,
        on_step: Callable[[int, Any], None] = lambda number, preview: None,
    ):
        self.model, self.clip, self.vae, self.negative = model, clip, vae, negative
        self.sampling, self.on_step = sampling, on_step
        self.batch_size = sampling.batch_size if sampling.sampler_name in BATCHED_SAMPLERS else 1
        self._empty = _empty_latent(model, latent)
        self._sources = (model, clip, vae, negative, tuple(self._empty.shape))
        self.identity = f"comfyui {next(_numbers)}"
        self.settings = ImageSettings(
            num_steps=min(sampling.steps, MOST_STEPS),
            guidance_scale=min(max(sampling.cfg, 0.0), MOST_GUIDANCE),
        )

    def adopt(self, known: Known | None) -> Known:
        """Take over the identity of an earlier generator that draws the same pictures."""
        if known is not None and known.is_of(self._sources, self.sampling):
            self.identity = known.identity
            return known
        return Known(self._sources, self.sampling, self.identity)

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """See ImageGenerator. Stopped, too, when the user cancels while it samples. SettingsError
        where memory does not suffice for one picture."""
        with torch.inference_mode(), raising_stopped():
            conditionings = {}
            for text in dict.fromkeys(adapted_prompts):
                if should_stop is not None and should_stop():
                    raise Stopped
                conditionings[text] = self._encode(text)
            encoded = [conditionings[text] for text in adapted_prompts]
            found: dict[int, np.ndarray] = {}
            for places in _alike(encoded):
                found.update(self._render([(i, encoded[i], seeds[i]) for i in places]))
        return np.stack([found[i] for i in range(len(encoded))])

    def _render(self, rows: list[tuple[int, Any, int]]) -> dict[int, np.ndarray]:
        """Place -> picture, of rows (place, conditioning, seed) that fit into one batch."""
        found: dict[int, np.ndarray] = {}
        while rows:
            part = rows[: self.batch_size]
            try:
                pictures = self._batch([row[1] for row in part], [row[2] for row in part])
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                pictures = None  # the traceback, which holds the tensors, goes with the error
            if pictures is None:
                self._halve(len(part))
                continue
            found.update({row[0]: picture for row, picture in zip(part, pictures, strict=True)})
            rows = rows[len(part) :]
        return found

    def _encode(self, text: str) -> Any:
        """A CONDITIONING, as CLIP Text Encode makes it."""
        tokens = self.clip.tokenize(text)
        if hasattr(self.clip, "encode_from_tokens_scheduled"):
            return self.clip.encode_from_tokens_scheduled(tokens)
        embedding, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        return [[embedding, {"pooled_output": pooled}]]  # ComfyUI before December 2024

    def _batch(self, conditionings: list[Any], seeds: list[int]) -> list[np.ndarray]:
        import comfy.sample

        sampling = self.sampling
        with _global_generators_put_back(self.model.load_device):
            # It seeds them, and there are samplers that go on drawing from them.
            noise = torch.cat([comfy.sample.prepare_noise(self._empty, seed) for seed in seeds])
            samples = comfy.sample.sample(
                self.model, noise, sampling.steps, sampling.cfg, sampling.sampler_name,
                sampling.scheduler, _joined(conditionings), self._negative(),
                self._empty.repeat(len(seeds), *[1] * (self._empty.dim() - 1)),
                callback=self._callback(len(seeds)), disable_pbar=True, seed=seeds[0],
            )  # fmt: skip
        images = self.vae.decode(samples)
        if images.dim() == 5:  # the models of videos give (N, 1, H, W, C)
            images = images.reshape(-1, *images.shape[-3:])
        pictures = pictures_of([images], "images")[0]
        if len(pictures) != len(seeds):
            raise SettingsError("vae", f"expected {len(seeds)} pictures of it, got {len(pictures)}")
        return pictures

    def _negative(self) -> Any:
        if self.negative is None:
            self.negative = self._encode("")
        return self.negative

    def _callback(self, number: int) -> Callable[..., None]:
        """Tells of every step of a batch of `number` pictures."""
        import latent_preview

        previewer = latent_preview.get_previewer(
            self.model.load_device, self.model.model.latent_format
        )

        def after_step(step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
            preview = previewer and previewer.decode_latent_to_preview_image("JPEG", x0)
            self.on_step(number, preview or None)

        return after_step

    def _halve(self, tried: int) -> None:
        """After memory ran out with `tried` pictures at once."""
        import comfy.model_management as management

        if tried == 1:
            reason = "memory does not suffice for one picture; choose a smaller size"
            raise SettingsError("latent_image", reason)
        self.batch_size = max(1, tried // 2)
        management.soft_empty_cache()


class Known:
    """What an earlier generator was made of: ComfyUI hands a node the same objects again, unless
    something before it in the graph has changed."""

    def __init__(self, sources: tuple[Any, ...], sampling: Sampling, identity: str):
        self.identity, self._sampling = identity, sampling
        *models, self._negative, self._shape = sources
        self._models = [weakref.ref(model) for model in models]

    def is_of(self, sources: tuple[Any, ...], sampling: Sampling) -> bool:
        *models, negative, shape = sources
        same = all(known() is model for known, model in zip(self._models, models, strict=True))
        mine, its = self._sampling, sampling
        unbatched = [(one.steps, one.cfg, one.sampler_name, one.scheduler) for one in (mine, its)]
        return (
            same
            and negative is self._negative
            and shape == self._shape
            and unbatched[0] == unbatched[1]
        )


def _empty_latent(model: Any, latent: dict[str, Any]) -> torch.Tensor:
    """One empty picture of the size of a LATENT, as KSampler makes it fit the model.

    SettingsError for videos and for what is more than pictures."""
    import comfy.sample

    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise SettingsError("latent_image", "expected one of pictures, got one with sound")
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {name: latent[name] for name in RATIOS if name in known and name in latent}
    empty = torch.zeros_like(samples[:1])
    empty = comfy.sample.fix_empty_latent_channels(model, empty, **ratios)
    if empty.dim() == 5 and empty.shape[2] > 1:
        raise SettingsError("latent_image", "expected one of pictures, got one of a video")
    return empty


def _global_generators_put_back(device: torch.device) -> contextlib.AbstractContextManager:
    """What is drawn inside leaves torch's generators, the device's too, as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _out_of_memory(error: Exception) -> bool:
    import comfy.model_management as management

    known = management.OOM_EXCEPTION
    return (known is not Exception and isinstance(error, known)) or is_out_of_memory(error)


def _alike(conditionings: Sequence[Any]) -> list[list[int]]:
    """Places of those that fit into one batch, in groups."""
    groups: dict[Any, list[int]] = {}
    for place, conditioning in enumerate(conditionings):
        groups.setdefault(_shape(conditioning, place), []).append(place)
    return list(groups.values())


def _shape(conditioning: Any, place: int) -> Any:
    """Equal for conditionings that can be joined; unlike any other for one that cannot."""
    if len(conditioning) != 1:
        return place
    embedding, options = conditioning[0]
    if embedding.shape[0] != 1:
        return place
    parts: list[Any] = [tuple(embedding.shape)]
    for name, value in sorted(options.items()):
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == 1:
            parts.append((name, tuple(value.shape)))
        elif value is None or isinstance(value, (int, float, str, bool)):
            parts.append((name, value))
        else:
            return place
    return tuple(parts)


def _joined(conditionings: Sequence[Any]) -> Any:
    """One CONDITIONING whose rows are those of conditionings of one shape."""
    if len(conditionings) == 1:
        return conditionings[0]
    options = {
        name: torch.cat([one[0][1][name] for one in conditionings])
        if isinstance(value, torch.Tensor)
        else value
        for name, value in conditionings[0][0][1].items()
    }
    return [[torch.cat([one[0][0] for one in conditionings]), options]]
