"""What of the mined candidates is learned from: the best of each user input, or pairs.

Every condition counts what it left out, so that where nothing is left one sentence says which
condition it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..settings import SettingsError
from .mined import Group, Scored, Worth

MOST_MEAN_GAP = 0.25  # tokens by which one side of all pairs may be longer on average


class Choice(NamedTuple):
    """A candidate that may be learned from."""

    group: Group
    candidate: Scored
    reward: float


class ChosenPair(NamedTuple):
    """A better and a worse candidate. margin: difference of the rewards. length_gap: tokens of the
    chosen text less those of the rejected."""

    group: Group
    chosen: Scored
    rejected: Scored
    margin: float
    length_gap: int


class Funnel:
    """How many candidates, or pairs, each condition in turn left."""

    def __init__(self, number: int, what: str):
        self.what = what
        self.steps: list[tuple[str, str, int]] = [("", "", number)]

    def keep(self, name: str, condition: str, left: Sequence[Any], what: str = "") -> None:
        """name: the setting. condition: ends the sentence "... leaves none". SettingsError where
        nothing is left."""
        before = self.steps[-1][2]
        if not left:
            raise SettingsError(
                name, f"of {before:,} {self.what} {condition}; nothing is left to learn from"
            )
        self.what = what or self.what
        self.steps.append((name, condition, len(left)))


def best_candidates(
    groups: Sequence[Group],
    *,
    floors: Mapping[str, float],
    plain_margin: float,
    best_per_input: int,
) -> list[Choice]:
    """The best of each user input and seeds, at most best_per_input different texts, ordered by
    reward; of equal rewards the shorter text.

    SettingsError names the condition that left nothing.
    """
    funnel, choices = _rewarded(groups)
    choices = _above_floors(choices, floors, funnel)
    choices = _above_plain(choices, plain_margin, funnel)
    return [
        choice
        for of_group in _by_group(choices)
        for choice in sorted(of_group, key=_best_first)[:best_per_input]
    ]


def best_pairs(
    groups: Sequence[Group],
    *,
    floors: Mapping[str, float],
    plain_margin: float,
    margin: float,
    length_gap: int,
    pairs_per_input: int,
    count_tokens: Callable[[str], int],
) -> list[ChosenPair]:
    """Pairs within a user input and its seeds, at most pairs_per_input of each, those with the
    largest difference of rewards first.

    Floors and plain_margin hold for the chosen text; the rejected may be anything that has a
    reward, also a text that no rule let through: it is worth what the plain user input is, and
    without it a policy learns nothing against writing such texts. Pairs are of matched length: none
    differs by more than length_gap tokens, and of what is left those that differ most are left out
    until neither side is longer on average (by no more than a quarter of a token), so that a reward
    of the length alone teaches nothing.
    count_tokens: of a target. SettingsError names the condition that left nothing.
    """
    funnel, choices = _rewarded(groups)
    all_choices = _different([*choices, *_worthless(groups)])
    choices = _above_floors(choices, floors, funnel)
    choices = _above_plain(choices, plain_margin, funnel)
    others: dict[int, list[Choice]] = {}
    for choice in all_choices:
        others.setdefault(id(choice.group), []).append(choice)
    lengths = {text: count_tokens(text) for text in {one.candidate.target for one in all_choices}}
    apart = [
        _pair(chosen, rejected, lengths)
        for chosen in choices
        for rejected in others[id(chosen.group)]
        if chosen.reward - rejected.reward >= margin and chosen.reward > rejected.reward
    ]
    funnel.keep("margin", f"none is better than another by {margin:g}", apart, "pairs")
    alike = [pair for pair in apart if abs(pair.length_gap) <= length_gap]
    funnel.keep("length_gap", f"all differ by more than {length_gap} tokens in length", alike)
    chosen_pairs = [
        pair
        for of_group in _by_group(alike)
        for pair in sorted(of_group, key=_widest_first)[:pairs_per_input]
    ]
    balanced = _balanced(chosen_pairs)
    told = "no choice leaves both sides about equally long on average: length is all they differ in"
    funnel.keep("length_gap", told, balanced)
    return balanced


def _rewarded(groups: Sequence[Group]) -> tuple[Funnel, list[Choice]]:
    """The different texts that have a reward and add something, where the user input has one."""
    every = [(group, one) for group in groups for one in group.candidates]
    funnel = Funnel(len(every), "candidates")
    changed = [(group, one) for group, one in every if not one.left_alone]
    funnel.keep("policy", "none adds anything to its user input", changed)
    choices = [
        Choice(group, one, one.worth.reward)
        for group, one in changed
        if one.worth is not None and group.plain is not None
    ]
    funnel.keep("renderer", "none has a reward", choices)
    return funnel, _different(choices)


def _worthless(groups: Sequence[Group]) -> list[Choice]:
    """What was written and no rule let through."""
    return [
        Choice(group, one, one.worth.reward)
        for group in groups
        for one in group.candidates
        if one.left_alone and one.worth is not None and one.target != group.policy_text
    ]


def _different(choices: list[Choice]) -> list[Choice]:
    """The first of those of a group with the same text."""
    found: dict[tuple[int, str], Choice] = {}
    for one in choices:
        found.setdefault((id(one.group), one.candidate.target), one)
    return list(found.values())


def _above_floors(
    choices: list[Choice], floors: Mapping[str, float], funnel: Funnel
) -> list[Choice]:
    for name, least in floors.items():
        known = choices[0].candidate.worth.terms if choices[0].candidate.worth else {}
        if name not in known:
            told = ", ".join(sorted(known))
            raise SettingsError("floor", f"the reward has no term {name!r}; it has {told}")
        choices = [one for one in choices if _gained(one, name) >= least]
        funnel.keep("floor", f"none keeps the floor {name}={least:g}", choices)
    return choices


def _above_plain(choices: list[Choice], plain_margin: float, funnel: Funnel) -> list[Choice]:
    kept = [one for one in choices if one.reward - _plain(one.group).reward >= plain_margin]
    told = f"none is better than its plain user input by {plain_margin:g}"
    funnel.keep("plain_margin", told, kept)
    return kept


def _gained(choice: Choice, term: str) -> float:
    """Of a term, over the plain user input's."""
    assert choice.candidate.worth is not None
    return choice.candidate.worth.terms[term] - _plain(choice.group).terms[term]


def _plain(group: Group) -> Worth:
    assert group.plain is not None
    return group.plain


def _by_group(rows: Iterable[Any]) -> list[list[Any]]:
    """Rows with a field `group`, those of one group together, in the order the groups came."""
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(id(row.group), []).append(row)
    return list(found.values())


def _pair(chosen: Choice, rejected: Choice, lengths: Mapping[str, int]) -> ChosenPair:
    gap = lengths[chosen.candidate.target] - lengths[rejected.candidate.target]
    margin = chosen.reward - rejected.reward
    return ChosenPair(chosen.group, chosen.candidate, rejected.candidate, margin, gap)


def _best_first(choice: Choice) -> tuple[float, int, str]:
    target = choice.candidate.target
    return -choice.reward, len(target), target


def _widest_first(pair: ChosenPair) -> tuple[float, int, str, str]:
    return -pair.margin, abs(pair.length_gap), pair.chosen.target, pair.rejected.target


def _balanced(pairs: list[ChosenPair]) -> list[ChosenPair]:
    """Without those that make one side longer on average: the largest gap goes first that does not
    make the other side longer, of equal ones the least margin. Where each would, the smallest
    goes, and then some of the other side."""
    gaps = {place: pair.length_gap for place, pair in enumerate(pairs)}
    total = sum(gaps.values())
    while abs(total) > MOST_MEAN_GAP * len(gaps):
        side = 1 if total > 0 else -1
        longer = sorted(
            (place for place, gap in gaps.items() if side * gap > 0),
            key=lambda place: (-side * gaps[place], pairs[place].margin, place),
        )
        before = len(gaps)
        for place in longer:
            if side * total <= MOST_MEAN_GAP * len(gaps):
                break
            if side * (total - gaps[place]) >= -MOST_MEAN_GAP * (len(gaps) - 1):
                total -= gaps.pop(place)
        if len(gaps) == before:
            total -= gaps.pop(longer[-1])
    return [pairs[place] for place in gaps]
