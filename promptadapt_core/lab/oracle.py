"""The ceiling: the modifiers that render best, found by search with the true reward.

Two searches over sets of modifiers, both a beam that grows by one modifier a round and then
improves its best set by single changes:

- `find_ceilings`: for every user input its own best set. No policy that adds modifiers can do
  better than an unlimited search; `(policy - user input) / (ceiling - user input)` is the share of
  the gap that a policy closes. The search takes the best of hundreds of renders, so its reward is
  too high for the seeds that it saw: `confirm` chooses among the finalists on others, and what is
  compared with a policy is scored on yet others, those of the policy.
- `find_constant_suffix`: the one set with the highest mean reward over many user inputs, which is
  what a policy has to beat to have read its input at all.

The reward is a callable, so that the caller fixes seeds, renderer and scorers. Every reward is
kept in a file as soon as it is known: a search that was stopped or killed goes on with the same
arguments and ends with the same result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .. import runs
from ..settings import SettingsError
from .captions import read
from .modifier_search import Names, OracleSettings, Scored, Search, best_first, in_order, search
from .reward_file import Reward, RewardFile
from .scenes import Scene
from .vocabulary import MODIFIERS

Prior = Callable[[Scene], float]  # what the world says of a scene: higher is likelier good

ALL = tuple(modifier.name for modifier in MODIFIERS)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The best of one user input. plain_reward: of the user input as it is. finalists: the best
    sets, best first; the first of them is `best`. num_rendered: sets scored, the empty one too."""

    user_input: str
    adapted_prompt: str
    best: Scored
    plain_reward: float
    finalists: tuple[Scored, ...]
    num_rendered: int


@dataclasses.dataclass(frozen=True)
class ConstantSuffix:
    """The best suffix for all user inputs alike. rewards are means over the user inputs.
    finalists: all that were scored on every user input, best first."""

    best: Scored
    plain_reward: float
    finalists: tuple[Scored, ...]
    num_rendered: int


def compose(user_input: str, modifiers: Iterable[str]) -> str:
    """The adapted prompt: the user input and the modifiers, joined by ", "."""
    return ", ".join((user_input, *modifiers))


def find_ceilings(
    user_inputs: Sequence[str],
    reward: Reward,
    settings: OracleSettings | None = None,
    *,
    prior: Prior | None = None,
    modifiers: Sequence[str] = ALL,
    path: Path | None = None,
    key: str = "",
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Ceiling]:
    """The best modifiers for each user input, in the order given.

    prior: half of each round's candidates are those that it likes best. modifiers: what may be
    added; what a user input already says is not added again. path: where rewards are kept; None
    keeps them in memory. key: of the reward (weights, seeds); a file of another key is refused.
    should_stop: asked before every call of the reward; the list then ends with the last user input
    that was finished. Raises SettingsError for unknown modifiers and a file that does not fit.
    """
    settings, report = settings or OracleSettings(), report or runs.Silent()
    should_stop = should_stop or (lambda: False)
    names = in_order(modifiers)
    known = RewardFile(reward, path, key)
    ceilings: list[Ceiling] = []
    for start in range(0, len(user_inputs), settings.inputs_at_once):
        group = list(user_inputs[start : start + settings.inputs_at_once])
        searches = [
            search(
                [name for name in names if name not in read(text).modifiers],
                settings,
                None if prior is None else _prior_of_input(prior, text),
            )
            for text in group
        ]
        found = _side_by_side(group, searches, known, should_stop)
        if found is None:
            break
        for text, scored in zip(group, found, strict=True):
            ceilings.append(_ceiling(text, scored, settings))
            metrics = {"oracle/num_rendered": float(known.num_rendered)}
            report.step(len(ceilings), len(user_inputs), metrics)
    return ceilings


def confirm(
    ceilings: Sequence[Ceiling], reward: Reward, path: Path | None = None, key: str = ""
) -> list[Ceiling]:
    """The ceilings with their finalists scored once more, by a reward of other seeds: rewards are
    the means of both, and the best by them is the first. path and key as in find_ceilings."""
    known = RewardFile(reward, path, key)
    confirmed = []
    for ceiling in ceilings:
        text, first = ceiling.user_input, {s.modifiers: s.reward for s in ceiling.finalists}
        first[()] = ceiling.plain_reward
        second = known([text] * len(first), [compose(text, names) for names in first])
        both = {n: (one + two) / 2 for (n, one), two in zip(first.items(), second, strict=True)}
        finalists = tuple(best_first(both))
        adapted_prompt = compose(text, finalists[0].modifiers)
        number = ceiling.num_rendered + len(both)
        confirmed.append(Ceiling(text, adapted_prompt, finalists[0], both[()], finalists, number))
    return confirmed


def find_constant_suffix(
    user_inputs: Sequence[str],
    reward: Reward,
    settings: OracleSettings | None = None,
    *,
    prior: Prior | None = None,
    modifiers: Sequence[str] = ALL,
    path: Path | None = None,
    key: str = "",
    should_stop: Callable[[], bool] | None = None,
) -> ConstantSuffix | None:
    """The one list of modifiers with the highest mean reward over the user inputs.

    The search runs on `num_screened` of the user inputs, evenly spread; its best `num_finalists`
    sets (and the empty one) are then scored on all. `max_renders` counts sets, each of which is
    rendered for every screened user input. A good suffix may hold words that are good only
    together, which single changes do not find: give the prior where there is one. Arguments as in
    find_ceilings; None when stopped.
    """
    if not user_inputs:
        raise SettingsError("user_inputs", "expected at least one")
    settings, should_stop = settings or OracleSettings(), should_stop or (lambda: False)
    known = RewardFile(reward, path, key)
    number = min(settings.num_screened, len(user_inputs))
    screened = [user_inputs[index * len(user_inputs) // number] for index in range(number)]
    found = _drive(
        search(
            in_order(modifiers), settings, None if prior is None else _mean_prior(prior, screened)
        ),
        lambda sets: _mean_rewards(known, screened, sets, should_stop),
    )
    if found is None:
        return None
    chosen = [scored.modifiers for scored in best_first(found)[: settings.num_finalists]]
    sets = list(dict.fromkeys([(), *chosen]))
    means = _mean_rewards(known, user_inputs, sets, should_stop)
    if means is None:
        return None
    finalists = best_first(dict(zip(sets, means, strict=True)))
    return ConstantSuffix(finalists[0], means[0], tuple(finalists), known.num_rendered)


def _prior_of_input(prior: Prior, user_input: str) -> Callable[[Names], float]:
    scene = read(user_input)
    return lambda names: prior(
        dataclasses.replace(scene, modifiers=tuple(dict.fromkeys((*scene.modifiers, *names))))
    )


def _mean_prior(prior: Prior, user_inputs: Sequence[str]) -> Callable[[Names], float]:
    priors = [_prior_of_input(prior, text) for text in user_inputs]
    return lambda names: sum(one(names) for one in priors) / len(priors)


def _drive(
    running: Search, score: Callable[[list[Names]], Sequence[float] | None]
) -> dict[Names, float] | None:
    """Run one search to its end; None when `score` gave None."""
    answer: Sequence[float] | None = None
    while True:
        try:
            sets = next(running) if answer is None else running.send(answer)
        except StopIteration as end:
            return end.value
        answer = score(sets)
        if answer is None:
            return None


def _side_by_side(
    user_inputs: Sequence[str],
    searches: Sequence[Search],
    known: RewardFile,
    should_stop: Callable[[], bool],
) -> list[dict[Names, float]] | None:
    """Run the searches round by round, all candidates of a round in one call of the reward; what
    each of them returned, or None when stopped."""
    results: list[dict[Names, float] | None] = [None] * len(searches)
    asked = {number: next(running) for number, running in enumerate(searches)}
    while asked:
        if should_stop():
            return None
        pairs = [
            (user_inputs[number], compose(user_inputs[number], names))
            for number, sets in asked.items()
            for names in sets
        ]
        rewards = iter(known(*map(list, zip(*pairs, strict=True))))
        answers = {number: [next(rewards) for _ in sets] for number, sets in asked.items()}
        asked = {}
        for number, answer in answers.items():
            try:
                asked[number] = searches[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
    return [result for result in results if result is not None]


def _mean_rewards(
    known: RewardFile,
    user_inputs: Sequence[str],
    sets: Sequence[Names],
    should_stop: Callable[[], bool],
) -> list[float] | None:
    """The mean reward over the user inputs of each set; None when stopped."""
    if should_stop():
        return None
    pairs = [(text, compose(text, names)) for names in sets for text in user_inputs]
    rewards = known([text for text, _ in pairs], [adapted_prompt for _, adapted_prompt in pairs])
    number = len(user_inputs)
    return [math.fsum(rewards[i * number : (i + 1) * number]) / number for i in range(len(sets))]


def _ceiling(user_input: str, known: Mapping[Names, float], settings: OracleSettings) -> Ceiling:
    finalists = best_first(known)[: settings.num_finalists]
    adapted_prompt = compose(user_input, finalists[0].modifiers)
    return Ceiling(
        user_input, adapted_prompt, finalists[0], known[()], tuple(finalists), len(known)
    )
