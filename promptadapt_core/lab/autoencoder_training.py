"""Trains the autoencoder, in up to three stages.

1. `AutoencoderStage`: the patch encoder and the decoder together. It fixes the latents.
2. `AutoencoderStage(start=..., decoder_only=True)`: the decoder gets sharper, the latents stay.
3. `EncoderStage`: TAESD's encoder learns the latents of the patch encoder.

Departures from TAESD, which distils another autoencoder with a discriminator:
- The loss is plain: L1 and squared error of the pixels, L1 of the differences of neighbours
  (edges) and L1 of the pictures averaged over 2 x 2 and 4 x 4 pixels.
- The latents are held near zero mean and the deviations of the patch encoder, at most 1, so
  scaling is 1 and shift 0.
- Noise is added to the latents before decoding: a decoder meets latents that a renderer made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ..settings import SettingsError
from .autoencoder import (
    Trainee,
    build_autoencoder,
    build_trainee,
    check_pictures,
    decode,
    encode,
    keep_centres,
    psnr,
    save_trainee,
    to_model,
)
from .stages import step_generator
from .training import COMMON_METRICS, Training

LATENT_WEIGHT = 0.1  # of the penalty in the loss


class AutoencoderStage(Training):
    """Trains the autoencoder on pictures: (N, S, S, 3) uint8, S a multiple of 32; a memory-mapped
    array will do. The last `num_valid` are held out.

    start: go on from these weights. decoder_only: its encoder stays as it is. noise: standard
    deviation of what is added to the latents. precision: see training.py.
    """

    name = "vae"
    metrics = {
        **COMMON_METRICS,
        "train/loss": "sum of the terms of the loss on noisy latents, pixels in -1..1",
        "train/l1": "mean absolute error of the pixels, -1..1",
        "train/latent_penalty": "mean over channels of mean^2 + (deviation - wanted)^2",
        "valid/psnr": "dB, mean over held-out pictures, averaged weights, no noise",
        "valid/psnr_noisy": "the same with the noise of training added to the latents",
    }

    def __init__(
        self,
        pictures: np.ndarray,
        *,
        num_steps: int,
        batch_size: int = 8,
        seed: int = 0,
        lr: float = 2.5e-3,
        noise: float = 0.1,
        start: Trainee | None = None,
        decoder_only: bool = False,
        num_valid: int = 128,
        validate_every: int = 500,
        ema_decay: float = 0.998,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        check_held_out(pictures, num_valid)
        if decoder_only and start is None:
            raise SettingsError("decoder_only", "needs a trained autoencoder to start from")
        self.pictures, self.num_train = pictures, len(pictures) - num_valid
        self.batch_size, self.noise, self.decoder_only = batch_size, noise, decoder_only
        if decoder_only:
            self.name = "vae-decoder"
        model = build_trainee(seed)
        if start is not None:
            model.load_state_dict(start.state_dict())
        else:
            model.encoder.start_at_components(pictures)
        model.encoder.requires_grad_(not decoder_only)
        self.prepare(
            model.to(memory_format=torch.channels_last), num_steps=num_steps, seed=seed, lr=lr,
            ema_decay=ema_decay, validate_every=validate_every, device=device, precision=precision,
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pixels = training_batch(
            self.pictures, self.num_train, self.batch_size, generator, self.device
        )
        with self.arithmetic():
            with torch.set_grad_enabled(not self.decoder_only):
                latents = self.model.encoder(pixels).float()
            noise = torch.randn(latents.shape, generator=generator).to(self.device) * self.noise
            decoded = self.model.decoder(latents + noise).float()
        terms = reconstruction_terms(decoded, pixels)
        penalty = latent_penalty(latents, self.model.encoder.deviations)
        loss = sum(terms.values()) + (0.0 if self.decoder_only else LATENT_WEIGHT) * penalty
        return {"loss": loss, "l1": terms["l1"], "latent_penalty": penalty}

    def after_update(self) -> None:
        keep_centres(self.model)

    def save(self, folder: Path) -> None:
        """The averaged weights, float32, as `load_trainee` reads them."""
        save_trainee(self.ema.weights, folder)

    def validate(self) -> dict[str, float]:
        pictures = np.asarray(self.pictures[self.num_train :])
        with self.ema.applied(self.model):
            latents = encode(self.model, pictures).float()
            noise = torch.randn(latents.shape, generator=step_generator(self.seed, -1))
            plain = decode(self.model, latents)
            noisy = decode(self.model, latents + self.noise * noise)
        return {
            "valid/psnr": float(psnr(plain, pictures).mean()),
            "valid/psnr_noisy": float(psnr(noisy, pictures).mean()),
        }


class EncoderStage(Training):
    """Trains TAESD's encoder to give the latents of the patch encoder of `trainee`; saves a whole
    AutoencoderTiny with the decoder of `trainee`. pictures as for AutoencoderStage."""

    name = "vae-encoder"
    metrics = {
        **COMMON_METRICS,
        "train/loss": "mean squared error of the latents",
        "valid/latents": "train/loss on held-out pictures, averaged weights",
        "valid/psnr": "dB, mean over held-out pictures through both encoder and decoder",
    }

    def __init__(
        self,
        pictures: np.ndarray,
        trainee: Trainee,
        *,
        num_steps: int,
        batch_size: int = 8,
        seed: int = 0,
        lr: float = 2e-3,
        num_valid: int = 128,
        validate_every: int = 500,
        ema_decay: float = 0.998,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        check_held_out(pictures, num_valid)
        self.pictures, self.num_train = pictures, len(pictures) - num_valid
        self.batch_size = batch_size
        self.trainee = trainee.to(device).eval().requires_grad_(False)
        model = build_autoencoder(seed)
        model.decoder.load_state_dict(trainee.decoder.state_dict())
        model.decoder.requires_grad_(False)
        self.prepare(
            model.to(memory_format=torch.channels_last), num_steps=num_steps, seed=seed, lr=lr,
            ema_decay=ema_decay, validate_every=validate_every, device=device, precision=precision,
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pixels = training_batch(
            self.pictures, self.num_train, self.batch_size, generator, self.device
        )
        with torch.no_grad():
            target = self.trainee.encoder(pixels)
        with self.arithmetic():
            latents = self.model.encoder(pixels)
        return {"loss": functional.mse_loss(latents.float(), target.float())}

    def after_update(self) -> None:
        keep_centres(self.model)

    def validate(self) -> dict[str, float]:
        pictures = np.asarray(self.pictures[self.num_train :])
        target = encode(self.trainee, pictures).float()
        with self.ema.applied(self.model):
            latents = encode(self.model, pictures).float()
            decoded = decode(self.model, latents)
        return {
            "valid/latents": float(functional.mse_loss(latents, target)),
            "valid/psnr": float(psnr(decoded, pictures).mean()),
        }

    def save(self, folder: Path) -> None:
        """The averaged weights, float32, as `load_autoencoder` and diffusers read them."""
        model = build_autoencoder(self.seed)
        model.load_state_dict(self.ema.weights)
        model.save_pretrained(folder)


def check_held_out(pictures: np.ndarray, num_valid: int) -> None:
    """SettingsError("pictures", ...) for what is no array of pictures, or too few of them."""
    check_pictures(pictures)
    if not 0 < num_valid < len(pictures):
        reason = f"expected more than the {num_valid} held out, got {len(pictures)}"
        raise SettingsError("pictures", reason)


def training_batch(
    pictures: np.ndarray,
    num_train: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Pictures drawn from the first num_train as the model reads them, (B, 3, H, W) in -1..1,
    half of them mirrored."""
    rows = torch.randint(num_train, (batch_size,), generator=generator)
    pixels = to_model(pictures[rows.numpy()], device)
    mirrored = (torch.rand(batch_size, generator=generator) < 0.5).to(device)
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    return pixels.contiguous(memory_format=torch.channels_last)


def reconstruction_terms(decoded: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The terms of the loss, to be added up; both (B, 3, H, W) in -1..1."""
    error = decoded - pixels
    terms = {
        "l1": error.abs().mean(),
        "squared": error.square().mean(),
        "edges": error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean(),
    }
    for factor in (2, 4):
        terms[f"pooled_{factor}"] = 0.5 * functional.avg_pool2d(error, factor).abs().mean()
    return terms


def latent_penalty(latents: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far the channels of (B, C, H, W) are from zero mean and the wanted deviations (C,), over
    the batch."""
    channels = latents.transpose(0, 1).flatten(1)
    deviations = (channels.var(dim=1) + 1e-6).sqrt()
    return (channels.mean(dim=1).square() + (deviations - wanted).square()).mean()
