"""What a candidate is worth: reward terms on (user input, adapted prompt, pictures).

With the paper's settings (arXiv 2212.09611, section 2.3; k the scorer's knee, s its slope)

    reward = mean over seeds of  aesthetic(adapted, seed) - aesthetic(user input, seed)
           + mean over seeds of  s * min(cosine(user input, picture of adapted, seed) - k, 0)

and two guards of our own, which cost nothing until a candidate goes astray. Departures: plain
input and candidate are rendered with the SAME seeds, so that the luck of a seed cancels out, and
the plain input's scores are kept (baselines.py), not rendered anew. One pass over each picture
serves all terms.

Pictures are rendered and scored in batches that do not depend on what is kept already: a resumed
run sees the same numbers, bit for bit, wherever equal batches give equal pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .asking import without_asking
from .baselines import Baseline, BaselineCache
from .clip_tokens import count_clip_tokens
from .images import ImageGenerator, check_batch
from .picture_rewards import relevance_term
from .picture_scores import Picture, PictureScores, Row
from .process_group import ALONE, ProcessGroup
from .prompts import content_words, kept_share
from .reward_settings import RewardSettings
from .scorers import Scorer
from .settings import SettingsError

TERMS: dict[str, str] = {
    "aesthetic_gain": "aesthetic of the candidate's pictures minus that of the user input's "
    "pictures with the same seeds, mean over the seeds",
    "relevance": "slope * min(cosine of user input and picture - knee, 0), mean over the "
    "candidate's pictures; 0 or less",
    "length": "minus the CLIP tokens beyond length_budget, or beyond the user input where that is "
    "longer already; 0 or less",
    "copy": "minus the share of the user input's content words that are gone, minus the share of "
    "the candidate's word pairs that repeat themselves; 0 or less",
}
LOGGED: dict[str, str] = {
    "aesthetic": "aesthetic score of the candidates' pictures",
    "baseline_aesthetic": "the same of the plain user inputs' pictures, same seeds",
    "cosine": "cosine of the user input and the candidates' pictures",
    "baseline_cosine": "the same of the plain user inputs' pictures",
    "num_tokens": "CLIP tokens of the adapted prompts",
}
REWARD_METRICS: dict[str, str] = {
    "reward/mean": "the sum of the weighted terms, mean over the candidates that did not fail",
    "reward/std": "its standard deviation over those candidates",
    **{
        f"reward/{name}_{part}": f"{told}: {text}"
        for name, text in TERMS.items()
        for part, told in (
            ("mean", "mean over candidates of the term times its weight"),
            ("std", "standard deviation over candidates of the term times its weight"),
            ("raw_mean", "mean over candidates of the term itself"),
            ("correlation", "of the term and the sum over candidates, 0 where one is constant"),
        )
    },
    **{f"reward/{name}": f"{text}, mean over candidates" for name, text in LOGGED.items()},
    "reward/num_failed": "candidates without a reward: a picture could not be rendered or scored",
    "reward/num_rendered": "pictures rendered for candidates",
    "reward/num_baselines_rendered": "pictures rendered for plain user inputs not met before",
}


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of B candidates, in the order they came.

    Of a candidate that failed (`ok` False) every number is 0 and means nothing: leave it out of
    means, advantages and updates.
    Nothing here is ever NaN. All tensors are on the CPU.
    """

    rewards: torch.Tensor  # (B,) float32, the sum of the weighted terms, before any KL
    ok: torch.Tensor  # (B,) bool
    terms: dict[str, torch.Tensor]  # by the names of TERMS: (B,) float32, times its weight
    raw_terms: dict[str, torch.Tensor]  # the same without the weight
    logged: dict[str, torch.Tensor]  # by the names of LOGGED: (B,) float32
    failures: tuple[str, ...]  # one sentence for each picture or score that failed
    num_rendered: int  # pictures rendered for candidates
    num_baselines_rendered: int  # and those rendered only to know what a plain input is worth
    # (num_images, H, W, 3) uint8 per candidate if asked for, None where it failed, where none was
    # rendered for candidates (the adapted prompt is the user input), or where another process did.
    pictures: list[np.ndarray | None] | None = None


class NothingRewarded(SettingsError):
    """Every candidate failed. batch: of which no number means anything."""

    def __init__(self, batch: RewardBatch):
        first = batch.failures[0] if batch.failures else "no reason is known"
        super().__init__("renderer", f"all {len(batch.ok)} candidates failed; the first: {first}")
        self.batch = batch


class Rewarder:
    """Renders candidates, scores their pictures, adds up the terms."""

    def __init__(
        self,
        generator: ImageGenerator,
        scorer: Scorer,
        settings: RewardSettings | None = None,
        baselines: BaselineCache | None = None,
        count_tokens: Callable[[str], int] = count_clip_tokens,
        group: ProcessGroup = ALONE,
    ):
        """baselines: of this generator and this scorer; None keeps them in memory. count_tokens:
        of the image model's text encoder, start and end not included. group: of processes that
        ask for the same at the same time, and share the work."""
        self.generator, self.scorer = generator, scorer
        self.settings = settings or RewardSettings()
        if baselines is None:
            baselines = BaselineCache(None, generator.identity, scorer.identity)
        self.baselines = baselines
        self.count_tokens, self.group = count_tokens, group

    def reward(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        seeds: Sequence[Sequence[int]],
        should_stop: Callable[[], bool] | None = None,
        keep_pictures: bool = False,
    ) -> RewardBatch:
        """The rewards of B candidates.

        seeds: one or more for each candidate, of its pictures and of the plain input's. The same
        prompt and seed is rendered once, and an adapted prompt that is the user input costs no
        picture of its own; its gain is exactly 0. A candidate whose picture, or whose user input's
        picture, cannot be rendered (an error, or all black) or scored (an error, or a score that
        is not finite) is marked in `ok`, and the others are rewarded. Raises SettingsError for
        arguments that do not fit, NothingRewarded where every candidate failed, decoding.Stopped
        when should_stop says so.
        """
        wanted = _check_arguments(user_inputs, adapted_prompts, seeds)
        work = PictureScores(self.generator, self.scorer, should_stop, keep_pictures, self.group)
        plain_pictures = [Picture(user_input, seed) for user_input, row in wanted for seed in row]
        rows = [
            Row(user_input, Picture(adapted_prompt, seed))
            for (user_input, own_seeds), adapted_prompt in zip(wanted, adapted_prompts, strict=True)
            for seed in own_seeds
            if adapted_prompt != user_input
        ]
        # A candidate that is another's user input is scored as that too, known already or not.
        drawn = {row.picture for row in rows}
        rows += [Row(picture.text, picture) for picture in plain_pictures if picture in drawn]
        scores = work.run(rows)
        num_rendered = work.num_rendered
        # Not those of plain inputs below: a resumed run, which has their scores, draws none.
        pictures = dict(work.pictures) if keep_pictures else None
        self._add_baselines(plain_pictures, scores, work)
        return self._batch(wanted, adapted_prompts, scores, work, num_rendered, pictures)

    def _add_baselines(
        self,
        pictures: Iterable[Picture],
        scores: dict[Row, Baseline],
        work: PictureScores,
    ) -> None:
        """Into `scores`: what is kept of the plain inputs' pictures, and what is rendered now."""
        missing = []
        for picture in dict.fromkeys(pictures):
            row = Row(picture.text, picture)
            known = self.baselines.get(*picture)
            if known is not None:
                scores[row] = known
            elif row not in scores:
                missing.append(row)
        scores.update(work.run(missing))
        found = {
            tuple(picture): scores[row]
            for picture in pictures
            if (row := Row(picture.text, picture)) in scores
        }
        self.baselines.add(found)

    def _batch(
        self,
        wanted: Sequence[tuple[str, list[int]]],
        adapted_prompts: Sequence[str],
        scores: dict[Row, Baseline],
        work: PictureScores,
        num_rendered: int,
        pictures: dict[Picture, np.ndarray] | None,
    ) -> RewardBatch:
        ok, raw, logged, stacks = [], [], [], []
        for (user_input, seeds), adapted_prompt in zip(wanted, adapted_prompts, strict=True):
            own = [Row(user_input, Picture(adapted_prompt, seed)) for seed in seeds]
            plain = [Row(user_input, Picture(user_input, seed)) for seed in seeds]
            ok.append(all(row in scores for row in (*own, *plain)))
            found = [(pictures or {}).get(row.picture) for row in own]
            whole = ok[-1] and all(picture is not None for picture in found)
            stacks.append(np.stack(found) if whole else None)
            if ok[-1]:
                row_scores = [[scores[row] for row in part] for part in (own, plain)]
                raw.append(self._raw_terms(user_input, adapted_prompt, *row_scores))
                logged.append(self._logged(adapted_prompt, *row_scores))
            else:
                raw.append(dict.fromkeys(TERMS, 0.0))
                logged.append(dict.fromkeys(LOGGED, 0.0))
        weights = self.settings.weights()
        terms = [{name: weights[name] * row[name] for name in TERMS} for row in raw]
        batch = RewardBatch(
            rewards=torch.tensor([sum(row.values()) for row in terms], dtype=torch.float32),
            ok=torch.tensor(ok),
            terms=_columns(terms),
            raw_terms=_columns(raw),
            logged=_columns(logged),
            failures=tuple(work.failures),
            num_rendered=num_rendered,
            num_baselines_rendered=work.num_rendered - num_rendered,
            pictures=None if pictures is None else stacks,
        )
        if not any(ok):
            raise NothingRewarded(batch)
        return batch

    def _raw_terms(
        self,
        user_input: str,
        adapted_prompt: str,
        own: list[Baseline],
        plain: list[Baseline],
    ) -> dict[str, float]:
        gains = [mine.aesthetic - its.aesthetic for mine, its in zip(own, plain, strict=True)]
        budget = max(self.settings.length_budget, self.count_tokens(user_input))
        return {
            "aesthetic_gain": _mean(gains),
            "relevance": _mean([relevance_term(self.scorer, score.relevance) for score in own]),
            "length": float(min(budget - self.count_tokens(adapted_prompt), 0)),
            "copy": kept_share(without_asking(user_input), adapted_prompt)
            - 1.0
            - repeated_share(user_input, adapted_prompt),
        }

    def _logged(
        self, adapted_prompt: str, own: list[Baseline], plain: list[Baseline]
    ) -> dict[str, float]:
        return {
            "aesthetic": _mean([score.aesthetic for score in own]),
            "baseline_aesthetic": _mean([score.aesthetic for score in plain]),
            "cosine": _mean([score.relevance for score in own]),
            "baseline_cosine": _mean([score.relevance for score in plain]),
            "num_tokens": float(self.count_tokens(adapted_prompt)),
        }


def repeated_share(user_input: str, adapted_prompt: str) -> float:
    """0 to 1: share of the adapted prompt's pairs of neighbouring content words that it said
    before. What the user input repeats itself, the adapted prompt may repeat as often.

    Pairs, because a single word may well come twice ("oil painting, digital painting")."""
    said = _word_pairs(adapted_prompt)
    allowed = _word_pairs(user_input)
    repeats = sum(max(number - max(allowed[pair], 1), 0) for pair, number in said.items())
    return repeats / said.total() if said else 0.0


def _word_pairs(text: str) -> Counter[tuple[str, str]]:
    words = content_words(text)
    return Counter(zip(words, words[1:], strict=False))


def describe(batch: RewardBatch) -> dict[str, float]:
    """The metrics of a batch, by the keys of REWARD_METRICS; all finite."""
    rewards = batch.rewards[batch.ok].double().numpy()
    metrics = {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}
    for name in TERMS:
        term = batch.terms[name][batch.ok].double().numpy()
        metrics[f"reward/{name}_mean"] = float(term.mean())
        metrics[f"reward/{name}_std"] = float(term.std())
        metrics[f"reward/{name}_raw_mean"] = float(batch.raw_terms[name][batch.ok].double().mean())
        metrics[f"reward/{name}_correlation"] = _correlation(term, rewards)
    for name in LOGGED:
        metrics[f"reward/{name}"] = float(batch.logged[name][batch.ok].double().mean())
    metrics["reward/num_failed"] = float((~batch.ok).sum())
    metrics["reward/num_rendered"] = float(batch.num_rendered)
    metrics["reward/num_baselines_rendered"] = float(batch.num_baselines_rendered)
    return metrics


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.clip(first @ second / norms, -1.0, 1.0)) if norms else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, torch.Tensor]:
    """A (B,) float32 for each name."""
    return {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in rows[0]
    }


def _check_arguments(
    user_inputs: Sequence[str], adapted_prompts: Sequence[str], seeds: Sequence[Sequence[int]]
) -> list[tuple[str, list[int]]]:
    """Each candidate's user input and seeds, or SettingsError."""
    if not len(user_inputs):
        raise SettingsError("user_inputs", "expected one or more candidates, got none")
    for name, values in (("adapted_prompts", adapted_prompts), ("seeds", seeds)):
        if len(values) != len(user_inputs):
            reason = f"expected one for each of {len(user_inputs)} user inputs, got {len(values)}"
            raise SettingsError(name, reason)
    for name, texts in (("user_inputs", user_inputs), ("adapted_prompts", adapted_prompts)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise SettingsError(name, "expected a list of texts")
    wanted = []
    for user_input, row in zip(user_inputs, seeds, strict=True):
        if not len(row):
            raise SettingsError("seeds", "expected one or more for each candidate")
        wanted.append((user_input, check_batch([user_input] * len(row), row)[1]))
    return wanted
