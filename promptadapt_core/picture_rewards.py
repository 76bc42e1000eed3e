"""What given pictures are worth, whoever rendered them.

The terms of rewards.py that a picture alone decides: k the scorer's knee, s its slope,

    reward = aesthetic_weight * aesthetic + relevance_weight * s * min(cosine - k, 0)

With pictures of the plain user input as baselines the aesthetic of each is taken off: a gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from .contact_sheet import Cell
from .decoding import Stopped
from .reward_settings import RewardSettings
from .scorers import Scorer, Scores
from .settings import SettingsError

Item = TypeVar("Item")
PICTURES_AT_ONCE = 8  # between two questions whether to stop; a large CLIP takes seconds for them


@dataclass(frozen=True)
class PictureRewards:
    """Of N pictures in the order they came. aesthetic: about 1 to 10. relevance: cosine with the
    user input, 0 to 1. gains: aesthetic minus the baseline's, None without baselines. order: their
    numbers from 0, highest reward first; equals stay in order."""

    aesthetic: list[float]
    relevance: list[float]
    rewards: list[float]
    order: list[int]
    gains: list[float] | None = None

    def rank(self, number: int) -> int:
        """1 for the best picture."""
        return self.order.index(number) + 1

    def as_json(self) -> list[dict[str, Any]]:
        """One object for each picture."""
        rows = [
            {
                "image": number,
                "rank": self.rank(number),
                "reward": self.rewards[number],
                "aesthetic": self.aesthetic[number],
                "relevance": self.relevance[number],
            }
            for number in range(len(self.rewards))
        ]
        for row, gain in zip(rows, self.gains or [], strict=False):
            row["aesthetic_gain"] = gain
        return rows


def reward_pictures(
    scorer: Scorer,
    user_inputs: Sequence[str],
    pictures: Sequence[np.ndarray],
    baselines: Sequence[np.ndarray] = (),
    settings: RewardSettings | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> PictureRewards:
    """Score N pictures, each (H, W, 3) uint8, against the user input of its row.

    baselines: pictures of the plain user input with the seeds of the first, second, ... picture;
    fewer than N serve in turn. Of the settings only aesthetic_weight and relevance_weight count.
    Raises SettingsError for numbers that do not fit and for scores that are not finite,
    decoding.Stopped once `should_stop()` is true.
    """
    settings = settings or RewardSettings()
    if not pictures:
        raise SettingsError("images", "expected one or more pictures, got none")
    if settings.relevance_weight and not all(text.strip() for text in user_inputs):
        raise SettingsError("user_input", "expected what was asked for, got an empty text")
    scores = _score(scorer, user_inputs, pictures, should_stop)
    aesthetic, relevance = scores.aesthetic.double().tolist(), scores.relevance.double().tolist()
    gains = None
    if baselines:
        if len(pictures) % len(baselines):
            raise SettingsError(
                "baseline_images",
                f"{len(pictures)} pictures cannot take turns with {len(baselines)} baselines; "
                "expected one for all, or one for each seed",
            )
        turns = range(len(baselines))
        texts = [user_inputs[i] for i in turns]
        plain = _score(scorer, texts, baselines, should_stop).aesthetic.double()
        gains = [own - float(plain[i % len(plain)]) for i, own in enumerate(aesthetic)]
    rewards = [
        settings.aesthetic_weight * value
        + settings.relevance_weight * relevance_term(scorer, cosine)
        for value, cosine in zip(aesthetic if gains is None else gains, relevance, strict=True)
    ]
    order = sorted(range(len(rewards)), key=lambda number: -rewards[number])
    return PictureRewards(aesthetic, relevance, rewards, order, gains)


def relevance_term(scorer: Scorer, cosine: float) -> float:
    """0 or less, see the module."""
    return scorer.relevance_slope * min(cosine - scorer.relevance_knee, 0.0)


def one_for_each(values: Sequence[Item], counts: Sequence[int], name: str) -> list[Item]:
    """A value for each picture. counts: of the batches that the pictures came in.

    There is one value for all pictures, or one for each picture, or one for each batch.
    """
    total = sum(counts)
    if len(values) == 1:
        return list(values) * total
    if len(values) == total:
        return list(values)
    if len(values) == len(counts):
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    raise SettingsError(name, f"expected one for each of {total} pictures, got {len(values)}")


def score_lines(found: PictureRewards, number: int) -> tuple[str, ...]:
    """What a contact sheet says of one picture."""
    told = f"aesthetic {found.aesthetic[number]:.2f}"
    if found.gains is not None:
        told += f" ({found.gains[number]:+.2f})"
    relevance = f"relevance {found.relevance[number]:.3f}"
    return (f"reward {found.rewards[number]:.2f}", told, relevance)


def sheet_cells(
    found: PictureRewards, pictures: Sequence[np.ndarray], texts: Sequence[str]
) -> list[Cell]:
    """The cells of a contact sheet, best first. texts: written below each picture."""
    return [
        Cell(
            pictures[number],
            (f"{rank}. {score_lines(found, number)[0]}", *score_lines(found, number)[1:]),
            texts[number],
            best=rank == 1,
        )
        for rank, number in enumerate(found.order, 1)
    ]


@dataclass(frozen=True)
class Comparison:
    """Of N pairs of pictures, A and B, each. b_is_better: where the reward of B is higher; equals
    count for A. difference: reward of B minus reward of A, mean over the pairs."""

    a: PictureRewards
    b: PictureRewards
    b_is_better: list[bool]
    difference: float

    def verdict(self) -> str:
        """In one line."""
        if abs(self.difference) < 0.005:
            return "A and B score the same"
        return f"{'B' if self.difference > 0 else 'A'} is better by {abs(self.difference):.2f}"

    def as_json(self) -> list[dict[str, Any]]:
        """One object for each pair."""
        return [
            {
                "pair": number,
                "better": "b" if self.b_is_better[number] else "a",
                **{
                    name: {
                        "reward": found.rewards[number],
                        "aesthetic": found.aesthetic[number],
                        "relevance": found.relevance[number],
                    }
                    for name, found in (("a", self.a), ("b", self.b))
                },
            }
            for number in range(len(self.b_is_better))
        ]


def compare_pictures(
    scorer: Scorer,
    user_input: str,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    settings: RewardSettings | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Comparison:
    """Score pictures A and B pair by pair. SettingsError where their numbers differ; otherwise as
    reward_pictures."""
    if len(first) != len(second):
        reason = f"expected as many as image_a ({len(first)}), got {len(second)}"
        raise SettingsError("image_b", reason)
    a, b = (
        reward_pictures(
            scorer, [user_input] * len(side), side, settings=settings, should_stop=should_stop
        )
        for side in (first, second)
    )
    differences = [right - left for left, right in zip(a.rewards, b.rewards, strict=True)]
    better = [difference > 0 for difference in differences]
    return Comparison(a, b, better, sum(differences) / len(differences))


def comparison_cells(
    compared: Comparison,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    labels: tuple[str, str],
) -> list[Cell]:
    """A and B in turn, for a contact sheet of two columns; the better one of a pair is framed."""
    cells = []
    for number, b_is_better in enumerate(compared.b_is_better):
        for name, found, pictures, label, best in (
            ("A", compared.a, first, labels[0], not b_is_better),
            ("B", compared.b, second, labels[1], b_is_better),
        ):
            lines = score_lines(found, number)
            heads = (f"{name}  {lines[0]}", *lines[1:])
            cells.append(Cell(pictures[number], heads, label, best))
    return cells


def _score(
    scorer: Scorer,
    user_inputs: Sequence[str],
    pictures: Sequence[np.ndarray],
    should_stop: Callable[[], bool] | None,
) -> Scores:
    """Scores of pictures of any sizes, those of one size together."""
    if len(user_inputs) != len(pictures):
        reason = f"expected one for each of {len(pictures)} pictures, got {len(user_inputs)}"
        raise SettingsError("user_input", reason)
    found = torch.zeros(2, len(pictures))
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        alike = [i for i, picture in enumerate(pictures) if picture.shape == shape]
        for start in range(0, len(alike), PICTURES_AT_ONCE):
            if should_stop is not None and should_stop():
                raise Stopped
            places = alike[start : start + PICTURES_AT_ONCE]
            stack = np.stack([pictures[i] for i in places])
            found[:, places] = torch.stack(scorer.score([user_inputs[i] for i in places], stack))
    for i in torch.nonzero(~found.isfinite().all(dim=0)).flatten().tolist():
        raise SettingsError("images", f"picture {i + 1} has scores that are not numbers (NaN)")
    return Scores(*found)
