"""The training of the judge on drawn pictures.

The pictures that it will judge are rendered. So that the reading carries over, the drawn ones are
shifted, dimmed, noised and slightly blurred at random; and the ratings are those of people of its
own, drawn from its own seed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from ..settings import SettingsError
from .judge import RATES_NAME, WEIGHTS_NAME, Judge
from .judge_network import (
    COLOUR_NAMES,
    MODIFIER_NAMES,
    PLACE_NAMES,
    SIDE,
    SUBJECT_NAMES,
    TASTE_MIDDLE,
    TASTE_SPREAD,
    JudgeNetwork,
    Outputs,
    check_pixels,
    to_network,
)
from .scenes import Scene
from .stages import build_seeded
from .taste import rating
from .training import COMMON_METRICS, Training

UNKNOWN = -1  # the colour of a subject that is absent, or whose colour is not one
MAX_SHIFT = 3  # pixels
MAX_NOISE = 0.06  # standard deviation, of pixels in -1..1
MAX_BLUR = 0.7  # share of the blurred picture


@dataclasses.dataclass(frozen=True)
class Targets:
    """What N pictures show. subjects (N, 27) and modifiers (N, 43): float32, 0 or 1. colours
    (N, 27) int64, UNKNOWN where there is none to tell. places (N,) int64. tastes (N,) float32, in
    the network's units."""

    subjects: torch.Tensor
    colours: torch.Tensor
    places: torch.Tensor
    modifiers: torch.Tensor
    tastes: torch.Tensor

    def rows(self, rows: torch.Tensor, device: torch.device) -> Targets:
        return Targets(*(value[rows].to(device) for value in vars(self).values()))


def make_targets(scenes: Sequence[Scene], ratings: np.ndarray) -> Targets:
    """ratings: (N,), 1 to 10."""
    number = len(scenes)
    subjects = torch.zeros(number, len(SUBJECT_NAMES))
    colours = torch.full((number, len(SUBJECT_NAMES)), UNKNOWN)
    modifiers = torch.zeros(number, len(MODIFIER_NAMES))
    for row, scene in enumerate(scenes):
        said: dict[int, set[str | None]] = {}
        for thing in scene.things:
            said.setdefault(SUBJECT_NAMES.index(thing.subject), set()).add(thing.colour)
        for index, names in said.items():
            subjects[row, index] = 1
            name = names.pop()
            if not names and name is not None:  # two of a subject may differ in colour
                colours[row, index] = COLOUR_NAMES.index(name)
        for name in scene.modifiers:
            if name in MODIFIER_NAMES:
                modifiers[row, MODIFIER_NAMES.index(name)] = 1
    places = torch.tensor([PLACE_NAMES.index(scene.place) for scene in scenes])
    tastes = (torch.as_tensor(ratings, dtype=torch.float32) - TASTE_MIDDLE) / TASTE_SPREAD
    return Targets(subjects, colours, places, modifiers, tastes)


def rate(pictures: np.ndarray, scenes: Sequence[Scene], seed: int) -> np.ndarray:
    """A rating of each picture by one person, (N,) float64."""
    raters = (random.Random(f"judge {seed} {row}") for row in range(len(scenes)))
    rows = zip(scenes, pictures, raters, strict=True)
    return np.array([rating(scene, pixels, rater) for scene, pixels, rater in rows])


class JudgeStage(Training):
    """Trains a judge. pictures: (N, 64, 64, 3) uint8, a memory-mapped array will do; scenes: what
    each shows. The last `num_valid` are held out.

    They should be pictures that neither renderer nor scorer has seen (another seed of the data).
    ratings: (N,), 1 to 10; None: one person's each, by the seed. precision: "auto", "float32" or
    "bfloat16" (autocast).
    """

    name = "judge"
    clip_norm = 5.0
    metrics = {
        **COMMON_METRICS,
        "train/loss": "sum of the terms of the loss below",
        "train/subjects": "nats a picture, over all subjects",
        "train/colours": "nats a subject whose colour is known",
        "train/places": "nats a picture",
        "train/modifiers": "nats a picture, over all modifiers that change pictures",
        "train/taste": "smooth L1 error, in units of the network",
        "valid/subject": "share of the subjects of held-out drawn pictures that are read",
        "valid/colour": "share of their colours",
        "valid/place": "share of the places, plain backdrops left out",
        "valid/modifier": "share read right of with and without, mean over the modifiers",
        "valid/taste_correlation": "Pearson correlation with held-out ratings",
    }

    def __init__(
        self,
        pictures: np.ndarray,
        scenes: Sequence[Scene],
        *,
        num_steps: int,
        batch_size: int = 64,
        seed: int = 0,
        lr: float = 2e-3,
        ratings: np.ndarray | None = None,
        num_valid: int = 512,
        validate_every: int = 500,
        ema_decay: float = 0.998,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        check_pixels(pictures)
        if len(scenes) != len(pictures):
            reason = f"expected one per picture, {len(pictures)}, got {len(scenes)}"
            raise SettingsError("scenes", reason)
        if not 0 < num_valid < len(pictures):
            reason = f"expected more than the {num_valid} held out, got {len(pictures)}"
            raise SettingsError("pictures", reason)
        self.pictures, self.scenes = pictures, list(scenes)
        self.num_train = len(pictures) - num_valid
        self.batch_size = batch_size
        ratings = rate(pictures, scenes, seed) if ratings is None else ratings
        self.targets = make_targets(scenes, ratings)
        self.rates = self.targets.modifiers[: self.num_train].mean(0)
        self.prepare(
            build_seeded(JudgeNetwork, seed).to(memory_format=torch.channels_last),
            num_steps=num_steps, seed=seed, lr=lr, ema_decay=ema_decay, weight_decay=0.02,
            validate_every=validate_every, device=device, precision=precision,
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = torch.randint(self.num_train, (self.batch_size,), generator=generator)
        pixels = to_network(self.pictures[rows.numpy()], "cpu")
        pixels = vary(pixels, generator).to(self.device, memory_format=torch.channels_last)
        with self.arithmetic():
            out = self.model(pixels)
        terms = loss_terms(out, self.targets.rows(rows, self.device))
        return {**terms, "loss": sum(terms.values())}

    def save(self, folder: Path) -> None:
        """The averaged weights, float16, as Judge.load reads them."""
        weights = {
            name: value.to("cpu", torch.float16).contiguous()
            for name, value in self.ema.weights.items()
            if value.is_floating_point()  # not the counters of the batch norms
        }
        save_file({**weights, RATES_NAME: self.rates}, folder / WEIGHTS_NAME, {"format": "pt"})

    def judge(self) -> Judge:
        """A judge of its own with the averaged weights, on the CPU."""
        network = build_seeded(JudgeNetwork, self.seed)
        network.load_state_dict(self.ema.weights)
        return Judge(network, self.rates.numpy())

    def validate(self) -> dict[str, float]:
        held_out = slice(self.num_train, None)
        pictures, scenes = np.asarray(self.pictures[held_out]), self.scenes[held_out]
        judge = self.judge()
        content, reading = judge.content_accuracy(scenes, pictures), judge.read(pictures)
        right = modifier_accuracies(reading.modifiers, self.targets.modifiers[held_out].numpy())
        values = {
            "valid/subject": content.subject,
            "valid/colour": content.colour,
            "valid/place": content.place,
            "valid/modifier": float(np.nanmean(list(right.values()))) if right else float("nan"),
        }
        tastes = self.targets.tastes[held_out].numpy()
        if len(tastes) > 1:
            values["valid/taste_correlation"] = float(np.corrcoef(reading.tastes, tastes)[0, 1])
        return {name: value for name, value in values.items() if np.isfinite(value)}


def modifier_accuracies(probabilities: np.ndarray, shown: np.ndarray) -> dict[str, float]:
    """For each modifier that some of the pictures show and some do not: the mean of the shares
    read right among both. Both (N, 43); probabilities as in JudgeReading, shown 0 or 1."""
    right = (probabilities > 0.5) == (shown > 0.5)
    return {
        name: float(right[with_it, index].mean() + right[~with_it, index].mean()) / 2
        for index, name in enumerate(MODIFIER_NAMES)
        if (with_it := shown[:, index] > 0.5).any() and not with_it.all()
    }


def loss_terms(out: Outputs, targets: Targets) -> dict[str, torch.Tensor]:
    """The terms of the loss, to be added up."""
    subjects = functional.binary_cross_entropy_with_logits(
        out.subjects, targets.subjects, reduction="none"
    )
    modifiers = functional.binary_cross_entropy_with_logits(
        out.modifiers, targets.modifiers, reduction="none"
    )
    known = targets.colours != UNKNOWN
    colours = functional.cross_entropy(out.colours[known], targets.colours[known], reduction="sum")
    return {
        "subjects": subjects.sum(1).mean(),
        "colours": colours / known.sum().clamp(min=1),
        "places": functional.cross_entropy(out.places, targets.places),
        "modifiers": modifiers.sum(1).mean(),
        "taste": functional.smooth_l1_loss(out.taste, targets.tastes),
    }


def vary(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The pictures (B, 3, 64, 64), -1..1, each shifted (its edge repeated), brighter or darker, and
    half of them each blurred and noised. The results are not limited to -1..1."""
    number = len(pixels)
    shifts = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2, number, 1), generator=generator)
    down, across = (torch.arange(SIDE) + shifts).clamp(0, SIDE - 1)
    by_pixel = pixels.permute(0, 2, 3, 1)
    moved = by_pixel[torch.arange(number)[:, None, None], down[:, :, None], across[:, None, :]]
    pixels = moved.permute(0, 3, 1, 2)

    def amounts(lowest: float, highest: float, share: float = 1.0) -> torch.Tensor:
        given = torch.rand(2, number, 1, 1, 1, generator=generator)
        return (given[1] < share) * (lowest + (highest - lowest) * given[0])

    soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = torch.lerp(pixels, soft, amounts(0.0, MAX_BLUR, share=0.5))
    pixels = pixels * (1 + amounts(-0.08, 0.08)) + amounts(-0.06, 0.06)
    noise = torch.randn(pixels.shape, generator=generator)
    return pixels + noise * amounts(0.0, MAX_NOISE, share=0.5)
