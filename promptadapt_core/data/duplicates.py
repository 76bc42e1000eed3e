"""Near copies: prompts whose words are almost the same.

Exact set-similarity join by prefix filtering: when two sets have a Jaccard similarity of at least
t, their rarest len - ceil(t * len) + 1 words share one (Bayardo, Ma, Srikant, "Scaling up all
pairs similarity search", WWW 2007). No hashing, so no pair is missed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

NEAR = 0.8  # Jaccard similarity of the words from which two prompts count as copies


def near_pairs(
    word_sets: Sequence[frozenset[str]], threshold: float = NEAR
) -> Iterator[tuple[int, int]]:
    """The index pairs (earlier, later) whose Jaccard similarity is at least `threshold`.

    `threshold` lies in (0, 1]. An empty set is a copy of nothing. Of equal sets, only the first is
    compared with the others; the rest are paired with the first.
    """
    counts = Counter(word for words in word_sets for word in words)
    # Equal sets of common words would all be compared with each other: compare each set once.
    groups: dict[frozenset[str], int] = {}
    seen: dict[str, list[int]] = {}
    for index, words in enumerate(word_sets):
        if not words:
            continue
        if words in groups:
            yield groups[words], index
            continue
        groups[words] = index
        rarest = sorted(words, key=lambda word: (counts[word], word))
        prefix = rarest[: len(words) - math.ceil(threshold * len(words) - 1e-9) + 1]
        candidates = {other for word in prefix for other in seen.get(word, ())}
        for other in sorted(candidates):
            if similarity(words, word_sets[other]) >= threshold - 1e-9:
                yield other, index
        for word in prefix:
            seen.setdefault(word, []).append(index)


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity, 0.0 to 1.0; 0.0 when both sets are empty."""
    if min(len(first), len(second)) == 0:
        return 0.0
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


class Clusters:
    """Indices 0..size-1 that are joined into clusters (union-find)."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def find(self, index: int) -> int:
        """The smallest index of the cluster."""
        root = index
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[index] != root:
            self._parent[index], index = root, self._parent[index]
        return root

    def join(self, first: int, second: int) -> None:
        first, second = sorted((self.find(first), self.find(second)))
        self._parent[second] = first
