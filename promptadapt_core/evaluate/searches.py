"""The rows that the lab finds by search: the constant suffix and the oracle.

Both pay by the evaluation's own reward, on pictures of other seeds, and keep every reward in a file
of the evaluation's folder: a search that was killed goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .. import runs
from ..decoding import Stopped
from ..lab.captions import read
from ..lab.modifier_search import Names, OracleSettings, Scored, in_order
from ..lab.oracle import Ceiling, compose, confirm, find_ceilings, find_constant_suffix
from ..lab.reward_file import RewardFile
from ..lab.taste import taste_of_scene
from ..reward_settings import RewardSettings
from ..rewards import Rewarder
from ..settings import SettingsError
from .inputs import LAB_DOMAINS, Inputs, unseen_inputs
from .reward import EvaluationReward
from .rows import Prompts
from .scoring import Parts, ShouldStop
from .settings import ORACLE, SUFFIX, EvaluateSettings

FAILED_REWARD = -1e6  # of a candidate whose picture failed: it is never the best
SUFFIX_SEEDS, ORACLE_SEEDS, CONFIRM_SEEDS = 1, 2, 3  # of EvaluationReward.of_search
NUM_SCREENED, NUM_FINALISTS = 16, 8  # see lab.oracle
CONFIRM_IMAGES = 4


class SearchReward:
    """A reward of lab.oracle: user inputs and adapted prompts -> rewards, on seeds of its own."""

    path: Path | None = None  # where it is kept
    after_call: Callable[[int], None] | None = None  # told how many have been scored in all

    def __init__(self, parts: Parts, settings: RewardSettings, should_stop: ShouldStop):
        self.rewarder = Rewarder(parts.generator, parts.scorer, settings)
        self.settings, self.should_stop = settings, should_stop
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
        self._suffix: tuple[Names, int, int] | None = None

    def tuned_suffix(self, inputs: Inputs) -> Prompts:
        """The best constant suffix over other user inputs of both the lab's domains, added to
        each user input; they are as they were where nothing is better than to add nothing.

        decoding.Stopped when it was stopped."""
        names, number, num_rendered = self.suffix(inputs)
        suffix = ", ".join(names)
        return Prompts(
            [f"{row.user_input}, {suffix}" if suffix else row.user_input for row in inputs.rows],
            f"{suffix!r}, tuned on {number} other user inputs of both domains",
            num_search_rendered=num_rendered,
        )

    def suffix(self, inputs: Inputs) -> tuple[Names, int, int]:
        """Its modifiers, the number of user inputs that it is tuned on, pictures rendered for it.
        Found once, then known."""
        if self._suffix is None:
            self._suffix = self._find_suffix([row.user_input for row in inputs.rows])
        return self._suffix

    def _find_suffix(self, user_inputs: list[str]) -> tuple[Names, int, int]:
        settings = self.settings
        others = self._other_inputs(user_inputs)
        search = OracleSettings(
            max_renders=settings.num_suffix_renders,
            num_screened=NUM_SCREENED,
            num_finalists=NUM_FINALISTS,
        )
        num_screened = min(NUM_SCREENED, len(others))
        expected = settings.num_suffix_renders * num_screened + (NUM_FINALISTS + 1) * len(others)
        pay = self._pay(SUFFIX, SUFFIX_SEEDS, 1, expected)
        with _told_of_folder():
            found = find_constant_suffix(
                others, pay, search, prior=taste_of_scene, path=pay.path, key=pay.key,
                should_stop=self.should_stop,
            )  # fmt: skip
        if found is None:
            raise Stopped
        return found.best.modifiers, len(others), _num_kept(pay.path)

    def ceilings(self, inputs: Inputs, usable: set[str], suffix: Iterable[str] = ()) -> Prompts:
        """The oracle: the modifiers that are found for each user input, of each domain the first
        num_oracle_inputs. usable: user inputs whose plain pictures are known. suffix: modifiers of
        a constant suffix, a finalist for every user input: a search that missed what is good for
        all of them would be no ceiling. decoding.Stopped when it was stopped."""
        settings = self.settings
        chosen = [
            inputs.rows[place].user_input
            for domain in inputs.domains
            for place in inputs.places_of(domain)[: settings.num_oracle_inputs or None]
        ]
        chosen = [text for text in chosen if text in usable]
        search = OracleSettings(
            max_renders=settings.num_oracle_renders, num_finalists=NUM_FINALISTS
        )
        number = len(chosen)
        pay = self._pay(
            ORACLE, ORACLE_SEEDS, settings.num_oracle_images, settings.num_oracle_renders * number
        )
        again = self._pay("confirm", CONFIRM_SEEDS, CONFIRM_IMAGES, (NUM_FINALISTS + 1) * number)
        with _told_of_folder():
            found = find_ceilings(
                chosen, pay, search, prior=taste_of_scene, path=pay.path,
                key=pay.key, should_stop=self.should_stop,
            )  # fmt: skip
            if len(found) < len(chosen):
                raise Stopped
            found = _with_finalist(found, in_order(suffix), RewardFile(pay, pay.path, pay.key))
            confirmed = confirm(found, again, again.path, again.key)
        best = {ceiling.user_input: ceiling.adapted_prompt for ceiling in confirmed}
        num_sets = sum(ceiling.num_rendered for ceiling in found)
        num_confirmed = sum(ceiling.num_rendered for ceiling in confirmed) - num_sets
        num_searched = settings.num_oracle_images * num_sets
        return Prompts(
            [best.get(row.user_input) for row in inputs.rows],
            f"{len(best)} user inputs, up to {settings.num_oracle_renders} sets for each",
            num_search_rendered=num_searched + CONFIRM_IMAGES * num_confirmed,
        )

    def _other_inputs(self, user_inputs: list[str]) -> list[str]:
        """Those that the suffix is tuned on, of both domains in turn."""
        number = self.settings.num_suffix_inputs
        halves = [
            unseen_inputs(-(-number // 2), self.settings.seed + 1, held_out, user_inputs)
            for held_out in LAB_DOMAINS.values()
        ]
        return [text for pair in zip(*halves, strict=True) for text in pair][:number]

    def _pay(self, kind: str, seeds: int, num_images: int, expected: int) -> SearchReward:
        """expected: candidates at most, for the progress."""
        reward = self.reward.of_search(seeds, num_images)
        pay = SearchReward(self.parts, reward, self.should_stop)
        # Another renderer, scorer or reward has another file.
        key = hashlib.sha256(pay.key.encode()).hexdigest()[:16]
        pay.path = self.folder / f"{kind}-{key}.jsonl"
        left, report = max(expected - _num_kept(pay.path), 1), self.reporter()
        pay.after_call = lambda number: report.step(min(number, left), left, {})
        return pay


def _with_finalist(ceilings: list[Ceiling], names: Names, known: RewardFile) -> list[Ceiling]:
    """The ceilings with one set more among the finalists of each, less what its user input says."""
    sets = [
        tuple(name for name in names if name not in read(ceiling.user_input).modifiers)
        for ceiling in ceilings
    ]
    texts = [ceiling.user_input for ceiling in ceilings]
    rewards = known(texts, [compose(text, some) for text, some in zip(texts, sets, strict=True)])
    return [
        ceiling
        if any(scored.modifiers == some for scored in ceiling.finalists)
        else dataclasses.replace(
            ceiling,
            finalists=(*ceiling.finalists, Scored(some, reward)),
            num_rendered=ceiling.num_rendered + 1,
        )
        for ceiling, some, reward in zip(ceilings, sets, rewards, strict=True)
    ]


@contextlib.contextmanager
def _told_of_folder() -> Iterator[None]:
    """A file of rewards that cannot be used is named by the folder that was given."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError("out" if error.name == "path" else error.name, error.reason) from None


def _num_kept(path: Path) -> int:
    """Rewards in a file of lab.reward_file."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        return max(sum(1 for _ in file) - 1, 0)
