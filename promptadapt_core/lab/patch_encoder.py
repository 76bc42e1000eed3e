"""The encoder that the latents of the lab are made by: fast to train, and only for training.

It looks at whole 4 x 4 patches. A renderer's latents are learned with it; the autoencoder's own
encoder (TAESD's shape, which image models carry) learns them from it afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

PATCH = 4  # pixels of a side
PATCH_VALUES = 3 * PATCH * PATCH
NUM_PICTURES = 2000  # that the principal components are found on
LEAST_DEVIATION = 0.25


class PatchEncoder(nn.Module):
    """Pictures (B, 3, H, W) in -1..1 to latents (B, 16, H / 4, W / 4): the principal components of
    the patches, plus what a small network adds to them.

    deviations: (16,) of the latents, 1 for the first. They fall with the fourth root of what a
    component explains: whitened latents would make a renderer spend its effort on the details.
    """

    def __init__(self, num_latent_channels: int = 16, width: int = 128):
        super().__init__()
        self.patches = nn.PixelUnshuffle(PATCH)
        self.components = nn.Conv2d(PATCH_VALUES, num_latent_channels, 1)
        self.network = nn.Sequential(
            nn.Conv2d(PATCH_VALUES, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Conv2d(width, num_latent_channels, 1),
        )
        self.deviations: torch.Tensor
        self.register_buffer("deviations", torch.ones(num_latent_channels))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patches(pixels)
        return self.components(patches) + self.network(patches)

    @torch.no_grad()
    def start_at_components(self, pictures: np.ndarray) -> None:
        """Set to the principal components of the pictures' patches, (N, H, W, 3) uint8, with a
        network that adds nothing yet."""
        pixels = torch.from_numpy(np.array(pictures[:NUM_PICTURES])).permute(0, 3, 1, 2)
        patches = self.patches(pixels.float() / 127.5 - 1).transpose(0, 1).flatten(1)
        values, vectors = torch.linalg.eigh(torch.cov(patches.double()))
        number = self.components.out_channels
        variances = values.flip(0)[:number].clamp(min=1e-6)
        deviations = (variances / variances[0]).pow(0.25).clamp(min=LEAST_DEVIATION)
        weight = (vectors.flip(1)[:, :number] / variances.sqrt() * deviations).T
        self.deviations.copy_(deviations)
        self.components.weight.copy_(weight[:, :, None, None])
        self.components.bias.copy_(-(weight @ patches.double().mean(dim=1)))
        self.network[-1].weight.zero_()
        self.network[-1].bias.zero_()
