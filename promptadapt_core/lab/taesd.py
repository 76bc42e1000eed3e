"""The lab's autoencoder as a stock TAESD: 64 channels, four levels, 8 x 8 pixels a latent.

TAESD (github.com/madebyollin/taesd) is one level longer and twice as wide. What the lab's lacks is
filled up so that nothing but the size of the picture changes:
- Further channels have weights of zero, and their ReLU is zero.
- A block of zeros is relu(0 + x), which is x wherever x is not negative: after any other block.
- The decoder's outermost level doubles the pixels, passes them on, and ends with our last
  convolution, which sees one pixel only. So TAESD decodes our picture with every pixel doubled.
- The encoder's outermost level passes on a quarter of each colour, and a channel that is 1. The
  convolution of stride 2 behind it reads pixels 2i - 1, 2i and 2i + 1; with our first
  convolution's weights at the last two of them, and its bias times the 1, it is that convolution
  on means of 2 x 2 pixels. So TAESD encodes a picture as ours encodes it at half its size.
All weights are copied as they are, but for 1 and 1/4: the results are the same in any precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderTiny

from ..settings import SettingsError
from .autoencoder import CONFIG, LATENT_CHANNELS
from .renaming import Source, Weights

LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609  # of ComfyUI's SD3 latents: x / scale + shift
COLOURS = 3
OUR_FIRST, OUR_LAST = "encoder.layers.0.", "decoder.layers.13."  # these use their centre only
THEIR_HALVING, THEIR_LAST_UP = "encoder.layers.2.", "decoder.layers.16."


def taesd_weights(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Weights:
    """ComfyUI's names for the weights of the lab's AutoencoderTiny as a TAESD, float16.

    ComfyUI hands its VAE `latents / 1.5305 + 0.0609` and computes `(x - shift) * scale`; with
    these two (float32) the decoder sees the latents themselves. SettingsError("weights", ...) for
    an autoencoder of another shape.
    """
    renamed = {}
    for name, tensor in stock_weights(weights, config).items():
        side, _, number, rest = name.split(".", 3)
        place = int(number) + (side == "decoder")  # its tanh is layer 0 there
        renamed[f"taesd_{side}.{place}.{rest}"] = tensor
    renamed["vae_scale"] = torch.tensor(LATENT_SCALE, dtype=torch.float32)
    renamed["vae_shift"] = torch.tensor(LATENT_SHIFT, dtype=torch.float32)
    return renamed


def stock_weights(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Weights:
    """The weights of diffusers' AutoencoderTiny(latent_channels=16), a TAESD, that does what the
    lab's does, on pictures of twice the side; float16."""
    _check(config)
    with torch.device("meta"):  # shapes only
        ours = AutoencoderTiny(**CONFIG).state_dict()
        theirs = AutoencoderTiny(latent_channels=LATENT_CHANNELS).state_dict()
    source = Source("vae", weights)
    taken = {name: source.take(name, tuple(like.shape)) for name, like in ours.items()}
    source.finish()
    for layer in (OUR_FIRST, OUR_LAST):
        _check_centre(f"{layer}weight", taken[f"{layer}weight"])
    stock = {name: torch.zeros(like.shape, dtype=torch.float16) for name, like in theirs.items()}
    first, bias = taken.pop(f"{OUR_FIRST}weight"), taken.pop(f"{OUR_FIRST}bias")
    _fill_outer_encoder(stock, first[:, :, 1, 1], bias)
    last_up = stock[f"{THEIR_LAST_UP}weight"]
    last_up[:, :, 1, 1] = torch.eye(len(last_up))
    for name, tensor in taken.items():
        side, _, number, rest = name.split(".", 3)
        place = stock[f"{side}.layers.{_place(side, int(number))}.{rest}"]
        place[tuple(map(slice, tensor.shape))] = tensor
    return stock


def _fill_outer_encoder(stock: Weights, first: torch.Tensor, bias: torch.Tensor) -> None:
    """The level that TAESD has before ours. first: (32, 3), the centre of our first convolution;
    bias: (32,)."""
    for colour in range(COLOURS):
        stock["encoder.layers.0.weight"][colour, colour, 1, 1] = 0.25
    stock["encoder.layers.0.bias"][COLOURS] = 1.0
    halving = stock[f"{THEIR_HALVING}weight"]
    halving[: len(first), :COLOURS, 1:, 1:] = first[:, :, None, None]
    halving[: len(first), COLOURS, 1, 1] = bias


def _place(side: str, number: int) -> int:
    """Where our layer goes among those of diffusers' stock AutoencoderTiny. Our first one, which
    is not of this kind, stands for the first convolution of stride 2; the blocks at 3, 4 and 5 in
    the encoder and at 12, 13 and 14 in the decoder are of the levels where we have one block."""
    if side == "encoder":
        return 3 if number == 1 else number + 4
    return 18 if number == 13 else number


def _check(config: Mapping[str, Any]) -> None:
    """SettingsError for an autoencoder other than the lab's."""
    stock = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    for name, wanted in {**CONFIG, **stock}.items():
        found = config.get(name, wanted)
        found = tuple(found) if isinstance(found, list) else found
        if found != wanted:
            raise SettingsError("weights", f"vae: {name} is {found}, the lab's is {wanted}")


def _check_centre(name: str, weight: torch.Tensor) -> None:
    around = weight.clone()
    around[:, :, 1, 1] = 0
    if around.any():
        raise SettingsError("weights", f"vae: {name} has more than its centre")
