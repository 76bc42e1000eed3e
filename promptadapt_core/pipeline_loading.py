"""A text-to-image pipeline of diffusers from a folder, from one file or from the hub, with what
PipelineOptions ask for.

Nothing is downloaded unless PipelineOptions.download says so, no code of a checkpoint runs, and
only .safetensors are read.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .devices import is_out_of_memory
from .image_samplers import set_sampler
from .pipeline_additions import (
    add_loras,
    check_offload,
    check_tiny_decoder,
    enable_on_decoder,
    first_line,
    read_loras,
    set_tiny_decoder,
)
from .pipeline_files import (
    INDEX_NAME,
    UNUSED_PARTS,
    check_libraries,
    check_no_code,
    check_pipeline_folder,
    check_safetensors,
    hash_file,
    hash_files,
    left_out_parts,
    pipeline_parts,
    read_json,
    variant_of_part,
    weight_variant,
)
from .pipeline_settings import AUTO, NONE, PipelineOptions
from .quiet_libraries import quiet_libraries
from .settings import SettingsError
from .single_files import (
    GUESS_NOTICE,
    NoConfigError,
    check_unet_size,
    find_family,
    is_guessed,
    read_shapes,
    write_configs,
)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
HALF = (torch.float16, torch.bfloat16)
STEERING_PARTS = {"controlnet", "adapter"}  # they read a picture beside the text
OF_FILMS_AND_SOUNDS = {"num_frames", "video_length", "audio_length_in_s", "audio_end_in_s"}
# How torch says that a device does not compute in a precision.
LACKING_TYPE = re.compile(r"not (implemented|supported).*(Half|BFloat16)|BFloat16 is not supported")
# How the weights of these classes begin in one file.
IN_FILE = {
    "Autoencoder": ("first_stage_model.", "vae."),
    "CLIP": ("cond_stage_model.", "conditioner.", "text_encoders.clip"),
    "T5": ("text_encoders.t5xxl",),
}
SAFETY_NOTICE = (
    "the renderer's safety checker is off: it would put black pictures where a reward is expected"
)


class LoadedPipeline(NamedTuple):
    """pipeline: on its device. identity: of all that pictures depend on beside device, precision
    and release. source: where it lies. notices: sentences that the user should read."""

    pipeline: Any
    identity: str
    source: Path
    notices: tuple[str, ...]


def load_pipeline(
    source: Path | str, options: PipelineOptions, dtype: torch.dtype, device: torch.device
) -> LoadedPipeline:
    """The pipeline of a folder, a .safetensors file or a hub name. SettingsError("folder", ...)
    for what is missing, broken or no image model; it names the file. Other errors carry the name
    of the option."""
    check_options(options, device)
    loras = read_loras(options.render_lora)
    path = find_source(source, options.download, dtype)
    notices: list[str] = []
    if path.is_file():
        pipeline, identity = _load_file(path, options, dtype)
        if options.prediction == AUTO and not options.renderer_config and is_guessed(path):
            notices.append(GUESS_NOTICE)
    else:
        check_pipeline_folder(path)
        check_libraries(path)
        if pipeline_parts(path).get("safety_checker"):
            notices.append(SAFETY_NOTICE)
        pipeline, identity = _load_folder(path, dtype), hash_files(path)
    pipeline = as_text_to_image(pipeline, path)
    check_whole(pipeline, path)
    if hasattr(pipeline, "watermark"):  # by a package that may or may not be there
        pipeline.watermark = None
    extras = []
    if options.tiny_decoder:
        extras.append(set_tiny_decoder(pipeline, Path(options.tiny_decoder), dtype))
    if loras:
        added, left_out = add_loras(pipeline, loras)
        extras.append(added)
        notices += left_out
    if options.sampler != AUTO:
        set_sampler(pipeline, options.sampler)
        extras.append(f"sampler {options.sampler}")
    if options.decoder_tiling:
        enable_on_decoder(pipeline, "tiling")
        extras.append("decoder_tiling")
    if options.decoder_slicing:
        enable_on_decoder(pipeline, "slicing")
    if options.attention_slicing:
        pipeline.enable_attention_slicing()
    pipeline = _place(pipeline, path, options.render_offload, device)
    return LoadedPipeline(pipeline, " ".join([identity, *extras]), path, tuple(notices))


def check_options(options: PipelineOptions, device: torch.device) -> None:
    """SettingsError for an option that cannot be had here, without loading anything large."""
    check_offload(options.render_offload, device)
    read_loras(options.render_lora)
    if options.tiny_decoder:
        check_tiny_decoder(Path(options.tiny_decoder))
    if options.renderer_config:
        check_config_folder(Path(options.renderer_config))


def find_source(source: Path | str, download: bool, dtype: torch.dtype) -> Path:
    """The folder or the file. A hub name stands for its folder among the downloaded ones; only
    with `download` it is fetched."""
    path, name = Path(source), str(source)
    if path.is_dir() or path.is_file():
        return path
    if not HUB_NAME.fullmatch(name):
        raise SettingsError("folder", f"there is no folder {path}, and no file of that name")
    from diffusers import DiffusionPipeline

    error: Exception = ValueError("nothing was found")
    for variant in ("fp16", None) if dtype in HALF else (None,):
        try:
            with quiet_libraries():
                return Path(
                    DiffusionPipeline.download(
                        name, variant=variant, use_safetensors=True,
                        local_files_only=not download,
                        **dict.fromkeys(UNUSED_PARTS[:1]),
                    )
                )  # fmt: skip
        except Exception as raised:  # whatever the hub's client leads to
            error = raised
    if download:
        raise SettingsError("folder", f"{name} could not be fetched: {first_line(error)}")
    raise SettingsError(
        "folder",
        f"there is no folder or file {name}; if it is a name of the hub, --download fetches it",
    )


def _load_folder(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    options = {"local_files_only": True, "use_safetensors": True, "variant": weight_variant(folder)}
    # diffusers takes a part that was left out, such as Stable Diffusion 3's T5, only if told so.
    options |= dict.fromkeys(left_out_parts(folder))
    parts = pipeline_parts(folder)
    options |= dict.fromkeys(name for name in UNUSED_PARTS if parts.get(name))
    if parts.get("safety_checker"):
        options["requires_safety_checker"] = False
    for name, (library, kind) in model_classes(folder).items():
        if name not in UNUSED_PARTS:
            options[name] = load_model(folder / name, library, kind, dtype)
    with quiet_libraries():
        try:
            with torch.random.fork_rng(devices=[]):  # first weights, which the files then replace
                return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **options)
        except Exception as error:  # diffusers and transformers raise whatever a file leads to
            raise _not_loaded(f"{folder} is no pipeline", error) from None


def model_classes(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of every part with weights whose class is diffusers' or transformers'."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    found = {}
    for name, value in read_json(folder / INDEX_NAME).items():
        if not isinstance(value, list) or not list((folder / name).glob("*.safetensors")):
            continue
        library, kind = str(value[0]), str(value[1])
        if library in libraries and hasattr(libraries[library], kind):
            found[name] = (library, kind)
    return found


def load_model(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """One part of a pipeline. SettingsError("folder", ...) where its files lack a weight:
    transformers would put random numbers there, and say so where nobody reads it."""
    import diffusers
    import transformers

    model_class = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    with quiet_libraries():
        try:
            with torch.random.fork_rng(devices=[]):
                model, told = model_class.from_pretrained(
                    folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True,
                    variant=variant_of_part(folder), output_loading_info=True,
                )  # fmt: skip
        except Exception as error:  # whatever a file leads to
            raise _not_loaded(f"{folder} cannot be read as a {kind}", error) from None
    missing = sorted(name for name in told["missing_keys"] if "position_ids" not in name)
    if missing:
        raise SettingsError(
            "folder", f"{folder} does not hold a whole {kind}: it lacks {missing[0]}"
        )
    return model


def _not_loaded(told: str, error: Exception) -> SettingsError:
    reason = "memory does not suffice" if is_out_of_memory(error) else first_line(error)
    return SettingsError("folder", f"{told}: {reason}")


def _load_file(path: Path, options: PipelineOptions, dtype: torch.dtype) -> tuple[Any, str]:
    """The pipeline and the identity of one .safetensors file."""
    shapes = read_shapes(path)
    family = find_family(path, shapes)
    identity = hash_file(path)
    if options.renderer_config:
        folder = Path(options.renderer_config)
        parts = _parts_of_configs(folder, shapes, dtype)
        pipeline = _from_single_file(path, folder, dtype, parts)
        return pipeline, f"{identity} config {hash_files(folder)}"
    if not family:
        raise SettingsError(
            "folder",
            f"{path} is neither Stable Diffusion 1, 2 nor XL: --renderer-config has to name a "
            "pipeline folder of its kind, with model_index.json, the configs, the tokenizers, and "
            "the weights of what the file does not hold",
        )
    if options.prediction != AUTO:
        identity += f" {options.prediction}"
    try:
        with tempfile.TemporaryDirectory(prefix="promptadapt-") as place:
            write_configs(Path(place), family, shapes, options.prediction)
            pipeline = _from_single_file(path, Path(place), dtype)
    except NoConfigError as error:
        raise SettingsError("folder", f"{path} is no whole {error}") from None
    except OSError as error:
        reason = f"the configs of {path} cannot be written to {tempfile.gettempdir()}"
        raise SettingsError("folder", f"{reason}: {first_line(error)}") from None
    check_unet_size(path, shapes, sum(some.numel() for some in pipeline.unet.state_dict().values()))
    return pipeline, identity


def check_config_folder(folder: Path) -> None:
    """SettingsError("renderer_config", ...) for a folder that is no pipeline of diffusers' own."""
    try:
        if not folder.is_dir():
            raise SettingsError("folder", f"there is no folder {folder}")
        check_no_code(folder)
        check_libraries(folder)
    except SettingsError as error:
        raise SettingsError("renderer_config", error.reason) from None


def _parts_of_configs(
    folder: Path, shapes: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """Text encoders and autoencoder that lie in the config folder and not in the file, which
    diffusers itself would only take from the file."""
    found = {}
    for name, (library, kind) in model_classes(folder).items():
        prefixes = next((IN_FILE[part] for part in IN_FILE if part in kind), None)
        if prefixes is None or any(weight.startswith(prefixes) for weight in shapes):
            continue
        try:
            for path in (folder / name).glob("*.safetensors"):
                check_safetensors(path)
            found[name] = load_model(folder / name, library, kind, dtype)
        except SettingsError as error:
            raise SettingsError("renderer_config", error.reason) from None
    return found


def _from_single_file(
    path: Path, configs: Path, dtype: torch.dtype, parts: Mapping[str, Any] | None = None
) -> Any:
    """parts: components that are loaded already."""
    import diffusers

    kind = read_json(configs / INDEX_NAME)["_class_name"]
    pipeline_class = getattr(diffusers, kind, None)
    if not hasattr(pipeline_class, "from_single_file"):
        raise SettingsError("renderer_config", f"diffusers reads no single file as a {kind}")
    left_out = dict.fromkeys([*left_out_parts(configs), UNUSED_PARTS[0]])
    known = inspect.signature(pipeline_class.__init__).parameters
    with quiet_libraries():
        try:
            with torch.random.fork_rng(devices=[]):
                pipeline = pipeline_class.from_single_file(
                    str(path), config=str(configs), torch_dtype=dtype, local_files_only=True,
                    **{name: None for name in left_out if name in known}, **(parts or {}),
                )  # fmt: skip
        except Exception as error:  # diffusers and transformers raise whatever a file leads to
            told = _not_loaded(f"{path} cannot be read as a {kind}", error)
            if "meta tensor" in told.reason:  # of a weight that nothing was read for
                told = SettingsError("folder", f"{path} does not hold all weights of a {kind}")
            raise told from None
    return pipeline


def check_whole(pipeline: Any, path: Path) -> None:
    """SettingsError("folder", ...) where nothing was read for a weight."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            missing = [weight for weight, tensor in part.state_dict().items() if tensor.is_meta]
            if missing:
                reason = f"{path} does not hold the whole {name}: {missing[0]} is missing"
                raise SettingsError("folder", reason)


def as_text_to_image(pipeline: Any, path: Path) -> Any:
    """The pipeline, or the one of its kind that draws from a text alone. SettingsError("folder",
    ...) where there is none."""
    from diffusers import AutoPipelineForText2Image

    if {"mask_image", "strength"} & set(inspect.signature(pipeline.__call__).parameters):
        with contextlib.suppress(ValueError), quiet_libraries():  # no sibling is known
            pipeline = AutoPipelineForText2Image.from_pipe(pipeline)
    check_draws_from_text(pipeline, path)
    return pipeline


def check_draws_from_text(pipeline: Any, path: Path) -> None:
    """SettingsError("folder", ...) for a pipeline that needs more than a text."""
    kind = type(pipeline).__name__
    parameters = set(inspect.signature(pipeline.__call__).parameters)
    if "prompt" not in parameters:
        raise SettingsError("folder", f"{path} holds a {kind}, which reads no prompt")
    if parameters & {"mask_image", "strength"} or set(pipeline.components) & STEERING_PARTS:
        raise SettingsError("folder", f"{path} holds a {kind}, which changes pictures")
    if parameters & OF_FILMS_AND_SOUNDS:
        raise SettingsError("folder", f"{path} holds a {kind}, which draws no single pictures")
    unet = getattr(pipeline, "unet", None)
    if unet is not None and unet.config.in_channels != unet.config.out_channels:
        reason = f"{unet.config.in_channels} channels, which is for changing pictures"
        raise SettingsError("folder", f"{path}: its U-Net reads {reason}")


def _place(pipeline: Any, path: Path, offload: str, device: torch.device) -> Any:
    try:
        with quiet_libraries():  # of half precision on a CPU, which is slow and no more
            if offload == NONE:
                return pipeline.to(device)
            getattr(pipeline, f"enable_{offload}_cpu_offload")(device=device)
            return pipeline
    except Exception as error:  # packages that are missing, pipelines without an order
        if is_out_of_memory(error):
            reason = f"{path} does not fit into the memory of {device}"
            raise SettingsError("device", reason) from None
        check_precision(error, device)
        if offload != NONE:
            raise SettingsError("render_offload", first_line(error)) from None
        raise


def check_precision(error: Exception, device: torch.device) -> None:
    """SettingsError("precision", ...) for an error that comes of one the device lacks."""
    if LACKING_TYPE.search(str(error)):
        reason = f"{device} does not compute in it: {first_line(error)}"
        raise SettingsError("precision", reason) from None
