"""Held-out judges: what they say of candidates is reported, and never part of a reward.

A policy learns to please the scorer that pays it. Whether its pictures became better, and still
show what was asked, is for a model to say that it never saw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from .checkpoints import file_identity
from .devices import pick_device
from .lab import captions
from .lab import judge as pictures_judge
from .lab.folders import WEIGHTS
from .lab.judge_network import SIDE
from .settings import SettingsError

if TYPE_CHECKING:
    from .scorers import Scorer

AUTO, NONE, LAB = "auto", "none", "lab"
CANDIDATES_AT_ONCE = 64  # whose pictures are judged together


class Judge(Protocol):
    """metrics: every key that `judge_each` gives, `judge/name`, and its definition. identity:
    changes with anything that changes what the judge says."""

    metrics: Mapping[str, str]
    identity: str

    def judge_each(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        pictures: Sequence[np.ndarray | None],
    ) -> dict[str, np.ndarray]:
        """(B,) float64 for each key of `metrics`, nan where nothing can be said: there is no
        picture, or nothing of the kind was asked.

        pictures: (num, H, W, 3) uint8 of each candidate, or None; several are averaged.
        """


class LabJudge:
    """The lab's judge. What was asked is read off the USER INPUT."""

    metrics: Mapping[str, str] = {
        "judge/taste": "how good the pictures look to the lab's judge, about 1 to 10",
        "judge/subject_accuracy": "share of the subjects named in the user input that the judge "
        "sees in the pictures",
        "judge/colour_accuracy": "share of the colours given in the user input that it sees on "
        "their subjects",
        "judge/place_accuracy": "share of pictures in which it sees the place named in the user "
        "input",
    }

    def __init__(self, judge: pictures_judge.Judge, identity: str):
        self.judge, self.identity = judge, identity

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> LabJudge:
        """SettingsError("judge", ...) where its file is missing or broken."""
        judge = pictures_judge.Judge.load(folder, pick_device(device))
        return cls(judge, file_identity([Path(folder) / pictures_judge.WEIGHTS_NAME]))

    def judge_each(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        pictures: Sequence[np.ndarray | None],
    ) -> dict[str, np.ndarray]:
        """See Judge. Pictures of another size than the lab's are scaled to it."""
        return _in_parts(list(self.metrics), self._judge_part, user_inputs, pictures)

    def _judge_part(self, user_inputs: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
        reading = self.judge.read(_lab_sized(pixels))
        scenes = [captions.read(user_input) for user_input in user_inputs]
        content = pictures_judge.measured_content(scenes, reading)
        return [reading.tastes, content.subjects, content.colours, content.places]


class ScorerJudge:
    """A scorer that the reward is not made of."""

    metrics: Mapping[str, str] = {
        "judge/aesthetic": "aesthetic score of the pictures by the held-out scorer",
        "judge/relevance": "cosine of user input and pictures by the held-out scorer, 0 where it "
        "is negative",
    }

    def __init__(self, scorer: Scorer):
        self.scorer, self.identity = scorer, scorer.identity

    def judge_each(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        pictures: Sequence[np.ndarray | None],
    ) -> dict[str, np.ndarray]:
        """See Judge."""
        return _in_parts(list(self.metrics), self._judge_part, user_inputs, pictures)

    def _judge_part(self, user_inputs: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
        return [column.numpy() for column in self.scorer.score(user_inputs, pixels)]


class PreferenceJudge(ScorerJudge):
    """One of preference_scorers that the reward is not made of."""

    metrics: Mapping[str, str] = {
        "judge/preference": "how well people would like the pictures for the user input, by the "
        "held-out scorer, in its own unit",
    }

    def _judge_part(self, user_inputs: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
        return [self.scorer.score(user_inputs, pixels).aesthetic.numpy()]


def load_judge(name: str, device: str = "cpu", *, download: bool = False) -> Judge | None:
    """The judge of a name: none, lab, or a folder with judge.safetensors (one like the lab's) or
    any scorer. download: as load_scorer_folder. SettingsError("judge", ...) for another."""
    if name == NONE:
        return None
    folder = WEIGHTS / "judge" if name == LAB else Path(name)
    if (folder / pictures_judge.WEIGHTS_NAME).is_file():
        return LabJudge.load(folder, device)
    # Needs open_clip, nothing else does.
    from .scorer_folders import can_score, is_scorer_folder, load_scorer_folder
    from .scorers import DESCRIPTION_NAME, OpenClipScorer

    try:
        if not is_scorer_folder(folder):
            raise SettingsError(
                "judge",
                f"expected {NONE}, {LAB} or a folder with {DESCRIPTION_NAME} or "
                f"{pictures_judge.WEIGHTS_NAME}, got {name!r}",
            )
        scorer = load_scorer_folder(folder, device, download=download)
    except SettingsError as error:
        told = error.name if error.name == "device" else "judge"
        raise SettingsError(told, error.reason) from None
    if not can_score(scorer):
        raise SettingsError("judge", f"{name} has no aesthetic head, so it can judge no pictures")
    return ScorerJudge(scorer) if isinstance(scorer, OpenClipScorer) else PreferenceJudge(scorer)


def judge_of_renderer(name: str, renderer: str) -> str:
    """What "auto" stands for: the lab's judge where the lab renders, else none."""
    if name != AUTO:
        return name
    return LAB if renderer == LAB else NONE


def mean_metrics(judged: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each over the candidates of which something is known; nan where that is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan, as is said
        return {name: float(np.nanmean(values)) for name, values in judged.items()}


def _in_parts(
    names: Sequence[str],
    judge_part: Callable[[Sequence[str], np.ndarray], Sequence[np.ndarray]],
    user_inputs: Sequence[str],
    pictures: Sequence[np.ndarray | None],
) -> dict[str, np.ndarray]:
    """The means over each candidate's pictures of what `judge_part` says of N user inputs and
    their pictures (N, H, W, 3): one (N,) for each name."""
    if len(user_inputs) != len(pictures):
        reason = f"expected one for each of {len(pictures)} candidates, got {len(user_inputs)}"
        raise SettingsError("user_inputs", reason)
    found = {name: np.full(len(pictures), np.nan) for name in names}
    shown = [row for row, some in enumerate(pictures) if some is not None and len(some)]
    for start in range(0, len(shown), CANDIDATES_AT_ONCE):
        rows = shown[start : start + CANDIDATES_AT_ONCE]
        owners = np.concatenate([np.full(len(pictures[row]), row) for row in rows])
        pixels = np.concatenate([pictures[row] for row in rows])
        columns = judge_part([user_inputs[owner] for owner in owners], pixels)
        for name, column in zip(names, columns, strict=True):
            for row in rows:
                found[name][row] = column[owners == row].astype(np.float64).mean()
    return found


def _lab_sized(pixels: np.ndarray) -> np.ndarray:
    """(N, 64, 64, 3) uint8."""
    if pixels.shape[1:3] == (SIDE, SIDE):
        return pixels
    sized = [Image.fromarray(some).resize((SIDE, SIDE), Image.Resampling.BOX) for some in pixels]
    return np.stack([np.asarray(some) for some in sized])
