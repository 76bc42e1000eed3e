"""What is put on top of a loaded pipeline: LoRAs, a tiny decoder, what saves memory."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .pipeline_files import (
    check_safetensors,
    hash_file,
    hash_files,
    read_json,
    read_safetensors_header,
)
from .pipeline_settings import NONE
from .quiet_libraries import quiet_libraries
from .settings import SettingsError

# What follows a layer's name in a LoRA, as artists and libraries write it.
LORA_SIDE = re.compile(r"[._]lora[._](down|A|linear_layer\.down)\b")


def check_offload(offload: str, device: torch.device) -> None:
    """SettingsError("render_offload", ...) where there is no GPU to leave."""
    if offload != NONE and device.type != "cuda":
        raise SettingsError(
            "render_offload",
            f"{offload} needs a CUDA GPU, and the renderer is on {device.type}, whose memory it "
            "would not spare",
        )


class Lora(NamedTuple):
    """A LoRA file and how strongly it counts."""

    path: Path
    weight: float


def read_loras(texts: tuple[str, ...]) -> list[Lora]:
    """FILE or FILE=WEIGHT each. SettingsError("render_lora", ...) for files that are not there or
    are none."""
    found = []
    for text in texts:
        name, equals, number = text.rpartition("=")
        weight = 1.0
        if equals and not Path(text).exists():
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not math.isfinite(weight):
                raise SettingsError("render_lora", f"expected FILE or FILE=WEIGHT, got {text!r}")
        else:
            name = text
        path = Path(name)
        if path.suffix != ".safetensors" or not path.is_file():
            raise SettingsError("render_lora", f"there is no .safetensors file {path}")
        try:
            check_safetensors(path)
        except SettingsError as error:
            raise SettingsError("render_lora", error.reason) from None
        found.append(Lora(path, weight))
    return found


def add_loras(pipeline: Any, loras: list[Lora]) -> tuple[str, list[str]]:
    """Merge the LoRAs into the weights, so that they cost no time; returns what they add to the
    identity, and a sentence for each of which only a part fits. SettingsError("render_lora", ...)
    for one of another model."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise SettingsError("render_lora", f"the {type(pipeline).__name__} takes no LoRA")
    names, notices = [f"lora_{number}" for number in range(len(loras))], []
    for name, lora in zip(names, loras, strict=True):
        try:
            with quiet_libraries(), torch.random.fork_rng(devices=[]):
                pipeline.load_lora_weights(
                    str(lora.path.parent), weight_name=lora.path.name, adapter_name=name,
                    local_files_only=True,
                )  # fmt: skip
            taken = any(name in known for known in pipeline.get_list_adapters().values())
            error: Exception | None = None
        except ImportError:
            raise SettingsError("render_lora", "needs the package peft") from None
        except Exception as raised:  # another model's LoRA fails in many ways
            taken, error = False, raised
        if not taken:
            kind, told = type(pipeline).__name__, f" ({first_line(error)})" if error else ""
            raise SettingsError("render_lora", f"{lora.path} is no LoRA of this {kind}{told}")
        held, taken = num_layers_held(lora.path), num_layers_taken(pipeline, name)
        if taken < held:
            kind = type(pipeline).__name__
            told = f"{held - taken} of its {held} layers do not fit the {kind} and are left out"
            notices.append(f"only a part of the LoRA {lora.path} counts: {told}")
    with quiet_libraries():
        pipeline.set_adapters(names, adapter_weights=[lora.weight for lora in loras])
        pipeline.fuse_lora(adapter_names=names)
        pipeline.unload_lora_weights()
    return " ".join(f"lora {hash_file(lora.path)}={lora.weight:g}" for lora in loras), notices


def num_layers_held(path: Path) -> int:
    """Of a LoRA file."""
    names = read_safetensors_header(path)
    return len({name[: found.start()] for name in names if (found := LORA_SIDE.search(name))})


def num_layers_taken(pipeline: Any, adapter: str) -> int:
    """The layers of the pipeline that the LoRA of that name has changed."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    inner = [module for part in parts for module in part.modules()]
    return sum(adapter in getattr(module, "lora_A", ()) for module in inner)


def check_tiny_decoder(folder: Path) -> None:
    """SettingsError("tiny_decoder", ...) for a folder without a whole AutoencoderTiny."""
    try:
        kind = read_json(folder / "config.json").get("_class_name")
        files = sorted(folder.glob("*.safetensors"))
        if kind != "AutoencoderTiny" or not files:
            raise SettingsError("folder", f"{folder} holds no AutoencoderTiny, but {kind}")
        for path in files:
            check_safetensors(path)
    except SettingsError as error:
        raise SettingsError("tiny_decoder", error.reason) from None


def set_tiny_decoder(pipeline: Any, folder: Path, dtype: torch.dtype) -> str:
    """Put the tiny decoder in place; returns what it adds to the identity."""
    from diffusers import AutoencoderTiny

    old = getattr(pipeline, "vae", None)
    if old is None:
        raise SettingsError("tiny_decoder", f"the {type(pipeline).__name__} has no decoder")
    with quiet_libraries():
        try:
            with torch.random.fork_rng(devices=[]):
                tiny, told = AutoencoderTiny.from_pretrained(
                    folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True,
                    output_loading_info=True,
                )  # fmt: skip
        except Exception as error:  # whatever a file leads to
            reason = f"{folder} cannot be read: {first_line(error)}"
            raise SettingsError("tiny_decoder", reason) from None
    if told["missing_keys"]:
        raise SettingsError("tiny_decoder", f"{folder} lacks {sorted(told['missing_keys'])[0]}")
    expected, found = old.config.latent_channels, tiny.config.latent_channels
    if expected != found:
        raise SettingsError(
            "tiny_decoder", f"{folder} decodes {found} channels, this renderer draws {expected}"
        )
    pipeline.register_modules(vae=tiny)
    return f"tiny_decoder {hash_files(folder)}"


def enable_on_decoder(pipeline: Any, kind: str) -> None:
    """kind: slicing or tiling; SettingsError where the decoder has none."""
    enable = getattr(getattr(pipeline, "vae", None), f"enable_{kind}", None)
    if enable is None:
        raise SettingsError(f"decoder_{kind}", f"the decoder of this renderer has no {kind}")
    enable()


def first_line(error: BaseException) -> str:
    """Of an error of another library, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
