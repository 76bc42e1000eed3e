"""Pictures of adapted prompts: ImageGenerator, and any text-to-image pipeline of diffusers.

    generator = DiffusersGenerator.load("FOLDER")
    pictures = generator.generate(["a cat", "a dog"], seeds=[0, 1])    # (2, H, W, 3) uint8

An adapted prompt is whatever the image model is to draw; a user input may be drawn as it is. A
picture depends on its adapted prompt, its seed and the settings, and not on what else is in the
batch, as far as matrix products of different sizes round alike: every picture has a generator of
its own, on the CPU, where all devices draw the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .clip_tokens import encodable
from .decoding import Stopped
from .devices import is_out_of_memory, pick_device
from .image_samplers import check_noise, recommended_by_sampler
from .pipeline_loading import check_precision, load_pipeline
from .pipeline_settings import PipelineOptions
from .quiet_libraries import quiet_libraries
from .settings import MAX_SEED, Settings, SettingsError, setting

RENDERER_NAME = "renderer.json"
NO_MEMORY = "memory does not suffice for one picture; choose a smaller size"
CLIP_LENGTH = 77  # tokens, start and end included; other text encoders read more
PRECISIONS = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImageSettings(Settings):
    """What a picture depends on beside its adapted prompt and seed."""

    num_steps: int = setting(20, "sampling steps; more is finer", low=1, high=1000)
    guidance_scale: float = setting(
        7.5, "how strongly the prompt pulls; 1 is not at all", low=0.0, high=100.0
    )
    size: int = setting(
        0, "pixels of each side; 0 is what the pipeline was made for", low=0, high=4096
    )
    negative_prompt: str = setting("", "what the pictures should not show")
    even_sigmas: bool = setting(
        False,
        "flow matching: noise levels 1, 1 - 1/n, ..., 1/n before the shift. diffusers' own end "
        "near 0, so that the last step does nothing",
    )


class ImageGenerator(Protocol):
    """Draws adapted prompts. identity: differs wherever pictures differ by more than rounding."""

    identity: str
    settings: ImageSettings

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """One picture for each, (N, H, W, 3) uint8. should_stop: asked between the steps;
        decoding.Stopped when it says True, and when a host's user cancels in another way. Any
        other exception is one picture that failed: callers go on with the next."""


class DiffusersGenerator:
    """A text-to-image pipeline of diffusers."""

    settings_may_change = True  # a copy with others draws by them; a plan's probe makes some
    device: torch.device
    notices: tuple[str, ...]

    def __init__(
        self, pipeline: Any, settings: ImageSettings, identity: str = "", batch_size: int = 8
    ):
        """pipeline: a loaded DiffusionPipeline, on its device. SettingsError for a size that its
        model cannot make and for what this pipeline does not take."""
        self.pipeline, self.settings, self.batch_size = pipeline, settings, batch_size
        self.device, self.notices = torch.device("cpu"), ()  # sentences that the user should read
        self.identity = f"{identity} {json.dumps(dataclasses.asdict(settings), sort_keys=True)}"
        self.parameters = set(inspect.signature(pipeline.__call__).parameters)
        check_size(pipeline, settings.size)
        check_noise(pipeline.scheduler)
        scheduler = type(pipeline.scheduler).__name__
        if settings.even_sigmas and "FlowMatch" not in scheduler:
            raise SettingsError("even_sigmas", f"is for flow matching, not for {scheduler}")
        for name, argument in (("even_sigmas", "sigmas"), ("negative_prompt", "negative_prompt")):
            if getattr(settings, name) and argument not in self.parameters:
                kind = type(pipeline).__name__
                reason = f"the {kind} of this diffusers takes no {argument}; a newer one may"
                raise SettingsError(name, reason)
        if settings.negative_prompt and "true_cfg_scale" in self.parameters:
            reason = f"has no effect on a {type(pipeline).__name__}, which knows no other guidance"
            raise SettingsError("negative_prompt", reason)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 8,
        options: PipelineOptions | None = None,
        **settings: Any,
    ) -> DiffusersGenerator:
        """The pipeline in a folder as `save_pretrained` writes it, in one .safetensors file, or of
        a hub name; nothing is downloaded but by options.download.

        precision: "auto" is float16 on CUDA and MPS, else float32. batch_size: pictures at once;
        halved when memory runs out. options: LoRAs, scheduler and the like. settings: fields of
        ImageSettings; those left out or None are what a few-step scheduler of `options` needs, else
        what renderer.json in the folder recommends, else the pipeline's defaults. Raises
        SettingsError("folder", ...) for a folder that is missing or broken; it names the file.
        """
        if precision != "auto" and precision not in PRECISIONS:
            names = ", ".join(["auto", *PRECISIONS])
            raise SettingsError("precision", f"expected one of {names}, got {precision!r}")
        check_batch_size(batch_size)
        chosen = {name: value for name, value in settings.items() if value is not None}
        make_settings(chosen)
        target = pick_device(device)
        if precision == "auto":
            precision = "float16" if target.type in ("cuda", "mps") else "float32"
        options = options or PipelineOptions()
        recommended = recommended_settings(Path(folder))
        loaded = load_pipeline(folder, options, PRECISIONS[precision], target)
        recommended = recommended or recommended_settings(loaded.source)
        made_for = _pipeline_defaults(loaded.pipeline)
        few_steps = recommended_by_sampler(loaded.pipeline, options.sampler)
        resolved = make_settings({**made_for, **recommended, **few_steps, **chosen})
        identity = f"{loaded.identity} {precision} {target.type} {_diffusers_release()}"
        generator = cls(loaded.pipeline, resolved, identity, batch_size)
        generator.device = target
        generator.notices = (*loaded.notices, *pipeline_notices(loaded.pipeline, resolved))
        return generator

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """See ImageGenerator. Raises SettingsError for adapted prompts that are no list of texts,
        for seeds that do not fit them, for a picture with values that are no numbers, and where
        memory does not suffice for one picture."""
        adapted_prompts, seeds = check_batch(adapted_prompts, seeds)
        if not adapted_prompts:
            side = self.settings.size or 1
            return np.zeros((0, side, side, 3), dtype=np.uint8)
        with quiet_libraries():
            return in_batches(
                self,
                adapted_prompts,
                seeds,
                lambda texts, numbers: self._batch(texts, numbers, should_stop),
            )

    def _batch(
        self, adapted_prompts: list[str], seeds: list[int], should_stop: Callable[[], bool] | None
    ) -> np.ndarray | None:
        """(B, H, W, 3) uint8, or None when memory ran out."""
        if should_stop is not None and should_stop():
            raise Stopped
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = self._arguments(len(adapted_prompts), should_stop)
        texts = [encodable(text) for text in adapted_prompts]
        try:
            with torch.no_grad(), self._left_as_found():
                output = self.pipeline(prompt=texts, generator=generators, **arguments)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                check_precision(error, self.device)
                raise
            return None  # the traceback, which holds the tensors, goes with the error
        return to_pixels(np.asarray(output.images, dtype=np.float32))

    def _arguments(self, number: int, should_stop: Callable[[], bool] | None) -> dict[str, Any]:
        """What this pipeline is called with for so many pictures, beside texts and generators."""
        settings, pipeline = self.settings, self.pipeline
        wanted: dict[str, Any] = {"guidance_scale": settings.guidance_scale}
        if settings.negative_prompt:
            wanted["negative_prompt"] = [settings.negative_prompt] * number
        if settings.size:
            wanted |= {"height": settings.size, "width": settings.size}
        if settings.even_sigmas:
            number = settings.num_steps
            wanted["sigmas"] = [1 - step / number for step in range(number)]
        if hasattr(pipeline, "text_encoder_3") and pipeline.text_encoder_3 is None:
            # Stable Diffusion 3 without T5 would read 256 tokens of zeros; ComfyUI leaves them off.
            wanted["max_sequence_length"] = 0
        # PixArt: no cleaning by packages that may or may not be there, no other size than asked.
        wanted |= {"clean_caption": False, "use_resolution_binning": False}
        if should_stop is not None:
            wanted["callback_on_step_end"] = _stopping(should_stop)
        known = {name: value for name, value in wanted.items() if name in self.parameters}
        return {**known, "num_inference_steps": settings.num_steps, "output_type": "np"}

    @contextlib.contextmanager
    def _left_as_found(self) -> Iterator[None]:
        """A rendering that stops halfway leaves a decoder in float32 that goes on in half
        precision, and on the GPU what else would have gone from it."""
        decoder = getattr(self.pipeline, "vae", None)
        dtype = getattr(decoder, "dtype", None)
        try:
            yield
        except BaseException:
            if dtype is not None and decoder.dtype != dtype:
                decoder.to(dtype=dtype)
            free = getattr(self.pipeline, "maybe_free_model_hooks", None)
            if free is not None:
                free()
            raise


class Batched(Protocol):
    """A generator that draws so many pictures at once; fewer once memory has run out."""

    batch_size: int


def in_batches(
    generator: Batched,
    texts: list[str],
    seeds: list[int],
    draw: Callable[[list[str], list[int]], np.ndarray | None],
) -> np.ndarray:
    """(N, H, W, 3): what `draw` makes of the batches, in order. Where it gives None, memory ran
    out: half as many are drawn from then on. SettingsError("size", ...) where it does not suffice
    for one. N is 1 or more."""
    parts: list[np.ndarray] = []
    done = 0
    while done < len(texts):
        rows = slice(done, done + generator.batch_size)
        tried = len(texts[rows])
        pictures = draw(texts[rows], seeds[rows])
        if pictures is not None:
            parts.append(pictures)
            done += tried
            continue
        if tried == 1:
            raise SettingsError("size", NO_MEMORY)
        generator.batch_size = max(1, tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return np.concatenate(parts)


def _stopping(should_stop: Callable[[], bool]) -> Callable[..., dict[str, Any]]:
    def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict[str, Any]:
        if should_stop():
            raise Stopped
        return tensors

    return after_step


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) floats, 0 to 1 once they are clipped, as uint8. SettingsError("pictures", ...)
    where some are not finite, as when half precision overflows: cast, they would be black."""
    if not np.isfinite(pictures).all():
        number = int((~np.isfinite(pictures)).any(axis=(1, 2, 3)).sum())
        reason = f"{number} of {len(pictures)} have values that are no finite numbers"
        tried = "where it is half precision, try bfloat16 or float32"
        raise SettingsError("pictures", f"{reason}; {tried}")
    return np.rint(np.clip(pictures, 0.0, 1.0) * 255).astype(np.uint8)


def check_batch(
    adapted_prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Both as lists of plain values; SettingsError("adapted_prompts" or "seeds", ...)."""
    texts = adapted_prompts
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise SettingsError("adapted_prompts", "expected a list of texts")
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise SettingsError("seeds", "expected a list of whole numbers") from None
    if len(texts) != len(numbers):
        reason = f"expected one for each of {len(texts)} adapted prompts, got {len(numbers)}"
        raise SettingsError("seeds", reason)
    for number in numbers:
        if not 0 <= number <= MAX_SEED:
            raise SettingsError("seeds", f"expected 0 to {MAX_SEED}, got {number}")
    return list(texts), numbers


def check_batch_size(batch_size: int) -> None:
    """SettingsError("batch_size", ...) for what is no number of pictures."""
    if type(batch_size) is not int or batch_size < 1:
        raise SettingsError("batch_size", f"expected 1 or more, got {batch_size!r}")


def check_size(pipeline: Any, size: int) -> None:
    """SettingsError("size", ...) where the pipeline's model cannot make pictures of size x size;
    0, its own size, always can be made."""
    factor = getattr(pipeline, "vae_scale_factor", 8)
    transformer = getattr(pipeline, "transformer", None)
    config = transformer.config if transformer is not None else {}
    unit = factor * (config.get("patch_size") or 1 if transformer is not None else 1)
    unit = unit if isinstance(unit, int) else factor  # a few have one patch size per axis
    unit *= 2 if hasattr(pipeline, "_pack_latents") else 1  # Flux and its kin
    if size % max(unit, 8):
        raise SettingsError("size", f"expected a multiple of {max(unit, 8)}, got {size}")
    largest = config.get("pos_embed_max_size")
    if largest and size > largest * unit:
        raise SettingsError("size", f"this model makes at most {largest * unit}, got {size}")


def pipeline_notices(pipeline: Any, settings: ImageSettings) -> Iterator[str]:
    """`notices` of a pipeline."""
    limits = [
        part.model_max_length
        for name, part in pipeline.components.items()
        if name.startswith("tokenizer") and hasattr(part, "model_max_length")
    ]
    return notices(settings, max(limits) if limits else None)


def notices(settings: ImageSettings, text_length: int | None) -> Iterator[str]:
    """What of the settings and of the prompts has no effect on the pictures. text_length: tokens
    that the renderer reads, start and end included; None where nobody knows."""
    if settings.negative_prompt and settings.guidance_scale <= 1:
        yield (
            f"the negative prompt has no effect: guidance is {settings.guidance_scale:g}, and only "
            "above 1 the pictures are drawn away from it"
        )
    if text_length is not None and text_length <= CLIP_LENGTH:
        yield (
            f"the renderer reads {text_length - 2} tokens of an adapted prompt; what comes after "
            "them is not drawn"
        )


def _pipeline_defaults(pipeline: Any) -> dict[str, Any]:
    """Steps and guidance that a pipeline itself calls usual; {} of Stable Diffusion, for which the
    defaults of ImageSettings are."""
    if type(pipeline).__name__.startswith("StableDiffusion"):
        return {}
    usual = inspect.signature(pipeline.__call__).parameters
    names = {"num_steps": "num_inference_steps", "guidance_scale": "guidance_scale"}
    found = {name: usual[argument].default for name, argument in names.items() if argument in usual}
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def recommended_settings(folder: Path) -> dict[str, Any]:
    """What renderer.json in the folder says, {} without one."""
    path = folder / RENDERER_NAME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError("folder", f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError("folder", f"{path}: expected a JSON object")
    try:
        make_settings(found)
    except SettingsError as error:
        raise SettingsError("folder", f"{path}: {error}") from None
    return found


def make_settings(values: dict[str, Any]) -> ImageSettings:
    """ImageSettings of these fields; SettingsError names one that is unknown."""
    known = [field.name for field in dataclasses.fields(ImageSettings)]
    for name in values:
        if name not in known:
            raise SettingsError(name, f"unknown; expected some of {', '.join(known)}")
    return ImageSettings(**values)


def _diffusers_release() -> str:
    """ "diffusers 0.42": a release may change what a pipeline draws, its patches should not."""
    import diffusers

    return "diffusers " + ".".join(diffusers.__version__.split(".")[:2])
