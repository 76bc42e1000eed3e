"""The rows that the lab finds by search: the constant suffix and the oracle.

Both pay by the evaluation's own reward, on pictures of other seeds, and keep every reward in a file
of the evaluation's folder: a search that was killed goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import runs
from ..decoding import Stopped
from ..lab.modifier_search import OracleSettings
from ..lab.oracle import confirm, find_ceilings, find_constant_suffix
from ..lab.taste import taste_of_scene
from ..reward_settings import RewardSettings
from ..rewards import Rewarder
from ..settings import SettingsError
from .inputs import LAB_DOMAINS, Inputs, unseen_inputs
from .reward import EvaluationReward
from .rows import Prompts
from .scoring import Parts, ShouldStop
from .settings import EvaluateSettings

FAILED_REWARD = -1e6  # of a candidate whose picture failed: it is never the best
SUFFIX_SEEDS, ORACLE_SEEDS, CONFIRM_SEEDS = 1, 2, 3  # of EvaluationReward.of_search
NUM_SCREENED, NUM_FINALISTS = 16, 8  # see lab.oracle
CONFIRM_IMAGES = 4


class SearchReward:
    """A reward of lab.oracle: user inputs and adapted prompts -> rewards, on seeds of its own."""

    def __init__(
        self,
        parts: Parts,
        settings: RewardSettings,
        should_stop: ShouldStop,
        after_call: Callable[[int], None] | None = None,
    ):
        """after_call: told how many candidates have been scored in all."""
        self.rewarder = Rewarder(parts.generator, parts.scorer, settings)
        self.settings, self.should_stop, self.after_call = settings, should_stop, after_call
        self.key = repr((parts.generator.identity, parts.scorer.identity, settings))
        self.num_scored = 0

    def __call__(self, user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        seeds = [self.settings.seeds_of(text) for text in user_inputs]
        try:
            batch = self.rewarder.reward(user_inputs, adapted_prompts, seeds, self.should_stop)
        except SettingsError as error:
            if error.name != "renderer" or len(set(user_inputs)) > 1:
                raise  # it is the renderer that is broken, not one user input
            return [FAILED_REWARD] * len(user_inputs)
        self.num_scored += len(user_inputs)
        if self.after_call:
            self.after_call(self.num_scored)
        pairs = zip(batch.rewards.tolist(), batch.ok.tolist(), strict=True)
        return [reward if ok else FAILED_REWARD for reward, ok in pairs]


class Searches:
    """The searches of one evaluation. reporter: makes a Reporter for each of their stages."""

    def __init__(
        self,
        parts: Parts,
        settings: EvaluateSettings,
        reward: EvaluationReward,
        folder: Path,
        should_stop: ShouldStop = lambda: False,
        reporter: Callable[[], runs.Reporter] = runs.Silent,
    ):
        self.parts, self.settings, self.reward, self.folder = parts, settings, reward, folder
        self.should_stop, self.reporter = should_stop, reporter

    def tuned_suffix(self, inputs: Inputs) -> Prompts:
        """The best constant suffix over other user inputs of both the lab's domains, added to
        each user input; they are as they were where nothing is better than to add nothing.

        decoding.Stopped when it was stopped."""
        settings = self.settings
        user_inputs = [row.user_input for row in inputs.rows]
        others = self._other_inputs(user_inputs)
        search = OracleSettings(
            max_renders=settings.suffix_renders,
            num_screened=NUM_SCREENED,
            num_finalists=NUM_FINALISTS,
        )
        num_screened = min(NUM_SCREENED, len(others))
        expected = settings.suffix_renders * num_screened + (NUM_FINALISTS + 1) * len(others)
        pay = self._pay(SUFFIX_SEEDS, 1, expected)
        path = self._path("suffix", pay)
        with _told_of_folder():
            found = find_constant_suffix(
                others, pay, search, prior=taste_of_scene, path=path, key=pay.key,
                should_stop=self.should_stop,
            )  # fmt: skip
        if found is None:
            raise Stopped
        suffix = ", ".join(found.best.modifiers)
        return Prompts(
            [f"{text}, {suffix}" if suffix else text for text in user_inputs],
            f"{suffix!r}, tuned on {len(others)} other user inputs of both domains",
            num_search_rendered=_num_kept(path),
        )

    def ceilings(self, inputs: Inputs, usable: set[str]) -> Prompts:
        """The oracle: the modifiers that are found for each user input, of each domain the first
        oracle_inputs. usable: user inputs whose plain pictures are known. decoding.Stopped when
        it was stopped."""
        settings = self.settings
        chosen = [
            inputs.rows[place].user_input
            for domain in inputs.domains
            for place in inputs.places_of(domain)[: settings.oracle_inputs or None]
        ]
        chosen = [text for text in chosen if text in usable]
        search = OracleSettings(max_renders=settings.oracle_renders, num_finalists=NUM_FINALISTS)
        pay = self._pay(ORACLE_SEEDS, settings.oracle_images)
        again = self._pay(CONFIRM_SEEDS, CONFIRM_IMAGES, (NUM_FINALISTS + 1) * len(chosen))
        with _told_of_folder():
            found = find_ceilings(
                chosen, pay, search, prior=taste_of_scene, path=self._path("oracle", pay),
                key=pay.key, report=self.reporter(), should_stop=self.should_stop,
            )  # fmt: skip
            if len(found) < len(chosen):
                raise Stopped
            confirmed = confirm(found, again, self._path("confirm", again), again.key)
        best = {ceiling.user_input: ceiling.adapted_prompt for ceiling in confirmed}
        num_sets = sum(ceiling.num_rendered for ceiling in found)
        num_confirmed = sum(ceiling.num_rendered for ceiling in confirmed) - num_sets
        return Prompts(
            [best.get(row.user_input) for row in inputs.rows],
            f"{len(best)} user inputs, up to {settings.oracle_renders} sets of modifiers for each",
            num_search_rendered=settings.oracle_images * num_sets + CONFIRM_IMAGES * num_confirmed,
        )

    def _other_inputs(self, user_inputs: list[str]) -> list[str]:
        """Those that the suffix is tuned on, of both domains in turn."""
        number = self.settings.suffix_inputs
        halves = [
            unseen_inputs(-(-number // 2), self.settings.seed + 1, held_out, user_inputs)
            for held_out in LAB_DOMAINS.values()
        ]
        return [text for pair in zip(*halves, strict=True) for text in pair][:number]

    def _pay(self, seeds: int, num_images: int, expected: int = 0) -> SearchReward:
        """expected: candidates at most, for the progress; 0 where the search tells it itself."""
        report = self.reporter()
        return SearchReward(
            self.parts,
            self.reward.of_search(seeds, num_images),
            self.should_stop,
            lambda number: report.step(min(number, expected), expected, {}) if expected else None,
        )

    def _path(self, kind: str, pay: SearchReward) -> Path:
        """Another renderer, scorer or reward has another file."""
        return self.folder / f"{kind}-{hashlib.sha256(pay.key.encode()).hexdigest()[:16]}.jsonl"


@contextlib.contextmanager
def _told_of_folder() -> Iterator[None]:
    """A file of rewards that cannot be used is named by the folder that was given."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError("out" if error.name == "path" else error.name, error.reason) from None


def _num_kept(path: Path) -> int:
    """Rewards in a file of lab.reward_file."""
    with open(path, "rb") as file:
        return sum(1 for _ in file) - 1
