from collections import Counter

from promptadapt_core.data.stock import rows_to_keep

STOCK = ["highly detailed", "artstation", "concept art"]


def test_no_two_neighbours_stand_together_more_often_than_the_limit():
    lists = [STOCK] * 10 + [["oil painting", "sunset"]] * 3 + [["8k"], []]
    ids = [f"row{number}" for number in range(len(lists))]
    kept = rows_to_keep(ids, lists, limit=4, seed=0)
    assert len(kept & set(range(10))) == 4
    assert kept >= {10, 11, 12, 13, 14}


def test_neighbours_count_in_any_list_and_spelling():
    lists = [STOCK, ["fog", "Highly-Detailed", "artstation"], ["artstation", "highly detailed"]]
    kept = rows_to_keep(["a", "b", "c"], lists, limit=1, seed=0)
    assert 2 in kept
    assert len(kept) == 2


def test_the_order_of_the_rows_does_not_matter():
    ids = [f"row{number}" for number in range(20)]
    kept = {ids[row] for row in rows_to_keep(ids, [STOCK] * 20, limit=5, seed=1)}
    turned = ids[::-1]
    assert {turned[row] for row in rows_to_keep(turned, [STOCK] * 20, limit=5, seed=1)} == kept
    other = {ids[row] for row in rows_to_keep(ids, [STOCK] * 20, limit=5, seed=2)}
    assert Counter(map(len, (kept, other))) == {5: 2}
    assert other != kept
