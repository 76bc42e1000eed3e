"""The renderer as one checkpoint file that an unmodified ComfyUI opens.

ComfyUI's CheckpointLoaderSimple reads the sizes of a Stable Diffusion 3 from the weights: the
number of heads and of blocks is the width / 64, CLIP-L alone suffices as text encoder, and a VAE
in the shape of TAESD is accepted. So everything here is a renaming of what diffusers keeps, with
two additions that change no picture:
- TAESD is 64 channels wide: narrower weights are filled up with zero channels, whose ReLU is zero;
- the position grid is 192 wide as Stable Diffusion 3's. Both libraries cut its middle out, so our
  grid goes into the middle, and around it the same formula goes on, for larger pictures.
All weights are half precision, as the lab's own files are. KSampler with sampler "euler" and
scheduler "normal" takes the same noise and the same steps as the diffusers pipeline.

Sources: ComfyUI 0.3.75, comfy/utils.py (mmdit_to_diffusers), comfy/ldm/modules/diffusionmodules/
mmdit.py, comfy/taesd/taesd.py, comfy/latent_formats.py, comfy/text_encoders/sd3_clip.py; the
diffusers names of SD3Transformer2DModel and AutoencoderTiny.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .. import runs
from ..settings import SettingsError

Weights = dict[str, torch.Tensor]

TRANSFORMER_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "text_encoders.clip_l.transformer."
HEAD_WIDTH = 64  # ComfyUI: heads = blocks = width / 64
GRID_WIDTH = 192  # positions a side
TAESD_CHANNELS = 64
LATENT_CHANNELS, COLOURS = 16, 3
LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609  # of ComfyUI's latents: x / scale + shift
SAMPLING_SHIFT = 3.0
CLIP_LAYERS, CLIP_WIDTH, CLIP_TOKENS, CLIP_POSITIONS = 12, 768, 49408, 77

# comfy/ldm/modules/diffusionmodules/mmdit.py, cropped_pos_embed and unpatchify
ONE_PATCH_REASON = "ComfyUI counts (side + 1) // patch_size positions, wrong for patches of 1"
VAE_NAME = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")

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


def export_checkpoint(weights: Path, out: Path, report: runs.Reporter | None = None) -> Path:
    """Write the renderer in the diffusers folder `weights` as one .safetensors file, and say its
    size to `report` (a line on stderr when there is none).

    The file is replaced whole or not at all. Raises SettingsError("weights", ...) for a folder
    that is not complete or has a shape that ComfyUI's Stable Diffusion 3 cannot take, and
    SettingsError("out", ...) for a folder or a place that cannot be written.
    """
    weights, out = Path(weights), Path(out)
    _check_out(out)
    tensors = checkpoint_weights(weights)

    def write(partial: Path) -> None:  # save_file would leave it unreadable for other users
        partial.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))

    try:
        runs.replace_file(out, write)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise SettingsError("out", f"{out} could not be written ({_reason(error)})") from None
    (report or runs.Progress()).say(f"{out}: {out.stat().st_size / 1e6:.0f} MB")
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
    """All tensors of the checkpoint, float16 but for two scalars, from a diffusers folder of a
    StableDiffusion3Pipeline. SettingsError("weights", ...) for what ComfyUI cannot take."""
    if not folder.is_dir():
        raise SettingsError("weights", f"there is no folder {folder}")
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("shift") != SAMPLING_SHIFT or scheduler.get("use_dynamic_shifting"):
        raise SettingsError("weights", f"{folder}: the scheduler's shift is not {SAMPLING_SHIFT}")
    parts = {
        TRANSFORMER_PREFIX: mmdit_weights(*_read_part(folder / "transformer")),
        VAE_PREFIX: taesd_weights(*_read_part(folder / "vae")),
        CLIP_PREFIX: clip_weights(_read_part(folder / "text_encoder")[0]),
    }
    return {
        prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError("weights", f"{path} cannot be read ({_reason(error)})") from None
    if not isinstance(config, dict):
        raise SettingsError("weights", f"{path} does not hold a JSON object")
    return config


def _read_part(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Weights and config of one part of the pipeline."""
    config = _read_config(folder / "config.json")
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors")
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    try:
        return safetensors.torch.load_file(path), config
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SettingsError("weights", f"{path} cannot be read ({_reason(error)})") from None


class _Source:
    """Weights of one part; each is taken once, and none may be left over."""

    def __init__(self, part: str, weights: Mapping[str, torch.Tensor]):
        self.part = part
        self.left = dict(weights)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A copy in half precision. SettingsError when it is missing, of another shape or too
        large for half precision."""
        if name not in self.left:
            raise SettingsError("weights", f"{self.part} has no {name}")
        half = self.left.pop(name).to(torch.float16, copy=True).contiguous()
        if shape is not None and tuple(half.shape) != shape:
            raise SettingsError(
                "weights", f"{self.part}: {name} is {tuple(half.shape)}, expected {shape}"
            )
        if not torch.isfinite(half).all():
            raise SettingsError("weights", f"{self.part}: {name} does not fit half precision")
        return half

    def finish(self) -> None:
        if self.left:
            extra = ", ".join(sorted(self.left)[:3])
            raise SettingsError("weights", f"{self.part} has what ComfyUI cannot take: {extra}")


def mmdit_weights(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Weights:
    """Stable Diffusion 3's own names for the weights of an SD3Transformer2DModel."""
    depth, heads = config.get("num_layers"), config.get("num_attention_heads")
    if depth != heads or config.get("attention_head_dim") != HEAD_WIDTH:
        raise SettingsError(
            "weights", f"transformer: ComfyUI expects as many heads of {HEAD_WIDTH} as blocks"
        )
    if config.get("in_channels") != LATENT_CHANNELS:
        raise SettingsError("weights", f"transformer: expected {LATENT_CHANNELS} latent channels")
    if config.get("patch_size", 0) < 2:
        raise SettingsError("weights", f"transformer: {ONE_PATCH_REASON}")
    source, renamed = _Source("transformer", weights), {}
    for end in ("weight", "bias"):
        for new, old in OUTER_NAMES:
            renamed[f"{new}.{end}"] = source.take(f"{old}.{end}")
        renamed[f"final_layer.adaLN_modulation.1.{end}"] = _swapped(
            source.take(f"norm_out.linear.{end}")
        )
    for index in range(depth):
        block = _block_weights(source, f"transformer_blocks.{index}.", index == depth - 1)
        renamed.update({f"joint_blocks.{index}.{name}": block[name] for name in block})
    renamed["pos_embed"] = position_grid(source.take("pos_embed.pos_embed"), config)
    source.finish()
    return renamed


def _block_weights(source: _Source, prefix: str, last: bool) -> Weights:
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


def position_grid(grid: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """(1, side * side, width) position embeddings -> (1, 192 * 192, width), ours in the middle.

    Around it the formula of diffusers' get_2d_sincos_pos_embed goes on: coordinates are
    sample_size / side apart and may be negative.
    """
    side, width = math.isqrt(grid.shape[1]), grid.shape[2]
    margin, odd = divmod(GRID_WIDTH - side, 2)
    if side * side != grid.shape[1] or odd or margin < 0:
        raise SettingsError(
            "weights",
            f"transformer: pos_embed_max_size has to be even and at most {GRID_WIDTH}, got {side}",
        )
    step = config.get("sample_size", 0) // config.get("patch_size", 1) / side
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


def taesd_weights(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Weights:
    """TAESD's names for the weights of an AutoencoderTiny, filled up with zeros to 64 channels.

    ComfyUI hands its VAE `latents / 1.5305 + 0.0609` and TAESD computes `(x - shift) * scale`; the
    two scalars (float32) are set so that the decoder sees what diffusers' decoder sees.
    """
    blocks = [config.get(f"num_{side}_blocks") for side in ("encoder", "decoder")]
    if [list(part or ()) for part in blocks] != [[1, 3, 3, 3], [3, 3, 3, 1]]:
        raise SettingsError("weights", "vae: ComfyUI expects the blocks of TAESD")
    widths = {
        width
        for side in ("encoder", "decoder")
        for width in config.get(f"{side}_block_out_channels", ())
    }
    if len(widths) != 1 or not LATENT_CHANNELS < min(widths) <= TAESD_CHANNELS:
        raise SettingsError(
            "weights",
            f"vae: expected one width of {LATENT_CHANNELS + 1} to {TAESD_CHANNELS} channels",
        )
    if config.get("latent_channels") != LATENT_CHANNELS:
        raise SettingsError("weights", f"vae: expected {LATENT_CHANNELS} latent channels")
    source, renamed = _Source("vae", weights), {}
    for name in weights:
        found = VAE_NAME.fullmatch(name)
        if found is None:
            raise SettingsError("weights", f"vae has what ComfyUI cannot take: {name}")
        side, number, rest = found.groups()
        first = side == "decoder"  # TAESD's decoder counts its tanh as layer 0
        renamed[f"taesd_{side}.{int(number) + first}.{rest}"] = _filled(source.take(name))
    scale = LATENT_SCALE / config.get("scaling_factor", 1.0)
    shift = LATENT_SHIFT - config.get("shift_factor", 0.0) / scale
    renamed["vae_scale"] = torch.tensor(scale, dtype=torch.float32)
    renamed["vae_shift"] = torch.tensor(shift, dtype=torch.float32)
    return renamed


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    """A convolution's weight (out, in, 3, 3) or bias (out,) with its hidden channels filled up to
    64; colours and latents keep their number."""
    sizes = [n if n in (COLOURS, LATENT_CHANNELS) else TAESD_CHANNELS for n in tensor.shape[:2]]
    filled = tensor.new_zeros(*sizes, *tensor.shape[2:])
    filled[tuple(slice(size) for size in tensor.shape)] = tensor
    return filled


def clip_weights(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights of a CLIPTextModelWithProjection of CLIP-L's size, every one of them: ComfyUI
    leaves what is missing as whatever the memory held."""
    source = _Source("text_encoder", weights)
    source.left.pop("text_model.embeddings.position_ids", None)
    renamed = {name: source.take(name, shape) for name, shape in clip_shapes().items()}
    source.finish()
    return renamed


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of CLIP-L's text encoder."""
    width, inner = CLIP_WIDTH, 4 * CLIP_WIDTH
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    layer = {f"{name}.weight": (width, width) for name in square}
    layer |= {"mlp.fc1.weight": (inner, width), "mlp.fc2.weight": (width, inner)}
    layer |= {f"layer_norm{number}.weight": (width,) for number in (1, 2)}
    layer |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in layer.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (CLIP_TOKENS, width),
        "text_model.embeddings.position_embedding.weight": (CLIP_POSITIONS, width),
    }
    for index in range(CLIP_LAYERS):
        prefix = f"text_model.encoder.layers.{index}."
        shapes |= {prefix + name: shape for name, shape in layer.items()}
    shapes |= {f"text_model.final_layer_norm.{end}": (width,) for end in ("weight", "bias")}
    return shapes | {"text_projection.weight": (width, width)}
