"""The judge's network and how a picture enters it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..settings import SettingsError
from .vocabulary import COLOURS, EFFECTIVE, PLACES, SUBJECTS

SUBJECT_NAMES = tuple(subject.name for subject in SUBJECTS)
COLOUR_NAMES = tuple(COLOURS)
PLACE_NAMES = (*PLACES, None)  # None: a plain backdrop
MODIFIER_NAMES = tuple(modifier.name for modifier in EFFECTIVE)

SIDE = 64  # pixels
WIDTHS = (32, 48, 96, 112)  # channels at 32, 16, 8 and 8 pixels
TASTE_MIDDLE, TASTE_SPREAD = 5.0, 1.5  # the network's taste is 0 and 1 there


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Logits: subjects (B, 27), colours (B, 27, 10), places (B, 9), modifiers (B, 43); taste (B,)
    in units of TASTE_SPREAD around TASTE_MIDDLE."""

    subjects: torch.Tensor
    colours: torch.Tensor
    places: torch.Tensor
    modifiers: torch.Tensor
    taste: torch.Tensor


class JudgeNetwork(nn.Module):
    """(B, 3, 64, 64) in -1..1 to Outputs."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *_convolution(12, first))
        self.fine = nn.Sequential(*_convolution(first, second, stride=2))
        self.middle = nn.Sequential(
            *_convolution(second, second),
            *_convolution(second, third, stride=2),
            _Residual(third),
        )
        self.last = nn.Sequential(*_convolution(third, last), _Residual(last))
        self.maps = nn.Conv2d(last, len(SUBJECT_NAMES), 1)
        self.colours = nn.Conv2d(last, len(COLOUR_NAMES), 1)
        pooled = 2 * last + 2 * second
        self.places = nn.Linear(pooled, len(PLACE_NAMES))
        self.modifiers = nn.Sequential(
            nn.Linear(pooled, 192), nn.ReLU(), nn.Linear(192, len(MODIFIER_NAMES))
        )
        self.taste = nn.Sequential(
            nn.Linear(pooled + len(SUBJECT_NAMES), 192), nn.ReLU(), nn.Linear(192, 1)
        )
        # Most subjects and modifiers are absent; training need not learn that first.
        nn.init.constant_(self.maps.bias, -5.0)
        nn.init.constant_(self.modifiers[-1].bias, -3.0)

    def forward(self, pixels: torch.Tensor) -> Outputs:
        fine = self.fine(self.stem(pixels))
        features = self.last(self.middle(fine))
        maps = self.maps(features).flatten(2).float()  # (B, 27, 64)
        subjects = maps.logsumexp(2) - 2.0
        # The colour of a subject is the mean over its map of what is read at each place.
        colours = self.colours(features).flatten(2).float()  # (B, 10, 64)
        by_subject = torch.einsum("bsp,bcp->bsc", maps.softmax(2), colours)
        pooled = torch.cat([_mean_and_spread(fine), _mean_and_highest(features)], dim=1)
        taste = self.taste(torch.cat([pooled, subjects.sigmoid().to(pooled.dtype)], dim=1))
        return Outputs(
            subjects,
            by_subject,
            self.places(pooled).float(),
            self.modifiers(pooled).float(),
            taste.float().squeeze(1),
        )


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input is added."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            *_convolution(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.relu(features + self.inner(features))


def _convolution(width_in: int, width_out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]


def _mean_and_spread(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, 2 C): texture shows in the spread."""
    flat = features.flatten(2).float()
    spread = (flat.var(2, unbiased=False) + 1e-4).sqrt()
    return torch.cat([flat.mean(2), spread], dim=1)


def _mean_and_highest(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2).float()
    return torch.cat([flat.mean(2), flat.amax(2)], dim=1)


def to_network(pixels: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float32 in -1..1, channels last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def check_pixels(pixels: np.ndarray) -> None:
    """SettingsError("pixels", ...) for what is not an array of pictures."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (SIDE, SIDE, 3):
        raise SettingsError(
            "pixels",
            f"expected uint8 of the shape (N, {SIDE}, {SIDE}, 3), got {pixels.dtype} of "
            f"{tuple(pixels.shape)}",
        )
