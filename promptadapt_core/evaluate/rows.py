"""Where the adapted prompts of each row come from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import runs
from ..adapter import PromptAdapter
from ..checkpoints import file_identity
from ..decoding import Stopped
from ..pipeline_files import hash_files
from ..policies import resolve_policy, weight_files
from ..reward_settings import RewardSettings
from ..rewards import Rewarder
from ..settings import SettingsError
from .inputs import LAB_DOMAINS, Inputs, unseen_inputs
from .kept import KeptFile
from .reward import EvaluationReward
from .scoring import Parts, ShouldStop, chunks
from .settings import EvaluateSettings

INPUTS_AT_ONCE = 64  # adapted, then kept
TOO_LONG = ("too long for the policy", "the token budget is")  # as adapter and gate say it
GREEDY = {"mode": "beam", "num_beams": 1, "gate": False, "min_modifiers": 0}
FAILED_REWARD = -1e6  # of a candidate of a search whose picture failed: it is never the best
SUFFIX_SEEDS, ORACLE_SEEDS, CONFIRM_SEEDS = 1, 2, 3  # of EvaluationReward.of_search
NUM_SCREENED, NUM_FINALISTS = 16, 8  # see lab.oracle
CONFIRM_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The adapted prompts of a row, or of one training seed of it; None for a user input that the
    row does not have. num_too_long: user inputs left alone because the policy cannot read them.
    num_search_rendered: pictures that were rendered to find them, beside those of the evaluation.
    """

    adapted_prompts: list[str | None]
    source: str = ""
    num_too_long: int = 0
    num_search_rendered: int = 0


def check_policies(folders: Sequence[str]) -> None:
    """SettingsError("rows", ...) for one that is not there, before anything large is loaded."""
    for folder in folders:
        try:
            resolve_policy(folder)
        except SettingsError as error:
            raise SettingsError("rows", error.reason) from None


def with_suffix(user_input: str, suffix: str) -> str:
    return f"{user_input}, {suffix}"


def written_by_people(inputs: Inputs) -> Prompts:
    """SettingsError("rows", ...) where nobody wrote anything."""
    targets = [row.target or None for row in inputs.rows]
    if not any(targets):
        raise SettingsError("rows", "people: no user input comes with a target")
    return Prompts(targets)


def adapted(
    folder: str,
    settings: EvaluateSettings,
    user_inputs: Sequence[str],
    out: Path,
    should_stop: ShouldStop,
    report: runs.Reporter,
) -> Prompts:
    """What a policy makes of the user inputs. Kept: the policy's files are part of the identity.

    A user input that the policy leaves alone is its own adapted prompt.
    """
    found = resolve_policy(folder)
    chosen: dict[str, Any] = GREEDY if settings.decoding == "greedy" else {}
    try:
        adapter = PromptAdapter.load(found, device=settings.device)
        asked = adapter.settings(**chosen, num_candidates=1)
    except SettingsError as error:
        raise SettingsError("rows", f"{folder}: {error.reason}") from None
    policy = f"{file_identity(weight_files(found))} {hash_files(found)}"
    identity = {"policy": policy, "asked": dataclasses.asdict(asked)}
    file = KeptFile(out, "adapted", identity)
    known = {row[0]: row for entry in file.entries for row in entry["adapted"]}
    done = 0
    for part in chunks(user_inputs, INPUTS_AT_ONCE):
        missing = [text for text in part if text not in known]
        if missing:
            adaptations = adapter.adapt_all(
                missing, should_stop=should_stop, **dataclasses.asdict(asked)
            )
            rows = [[a.user_input, a.candidates[0].adapted_prompt, a.gate] for a in adaptations]
            file.add({"adapted": rows})
            known |= {row[0]: row for row in rows}
        done += len(part)
        report.step(done, len(user_inputs), {})
    rows = [known[text] for text in user_inputs]
    return Prompts([row[1] for row in rows], policy, sum(_is_too_long(row[2]) for row in rows))


def _is_too_long(reason: str) -> bool:
    return any(words in reason for words in TOO_LONG)


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


def tuned_suffix(
    parts: Parts,
    settings: EvaluateSettings,
    reward: EvaluationReward,
    inputs: Inputs,
    out: Path,
    should_stop: ShouldStop,
    report: runs.Reporter,
) -> tuple[str, int]:
    """The lab's best constant suffix over other user inputs of both its domains, on other seeds;
    and how many pictures that took. "" where nothing is better than to add nothing."""
    from ..lab.modifier_search import OracleSettings
    from ..lab.oracle import find_constant_suffix
    from ..lab.taste import taste_of_scene

    evaluated = [row.user_input for row in inputs.rows]
    half = -(-settings.suffix_inputs // 2)
    halves = [
        unseen_inputs(half, settings.seed + 1, held_out, evaluated)
        for held_out in LAB_DOMAINS.values()
    ]
    others = [text for pair in zip(*halves, strict=True) for text in pair][: settings.suffix_inputs]
    search = OracleSettings(
        max_renders=settings.suffix_renders, num_screened=NUM_SCREENED, num_finalists=NUM_FINALISTS
    )
    screened = min(NUM_SCREENED, len(others))
    expected = settings.suffix_renders * screened + (NUM_FINALISTS + 1) * len(others)
    pay = SearchReward(
        parts, reward.of_search(SUFFIX_SEEDS, 1), should_stop,
        lambda number: report.step(min(number, expected), expected, {}),
    )  # fmt: skip
    path = _rewards_path(out, "suffix", pay.key)
    found = find_constant_suffix(
        others, pay, search, prior=taste_of_scene, path=path, key=pay.key, should_stop=should_stop
    )
    if found is None:
        raise Stopped
    return ", ".join(found.best.modifiers), _num_kept(path)


def best_found(
    parts: Parts,
    settings: EvaluateSettings,
    reward: EvaluationReward,
    inputs: Inputs,
    usable: set[str],
    out: Path,
    should_stop: ShouldStop,
    report: runs.Reporter,
) -> Prompts:
    """The oracle: the modifiers that a search with the true reward finds for each user input, on
    seeds that the evaluation does not use. usable: user inputs whose plain pictures are known."""
    from ..lab.modifier_search import OracleSettings
    from ..lab.oracle import confirm, find_ceilings
    from ..lab.taste import taste_of_scene

    chosen = [
        inputs.rows[place].user_input
        for domain in inputs.domains
        for place in inputs.places_of(domain)[: settings.oracle_inputs or None]
    ]
    chosen = [text for text in chosen if text in usable]
    search = OracleSettings(max_renders=settings.oracle_renders, num_finalists=NUM_FINALISTS)
    pay = SearchReward(parts, reward.of_search(ORACLE_SEEDS, settings.oracle_images), should_stop)
    path = _rewards_path(out, "oracle", pay.key)
    ceilings = find_ceilings(
        chosen, pay, search, prior=taste_of_scene, path=path, key=pay.key, report=report,
        should_stop=should_stop,
    )  # fmt: skip
    if len(ceilings) < len(chosen):
        raise Stopped
    expected = (NUM_FINALISTS + 1) * len(chosen)
    again = SearchReward(
        parts,
        reward.of_search(CONFIRM_SEEDS, CONFIRM_IMAGES),
        should_stop,
        lambda number: report.step(min(number, expected), expected, {}),
    )
    path_again = _rewards_path(out, "confirm", again.key)
    confirmed = confirm(ceilings, again, path_again, again.key)
    best = {ceiling.user_input: ceiling.adapted_prompt for ceiling in confirmed}
    num_sets = sum(ceiling.num_rendered for ceiling in ceilings)
    num_confirmed = sum(ceiling.num_rendered for ceiling in confirmed) - num_sets
    number = settings.oracle_images * num_sets + CONFIRM_IMAGES * num_confirmed
    return Prompts(
        [best.get(row.user_input) for row in inputs.rows],
        f"{settings.oracle_renders} sets of modifiers tried for each user input",
        num_search_rendered=number,
    )


def _rewards_path(out: Path, kind: str, key: str) -> Path:
    """Another renderer, scorer or reward has another file."""
    return out / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"


def _num_kept(path: Path) -> int:
    """Rewards in a file of lab.reward_file."""
    with open(path, "rb") as file:
        return sum(1 for _ in file) - 1
