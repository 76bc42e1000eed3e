"""Wordings of the same user input side by side: rendered with the same seeds, scored, judged."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..adapter import Adaptation, PromptAdapter
from ..devices import pick_device
from ..images import ImageGenerator, ImageSettings
from ..lab import captions
from ..lab.drawing import SIZE
from ..lab.folders import WEIGHTS
from ..lab.judge import Judge, measured_content
from ..lab.rendering import remarks
from ..reward_settings import RewardSettings
from ..rewards import TERMS, Rewarder
from ..scorers import Scorer
from ..settings import MAX_SEED, SettingsError
from ..train.rendered_reward import LAB, load_renderer, load_scorer
from .seeing import seen
from .settings import REWARD

BATCH_SIZE = 16  # pictures at once


class Score(NamedTuple):
    """name: as it is shown. source: whose it is; "term" is a term of the reward. digits: after
    the point; None for a share. text: what it is."""

    name: str
    source: str
    digits: int | None
    text: str


SCORES: dict[str, Score] = {
    "reward": Score("reward", "", 2, "what the policy is trained to raise, a sum of terms"),
    "aesthetic": Score("aesthetic", "scorer", 2, "how good the pictures look, about 1 to 10"),
    "cosine": Score("relevance", "scorer", 3, "cosine of the user input and its pictures"),
    "taste": Score("taste", "judge", 2, "how good the pictures look, about 1 to 10"),
    "asked": Score("what was asked", "judge", None, "share of subjects, colours and place it sees"),
    "aesthetic_gain": Score("aesthetic gain", "term", 2, "aesthetic over that of the user input"),
    "relevance": Score("relevance", "term", 2, "0; less where the user input is shown too little"),
    "length": Score("length", "term", 2, "0; less beyond 75 tokens"),
    "copy": Score("copy", "term", 2, "0; less where its words are gone or repeated"),
}


@dataclasses.dataclass(frozen=True)
class Wording:
    """One way to put a user input, as a policy wrote it or as the person did.

    added: the part of `text` that a policy added, "" where there is none or where it cannot be
    told. remark: why a policy left the text alone, else "".
    """

    text: str
    added: str = ""
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A wording with its S pictures, means of their scores, and what the judge sees.

    pictures (S, H, W, 3) uint8. tastes (S,). scores: by the keys of SCORES; "asked" is nan where
    the user input asks for nothing that the lab knows. seen: as in seeing.py.
    """

    wording: Wording
    pictures: np.ndarray
    tastes: np.ndarray
    scores: dict[str, float]
    seen: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One user input. shown: one of each name that `compare` was given, the user input's own
    first. remarks: what its writer may not expect, such as words that mean nothing in the lab."""

    user_input: str
    seeds: list[int]
    remarks: list[str]
    shown: list[Shown]


class RememberedPictures:
    """An ImageGenerator that renders each prompt and seed once, in batches, and keeps it.

    progress: called with the number of pictures rendered so far after every batch."""

    def __init__(
        self, generator: ImageGenerator, progress: Callable[[int], None] = lambda number: None
    ):
        self.generator, self.progress = generator, progress
        self.identity: str = generator.identity
        self.settings: ImageSettings = generator.settings
        self.kept: dict[tuple[str, int], np.ndarray] = {}

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """See images.ImageGenerator."""
        wanted = list(zip(prompts, seeds, strict=True))
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self.kept]
        for start in range(0, len(missing), BATCH_SIZE):
            part = missing[start : start + BATCH_SIZE]
            texts, numbers = [text for text, _ in part], [seed for _, seed in part]
            pictures = self.generator.generate(texts, numbers, should_stop=should_stop)
            self.kept.update(zip(part, pictures, strict=True))
            self.progress(len(self.kept))
        return np.stack([self.kept[pair] for pair in wanted])


class Workshop:
    """The lab's renderer, scorer and judge."""

    def __init__(self, generator: ImageGenerator, scorer: Scorer, judge: Judge):
        self.generator, self.scorer, self.judge = generator, scorer, judge

    @classmethod
    def load(cls, device: str = "cpu", num_steps: int | None = None) -> Workshop:
        """SettingsError where a weight file is missing or broken, ModuleNotFoundError where
        open_clip is not installed, or diffusers, which draws on other devices than a CPU."""
        generator = load_renderer(LAB, device, num_steps=num_steps, batch_size=BATCH_SIZE)
        scorer = load_scorer(LAB, device)
        return cls(generator, scorer, Judge.load(WEIGHTS / "judge", pick_device(device)))

    def compare(
        self,
        user_inputs: Sequence[str],
        wordings: Sequence[Sequence[Wording]],
        seeds: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, number: None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Comparison]:
        """Each user input beside its other wordings, all with the same seeds.

        wordings: one row for each way to put them, each with one wording for every user input.
        progress: called with the numbers of pictures done and wanted. Raises SettingsError
        ("user_input" or "renderer", ...) where a picture cannot be rendered or scored,
        decoding.Stopped when should_stop says so.
        """
        rows = [[Wording(text) for text in user_inputs], *wordings]
        texts = [wording.text for row in rows for wording in row]
        number = len(set(texts)) * len(seeds)
        generator = RememberedPictures(self.generator, lambda done: progress(done, number))
        reward = RewardSettings(**{**REWARD, "num_images": len(seeds)})
        rewarder = Rewarder(generator, self.scorer, reward)
        asked = [text for _ in rows for text in user_inputs]
        batch = rewarder.reward(asked, texts, [list(seeds)] * len(texts), should_stop)
        if batch.failures:
            raise SettingsError("user_input", batch.failures[0])
        pairs = [(text, seed) for text in texts for seed in seeds]
        pixels = generator.generate([text for text, _ in pairs], [seed for _, seed in pairs])
        judged = self._judged(asked, pixels, len(seeds))
        shown = [
            Shown(wording, pixels[at * len(seeds) : (at + 1) * len(seeds)], tastes,
                  _scores(batch, at) | scores, words)
            for at, (wording, (tastes, scores, words)) in enumerate(
                zip((wording for row in rows for wording in row), judged, strict=True)
            )
        ]  # fmt: skip
        return [
            Comparison(text, list(seeds), remarks(text, SIZE), shown[at :: len(user_inputs)])
            for at, text in enumerate(user_inputs)
        ]

    def _judged(
        self, asked: Sequence[str], pixels: np.ndarray, num_seeds: int
    ) -> list[tuple[np.ndarray, dict[str, float], str]]:
        """For each text asked for: tastes (S,), mean scores, what is seen."""
        scenes = [captions.read(text) for text in asked]
        reading = self.judge.read(pixels)
        content = measured_content([scene for scene in scenes for _ in range(num_seeds)], reading)
        kinds = np.stack([content.subjects, content.colours, content.places])
        found = []
        for at, scene in enumerate(scenes):
            rows = slice(at * num_seeds, (at + 1) * num_seeds)
            tastes = reading.tastes[rows]
            scores = {"taste": float(tastes.mean()), "asked": mean_of_known(kinds[:, rows])}
            found.append((tastes, scores, seen(reading, rows, scene)))
        return found


def adapted(adapter: PromptAdapter, user_inputs: Sequence[str], seed: int) -> list[Wording]:
    """What the policy makes of each user input."""
    return [_wording(adaptation) for adaptation in adapter.adapt_all(user_inputs, seed=seed)]


def _wording(adaptation: Adaptation) -> Wording:
    best = adaptation.candidates[0]
    remark = "" if adaptation.gate == "adapted" else adaptation.gate
    added = best.added if best.added in best.adapted_prompt else ""
    return Wording(best.adapted_prompt, added, remark)


def image_seeds(first: int, number: int) -> list[int]:
    """The seed and those after it; after the highest comes 0."""
    return [(first + place) % (MAX_SEED + 1) for place in range(number)]


def mean_scores(comparisons: Sequence[Comparison], place: int) -> dict[str, float]:
    """The means over user inputs of the wordings at one place; nan of what is known of none."""
    return {
        name: mean_of_known([item.shown[place].scores[name] for item in comparisons])
        for name in SCORES
    }


def mean_of_known(values: Any) -> float:
    """The mean of what is not nan; nan of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan, as is said
        return float(np.nanmean(np.asarray(values, dtype=float)))


def _scores(batch: Any, row: int) -> dict[str, float]:
    """The reward, its terms and what it logs of one candidate."""
    terms: Mapping[str, Any] = batch.terms
    return {
        "reward": float(batch.rewards[row]),
        **{name: float(terms[name][row]) for name in TERMS},
        "aesthetic": float(batch.logged["aesthetic"][row]),
        "cosine": float(batch.logged["cosine"][row]),
    }
