"""What a refinement found: everything that was tried, the best of it, and what to say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contact_sheet import Cell, contact_sheet

PLAIN, OWN, SAMPLED = "user input", "policy", "sampled"
MOST_CELLS = 36  # of the contact sheet: the best ones
FIRST_ROUND = 1


@dataclasses.dataclass(frozen=True)
class Tried:
    """One prompt. source: PLAIN is the user input itself, OWN what the policy answers when it is
    asked as usual, SAMPLED drawn from it. round: 0 of the plain input, else from 1. reward and
    terms: reward units, terms already weighted; aesthetic about 1 to 10, cosine 0 to 1. pictures:
    (num_images, H, W, 3) uint8, of the same seeds for every prompt; a search keeps all of the best
    prompt and of the user input, of the next best the first, of the others none."""

    adapted_prompt: str
    source: str
    round: int
    reward: float
    terms: dict[str, float]
    aesthetic: float
    cosine: float
    pictures: np.ndarray

    def as_json(self) -> dict[str, Any]:
        kept = dataclasses.asdict(dataclasses.replace(self, pictures=np.zeros(0)))
        del kept["pictures"]
        return kept


@dataclasses.dataclass(frozen=True)
class Round:
    """One round. rewards: of every completion that has one, repeats included. best_reward: of
    everything tried so far, the plain input left out. metrics: of its updates."""

    number: int
    rewards: list[float]
    best_reward: float
    num_new: int
    metrics: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Refinement:
    """accepted: the best prompt beats the user input by the margin. adapted_prompt and pictures:
    of the best prompt if it was accepted, else the user input and its own. num_rendered: how many
    of num_images were not known from before. notes: sentences on what else happened, such as a
    budget that was spent."""

    user_input: str
    accepted: bool
    plain: Tried
    best: Tried
    tried: list[Tried]
    rounds: list[Round]
    margin: float
    image_seeds: list[int]
    num_images: int
    num_rendered: int
    seconds: float
    notes: list[str]

    @property
    def answer(self) -> Tried:
        return self.best if self.accepted else self.plain

    @property
    def adapted_prompt(self) -> str:
        return self.answer.adapted_prompt

    @property
    def gain(self) -> float:
        """Reward of the answer minus that of the user input; 0 if nothing was accepted."""
        return self.answer.reward - self.plain.reward

    @property
    def ranked(self) -> list[Tried]:
        """Everything tried, the plain input too, highest reward first; equals stay in order."""
        return sorted(self.tried, key=lambda one: -one.reward)

    def sentence(self) -> str:
        """What became of it."""
        best = self.best.reward - self.plain.reward
        if self.accepted:
            return f"better than your text by {best:.2f}"
        if self.best is self.plain:
            return "your text comes back: nothing else could be tried"
        number = len(self.tried) - 1
        return (
            f"your text comes back: the best of {number} prompts gains {best:+.2f}, more than "
            f"{self.margin:g} is asked for"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "user_input": self.user_input,
            "adapted_prompt": self.adapted_prompt,
            "accepted": self.accepted,
            "result": self.sentence(),
            "gain": self.gain,
            "margin": self.margin,
            "image_seeds": self.image_seeds,
            "num_images": self.num_images,
            "num_rendered": self.num_rendered,
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
            "tried": [one.as_json() for one in self.ranked],
            "rounds": [one.as_json() for one in self.rounds],
        }

    def sheet(self) -> np.ndarray:
        """(H, W, 3) uint8: the first picture of everything tried, best first; the user input's is
        always there."""
        shown = self.ranked[:MOST_CELLS]
        if self.plain not in shown:
            shown = [*shown[:-1], self.plain]
        return contact_sheet([self._cell(one) for one in shown])

    def _cell(self, one: Tried) -> Cell:
        rank = self.ranked.index(one) + 1
        gain = f" ({one.reward - self.plain.reward:+.2f})" if one is not self.plain else ""
        source = one.source if one.source != SAMPLED else f"round {one.round}"
        heads = (
            f"{rank}. reward {one.reward:.2f}{gain}",
            f"aesthetic {one.aesthetic:.2f}  relevance {one.cosine:.3f}",
            source,
        )
        return Cell(one.pictures[0], heads, one.adapted_prompt, best=one is self.answer)


def best_of(tried: Sequence[Tried], plain: Tried) -> Tried:
    """The one with the highest reward, the earliest of equals; `plain` where there is no other."""
    others = [one for one in tried if one is not plain]
    return max(others, key=lambda one: one.reward, default=plain)
