from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptadapt_core.settings import SettingsError
from promptadapt_core.train.batches import (
    POOL_BATCHES,
    EpochSteps,
    Pair,
    TokenPair,
    by_length,
    collate,
    epoch_order,
    read_pairs,
    steps_per_epoch,
    to_sequence,
    to_sequences,
)
from promptadapt_core.train.losses import arithmetic


class Letters:
    """A policy whose tokens are characters; "~" is its end token and an ordinary one."""

    eos_id = ord("~")

    def policy_prompt(self, user_input: str) -> str:
        return f"{user_input}>"

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def pair(length: int, num_prompt: int = 1) -> TokenPair:
    return TokenPair(torch.arange(1, length + 1, dtype=torch.int32), num_prompt, -1, 1, 0)


def test_a_pair_becomes_prompt_target_and_end() -> None:
    made = to_sequence(Pair("a ~cat", "a ~cat, oil, 4k", "train"), Letters())
    assert "".join(map(chr, made.ids)) == "a ~cat> a ~cat, oil, 4k~"
    assert made.num_prompt == len("a ~cat>")
    assert made.num_echo == len(" a ~cat")
    assert (made.num_words, made.num_added_words) == (4, 2)


def test_a_target_that_does_not_begin_with_the_input_has_no_echo() -> None:
    made = to_sequence(Pair("cat", "a cat, oil", "train"), Letters())
    assert (made.num_echo, made.num_added_words) == (-1, 0)


def test_longer_pairs_are_left_out_and_counted() -> None:
    pairs = [Pair("a", "a b", "train"), Pair("a", "a" * 50, "train")]
    kept, num_left_out = to_sequences(pairs, Letters(), max_length=7)
    assert (len(kept), num_left_out) == (1, 1)
    assert len(kept[0].ids) == 7


def test_masks_come_from_lengths_not_from_the_padding_token() -> None:
    end = 9
    first = TokenPair(torch.tensor([end, 5, end], dtype=torch.int32), 2, -1, 1, 0)
    second = TokenPair(torch.tensor([1, 2, 3, 4, end], dtype=torch.int32), 1, -1, 1, 0)
    batch = collate([second, first], rows=[1, 0], padding_id=end)
    assert batch.ids.tolist() == [[end, 5, end, end, end], [1, 2, 3, 4, end]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.completion_index.tolist() == [2, 6, 7, 8, 9]
    assert batch.rows == [1, 0]
    assert batch.num_tokens == 8


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=300),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_pair_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = epoch_order(lengths, batch_size, seed=2**64 - 1, epoch=epoch)
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert batches == epoch_order(lengths, batch_size, seed=2**64 - 1, epoch=epoch)


def test_epochs_and_seeds_differ_and_little_is_padding() -> None:
    lengths = [10 + 7 * number % 50 for number in range(8 * POOL_BATCHES)]
    orders = [epoch_order(lengths, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    computed = sum(len(batch) * max(lengths[row] for row in batch) for batch in orders[0])
    assert computed < 1.05 * sum(lengths)


GOOD = {"user_input": "a cat", "target": "a cat, oil", "split": "train"}
BAD_FILES = {
    "": "holds no pairs",
    "\n \n": "holds no pairs",
    json.dumps(GOOD) + "\n{oops\n": "line 2 .* is not JSON",
    "[1, 2]\n": "line 1 .* needs the texts",
    json.dumps({**GOOD, "target": None}): "line 1 .* needs the texts",
    json.dumps({**GOOD, "target": "  "}): "line 1 .* needs the texts",
    json.dumps({"user_input": "a"}): "line 1 .* needs the texts",
    json.dumps({**GOOD, "target": "a \ud83d"}): "line 1 .* holds half a character",
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.items())
def test_bad_pairs_files_are_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=f"^pairs: .*{reason}"):
        read_pairs(path)


def test_missing_and_unreadable_pairs_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="^pairs: there is no file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(SettingsError, match="^pairs: expected the pairs file"):
        read_pairs("")
    with pytest.raises(SettingsError, match="^pairs: .* cannot be read"):
        read_pairs(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"user_input": "\xe9"}\n')
    with pytest.raises(SettingsError, match="^pairs: .* is not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


def test_good_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**GOOD, "kind": "main"}) + "\n\n", encoding="utf-8")
    assert read_pairs(path) == [Pair("a cat", "a cat, oil", "train")]


def test_tokens_that_repeat_the_input_or_its_main_content_weigh_less() -> None:
    class Words:
        eos_id = 0

        def policy_prompt(self, text: str) -> str:
            return f"{text} Rephrase:"

        def encode(self, text: str) -> list[int]:
            return [len(word) for word in text.replace(",", " ,").split()]

    kept = to_sequence(Pair("a cat", "a cat, oil, fog", "train", "a cat"), Words())
    said = to_sequence(Pair("draw a cat", "a cat, oil", "train", "a cat"), Words())
    neither = to_sequence(Pair("draw a cat", "a dog, oil", "train", "a cat"), Words())
    assert [one.num_echo for one in (kept, said, neither)] == [2, 2, -1]
    batch = collate([kept, said, neither], [0, 1, 2], 0, echo_weight=0.25)
    assert batch.weights.tolist() == [
        *(0.25, 0.25, 1, 1, 1, 1, 1),
        *(0.25, 0.25, 1, 1, 1),
        *(1, 1, 1, 1, 1),
    ]


def test_steps_follow_the_epochs() -> None:
    """Seven sequences in batches of three: three steps an epoch, asked for in any order."""
    lengths = [3, 9, 4, 1, 5, 9, 2]
    steps = EpochSteps(lengths, 3, seed=5)
    assert steps.per_epoch == 3
    assert [steps.number(epochs) for epochs in (0.01, 1.0, 2.5)] == [1, 3, 8]
    expected = [rows for epoch in (0, 1) for rows in epoch_order(lengths, 3, 5, epoch)]
    assert [steps.rows(step) for step in (4, 0, 5, 1, 3, 2)] == [
        expected[step] for step in (4, 0, 5, 1, 3, 2)
    ]


def test_the_shortest_come_first() -> None:
    """Of equal lengths the first."""
    assert list(by_length([3, 1, 2, 1, 9], 2)) == [[1, 3], [2, 0], [4]]
    assert list(by_length([], 2)) == []


def test_precision_is_that_of_the_forward_pass() -> None:
    device, ones = torch.device("cpu"), torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with arithmetic(name, device):
            assert (ones @ ones).dtype == dtype
