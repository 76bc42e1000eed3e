"""Beam search over sets of modifiers.

As a generator it yields sets to score, is sent their rewards and returns all that it learned:
whoever drives it decides what a reward is and how many searches run side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from ..settings import Settings, SettingsError, setting
from .vocabulary import MODIFIER_BY_NAME, MODIFIERS

Names = tuple[str, ...]  # a set of modifiers, in the order of MODIFIERS

_PLACE_IN_ORDER = {modifier.name: place for place, modifier in enumerate(MODIFIERS)}


@dataclasses.dataclass(frozen=True)
class OracleSettings(Settings):
    """How far the search looks."""

    max_modifiers: int = setting(5, "longest list of modifiers", low=0, high=20)
    max_renders: int = setting(
        300, "different adapted prompts that may be rendered for one user input", low=1
    )
    beam_width: int = setting(6, "sets that are made longer in each round", low=1, high=1000)
    prior_width: int = setting(
        24, "sets of each size that the prior alone would choose from", low=1, high=10_000
    )
    chunk: int = setting(24, "changes of the best set that are tried at a time", low=1, high=10_000)
    patience: int = setting(2, "chunks without a gain before a search ends", low=1, high=1000)
    inputs_at_once: int = setting(
        8, "user inputs searched side by side: the reward gets their candidates in one call", low=1
    )
    num_screened: int = setting(
        24, "user inputs on which the search for a constant suffix scores every set", low=1
    )
    num_finalists: int = setting(
        12, "constant suffixes that are then scored on all user inputs", low=1, high=1000
    )


@dataclasses.dataclass(frozen=True)
class Scored:
    modifiers: Names
    reward: float


Search = Generator[list[Names], Sequence[float], dict[Names, float]]


def search(
    modifiers: Sequence[str],
    settings: OracleSettings,
    prior: Callable[[Names], float] | None = None,
) -> Search:
    """A search over sets of the modifiers; the number of sets that it asks for stays within
    settings.max_renders. First the empty set and every single modifier (with a small budget: the
    first in the order, or those the prior likes best), then one size after the other, each with its
    share of the budget, until a size brings no gain; what is left goes to single changes of the
    best set."""
    liked = _liked_by_prior(modifiers, settings, prior)
    known: dict[Names, float] = {}

    def ask(sets: list[Names]) -> Generator[list[Names], Sequence[float], None]:
        if sets:
            known.update(zip(sets, (yield sets), strict=True))

    def left() -> int:
        return settings.max_renders - len(known)

    singles = liked[0] if prior is not None and liked else [(name,) for name in modifiers]
    if settings.max_modifiers == 0:
        singles = []
    yield from ask([(), *singles][: settings.max_renders])
    for size in range(2, settings.max_modifiers + 1):
        share = left() // (settings.max_modifiers - size + 2)
        best_before = max(known.values())
        of_size = [scored for scored in best_first(known) if len(scored.modifiers) == size - 1]
        longer = {
            with_modifier(scored.modifiers, name)
            for scored in of_size[: settings.beam_width]
            for name in modifiers
            if name not in scored.modifiers
        }
        by_gain = _ranked(longer, known)
        new = _interleaved([by_gain, liked[size - 1]]) if prior is not None else by_gain
        yield from ask([names for names in new if names not in known][:share])
        if max(known.values()) <= best_before:
            break
    failures = 0
    while left() > 0 and failures < settings.patience:
        best = best_first(known)[0]
        changes = _changes(best.modifiers, modifiers, settings.max_modifiers) - known.keys()
        if not changes:
            break
        yield from ask(_ranked(changes, known)[: min(settings.chunk, left())])
        failures = 0 if max(known.values()) > best.reward else failures + 1
    return known


def with_modifier(names: Names, name: str) -> Names:
    return in_order((*names, name))


def in_order(names: Iterable[str]) -> Names:
    """The names in the order of MODIFIERS, each once; SettingsError for others."""
    unknown = sorted(set(names) - MODIFIER_BY_NAME.keys())
    if unknown:
        raise SettingsError("modifiers", f"{unknown[0]!r} is not in the vocabulary")
    return tuple(sorted(set(names), key=_PLACE_IN_ORDER.__getitem__))


def best_first(known: Mapping[Names, float]) -> list[Scored]:
    """Ties: the shorter set, then the earlier modifiers."""
    ordered = sorted(known, key=lambda names: (-known[names], *_order_key(names)))
    return [Scored(names, known[names]) for names in ordered]


def _order_key(names: Names) -> tuple[int, list[int]]:
    return len(names), [_PLACE_IN_ORDER[name] for name in names]


def _changes(names: Names, modifiers: Sequence[str], max_modifiers: int) -> set[Names]:
    """The sets that one modifier less, more or other makes."""
    shorter = {in_order(set(names) - {name}) for name in names}
    others = [name for name in modifiers if name not in names]
    swapped = {with_modifier(fewer, name) for fewer in shorter for name in others}
    longer = {with_modifier(names, name) for name in others} if len(names) < max_modifiers else ()
    return {*shorter, *swapped, *longer}


def _ranked(sets: Iterable[Names], known: Mapping[Names, float]) -> list[Names]:
    """The sets, most promising first: the known set that lacks one modifier, plus the gain that
    this modifier brought elsewhere. A gain counts the more, the more its context is like the set.
    """
    gains: dict[str, list[tuple[frozenset[str], float]]] = {}
    for names, reward in known.items():
        for name in names:
            context = tuple(other for other in names if other != name)
            if context in known:
                gains.setdefault(name, []).append((frozenset(context), reward - known[context]))

    def gain(name: str, context: frozenset[str]) -> float:
        weights = [3.0 ** (len(c & context) - len(c - context)) for c, _ in gains.get(name, ())]
        total = sum(w * g for w, (_, g) in zip(weights, gains.get(name, ()), strict=True))
        return total / sum(weights) if weights else 0.0

    def promise(names: Names) -> float:
        bases = [tuple(other for other in names if other != name) for name in names]
        estimates = [
            known[base] + gain(name, frozenset(base))
            for name, base in zip(names, bases, strict=True)
            if base in known
        ]
        if estimates:
            return sum(estimates) / len(estimates)
        return min(known.values())

    return sorted(sets, key=lambda names: (-promise(names), *_order_key(names)))


def _liked_by_prior(
    modifiers: Sequence[str], settings: OracleSettings, prior: Callable[[Names], float] | None
) -> list[list[Names]]:
    """For each size from 1 on, the sets of that size that a beam over the prior finds, best
    first; [] without a prior."""
    liked: list[list[Names]] = []
    beam: list[Names] = [()]
    for size in range(1, settings.max_modifiers + 1 if prior is not None else 1):
        longer = {with_modifier(b, name) for b in beam for name in modifiers if name not in b}
        ordered = sorted(longer, key=lambda names: (-prior(names), *_order_key(names)))
        liked.append(ordered if size == 1 else ordered[: settings.max_renders])
        beam = ordered[: settings.prior_width]
    return liked


def _interleaved(lists: Sequence[Sequence[Names]]) -> list[Names]:
    """The first of each, the second of each, ...; each set once."""
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return list(dict.fromkeys(names for names in mixed if names is not None))
