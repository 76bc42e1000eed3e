"""Thins out stock phrases.

One list of modifiers ("highly detailed, digital painting, artstation, concept art, smooth, ...")
ends hundreds of unrelated prompts. A policy that learns them all answers everything with it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from ..modifiers import normal


def rows_to_keep(
    ids: Sequence[str], lists: Sequence[Sequence[str]], limit: int, seed: int
) -> set[int]:
    """The indices of the rows to keep so that no two neighbouring modifiers stand together in more
    than `limit` rows.

    ids, lists: the id and the modifiers of each row. Which rows of too many stay is decided by a
    hash of seed and id, so it does not depend on the order of the rows.
    """
    hashes = [hashlib.sha256(f"{seed}/{one}".encode()).digest() for one in ids]
    order = sorted(range(len(ids)), key=hashes.__getitem__)
    times: Counter[tuple[str, str]] = Counter()
    kept = set()
    for row in order:
        keys = [normal(modifier) for modifier in lists[row]]
        neighbours = set(zip(keys, keys[1:], strict=False))
        if all(times[pair] < limit for pair in neighbours):
            times.update(neighbours)
            kept.add(row)
    return kept
