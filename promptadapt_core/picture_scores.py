"""Pictures rendered and scored once each; the one that fails is told apart from its batch.

In a group of processes each picture is rendered by one of them and its scores are known to all.
Pictures of one text stay together: whoever judges a candidate has all pictures of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from .baselines import Baseline
from .decoding import Stopped
from .images import ImageGenerator
from .process_group import ALONE, ProcessGroup
from .scorers import Scorer

PICTURES_AT_ONCE = 256  # rendered, then scored; 0.8 MB each at 512 pixels

Item = TypeVar("Item")


class Picture(NamedTuple):
    """What is rendered once: a prompt of the image model and a seed."""

    text: str
    seed: int


class Row(NamedTuple):
    """What is scored once: a picture against a user input."""

    user_input: str
    picture: Picture


class PictureScores:
    """Rendering and scoring of one call. What fails as a batch is tried in halves, down to the
    one that is at fault."""

    def __init__(
        self,
        generator: ImageGenerator,
        scorer: Scorer,
        should_stop: Callable[[], bool] | None,
        keep_pictures: bool,
        group: ProcessGroup = ALONE,
    ):
        self.generator, self.scorer = generator, scorer
        self.should_stop, self.keep_pictures = should_stop, keep_pictures
        self.group = group
        self.failures: list[str] = []
        self.num_rendered = 0  # by all processes
        # (H, W, 3) uint8, if they are kept; those that this process has rendered
        self.pictures: dict[Picture, np.ndarray] = {}

    def run(self, rows: Sequence[Row]) -> dict[Row, Baseline]:
        """The scores of each different row that did not fail, every picture rendered once. All
        processes of the group have to ask for the same."""
        by_picture: dict[Picture, dict[Row, None]] = {}
        for row in rows:
            by_picture.setdefault(row.picture, {})[row] = None
        if self.group.num_processes == 1 or not rows:
            return self._scores(list(by_picture), by_picture)
        return self._shared_scores(by_picture)

    def _shared_scores(self, by_picture: dict[Picture, dict[Row, None]]) -> dict[Row, Baseline]:
        """Each process takes the texts whose first picture falls into its share."""
        pictures = list(by_picture)
        first = {picture.text: place for place, picture in reversed([*enumerate(pictures)])}
        mine = self.group.share(len(pictures))
        own = [picture for picture in pictures if first[picture.text] in mine]
        every = {row: number for number, row in
                 enumerate(row for rows in by_picture.values() for row in rows)}  # fmt: skip
        before = self.num_rendered, len(self.failures)

        def found() -> list[Any]:
            scores = self._scores(own, by_picture)
            rendered, told = self.num_rendered - before[0], self.failures[before[1] :]
            return [[[every[row], *scores[row]] for row in scores], rendered, told]

        parts = self.group.gather(found)
        self.num_rendered = before[0] + sum(rendered for _, rendered, _ in parts)
        self.failures[before[1] :] = [sentence for _, _, told in parts for sentence in told]
        numbered = list(every)
        return {numbered[number]: Baseline(*scores) for part in parts
                for number, *scores in part[0]}  # fmt: skip

    def _scores(
        self, pictures: Sequence[Picture], by_picture: dict[Picture, dict[Row, None]]
    ) -> dict[Row, Baseline]:
        """What this process makes of some of the pictures."""
        scores: dict[Row, Baseline] = {}
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            part = pictures[start : start + PICTURES_AT_ONCE]
            rendered = dict(self._surviving(part, self._render, "rendered"))
            if self.keep_pictures:
                self.pictures.update(rendered)
            pairs = [(row, rendered[p]) for p in part if p in rendered for row in by_picture[p]]
            scored = self._surviving(pairs, self._score, "scored")
            scores.update({row: found for (row, _), found in scored})
        return scores

    def _surviving(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Any]], verb: str
    ) -> list[tuple[Item, Any]]:
        """Each item with what `work` made of it; those that failed are left out and told of."""
        if not items:
            return []
        try:
            results = work(items)
        except Stopped:
            raise
        except Exception as error:  # whatever a renderer can raise for one prompt
            if len(items) > 1:
                middle = len(items) // 2
                halves = (items[:middle], items[middle:])
                return [pair for half in halves for pair in self._surviving(half, work, verb)]
            results = [(str(error).strip().splitlines() or [type(error).__name__])[0][:300]]
        for item, result in zip(items, results, strict=True):
            if isinstance(result, str):
                self.failures.append(f"{_told(item)} could not be {verb}: {result}")
        return [
            (item, result)
            for item, result in zip(items, results, strict=True)
            if not isinstance(result, str)
        ]

    def _render(self, pictures: Sequence[Picture]) -> list[Any]:
        """One (H, W, 3) uint8 for each, or why there is none."""
        texts, seeds = [p.text for p in pictures], [p.seed for p in pictures]
        pixels = self.generator.generate(texts, seeds, should_stop=self.should_stop)
        if len(pixels) != len(pictures):
            raise TypeError(f"expected {len(pictures)} pictures, got {len(pixels)}")
        self.num_rendered += len(pictures)
        return [picture if picture.any() else "it is all black" for picture in pixels]

    def _score(self, pairs: Sequence[tuple[Row, np.ndarray]]) -> list[Any]:
        """A Baseline for each, or why there is none."""
        user_inputs = [row.user_input for row, _ in pairs]
        found = self.scorer.score(user_inputs, np.stack([picture for _, picture in pairs]))
        both = torch.stack([found.aesthetic, found.relevance], dim=1).double()
        finite = both.isfinite().all(dim=1).tolist()
        return [
            Baseline(*row) if is_finite else f"its scores are {row[0]} and {row[1]}"
            for row, is_finite in zip(both.tolist(), finite, strict=True)
        ]


def _told(item: Any) -> str:
    """A picture as a failure names it."""
    picture = item if isinstance(item, Picture) else item[0].picture
    return f"{picture.text!r:.80} with seed {picture.seed}"
