"""The lab's autoencoder: 64 x 64 pictures to 16 x 16 x 16 latents, and back.

It has the shape of diffusers' AutoencoderTiny (TAESD, github.com/madebyollin/taesd), 32 channels
wide and one level shorter: its latents stand for 4 x 4 pixels, TAESD's for 8 x 8. The first and the
last convolution use their centre only. So it is exactly a TAESD whose outermost level does nothing
but double the pixels, and hosts that know TAESD can run it. In training another encoder stands in
for TAESD's (see patch_encoder.py): `Trainee`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..images import quiet_libraries
from ..settings import SettingsError
from .patch_encoder import PatchEncoder
from .stages import build_seeded

LATENT_CHANNELS = 16
REDUCTION = 4  # pixels of a latent's side
TRAINEE_NAME = "trainee.safetensors"
CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": (32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32),
    "num_encoder_blocks": (1, 3, 3),
    "num_decoder_blocks": (3, 3, 1),
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}


def keep_centres(model: torch.nn.Module) -> None:
    """Clear all but the centre of the first convolution of AutoencoderTiny's encoder, where the
    model has one, and of the last one of its decoder."""
    convolutions = [model.decoder.layers[-1]]
    if not isinstance(model.encoder, PatchEncoder):
        convolutions.append(model.encoder.layers[0])
    with torch.no_grad():
        for convolution in convolutions:
            centre = convolution.weight[:, :, 1, 1].clone()
            convolution.weight.zero_()
            convolution.weight[:, :, 1, 1] = centre


def build_autoencoder(seed: int) -> AutoencoderTiny:
    """An untrained autoencoder."""
    model = build_seeded(lambda: AutoencoderTiny(**CONFIG), seed)
    keep_centres(model)
    return model


def load_autoencoder(folder: Path | str) -> AutoencoderTiny:
    """One that EncoderStage saved, float32, on the CPU."""
    with quiet_libraries():
        model = AutoencoderTiny.from_pretrained(folder, local_files_only=True)
    return model.float().eval()


class Trainee(torch.nn.Module):
    """The patch encoder and the decoder that learns with it; `encode` and `decode` read both this
    and an AutoencoderTiny."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PatchEncoder(LATENT_CHANNELS)
        self.decoder = AutoencoderTiny(**CONFIG).decoder


def build_trainee(seed: int) -> Trainee:
    """An untrained one."""
    model = build_seeded(Trainee, seed)
    keep_centres(model)
    return model


def save_trainee(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the weights of a Trainee, float32."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / TRAINEE_NAME)


def load_trainee(folder: Path | str) -> Trainee:
    """One that AutoencoderStage saved, on the CPU. SettingsError("out", ...) where it is broken."""
    path = Path(folder) / TRAINEE_NAME
    model = build_trainee(0)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError("out", f"{path} cannot be read: {reason}") from None
    return model.eval()


def psnr(decoded: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB, (N,) float64; both (N, H, W, 3) uint8."""
    squared = np.square(decoded.astype(np.float64) - pictures.astype(np.float64))
    return 10 * np.log10(255.0**2 / np.maximum(squared.mean(axis=(1, 2, 3)), 1e-3))


def check_pictures(pictures: np.ndarray) -> None:
    """SettingsError("pictures", ...) for what is not an array of pictures."""
    shape = tuple(pictures.shape)
    square = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2] and shape[1] % 32 == 0
    if not square or not shape[1] or pictures.dtype != np.uint8:
        raise SettingsError(
            "pictures",
            "expected uint8 of the shape (N, S, S, 3), S a multiple of 32, got "
            f"{pictures.dtype} of {shape}",
        )


def to_model(pictures: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in -1..1; in memory it stays channels-last."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


@torch.no_grad()
def encode(
    model: AutoencoderTiny | Trainee, pictures: np.ndarray, batch_size: int = 64
) -> torch.Tensor:
    """The latents of pictures (N, S, S, 3) uint8: (N, 16, S / 8, S / 8) float16 on the CPU."""
    check_pictures(pictures)
    device = next(model.parameters()).device
    parts = [
        model.encoder(to_model(pictures[rows], device)).to("cpu", torch.float16).contiguous()
        for rows in _slices(len(pictures), batch_size)
    ]
    side = pictures.shape[1] // REDUCTION
    empty = torch.zeros(0, LATENT_CHANNELS, side, side, dtype=torch.float16)
    return torch.cat([empty, *parts])


@torch.no_grad()
def decode(
    model: AutoencoderTiny | Trainee, latents: torch.Tensor, batch_size: int = 64
) -> np.ndarray:
    """The pictures of latents (N, 16, h, w): (N, 8 h, 8 w, 3) uint8."""
    weight = next(model.parameters())
    height, width = (REDUCTION * side for side in latents.shape[2:])
    pictures = np.zeros((len(latents), height, width, 3), dtype=np.uint8)
    for rows in _slices(len(latents), batch_size):
        decoded = model.decoder(latents[rows].to(weight.device, weight.dtype)).float()
        pixels = decoded.add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
        pictures[rows] = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return pictures


def _slices(number: int, size: int) -> Iterator[slice]:
    for start in range(0, number, size):
        yield slice(start, min(start + size, number))
