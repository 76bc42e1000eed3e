from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptadapt_core.data.duplicates import Clusters, near_pairs, similarity

WORD_SETS = st.lists(st.frozensets(st.sampled_from("abcdefghij"), max_size=8), max_size=25)


def test_similarity_by_hand():
    assert similarity(frozenset("abcd"), frozenset("abce")) == pytest.approx(3 / 5)
    assert similarity(frozenset(), frozenset()) == 0.0


@given(WORD_SETS, st.sampled_from([0.5, 0.75, 0.8, 1.0]))
def test_no_near_pair_is_missed(word_sets, threshold):
    """Every pair of different sets that brute force finds, and no other."""
    first_of = {words: index for index, words in reversed(list(enumerate(word_sets)))}
    found = set(near_pairs(word_sets, threshold))
    for early, late in itertools.combinations(range(len(word_sets)), 2):
        one, other = word_sets[early], word_sets[late]
        if not one or not other:
            assert (early, late) not in found
        elif one == other:
            assert ((early, late) in found) == (first_of[one] == early)
        elif first_of[one] == early and first_of[other] == late:
            near = len(one & other) >= threshold * len(one | other)
            assert ((early, late) in found) == near


def test_clusters_join_to_the_smallest_index():
    clusters = Clusters(5)
    clusters.join(3, 4)
    clusters.join(4, 1)
    assert [clusters.find(index) for index in range(5)] == [0, 1, 2, 1, 1]
