"""The aesthetic head of the lab: LAION's kind, fitted to people's ratings of pictures.

Linear layers without activations on the unit-length CLIP image embedding, under the names of
LAION's `sac+logos+ava1-l14-linearMSE` (improved-aesthetic-predictor, train_predictor.py), with
narrower layers and the same loss, the squared error. LAION's dropout is left out, though its
places in the numbering stay empty: together the layers are one linear map of 128 numbers, which
tens of thousands of ratings cannot overfit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from ..scorers import HEAD_LAYERS, OpenClipScorer, ScorerFiles, read_description, write_description
from ..settings import SettingsError
from .clip import MODEL_NAME, WEIGHTS_NAME, rank_correlation
from .stages import build_seeded
from .training import COMMON_METRICS, Training

HEAD_NAME = "aesthetic_head.safetensors"
WIDTHS = (128, 64, 32, 16)  # LAION's: 1024, 128, 64, 16
USUAL_QUANTILE, POINTS, LEAST_DISTANCE = 0.5, 3.0, 0.05  # see calibrate_relevance


class HeadLayers(nn.Module):
    """The layers as they are trained and saved; (N, D) unit length -> (N,) scores."""

    def __init__(self, embed_dim: int):
        super().__init__()
        widths = (embed_dim, *WIDTHS, 1)
        layers = {
            str(place): nn.Linear(*widths[number : number + 2])
            for number, place in enumerate(HEAD_LAYERS)
        }
        self.layers = nn.ModuleDict(layers)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            embeddings = layer(embeddings)
        return embeddings[:, 0]


class AestheticStage(Training):
    """Fits the head to ratings (N,), 1 to 10, of pictures with the embeddings (N, D), unit length
    (`OpenClipScorer.embed_images`). The last `num_valid` are held out."""

    name = "aesthetic"
    metrics = {
        **COMMON_METRICS,
        "train/loss": "mean squared error of the scores, rating points squared",
        "valid/loss": "the same on held-out ratings",
        "valid/rating_correlation": "rank correlation of score and held-out rating",
    }

    def __init__(
        self,
        embeddings: torch.Tensor,
        ratings: np.ndarray,
        *,
        num_steps: int,
        batch_size: int = 256,
        seed: int = 0,
        lr: float = 2e-3,
        num_valid: int = 500,
        validate_every: int = 500,
        ema_decay: float = 0.99,
        device: torch.device | str = "cpu",
    ):
        if ratings.shape != (len(embeddings),):
            reason = f"expected one for each of {len(embeddings)} pictures, got {ratings.shape}"
            raise SettingsError("ratings", reason)
        if not 0 < num_valid < len(ratings) - 1:
            reason = f"expected more than the {num_valid} held out, got {len(ratings)}"
            raise SettingsError("ratings", reason)
        self.batch_size, self.num_train = batch_size, len(ratings) - num_valid
        self.embeddings = embeddings.float().to(device)
        self.ratings = torch.from_numpy(np.array(ratings, dtype=np.float32)).to(device)
        model = build_seeded(lambda: HeadLayers(embeddings.shape[1]), seed)
        with torch.no_grad():
            model.layers["7"].bias.fill_(float(self.ratings[: self.num_train].mean()))
        self.prepare(
            model, num_steps=num_steps, seed=seed, lr=lr, weight_decay=0.0, ema_decay=ema_decay,
            validate_every=validate_every, device=device, precision="float32",
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = torch.randint(self.num_train, (self.batch_size,), generator=generator)
        rows = rows.to(self.device)
        return {"loss": (self.model(self.embeddings[rows]) - self.ratings[rows]).square().mean()}

    def save(self, folder: Path) -> None:
        """The layers, float16, as scorers.read_head and LAION's code name them."""
        weights = {
            name: value.to("cpu", torch.float16).contiguous()
            for name, value in self.ema.weights.items()
        }
        safetensors.torch.save_file(weights, folder / HEAD_NAME, metadata={"format": "pt"})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measures on the held-out ratings, averaged weights."""
        with self.ema.applied(self.model):
            scores = self.model(self.embeddings[self.num_train :])
        known = self.ratings[self.num_train :]
        return {
            "valid/loss": float((scores - known).square().mean()),
            "valid/rating_correlation": rank_correlation(scores.cpu(), known.cpu()),
        }


def calibrate_relevance(own: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
    """(knee, slope) of the relevance term. own (N,): cosines of plain user inputs and their own
    renders; others (M,): of plain user inputs and renders of other ones.

    As 0.28 and 20 are to ViT-L/14: 0.28 is its usual cosine of a user input and its picture, and
    the knee here is the quantile USUAL_QUANTILE of such cosines; a picture of something else has
    a cosine of about 0.13 there and so costs 20 * (0.28 - 0.13) = 3 points, and here POINTS too.

    A CLIP that hardly tells user inputs apart has a distance of nearly 0, or below, and what it
    measures is noise: the distance counts as LEAST_DISTANCE at least, so that the slope is 60 at
    most. SettingsError("relevances", ...) for none and for ones that are not finite.
    """
    own, others = own.double(), others.double()
    if not (len(own) and len(others)):
        raise SettingsError("relevances", "expected those of some renders")
    if not (own.isfinite().all() and others.isfinite().all()):
        raise SettingsError("relevances", "expected finite ones: a part's weights are broken")
    knee = float(own.quantile(USUAL_QUANTILE))
    distance = knee - float(others.clamp(min=0.0).mean())
    return knee, POINTS / max(distance, LEAST_DISTANCE)


def assemble_scorer(
    folder: Path, clip_folder: Path, head_folder: Path, knee: float, slope: float
) -> ScorerFiles:
    """Put what the two stages saved into one folder, which OpenClipScorer.load takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in (
        (clip_folder, WEIGHTS_NAME),
        (clip_folder, f"{MODEL_NAME}.json"),
        (head_folder, HEAD_NAME),
    ):
        if source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)
    files = ScorerFiles(
        MODEL_NAME, folder / WEIGHTS_NAME, folder / HEAD_NAME,
        relevance_knee=knee, relevance_slope=slope,
    )  # fmt: skip
    write_description(folder, files)
    return read_description(folder)


def load_embedder(
    clip_folder: Path, device: torch.device | str = "cpu", batch_size: int = 256
) -> OpenClipScorer:
    """What ClipStage saved, for its embeddings only."""
    config = clip_folder / f"{MODEL_NAME}.json"
    files = ScorerFiles(MODEL_NAME, clip_folder / WEIGHTS_NAME, config=config)
    return OpenClipScorer.load(files, device, batch_size)
