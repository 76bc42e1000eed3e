"""The renderer as one checkpoint file that an unmodified ComfyUI opens.

ComfyUI's CheckpointLoaderSimple reads the sizes of a Stable Diffusion 3 from the weights: the
number of heads and of blocks is the width / 64, CLIP-L alone suffices as text encoder, and a VAE
in the shape of TAESD is accepted. So the transformer is only renamed, with one addition: the
position grid is 192 wide as Stable Diffusion 3's. Both libraries cut its middle out, so our grid
goes into the middle, and around it the same formula goes on, for larger pictures. The text encoder
has all 12 layers here, of which 11 do nothing. The VAE is filled up, see taesd.py: its pictures
are ours with every pixel doubled, so 64 x 64 are made as 128 x 128.

All weights are half precision, as the lab's own files are. KSampler takes the same noise as the
diffusers pipeline, and with the sampler "euler" the same steps: scheduler "simple" for the even
steps that the lab recommends (8 of them, cfg 3), "normal" for diffusers' own.

Sources: ComfyUI 0.3.75, comfy/utils.py (mmdit_to_diffusers), comfy/ldm/modules/diffusionmodules/
mmdit.py, comfy/taesd/taesd.py, comfy/latent_formats.py, comfy/text_encoders/sd3_clip.py; the
diffusers names of SD3Transformer2DModel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .. import runs
from ..pipeline_files import read_json
from ..settings import SettingsError
from .folders import TEXT_SEED, WEIGHTS, check_weights, weight_files
from .renaming import Source, Weights
from .renderer import CONFIG, CONTEXT_WIDTH, HEAD_DIM, POOLED_WIDTH
from .taesd import taesd_weights
from .text_encoder import state_of_clip_l

TRANSFORMER_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
GRID_WIDTH = 192  # positions a side

# What is only renamed: (name in the checkpoint, name in diffusers).
OUTER_NAMES = [
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    ("context_embedder", "context_embedder"),
    ("final_layer.linear", "proj_out"),
]
IMAGE_NAMES = [
    ("x_block.adaLN_modulation.1", "norm1.linear"),
    ("x_block.attn.proj", "attn.to_out.0"),
    ("x_block.mlp.fc1", "ff.net.0.proj"),
    ("x_block.mlp.fc2", "ff.net.2"),
]
TEXT_NAMES = [  # the last block has none of these: nothing reads its text
    ("context_block.adaLN_modulation.1", "norm1_context.linear"),
    ("context_block.attn.proj", "attn.to_add_out"),
    ("context_block.mlp.fc1", "ff_context.net.0.proj"),
    ("context_block.mlp.fc2", "ff_context.net.2"),
]
QUERY_KEY_VALUE = [
    ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
]
QUERY_KEY_NORMS = [  # only with qk_norm="rms_norm"
    ("x_block.attn.ln_q", "attn.norm_q"),
    ("x_block.attn.ln_k", "attn.norm_k"),
    ("context_block.attn.ln_q", "attn.norm_added_q"),
    ("context_block.attn.ln_k", "attn.norm_added_k"),
]


def export_checkpoint(weights: Path | None, out: Path) -> Path:
    """Write the renderer as one .safetensors file; returns its path.

    weights: a folder with transformer/ and vae/, as `folders.renderer_folder` takes it; None takes
    the bundled ones. The file is replaced whole or not at all. Raises SettingsError("weights", ...)
    for a folder that is not complete or has a shape that ComfyUI's Stable Diffusion 3 cannot take,
    and SettingsError("out", ...) for a folder or a place that cannot be written.
    """
    weights, out = Path(weights) if weights else WEIGHTS, Path(out)
    _check_out(out)
    tensors = checkpoint_weights(weights)

    def write(partial: Path) -> None:  # save_file would leave it unreadable for other users
        partial.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))

    try:
        runs.replace_file(out, write)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise SettingsError("out", f"{out} could not be written ({_reason(error)})") from None
    return out


def _check_out(out: Path) -> None:
    """Refuse a place that cannot take the file, before the work."""
    try:
        if out.is_dir():
            raise SettingsError("out", f"{out} is a folder, expected a file")
        if not out.parent.is_dir():
            raise SettingsError("out", f"the folder {out.parent} does not exist")
        runs.replace_file(out.with_name(out.name + ".writable"), Path.touch)
        out.with_name(out.name + ".writable").unlink()
    except OSError as error:
        raise SettingsError("out", f"{out} cannot be written ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def checkpoint_weights(folder: Path) -> Weights:
    """All tensors of the checkpoint, float16 but for two scalars, from a folder with transformer/
    and vae/. SettingsError("weights", ...) for what ComfyUI cannot take."""
    check_weights(folder)
    parts = {
        TRANSFORMER_PREFIX: mmdit_weights(*_read_part(folder / "transformer")),
        VAE_PREFIX: taesd_weights(*_read_part(folder / "vae")),
    }
    named = {
        prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
    }
    return named | state_of_clip_l(TEXT_SEED)


def _read_part(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Weights and config of one part."""
    weights: Weights = {}
    for path in weight_files(folder):
        try:
            weights |= safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            reason = f"{path} cannot be read ({_reason(error)})"
            raise SettingsError("weights", reason) from None
    return weights, read_json(folder / "config.json")


def mmdit_weights(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Weights:
    """Stable Diffusion 3's own names for the weights of an SD3Transformer2DModel."""
    depth = config.get("num_layers")
    if type(depth) is not int or depth < 1:
        raise SettingsError("weights", f"transformer: num_layers is {depth}")
    width = depth * HEAD_DIM  # ComfyUI counts on it; and its grid counts one off for patches of 1
    wanted = {
        **CONFIG, "num_attention_heads": depth, "caption_projection_dim": width,
        "joint_attention_dim": CONTEXT_WIDTH, "pooled_projection_dim": POOLED_WIDTH,
    }  # fmt: skip
    for name, value in wanted.items():
        if config.get(name) != value:
            reason = f"transformer: {name} is {config.get(name)}, expected {value}"
            raise SettingsError("weights", reason)
    source, renamed = Source("transformer", weights), {}
    for end in ("weight", "bias"):
        for new, old in OUTER_NAMES:
            renamed[f"{new}.{end}"] = source.take(f"{old}.{end}")
        renamed[f"final_layer.adaLN_modulation.1.{end}"] = _swapped(
            source.take(f"norm_out.linear.{end}")
        )
    for index in range(depth):
        block = _block_weights(source, f"transformer_blocks.{index}.", index == depth - 1)
        renamed.update({f"joint_blocks.{index}.{name}": block[name] for name in block})
    side = CONFIG["pos_embed_max_size"]
    grid = source.take("pos_embed.pos_embed", (1, side * side, width))
    renamed["pos_embed"] = position_grid(grid, CONFIG["sample_size"] // CONFIG["patch_size"] / side)
    source.finish()
    return renamed


def _block_weights(source: Source, prefix: str, last: bool) -> Weights:
    """The weights of one joint block, without its own prefix."""
    names = IMAGE_NAMES if last else IMAGE_NAMES + TEXT_NAMES
    block = {}
    for end in ("weight", "bias"):
        for new, old in names:
            block[f"{new}.{end}"] = source.take(f"{prefix}{old}.{end}")
        for new, three in QUERY_KEY_VALUE:
            block[f"{new}.{end}"] = torch.cat([source.take(f"{prefix}{n}.{end}") for n in three])
        if last:
            name = f"context_block.adaLN_modulation.1.{end}"
            block[name] = _swapped(source.take(f"{prefix}norm1_context.linear.{end}"))
    for new, old in QUERY_KEY_NORMS:
        if f"{prefix}{old}.weight" in source.left:
            block[f"{new}.weight"] = source.take(f"{prefix}{old}.weight")
    return block


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Shift before scale, as the original has them; diffusers' last norms have scale first."""
    scale, shift = tensor.chunk(2, dim=0)
    return torch.cat([shift, scale], dim=0)


def position_grid(grid: torch.Tensor, step: float) -> torch.Tensor:
    """(1, side * side, width) position embeddings -> (1, 192 * 192, width), ours in the middle.

    Around it the formula of diffusers' get_2d_sincos_pos_embed goes on: coordinates are `step`
    apart and may be negative. side: even and at most 192.
    """
    side, width = math.isqrt(grid.shape[1]), grid.shape[2]
    margin = (GRID_WIDTH - side) // 2
    along = _waves((torch.arange(GRID_WIDTH, dtype=torch.float64) - margin) * step, width // 2)
    shape = (GRID_WIDTH, GRID_WIDTH, width // 2)
    across, down = along[None, :].expand(shape), along[:, None].expand(shape)
    wide = torch.cat([across, down], dim=-1).to(grid.dtype)
    middle = slice(margin, margin + side)
    wide[middle, middle] = grid[0].view(side, side, width)
    return wide.reshape(1, GRID_WIDTH * GRID_WIDTH, width)


def _waves(positions: torch.Tensor, width: int) -> torch.Tensor:
    """(positions, width): sines, then cosines, of the positions at falling frequencies."""
    exponents = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angles = torch.outer(positions, 1.0 / 10000**exponents)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
