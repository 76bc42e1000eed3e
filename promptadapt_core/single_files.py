"""Checkpoints of one .safetensors file, as artists share them: which model is inside, and the
configs and tokenizers that the file does not hold.

diffusers' `from_single_file` looks for those on a hub. Of Stable Diffusion 1, 2 and XL they follow
from the names and shapes of the weights and are written here; every other model needs a pipeline
folder that has them. Names and fixed values: the v1-inference, v2-inference-v and sd_xl_base
configurations of their authors (github.com/Stability-AI/generative-models, stablediffusion), in
the terms of diffusers.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .clip_tokens import END_OF_WORD, MERGES_FILE, byte_symbols
from .pipeline_files import read_safetensors_header
from .settings import SettingsError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
CLIP = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
REFINER = "conditioner.embedders.0.model."
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline",
             "sdxl": "StableDiffusionXLPipeline"}  # fmt: skip
SIDES = {"sd1": 64, "sd2": 96, "sdxl": 128}  # of the latents
SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
HEAD_SIZE = 64
NUM_CLIP_LAYERS = 24  # of SD 2's text encoder, of which the last is never read
LORA_PARTS = (".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", "lora_unet_")
START, END = "<|startoftext|>", "<|endoftext|>"
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip

GUESS_NOTICE = (
    "nothing in the renderer's file says what it predicts; it is taken for v, as of Stable "
    "Diffusion 2 at 768 pixels. A base model of 512 needs --prediction epsilon --size 512"
)

Shapes = Mapping[str, tuple[int, ...]]


class NoConfigError(Exception):
    """Names the pipeline, and the weight that its config would follow from."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight; SettingsError("folder", ...) for a file that is broken, cut
    off or no .safetensors."""
    if path.suffix != ".safetensors":
        reason = f"{path} is no .safetensors file; others may hold code and are not opened"
        raise SettingsError("folder", reason)
    header = read_safetensors_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def find_family(path: Path, shapes: Shapes) -> str:
    """ "sd1", "sd2", "sdxl", or "" for an image model of another kind. SettingsError("folder", ...)
    for a file that no picture can be drawn with; it says what the file is."""
    prefixes = {name.split(".")[0] for name in shapes}
    if any(part in name for name in shapes for part in LORA_PARTS):
        raise SettingsError("folder", f"{path} is a LoRA; it goes on top of a renderer")
    if FIRST_LAYER in shapes:
        return _find_unet_family(path, shapes)
    if prefixes <= {"encoder", "decoder", "quant_conv", "post_quant_conv", "first_stage_model"}:
        raise SettingsError("folder", f"{path} is an autoencoder, not a whole image model")
    if "down_blocks" in prefixes and "mid_block" in prefixes:
        raise SettingsError(
            "folder", f"{path} is one part of a pipeline folder; expected the folder above it"
        )
    inner = {name.removeprefix(UNET).split(".")[0] for name in shapes}
    known = {"joint_blocks", "double_blocks", "transformer_blocks", "blocks", "layers",
             "joint_transformer_blocks", "double_stream_blocks"}  # fmt: skip
    drawing = any(word in name for name in shapes for word in ("img", "x_embedder", "patchify",
                  "pos_embed", "context_embedder", "final_layer", "proj_out"))  # fmt: skip
    if not inner & known or not drawing:
        some = ", ".join(sorted(shapes)[:2]) or "nothing"
        raise SettingsError("folder", f"{path} is no image model: it holds {some}, ...")
    return ""


def _find_unet_family(path: Path, shapes: Shapes) -> str:
    channels = shapes[FIRST_LAYER][1]
    if channels != 4:
        reason = f"its U-Net reads {channels} channels, not 4: it paints into pictures"
        raise SettingsError("folder", f"{path} draws no pictures from text alone: {reason}")

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in shapes)

    if has(OPEN_CLIP["sdxl"]) and has(CLIP["sdxl"]):
        family = "sdxl"
    elif has(REFINER):
        raise SettingsError("folder", f"{path} is a refiner; expected the model that it refines")
    elif has(OPEN_CLIP["sd2"]):
        family = "sd2"
    elif has(CLIP["sd1"]):
        family = "sd1"
    else:
        raise SettingsError("folder", f"{path} holds a U-Net without its text encoder")
    if not has(f"{VAE}decoder."):
        raise SettingsError("folder", f"{path} holds no autoencoder (VAE); expected one baked in")
    return family


def is_guessed(path: Path) -> bool:
    """Whether nothing in the file says what its U-Net predicts, and both are usual."""
    shapes = read_shapes(path)
    return FIRST_LAYER in shapes and find_family(path, shapes) == "sd2" and "v_pred" not in shapes


def write_configs(folder: Path, family: str, shapes: Shapes, prediction: str = "auto") -> None:
    """The pipeline folder without weights for a file of one of the three families, as
    `from_single_file(config=folder)` reads it. NoConfigError where a weight is missing."""
    try:
        parts = _describe_parts(shapes, family, prediction)
    except (LookupError, StopIteration, ValueError, TypeError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else "its shapes are others"
        raise NoConfigError(f"{PIPELINES[family]}: {told}") from None
    index: dict[str, Any] = {
        "_class_name": PIPELINES[family],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", parts["scheduler"]["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    if family == "sdxl":
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["force_zeros_for_empty_prompt"] = True
        write_clip_tokenizer(folder / "tokenizer_2", padding="!")
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    write_clip_tokenizer(folder / "tokenizer", padding="!" if family == "sd2" else END)
    for name, config in parts.items():
        (folder / name).mkdir(exist_ok=True)
        file_name = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file_name).write_text(json.dumps(config), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _describe_parts(shapes: Shapes, family: str, prediction: str) -> dict[str, dict[str, Any]]:
    parts = {
        "unet": describe_unet(shapes, family),
        "vae": describe_vae(shapes, family),
        "scheduler": describe_scheduler(shapes, family, prediction),
    }
    if family == "sd2":
        parts["text_encoder"] = describe_open_clip(shapes, OPEN_CLIP[family])
    else:
        parts["text_encoder"] = describe_clip(shapes, CLIP[family])
    if family == "sdxl":
        parts["text_encoder_2"] = describe_open_clip(shapes, OPEN_CLIP[family])
    return parts


def check_unet_size(path: Path, shapes: Shapes, num_read: int) -> None:
    """SettingsError("folder", ...) where the U-Net in the file has more numbers than `num_read`:
    it is of another build, and a part of it would not count."""
    held = sum(math.prod(shapes[name]) for name in shapes if name.startswith(UNET))
    if held > num_read:
        raise SettingsError(
            "folder",
            f"{path} holds a U-Net of another build ({held:,} numbers, of which {num_read:,} would "
            "be read): --renderer-config has to name a pipeline folder of its kind",
        )


def describe_unet(shapes: Shapes, family: str) -> dict[str, Any]:
    """The config of a UNet2DConditionModel with these weights."""
    channels: list[int] = [0]
    depths: list[int] = [0]  # transformer blocks after each resnet of a level
    num_resnets: list[int] = [0]
    number = 1
    while any(name.startswith(f"{UNET}input_blocks.{number}.0.") for name in shapes):
        place = f"{UNET}input_blocks.{number}"
        if f"{place}.0.op.weight" in shapes:
            for counts in (channels, depths, num_resnets):
                counts.append(0)
        else:
            channels[-1] = shapes[f"{place}.0.out_layers.3.weight"][0]
            depths[-1] = _count(shapes, f"{place}.1.transformer_blocks.")
            num_resnets[-1] += 1
        number += 1
    first = next(name for name in sorted(shapes) if name.endswith("attn2.to_k.weight"))
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    projection = next(
        name for name in sorted(shapes) if name.startswith(UNET) and name.endswith("proj_in.weight")
    )
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "sample_size": SIDES[family],
        "in_channels": shapes[FIRST_LAYER][1], "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels, "layers_per_block": num_resnets[0],
        "cross_attention_dim": shapes[first][1], "down_block_types": down, "up_block_types": up,
        "use_linear_projection": len(shapes[projection]) == 2,
        # diffusers calls the number of heads attention_head_dim. SD 1 has 8 everywhere.
        "attention_head_dim": 8 if family == "sd1" else [_heads(width) for width in channels],
    }  # fmt: skip
    if family == "sdxl":
        config |= {
            "transformer_layers_per_block": [max(depth, 1) for depth in depths],
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes[f"{UNET}label_emb.0.0.weight"][1],
        }  # fmt: skip
    return config


def describe_vae(shapes: Shapes, family: str) -> dict[str, Any]:
    """The config of an AutoencoderKL with these weights."""
    num_levels = _count(shapes, f"{VAE}decoder.up.")
    widths = [
        shapes[f"{VAE}decoder.up.{level}.block.0.conv1.weight"][0] for level in range(num_levels)
    ]
    return {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1], "norm_num_groups": 32,
        "layers_per_block": _count(shapes, f"{VAE}encoder.down.0.block."),
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels, "sample_size": 8 * SIDES[family],
        "scaling_factor": SCALING[family], "force_upcast": True,
    }  # fmt: skip


def describe_scheduler(shapes: Shapes, family: str, prediction: str = "auto") -> dict[str, Any]:
    """The scheduler that the family's authors chose. Files of v-prediction say so by a weight
    named v_pred, those trained down to no signal by ztsnr."""
    if prediction == "auto":
        is_v = family == "sd2" or "v_pred" in shapes
        prediction = "v_prediction" if is_v else "epsilon"
    names = {"sd1": "PNDMScheduler", "sd2": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
    config = {"_class_name": names[family], **NOISE, "prediction_type": prediction}
    if family == "sd1":
        config["skip_prk_steps"] = True
    if family == "sd2":
        config["clip_sample"] = False
    if family == "sdxl":
        config |= {"timestep_spacing": "leading", "interpolation_type": "linear"}
    if "ztsnr" in shapes and family != "sd1":
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def describe_clip(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """The config of the CLIPTextModel below `prefix`, OpenAI's."""
    prefix += "text_model."
    length, width = shapes[f"{prefix}embeddings.position_embedding.weight"]
    return _clip_config(
        length, width, shapes[f"{prefix}embeddings.token_embedding.weight"][0],
        shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        _count(shapes, f"{prefix}encoder.layers."), "quick_gelu",
    )  # fmt: skip


def describe_open_clip(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """The config of a CLIP text model that holds the open_clip weights below `prefix`."""
    length, width = shapes[f"{prefix}positional_embedding"]
    num_layers = _count(shapes, f"{prefix}transformer.resblocks.")
    if prefix == OPEN_CLIP["sd2"] and num_layers == NUM_CLIP_LAYERS:
        num_layers -= 1
    config = _clip_config(
        length, width, shapes[f"{prefix}token_embedding.weight"][0],
        shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0], num_layers, "gelu",
    )  # fmt: skip
    if f"{prefix}text_projection" in shapes:
        config["projection_dim"] = shapes[f"{prefix}text_projection"][1]
    return config


def _clip_config(
    length: int, width: int, num_tokens: int, inner: int, num_layers: int, activation: str
) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model", "max_position_embeddings": length, "hidden_size": width,
        "vocab_size": num_tokens, "intermediate_size": inner, "num_hidden_layers": num_layers,
        "num_attention_heads": _heads(width), "hidden_act": activation, "projection_dim": width,
        "bos_token_id": num_tokens - 2, "eos_token_id": num_tokens - 1,
        "pad_token_id": num_tokens - 1,
    }  # fmt: skip


def _heads(width: int) -> int:
    return max(1, width // HEAD_SIZE)


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow the prefix."""
    cut = len(prefix)
    return len({name[cut:].split(".")[0] for name in shapes if name.startswith(prefix)})


def write_clip_tokenizer(folder: Path, padding: str = END) -> None:
    """The files of a transformers.CLIPTokenizer. padding: the token that fills up to 77."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        merges = file.read().splitlines()
    symbols = byte_symbols()
    merged = [merge.replace(" ", "") for merge in merges]
    words = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *merged, START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    special = {"bos_token": START, "eos_token": END, "pad_token": padding, "unk_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "add_prefix_space": False,
        "do_lower_case": True, "errors": "replace", **special,
    }  # fmt: skip
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_bytes((text + "\n").encode("utf-8"))
