"""What candidates are worth, each (user input, adapted prompt) measured once and kept on disk.

Every row of an evaluation is measured on the same pictures' seeds of a user input. The plain user
inputs come first: their pictures are the baseline of all others, and best_of_n is the best of them.

Candidates are measured in calls that do not depend on what is kept already. A kept file belongs to
one renderer, scorer, judge and reward: where one of them changed, all is measured anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import runs
from ..baselines import Baseline, BaselineCache
from ..images import ImageGenerator
from ..judging import Judge
from ..picture_rewards import relevance_term
from ..picture_scores import Picture, PictureScores, Row
from ..rewards import LOGGED, TERMS, RewardBatch, Rewarder
from ..scorers import Scorer
from ..settings import SettingsError
from .kept import KeptFile
from .reward import EvaluationReward

FORMAT = 1
CANDIDATES_AT_ONCE = 32
LEAST_BROKEN = 8  # candidates in a call; where so many all fail it is the renderer that is broken

Item = TypeVar("Item")
Values = dict[str, float]  # by the keys of defined_metrics; nan where the judge says nothing
ShouldStop = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Plain:
    """A user input as it is. best: the same of its best picture alone, whose seed is best_seed."""

    values: Values
    best: Values
    best_seed: int


@dataclasses.dataclass
class Parts:
    """What draws, pays and judges."""

    generator: ImageGenerator
    scorer: Scorer
    judge: Judge | None


class Scoring:
    """See the module. failures: one sentence for each picture that failed, of this process."""

    def __init__(self, parts: Parts, settings: EvaluationReward, folder: Path):
        self.parts, self.settings = parts, settings
        self.judge_metrics = dict(parts.judge.metrics) if parts.judge else {}
        self.metrics = defined_metrics(self.judge_metrics)
        self.identity = {
            "format": FORMAT,
            "renderer": parts.generator.identity,
            "scorer": parts.scorer.identity,
            "judge": parts.judge.identity if parts.judge else "",
            "reward": dataclasses.asdict(settings),
        }
        self.failures: list[str] = []
        self._baselines = BaselineCache(None, parts.generator.identity, parts.scorer.identity)
        self._rewarder = Rewarder(parts.generator, parts.scorer, settings, self._baselines)
        self._plain: dict[str, Plain] = {}
        self._known: dict[tuple[str, str], Values] = {}
        self._file = KeptFile(folder, "scores", self.identity)
        for entry in self._file.entries:
            self._restore(entry)

    def plain(
        self, user_inputs: Sequence[str], should_stop: ShouldStop, report: runs.Reporter
    ) -> dict[str, Plain]:
        """What each user input is worth as it is; those whose pictures fail are not there.

        SettingsError("renderer", ...) where all fail.
        """
        done = 0
        for part in chunks(user_inputs, CANDIDATES_AT_ONCE):
            missing = [text for text in part if text not in self._plain]
            if missing:
                self._measure_plain(missing, should_stop)
            done += len(part)
            report.step(done, len(user_inputs), {})
        found = {text: self._plain[text] for text in user_inputs if text in self._plain}
        if not found:
            reason = self.failures[0] if self.failures else "no reason is known"
            raise SettingsError("renderer", f"all {len(user_inputs)} user inputs failed; {reason}")
        return found

    def score(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        should_stop: ShouldStop,
        report: runs.Reporter,
    ) -> list[Values | None]:
        """What each candidate is worth; None where it failed, or its plain user input did.

        The user inputs are those of an earlier call of `plain`."""
        pairs = list(zip(user_inputs, adapted_prompts, strict=True))
        new = [
            (text, adapted)
            for text, adapted in dict.fromkeys(pairs)
            if adapted != text and text in self._plain
        ]
        done = 0
        for part in chunks(new, CANDIDATES_AT_ONCE):
            missing = [pair for pair in part if pair not in self._known]
            if missing:
                self._measure(missing, should_stop)
            done += len(part)
            report.step(done, len(new), {})
        return [
            self._plain[text].values if adapted == text and text in self._plain
            else self._known.get((text, adapted))
            for text, adapted in pairs
        ]  # fmt: skip

    def _measure(self, pairs: Sequence[tuple[str, str]], should_stop: ShouldStop) -> None:
        texts, adapted = [text for text, _ in pairs], [prompt for _, prompt in pairs]
        seeds = [self.settings.seeds_of(text) for text in texts]
        keep = self.parts.judge is not None
        try:
            batch = self._rewarder.reward(texts, adapted, seeds, should_stop, keep_pictures=keep)
        except SettingsError as error:
            if error.name != "renderer" or len(pairs) >= LEAST_BROKEN:
                raise
            self.failures.append(error.reason)
            return
        self.failures += batch.failures
        judged = self._judge(texts, adapted, batch.pictures or [None] * len(pairs))
        found = {
            pair: {**_values(batch, row), **judged[row]}
            for row, pair in enumerate(pairs)
            if batch.ok[row]
        }
        entries = [
            {"user_input": text, "adapted_prompt": prompt, "values": _written(values)}
            for (text, prompt), values in found.items()
        ]
        self._file.add({"candidates": entries})
        self._known |= found

    def _measure_plain(self, texts: Sequence[str], should_stop: ShouldStop) -> None:
        work = PictureScores(self.parts.generator, self.parts.scorer, should_stop, True)
        seeds = {text: self.settings.seeds_of(text) for text in texts}
        scores = work.run(
            [Row(text, Picture(text, seed)) for text in texts for seed in seeds[text]]
        )
        self.failures += work.failures
        found = {
            text: [scores[Row(text, Picture(text, seed))] for seed in seeds[text]]
            for text in texts
            if all(Row(text, Picture(text, seed)) in scores for seed in seeds[text])
        }
        if not found:
            return
        for text, own in found.items():
            self._baselines.add(
                {(text, seed): one for seed, one in zip(seeds[text], own, strict=True)}
            )
        whole = list(found)
        batch = self._rewarder.reward(whole, whole, [seeds[text] for text in whole])
        values = [_values(batch, row) for row in range(len(whole))]
        best = [self._best(values[row], found[text]) for row, text in enumerate(whole)]
        pictures = [
            np.stack([work.pictures[Picture(text, seed)] for seed in seeds[text]]) for text in whole
        ]
        chosen = [some[place][None] for some, (place, _) in zip(pictures, best, strict=True)]
        judged, of_best = (self._judge(whole, whole, some) for some in (pictures, chosen))
        entries = [
            {
                "user_input": text,
                "pictures": [[s, *one] for s, one in zip(seeds[text], found[text], strict=True)],
                "values": _written({**values[row], **judged[row]}),
                "best": _written({**best[row][1], **of_best[row]}),
                "best_seed": seeds[text][best[row][0]],
            }
            for row, text in enumerate(whole)
        ]
        self._file.add({"plain": entries})
        self._restore({"plain": entries})

    def _best(self, values: Values, scores: Sequence[Baseline]) -> tuple[int, Values]:
        """The place of the picture with the highest reward, and what it alone is worth. Its
        aesthetic gain is over the mean of them all."""
        weights, scorer = self.settings.weights(), self.parts.scorer
        mean = math.fsum(one.aesthetic for one in scores) / len(scores)
        terms = [
            {
                "aesthetic_gain": weights["aesthetic_gain"] * (one.aesthetic - mean),
                "relevance": weights["relevance"] * relevance_term(scorer, one.relevance),
            }
            for one in scores
        ]
        worth = [sum(some.values()) for some in terms]
        place = worth.index(max(worth))
        best = {**values, **terms[place]}
        best |= {"aesthetic": scores[place].aesthetic, "cosine": scores[place].relevance}
        return place, {**best, "reward": sum(best[name] for name in TERMS)}

    def _judge(
        self,
        texts: Sequence[str],
        adapted: Sequence[str],
        pictures: Sequence[np.ndarray | None],
    ) -> list[Values]:
        if self.parts.judge is None:
            return [{} for _ in texts]
        judged = self.parts.judge.judge_each(texts, adapted, pictures)
        return [
            {name: float(judged[name][row]) for name in self.judge_metrics}
            for row in range(len(texts))
        ]

    def _restore(self, entry: dict[str, Any]) -> None:
        for row in entry.get("candidates", ()):
            self._known[row["user_input"], row["adapted_prompt"]] = _read(row["values"])
        for row in entry.get("plain", ()):
            text = row["user_input"]
            scores = {(text, int(seed)): Baseline(*both) for seed, *both in row["pictures"]}
            self._baselines.add(scores)
            self._plain[text] = Plain(_read(row["values"]), _read(row["best"]), row["best_seed"])


def defined_metrics(of_judge: Mapping[str, str]) -> dict[str, str]:
    """Everything that is measured of a candidate, by its key."""
    return {
        "reward": "the sum of the terms",
        **{name: f"{text}; times its weight" for name, text in TERMS.items()},
        **{name: LOGGED[name] for name in ("aesthetic", "cosine", "num_tokens")},
        **of_judge,
    }


def chunks(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """The items in parts of at most `most`, as even as can be."""
    number = -(-len(items) // most)
    return [
        items[index * len(items) // number : (index + 1) * len(items) // number]
        for index in range(number)
    ]


def _values(batch: RewardBatch, row: int) -> Values:
    logged = {name: float(batch.logged[name][row]) for name in LOGGED if "baseline" not in name}
    terms = {name: float(batch.terms[name][row]) for name in TERMS}
    return {"reward": float(batch.rewards[row]), **terms, **logged}


def _written(values: Values) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _read(values: dict[str, float | None]) -> Values:
    return {name: math.nan if value is None else value for name, value in values.items()}
