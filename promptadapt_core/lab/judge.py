"""The judge: reads off a picture what it shows, and how good it is. No policy is trained on it.

It keeps the reward honest: it shares nothing with the scorer (neither the drawn pictures, nor the
architecture, nor the first weights), so a policy that only learned to please the scorer does not
please the judge. `judge_network.py` has the small convolutional network; here it is used.
Training is in `judge_training.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..settings import SettingsError
from .judge_network import (
    COLOUR_NAMES,
    MODIFIER_NAMES,
    PLACE_NAMES,
    SUBJECT_NAMES,
    TASTE_MIDDLE,
    TASTE_SPREAD,
    JudgeNetwork,
    check_pixels,
    to_network,
)
from .scenes import Scene
from .stages import build_seeded

WEIGHTS_NAME = "judge.safetensors"
RATES_NAME = "modifier_rates"  # (43,), the share of training pictures with each modifier
BATCH_SIZE = 128
_SUBJECT_INDEX = {name: index for index, name in enumerate(SUBJECT_NAMES)}
_PLACE_INDEX = {name: index for index, name in enumerate(PLACE_NAMES)}


@dataclasses.dataclass(frozen=True)
class JudgeReading:
    """What the judge sees in N pictures, float32. Probabilities: subjects (N, 27) each is there,
    colours (N, 27, 10) of each subject if it is there, places (N, 9), the last a plain backdrop,
    modifiers (N, 43), where 0.5 is as likely with as without if half of all pictures had it.
    tastes (N,), about 1 to 10. The names are in judge_network.py."""

    subjects: np.ndarray
    colours: np.ndarray
    places: np.ndarray
    modifiers: np.ndarray
    tastes: np.ndarray

    @property
    def subject(self) -> list[str]:
        """The likeliest subject of each picture."""
        return [SUBJECT_NAMES[index] for index in self.subjects.argmax(1)]

    @property
    def colour(self) -> list[str]:
        """The likeliest colour of the likeliest subject of each picture."""
        return [self.colour_of(name, row) for row, name in enumerate(self.subject)]

    @property
    def place(self) -> list[str | None]:
        """The likeliest place of each picture; None is a plain backdrop."""
        return [PLACE_NAMES[index] for index in self.places.argmax(1)]

    def colour_of(self, subject: str, row: int) -> str:
        """The likeliest colour that the subject has in picture `row`, if it is there."""
        return COLOUR_NAMES[self.colours[row, _SUBJECT_INDEX[subject]].argmax()]

    def likeliest_subjects(self, row: int, number: int) -> set[str]:
        ordered = np.argsort(-self.subjects[row], kind="stable")
        return {SUBJECT_NAMES[index] for index in ordered[:number]}

    def has(self, modifier: str) -> np.ndarray:
        """(N,) bool: whether the picture looks more like one with the modifier than without."""
        return self.modifiers[:, modifier_index(modifier)] > 0.5


@dataclasses.dataclass(frozen=True)
class ContentAccuracy:
    """For each of N pictures the share, 0 to 1, of what was asked that is there; nan where nothing
    of the kind was asked. An asked subject is there when it is among the k likeliest, k being the
    number of different subjects asked; its colour when the likeliest is one asked for it."""

    subjects: np.ndarray
    colours: np.ndarray
    places: np.ndarray

    @property
    def subject(self) -> float:
        return _mean_of_known(self.subjects)

    @property
    def colour(self) -> float:
        return _mean_of_known(self.colours)

    @property
    def place(self) -> float:
        return _mean_of_known(self.places)


class Judge:
    """A trained judge, on the CPU unless moved. rates: as in RATES_NAME."""

    def __init__(self, network: JudgeNetwork, rates: np.ndarray):
        self.network = network.eval()
        self.rates = np.asarray(rates, dtype=np.float32)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Judge:
        """The judge that JudgeStage saved. SettingsError("judge", ...) where its file is missing,
        broken, or another network's."""
        path = Path(folder) / WEIGHTS_NAME
        if not path.is_file():
            raise SettingsError("judge", f"{path} is missing")
        network = build_seeded(JudgeNetwork, 0)
        try:
            weights = load_file(path)
            rates = weights.pop(RATES_NAME).float().numpy()
            counters = {n: v for n, v in network.state_dict().items() if not v.is_floating_point()}
            network.load_state_dict({**counters, **weights})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SettingsError("judge", f"{path} is not a judge: {reason}") from None
        return cls(network.to(device), rates)

    @torch.inference_mode()
    def read(self, pixels: np.ndarray) -> JudgeReading:
        """pixels: (N, 64, 64, 3) uint8, else SettingsError("pixels", ...)."""
        check_pixels(pixels)
        if not len(pixels):  # which no convolution takes
            of_one = self.read(np.zeros((1, *pixels.shape[1:]), dtype=np.uint8))
            return JudgeReading(*(values[:0] for values in vars(of_one).values()))
        device = next(self.network.parameters()).device
        parts = [
            self._read_batch(to_network(pixels[start : start + BATCH_SIZE], device))
            for start in range(0, len(pixels), BATCH_SIZE)
        ]
        joined = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
        return JudgeReading(*joined)

    def taste(self, pixels: np.ndarray) -> np.ndarray:
        """(N,) float32, about 1 to 10."""
        return self.read(pixels).tastes

    def content_accuracy(self, scenes: Sequence[Scene], pixels: np.ndarray) -> ContentAccuracy:
        """How much of the subjects, colours and place that each scene asks for its picture shows.

        One scene per picture, else SettingsError("scenes", ...).
        """
        if len(scenes) != len(pixels):
            reason = f"expected one per picture, {len(pixels)}, got {len(scenes)}"
            raise SettingsError("scenes", reason)
        return measured_content(scenes, self.read(pixels))

    def _read_batch(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.network(pixels)
        rates = torch.from_numpy(self.rates).to(out.modifiers)
        return (
            out.subjects.sigmoid(),
            out.colours.softmax(2),
            out.places.softmax(1),
            (out.modifiers - rates.logit(1e-4)).sigmoid(),
            out.taste * TASTE_SPREAD + TASTE_MIDDLE,
        )


def modifier_index(name: str) -> int:
    """SettingsError("modifier", ...) for what changes no picture."""
    if name not in MODIFIER_NAMES:
        raise SettingsError("modifier", f"expected one that changes pictures, got {name!r}")
    return MODIFIER_NAMES.index(name)


def measured_content(scenes: Sequence[Scene], reading: JudgeReading) -> ContentAccuracy:
    subjects, colours, places = (np.full(len(scenes), np.nan) for _ in range(3))
    for row, scene in enumerate(scenes):
        asked = {thing.subject for thing in scene.things}
        if asked:
            seen = reading.likeliest_subjects(row, len(asked))
            subjects[row] = len(asked & seen) / len(asked)
        coloured: dict[str, set[str]] = {}
        for thing in scene.things:
            if thing.colour is not None:
                coloured.setdefault(thing.subject, set()).add(thing.colour)
        if coloured:
            right = [reading.colour_of(name, row) in said for name, said in coloured.items()]
            colours[row] = sum(right) / len(right)
        if scene.place is not None:
            places[row] = reading.places[row].argmax() == _PLACE_INDEX[scene.place]
    return ContentAccuracy(subjects, colours, places)


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
