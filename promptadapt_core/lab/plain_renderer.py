"""The lab's renderer in plain torch: the pictures of its pipeline, without importing diffusers.

Importing diffusers takes a fresh process longer than all else that the command `render` does. The
weights are those of diffusers' SD3Transformer2DModel and AutoencoderTiny under their names there,
and the arithmetic is theirs and the pipeline's (Stable Diffusion 3, arXiv 2403.03206), in float32.
It takes half the pipeline's time on a CPU, for padding is read once, see PlainTransformer.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional

from ..clip_tokens import ClipTokenCounter
from ..decoding import Stopped
from ..devices import is_out_of_memory, pick_device
from ..images import (
    NO_MEMORY,
    ImageSettings,
    check_batch,
    check_batch_size,
    in_batches,
    make_settings,
    notices,
    to_pixels,
)
from ..pipeline_files import read_json
from ..settings import SettingsError
from .folders import SHIFT, TEXT_SEED, check_weights, recommended, renderer_identity, weight_files
from .text_encoder import MAX_LENGTH, NUM_POSITIONS, TextFeatures

NUM_TRAIN_TIMESTEPS = 1000
FORMAT = 1  # of the pictures: another one where this code draws or reads texts otherwise
TIME_WIDTH = 256  # of the sines and cosines of a timestep
Weights = Mapping[str, torch.Tensor]


class PlainRenderer:
    """An ImageGenerator: draws what `DiffusersGenerator.load(renderer_folder(weights))` draws in
    float32.

    Every text is read as `clip_tokens.clean_for_clip` writes it, and has no special tokens. The
    pipeline's CLIPTokenizer cleans less (how much depends on the release of transformers): HTML
    entities, curly quotes, ligatures, full-width letters and control characters may be other
    tokens there, so other pictures, and "<|startoftext|>" and "<|endoftext|>" are single tokens.
    """

    settings_may_change = True  # see DiffusersGenerator

    def __init__(self, weights: Path, device: str = "cpu", *, batch_size: int = 8, **settings: Any):
        """weights, batch_size and settings: as renderer_folder and DiffusersGenerator.load take
        them. Raises SettingsError("weights", ...) for weights that are missing, broken or of
        another shape, SettingsError("size", ...) for a size that they cannot draw or that memory
        cannot hold."""
        check_batch_size(batch_size)
        check_weights(weights)
        self.weights, self.batch_size = weights, batch_size
        chosen = {name: value for name, value in settings.items() if value is not None}
        self.settings: ImageSettings = make_settings({**recommended(weights), **chosen})
        self.device = pick_device(device)
        self.counter, self.features = ClipTokenCounter(), TextFeatures(TEXT_SEED)
        try:
            self.transformer = PlainTransformer(weights / "transformer", self.device)
            self.decoder = PlainDecoder(weights / "vae", self.device)
            size = self.settings.size or self._own_size()
            self.settings = dataclasses.replace(self.settings, size=size)
            self._check_size(size)
            noise = torch.zeros(self._noise_shape(1))
            tried = self._draw([""], noise, torch.tensor([1.0, 0.0]))
            if tried.shape != (1, size, size, 3):
                raise ValueError(f"it makes pictures of {tuple(tried.shape)}")
        except SettingsError:
            raise
        except Exception as error:  # whatever weights and configs of another shape lead to
            if is_out_of_memory(error):
                raise SettingsError("size", NO_MEMORY) from None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SettingsError("weights", f"{weights} is no renderer: {reason}") from None
        self.notices = tuple(notices(self.settings, MAX_LENGTH))

    @property
    def identity(self) -> str:
        """See ImageGenerator."""
        settings = json.dumps(dataclasses.asdict(self.settings), sort_keys=True)
        code = f"plain {FORMAT} {TEXT_SEED}"
        return f"{code} {self._weights_identity} {self.device.type} {settings}"

    @cached_property
    def _weights_identity(self) -> str:
        return renderer_identity(self.weights)

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """See ImageGenerator. SettingsError as DiffusersGenerator.generate raises it."""
        texts, seeds = check_batch(adapted_prompts, seeds)
        if not texts:
            return np.zeros((0, self.settings.size, self.settings.size, 3), dtype=np.uint8)
        return in_batches(
            self, texts, seeds, lambda some, numbers: self._batch(some, numbers, should_stop)
        )

    def _batch(
        self, texts: list[str], seeds: list[int], should_stop: Callable[[], bool] | None
    ) -> np.ndarray | None:
        """(B, H, W, 3) uint8, or None when memory ran out."""
        shape = self._noise_shape(len(texts))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape[1:], generator=one) for one in generators])
        try:
            drawn = self._draw(texts, noise, noise_levels(self.settings), should_stop)
            return to_pixels(drawn.cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None  # the traceback, which holds the tensors, goes with the error

    @torch.no_grad()
    def _draw(
        self,
        texts: list[str],
        latents: torch.Tensor,
        sigmas: torch.Tensor,
        should_stop: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """(N, H, W, 3) in 0..1: Euler's steps from noise (N, C, h, w) to the last noise level."""
        scale, latents = self.settings.guidance_scale, latents.to(self.device)
        negative = [self.settings.negative_prompt] * len(texts)
        ids = [self.counter.encode(text) for text in (negative if scale > 1 else []) + texts]
        length = min(MAX_LENGTH, max(NUM_POSITIONS, max(map(len, ids)) + 2))  # with start and end
        padding = MAX_LENGTH - length
        features = self.features.embed(ids, length + min(padding, 1))
        context, pooled = (part.to(self.device) for part in features)
        for now, after in itertools.pairwise(sigmas.tolist()):
            if should_stop is not None and should_stop():
                raise Stopped
            twice = torch.cat([latents, latents]) if scale > 1 else latents
            velocity = self.transformer(twice, context, pooled, now, max(padding, 1))
            if scale > 1:
                without, with_it = velocity.chunk(2)
                velocity = without + scale * (with_it - without)
            latents = latents + (after - now) * velocity
        return self.decoder(latents).clamp(0, 1).movedim(1, -1)

    def _own_size(self) -> int:
        return self.transformer.config["sample_size"] * self.decoder.factor

    def _noise_shape(self, number: int) -> tuple[int, int, int, int]:
        side = self.settings.size // self.decoder.factor
        return number, self.transformer.config["in_channels"], side, side

    def _check_size(self, size: int) -> None:
        unit = self.decoder.factor * self.transformer.config["patch_size"]
        largest = unit * self.transformer.config["pos_embed_max_size"]
        if size < unit or size > largest or size % unit:
            reason = f"expected a multiple of {unit} up to {largest}, got {size}"
            raise SettingsError("size", reason)


def noise_levels(settings: ImageSettings) -> torch.Tensor:
    """(num_steps + 1,) from 1 to 0, as FlowMatchEulerDiscreteScheduler has them."""

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)

    number = settings.num_steps
    if settings.even_sigmas:
        sigmas = 1 - np.arange(number) / number
    else:
        sigmas = np.linspace(1, shifted(np.array(1 / NUM_TRAIN_TIMESTEPS)), number)
    return torch.from_numpy(np.append(shifted(sigmas), 0)).float()


def read_part(
    folder: Path, device: torch.device, wanted: Mapping[str, Any]
) -> tuple[Weights, dict[str, Any]]:
    """Weights, float32, and config of a part. SettingsError("weights", ...) for a config that says
    otherwise than `wanted` and for numbers that are not finite."""
    config = read_json(folder / "config.json")
    for name, value in wanted.items():
        if config.get(name, value) != value:
            reason = f"{folder}: {name} is {config[name]}, expected {value}"
            raise SettingsError("weights", reason)
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        weights |= safetensors.torch.load_file(path)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise SettingsError("weights", f"{folder}: {name} has numbers that are not finite")
    return {name: tensor.to(device).float() for name, tensor in weights.items()}, config


class PlainTransformer:
    """The forward pass of an SD3Transformer2DModel for texts padded with zeros to its widths.

    Padding beyond the positions that have a row is one and the same token, and stays so through
    all layers. It is read as one token that counts for all: the logarithm of their number is added
    to what its key scores, which is what their sum in the softmax comes to.
    """

    def __init__(self, folder: Path, device: torch.device):
        plain = {"qk_norm": None, "dual_attention_layers": []}
        self.weights, self.config = read_part(folder, device, plain)

    def __call__(
        self,
        latents: torch.Tensor,
        context: torch.Tensor,
        pooled: torch.Tensor,
        sigma: float,
        num_last: int = 1,
    ) -> torch.Tensor:
        """The velocity (B, C, h, w) of latents (B, C, h, w) at one noise level. context:
        (B, L, 768), whose last token stands for num_last alike ones; pooled: (B, 768)."""
        patch, (height, width) = self.config["patch_size"], latents.shape[2:]
        image = self._embed_patches(latents, patch)
        text = self._linear("context_embedder", context)
        condition = functional.silu(
            self._two("time_text_embed.timestep_embedder", _waves(sigma, latents.device))
            + self._two("time_text_embed.text_embedder", pooled)
        )[:, None]
        bias = torch.zeros(image.shape[1] + text.shape[1], device=image.device)
        bias[-1] = math.log(num_last)
        for layer in range(self.config["num_layers"]):
            image, text = self._block(f"transformer_blocks.{layer}.", image, text, condition, bias)
        scale, shift = self._linear("norm_out.linear", condition).chunk(2, dim=2)
        patches = self._linear("proj_out", _norm(image) * (1 + scale) + shift)
        grid = patches.view(len(latents), height // patch, width // patch, patch, patch, -1)
        return torch.einsum("nhwpqc->nchpwq", grid).reshape(latents.shape)

    def _embed_patches(self, latents: torch.Tensor, patch: int) -> torch.Tensor:
        """(B, I, D): each patch, and its place in the middle of the grid of positions."""
        name, side = "pos_embed.proj", self.config["pos_embed_max_size"]
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        grid = self.weights["pos_embed.pos_embed"].view(side, side, -1)
        height, width = latents.shape[2] // patch, latents.shape[3] // patch
        top, left = (side - height) // 2, (side - width) // 2
        places = grid[top : top + height, left : left + width].flatten(0, 1)
        return functional.conv2d(latents, weight, bias, patch).flatten(2).mT + places

    def _block(
        self,
        prefix: str,
        image: torch.Tensor,
        text: torch.Tensor,
        condition: torch.Tensor,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One joint block; image (B, I, D), text (B, L, D), condition (B, 1, D), bias (I + L,)."""
        is_last = f"{prefix}ff_context.net.2.weight" not in self.weights  # nothing reads its text
        parts = self._linear(f"{prefix}norm1.linear", condition).chunk(6, dim=2)
        of_text = self._linear(f"{prefix}norm1_context.linear", condition)
        text_parts = of_text.chunk(2 if is_last else 6, dim=2)
        shift, scale = text_parts[1::-1] if is_last else text_parts[:2]
        mixed_image, mixed_text = self._attend(
            f"{prefix}attn.", _norm(image) * (1 + parts[1]) + parts[0],
            _norm(text) * (1 + scale) + shift, bias,
        )  # fmt: skip
        image = self._finish(f"{prefix}attn.to_out.0", f"{prefix}ff", image, mixed_image, parts)
        if not is_last:
            names = f"{prefix}attn.to_add_out", f"{prefix}ff_context"
            text = self._finish(*names, text, mixed_text, text_parts)
        return image, text

    def _attend(
        self, prefix: str, image: torch.Tensor, text: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of all tokens to all; bias (I + L,) is added to what the keys score."""

        def heads(image_name: str, text_name: str) -> torch.Tensor:
            own = self._linear(prefix + image_name, image), self._linear(prefix + text_name, text)
            split = torch.cat(own, dim=1).unflatten(2, (self.config["num_attention_heads"], -1))
            return split.transpose(1, 2)

        query, key = heads("to_q", "add_q_proj"), heads("to_k", "add_k_proj")
        mixed = functional.scaled_dot_product_attention(
            query, key, heads("to_v", "add_v_proj"), bias.expand(1, 1, query.shape[2], -1)
        )
        joined = mixed.transpose(1, 2).flatten(2)
        return joined[:, : image.shape[1]], joined[:, image.shape[1] :]

    def _finish(
        self,
        out: str,
        feed_forward: str,
        tokens: torch.Tensor,
        mixed: torch.Tensor,
        parts: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """What a block does to tokens (B, N, D) once they have attended. parts: shift, scale and
        gate of the attention, then of the feed-forward, (B, 1, D) each."""
        _, _, gate, shift, scale, gate_forward = parts
        tokens = tokens + gate * self._linear(out, mixed)
        wide = self._linear(f"{feed_forward}.net.0.proj", _norm(tokens) * (1 + scale) + shift)
        wide = functional.gelu(wide, approximate="tanh")
        return tokens + gate_forward * self._linear(f"{feed_forward}.net.2", wide)

    def _two(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        return self._linear(
            f"{name}.linear_2", functional.silu(self._linear(f"{name}.linear_1", inputs))
        )

    def _linear(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs that are narrower than the weight stand for inputs padded with zeros."""
        weight = self.weights[f"{name}.weight"][:, : inputs.shape[-1]]
        return functional.linear(inputs, weight, self.weights[f"{name}.bias"])


def _norm(tokens: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def _waves(sigma: float, device: torch.device) -> torch.Tensor:
    """(1, 256): cosines, then sines, of the timestep at falling frequencies."""
    half = TIME_WIDTH // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32))
    angles = sigma * NUM_TRAIN_TIMESTEPS * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(device)


class PlainDecoder:
    """The decoder of an AutoencoderTiny. factor: pixels of a latent's side."""

    def __init__(self, folder: Path, device: torch.device):
        plain = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
        weights, self.config = read_part(folder, device, plain)
        prefix = "decoder.layers."
        self.weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        self.numbers = range(1 + max((int(name.split(".")[0]) for name in self.weights), default=0))
        self.factor = 2 ** (len(self.config["decoder_block_out_channels"]) - 1)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, 3, H, W), about 0 to 1."""
        features = latents / self.config["scaling_factor"] + self.config["shift_factor"]
        features = torch.tanh(features / 3) * 3
        for number in self.numbers:
            if f"{number}.weight" in self.weights:
                features = self._convolve(f"{number}", features)
            elif f"{number}.conv.0.weight" in self.weights:
                inner = self._convolve(f"{number}.conv.0", features).relu()
                inner = self._convolve(f"{number}.conv.2", inner).relu()
                features = (self._convolve(f"{number}.conv.4", inner) + features).relu()
            elif number == 1:
                features = features.relu()
            else:
                features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
        return features

    def _convolve(self, name: str, features: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return functional.conv2d(features, weight, bias, padding=1)
