"""The four kinds of training pairs (Hao et al., arXiv 2212.09611, section 2.1, and steps).

    main        main content                                        -> main, all modifiers
    subset      main content, some modifiers in any order           -> those, then the others
    rephrased   main content in other words (see rephrase.py)       -> main, all modifiers
    steps       main content, first modifiers                       -> those, then a few more

The target of main, subset and steps begins with the user input word for word, because a policy
that adapts keeps what people typed at the front of its answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from ..settings import SettingsError
from . import rephrase
from .targets import Target

KINDS = ("main", "subset", "rephrased", "steps")
MAX_STEP = 4  # most modifiers that one step adds


class Pair(NamedTuple):
    """What a person may type, and what the policy should answer."""

    user_input: str
    target: str
    kind: str


def parse_kinds(text: str) -> tuple[str, ...]:
    """The kinds named in "main,steps", in the order of KINDS."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        found = f"got {unknown[0]!r}" if unknown else "got none"
        raise SettingsError("kinds", f"expected some of {', '.join(KINDS)}, {found}")
    return tuple(kind for kind in KINDS if kind in names)


def row_random(seed: int, row_id: str, kind: str) -> random.Random:
    """The random choices of one row and kind: the other rows and kinds do not change them."""
    return random.Random(f"{seed}/{row_id}/{kind}")


def make_pairs(
    row_id: str,
    target: Target,
    kinds: Sequence[str],
    seed: int,
    rephrasings: Sequence[str] = (),
) -> list[Pair]:
    """The pairs of one row. `rephrasings` come from an instruction model, in addition."""
    pairs: list[Pair] = []
    for kind in kinds:
        source = row_random(seed, row_id, kind)
        if kind == "main":
            pairs.append(Pair(target.main, target.text(), kind))
        elif kind == "subset":
            pairs += subset_pairs(target, source)
        elif kind == "steps":
            pairs += step_pairs(target, source)
        else:
            inputs = [*rephrase.rephrasings(target.main, source), *rephrasings]
            pairs += [Pair(text, target.text(), kind) for text in dict.fromkeys(inputs)]
    return pairs


def subset_pairs(target: Target, source: random.Random) -> list[Pair]:
    """One pair with 1 to k-1 of the k modifiers; none when there is only one."""
    count = len(target.modifiers)
    if count < 2:
        return []
    # Small subsets are likelier: people who type many modifiers need the policy less.
    size = 1 + int((count - 1) * source.random() ** 1.5)
    chosen = source.sample(range(count), size)
    rest = [index for index in range(count) if index not in set(chosen)]
    typed = [target.modifiers[index] for index in chosen]
    added = [target.modifiers[index] for index in rest]
    return [
        Pair(
            join(target.main, typed),
            join(target.main, typed + added),
            "subset",
        )
    ]


def step_pairs(target: Target, source: random.Random) -> list[Pair]:
    """Nested steps from coarse to fine: one, or two when there are six modifiers or more.

    Each step adds 1 to MAX_STEP modifiers; the second begins where the first ended or later.
    """
    count = len(target.modifiers)
    if count < 2:
        return []
    wanted = 2 if count >= 6 else 1
    pairs: list[Pair] = []
    start = source.randint(1, max(1, count // 2))
    while len(pairs) < wanted and start < count:
        end = min(count, start + source.randint(1, MAX_STEP))
        pairs.append(
            Pair(
                join(target.main, target.modifiers[:start]),
                join(target.main, target.modifiers[:end]),
                "steps",
            )
        )
        start = end + source.randint(0, 2)
    return pairs


def join(main: str, modifiers: Sequence[str]) -> str:
    """`main, modifier, modifier`."""
    return ", ".join((main, *modifiers))
