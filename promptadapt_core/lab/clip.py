"""The CLIP that scores the lab's pictures, trained by open_clip's own model classes and loss.

A small residual network of open_clip's for pictures and two layers over CLIP's usual tokens for
texts, in which every token that the lab's world has no use for is zero. Loaded as ViT-L/14 is:
`open_clip.create_model_and_transforms("lab-clip", pretrained=file)`.

- Symmetric InfoNCE (Radford et al. 2021, arXiv 2103.00020, figure 3) on pictures and fresh captions
  of their scenes. Captions leave things out as user inputs do, modifiers above all: then the
  relevance of a picture to a plain user input says little about the modifiers that it also shows.
- The lab's aesthetic head is linear, as LAION's is, on an embedding that in ViT-L/14 carries taste
  by virtue of 400 million pictures. Here a linear rating head is trained together with CLIP, so
  that the embedding carries it too; the head of the scorer is fitted afterwards, to ratings alone.
- Pictures are shifted, softened and brightened a little: rendered ones are not as clean as drawn.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
from torch.nn import functional

from .. import runs
from ..scorers import BatchPreprocess
from ..settings import SettingsError
from .captions import describe, world_words
from .drawing import SIZE
from .scenes import Scene, Thing
from .stages import build_seeded
from .training import COMMON_METRICS, Training

MODEL_NAME = "lab-clip"
WEIGHTS_NAME = "open_clip_model.safetensors"
CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "init_logit_scale": 3.4,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
MAX_LOGIT_SCALE = 100.0  # as in arXiv 2103.00020, section 2.5

# How often a caption leaves out what its picture shows.
NO_MODIFIERS, SOME_MODIFIERS = 0.35, 0.15
NO_PLACE, NO_COLOURS, NO_SIZES = 0.1, 0.1, 0.3


def build_clip(seed: int) -> open_clip.CLIP:
    """An untrained CLIP. Tokens that no caption has are embedded as zero, and stay so."""
    model = build_seeded(lambda: open_clip.CLIP(**copy.deepcopy(CONFIG)), seed)
    known = torch.zeros(CONFIG["text_cfg"]["vocab_size"], dtype=torch.bool)
    known[tokenize(list(world_words())).unique()] = True
    with torch.no_grad():
        model.token_embedding.weight[~known] = 0.0
    return model


def tokenize(texts: list[str]) -> torch.Tensor:
    """(N, context length) int64, as open_clip does for the lab's model."""
    return open_clip.tokenize(texts, context_length=CONFIG["text_cfg"]["context_length"])


class RatedClip(torch.nn.Module):
    """CLIP and the linear rating head that is trained with it, on unit embeddings times sqrt(D)."""

    def __init__(self, seed: int):
        super().__init__()
        self.clip = build_clip(seed)
        width = CONFIG["embed_dim"]
        self.rating = build_seeded(lambda: torch.nn.Linear(width, 1), seed + 1)

    def ratings(self, image_features: torch.Tensor) -> torch.Tensor:
        """(N, D) unit length -> (N,) standardised ratings."""
        return self.rating(image_features * image_features.shape[1] ** 0.5)[:, 0]


class ClipStage(Training):
    """Trains the CLIP on pictures (N, 64, 64, 3) uint8, memory-mapped if large, of `scenes`.

    ratings (N,): one person's rating of each picture, 1 to 10; None trains without. rating_weight:
    of their squared error, standardised, beside InfoNCE. The last `num_valid` are held out.
    precision: "auto", "float32" or "bfloat16" (autocast).
    """

    name = "clip"
    metrics = {
        **COMMON_METRICS,
        "train/loss": "contrastive + rating_weight * rating",
        "train/contrastive": "symmetric InfoNCE of a batch, nats",
        "train/rating": "squared error of the rating head, ratings of deviation 1",
        "train/logit_scale": "what cosines are multiplied by in InfoNCE",
        "valid/retrieval": "share of held-out captions that find their picture among 100",
        "valid/rating_correlation": "rank correlation of the rating head and held-out ratings",
    }

    def __init__(
        self,
        pictures: np.ndarray,
        scenes: Sequence[Scene],
        ratings: np.ndarray | None = None,
        *,
        num_steps: int,
        batch_size: int = 128,
        seed: int = 0,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        rating_weight: float = 5.0,
        num_valid: int = 500,
        validate_every: int = 500,
        ema_decay: float = 0.995,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        _check(pictures, scenes, ratings, num_valid)
        self.pictures, self.scenes = pictures, scenes
        self.num_train = len(pictures) - num_valid
        self.ratings, self.rating_weight = _standardised(ratings, self.num_train), rating_weight
        self.batch_size, self.loss = batch_size, open_clip.ClipLoss()
        self.preprocess = BatchPreprocess(
            SIZE, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        )
        self.prepare(
            RatedClip(seed).to(memory_format=torch.channels_last), num_steps=num_steps, seed=seed,
            lr=lr, weight_decay=weight_decay, ema_decay=ema_decay, validate_every=validate_every,
            device=device, precision=precision,
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = torch.randperm(self.num_train, generator=generator)[: self.batch_size]
        captions = self._captions(rows.tolist(), random.Random(f"{self.seed} caption {step}"))
        pixels = torch.from_numpy(np.asarray(self.pictures[rows.numpy()]))
        images = augment(self.preprocess(shift(pixels, generator)), generator)
        images = images.to(self.device, memory_format=torch.channels_last)
        with self.arithmetic():
            image_features = self.model.clip.encode_image(images)
        # In float32: attention over short texts is several times slower in a CPU's bfloat16.
        text_features = self.model.clip.encode_text(tokenize(captions).to(self.device))
        image_features = functional.normalize(image_features.float(), dim=-1)
        text_features = functional.normalize(text_features.float(), dim=-1)
        scale = self.model.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        contrastive = self.loss(image_features, text_features, scale)
        terms = {"loss": contrastive, "contrastive": contrastive, "logit_scale": scale}
        if self.ratings is not None:
            error = self.model.ratings(image_features) - self.ratings[rows].to(self.device)
            terms["rating"] = error.square().mean()
            terms["loss"] = contrastive + self.rating_weight * terms["rating"]
        return terms

    def save(self, folder: Path) -> None:
        """lab-clip.json and the averaged weights, float16, as open_clip reads them."""
        runs.write_text(folder / f"{MODEL_NAME}.json", json.dumps(CONFIG, indent=2) + "\n")
        weights = {
            name.removeprefix("clip."): value.to(
                "cpu", torch.float16 if value.is_floating_point() else value.dtype
            ).contiguous()
            for name, value in self.ema.weights.items()
            if name.startswith("clip.")
        }
        safetensors.torch.save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measures on the held-out pictures, averaged weights, whole captions always the same."""
        pixels = torch.from_numpy(np.array(self.pictures[self.num_train :]))
        words = random.Random(f"{self.seed} valid")
        captions = [describe(scene, words) for scene in self.scenes[self.num_train :]]
        with self.ema.applied(self.model):
            self.model.eval()
            images = self.model.clip.encode_image(self.preprocess(pixels).to(self.device), True)
            texts = self.model.clip.encode_text(tokenize(captions).to(self.device), True)
            guessed = self.model.ratings(images)
            self.model.train()
        values = {"valid/retrieval": retrieval(texts, images)}
        if self.ratings is not None:
            known = self.ratings[self.num_train :]
            values["valid/rating_correlation"] = rank_correlation(guessed.cpu(), known)
        return values

    def _captions(self, rows: list[int], words: random.Random) -> list[str]:
        return [describe(user_side(self.scenes[row], words), words) for row in rows]


def user_side(scene: Scene, words: random.Random) -> Scene:
    """The scene with less said, as people do: see NO_MODIFIERS and what follows it."""
    modifiers = scene.modifiers
    draw = words.random()
    if draw < NO_MODIFIERS:
        modifiers = ()
    elif draw < NO_MODIFIERS + SOME_MODIFIERS:
        modifiers = tuple(name for name in modifiers if words.random() < 0.5)
    colours, sizes = words.random() >= NO_COLOURS, words.random() >= NO_SIZES
    things = tuple(
        Thing(thing.subject, thing.colour if colours else None, thing.size if sizes else None)
        for thing in scene.things
    )
    place = scene.place if words.random() >= NO_PLACE else None
    return dataclasses.replace(scene, things=things, place=place, modifiers=modifiers)


def shift(pixels: torch.Tensor, generator: torch.Generator, most: int = 2) -> torch.Tensor:
    """Each picture of (N, S, S, 3) moved by up to `most` pixels either way, its edge repeated."""
    number, size = pixels.shape[:2]
    moves = torch.randint(-most, most + 1, (2, number, 1), generator=generator)
    rows, columns = (torch.arange(size) + moves).clamp(0, size - 1)
    picture = torch.arange(number)[:, None, None]
    return pixels[picture, rows[:, :, None], columns[:, None, :]]


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Softer, of another contrast and brightness, with noise: a little, and differently for each
    of (N, 3, S, S), which have about unit deviation."""
    number = (len(images), 1, 1, 1)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(number, generator=generator)

    soft = images.clone()  # of 2 by 2 pixels
    soft[:, :, 1:] += images[:, :, :-1]
    soft[:, :, :1] += images[:, :, :1]
    soft[..., 1:] += soft[..., :-1].clone()
    soft[..., :1] *= 2
    softness = uniform(0.0, 0.8)
    contrast = uniform(0.93, 1.07)
    images = images * (contrast * (1 - softness)) + soft.mul_(contrast * softness / 4)
    noise = torch.rand(images.shape, generator=generator).sub_(0.5)
    return images.add_(noise.mul_(uniform(0.0, 0.5))).add_(uniform(-0.1, 0.1))


def retrieval(texts: torch.Tensor, images: torch.Tensor, among: int = 100) -> float:
    """Share of texts that are nearest to the picture of their own row among `among` pictures;
    both (N, D) unit length, in groups as they stand; what is left over at the end does not count,
    unless there is no whole group."""
    among = min(among, len(texts))
    found = [
        (texts[start : start + among] @ images[start : start + among].T).argmax(dim=1).cpu()
        == torch.arange(among)
        for start in range(0, len(texts) - among + 1, among)
    ]
    return float(torch.cat(found).float().mean())


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's, of two (N,); equal values are ranked as they come."""
    ranks = torch.stack([one, other]).argsort(dim=1, stable=True).argsort(dim=1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _standardised(ratings: np.ndarray | None, num_train: int) -> torch.Tensor | None:
    if ratings is None:
        return None
    values = torch.from_numpy(np.array(ratings, dtype=np.float32))
    return (values - values[:num_train].mean()) / (values[:num_train].std() + 1e-6)


def _check(
    pictures: np.ndarray, scenes: Sequence[Scene], ratings: np.ndarray | None, num_valid: int
) -> None:
    if pictures.shape[1:] != (SIZE, SIZE, 3) or pictures.dtype != np.uint8:
        found = f"{pictures.dtype} of {tuple(pictures.shape)}"
        raise SettingsError("pictures", f"expected uint8 of (N, {SIZE}, {SIZE}, 3), got {found}")
    if len(scenes) != len(pictures):
        raise SettingsError("scenes", f"{len(scenes)} scenes of {len(pictures)} pictures")
    if ratings is not None and ratings.shape != (len(pictures),):
        raise SettingsError("ratings", f"expected ({len(pictures)},), got {ratings.shape}")
    if not 0 < num_valid < len(pictures) - 1:
        reason = f"expected more than the {num_valid} held out, got {len(pictures)}"
        raise SettingsError("pictures", reason)
