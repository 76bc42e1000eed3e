"""Pairs of text become token sequences, sequences become batches of similar length.

Masks come from lengths, never from token ids: the padding token is also the end token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..settings import SettingsError

POOL_BATCHES = 50  # batches whose pairs are sorted by length together; more wastes less padding


class Pair(NamedTuple):
    """One row of the pairs file. main: the target's main content, "" where the row has none."""

    user_input: str
    target: str
    split: str
    main: str = ""


class TokenPair(NamedTuple):
    """One pair in tokens: `ids` of policy prompt, target and end token; the completion is
    ids[num_prompt:]; its first `num_echo` tokens repeat the user input, or its main content in
    other words, -1 where that is not known; `num_words` and `num_added_words` count the target's
    whitespace words, all and after those."""

    ids: torch.Tensor
    num_prompt: int
    num_echo: int
    num_words: int
    num_added_words: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    ids (B, T) int64; attention_mask (B, T) int64, 1 on real tokens; completion_index (N,) int64,
    the places of the completions' tokens in the flattened ids, in order, end tokens included.
    weights (N,) float32: how much each of those tokens counts in the loss. Row i is sequence
    rows[i]; num_tokens counts the real tokens.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_index: torch.Tensor
    weights: torch.Tensor
    rows: list[int]
    num_tokens: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids", "attention_mask", "completion_index", "weights")
        }
        return dataclasses.replace(self, **moved)


def read_pairs(path: str | Path) -> list[Pair]:
    """The rows of a .jsonl file made by `promptadapt_core.data build`.

    SettingsError("pairs", ...) when the file is missing, empty, not UTF-8, or a line is not an
    object with the texts user_input, target and split; the line's number is named.
    """
    if not str(path):
        raise SettingsError("pairs", "expected the pairs file made by promptadapt_core.data build")
    pairs = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    pairs.append(_pair(line, number, path))
    except FileNotFoundError:
        raise SettingsError("pairs", f"there is no file {path}") from None
    except OSError as error:
        raise SettingsError("pairs", f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError("pairs", f"{path} is not UTF-8 text") from None
    if not pairs:
        raise SettingsError("pairs", f"{path} holds no pairs")
    return pairs


def _pair(line: str, number: int, path: str | Path) -> Pair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise SettingsError("pairs", f"line {number} of {path} is not JSON") from None
    names = ("user_input", "target", "split")
    values = [row.get(name) for name in names] if isinstance(row, dict) else [None]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise SettingsError(
            "pairs", f"line {number} of {path} needs the texts user_input, target and split"
        )
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        reason = f"line {number} of {path} holds half a character (a surrogate)"
        raise SettingsError("pairs", reason) from None
    main = row.get("main", "")
    return Pair(*values, main if isinstance(main, str) else "")


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_sequence(pair: Pair, policy: Any) -> TokenPair:
    """Token ids of template(user_input), " " + target and the end token.

    policy: anything with policy_prompt(text), encode(text) -> list of ids, and eos_id.
    """
    user_input, target = pair.user_input.strip(), pair.target.strip()
    prompt_ids = policy.encode(policy.policy_prompt(user_input))
    completion_ids = policy.encode(f" {target}")
    num_echo, added = -1, ""
    said = user_input if target.startswith(user_input) else pair.main.strip()
    if said and target.startswith(said):
        echo_ids = policy.encode(f" {said}")
        if completion_ids[: len(echo_ids)] == echo_ids:
            num_echo, added = len(echo_ids), target[len(said) :].lstrip(" ,.;")
    ids = torch.tensor([*prompt_ids, *completion_ids, policy.eos_id], dtype=torch.int32)
    return TokenPair(ids, len(prompt_ids), num_echo, len(target.split()), len(added.split()))


def to_sequences(
    pairs: Iterable[Pair],
    policy: Any,
    max_length: int,
    report: Callable[[int], None] | None = None,
) -> tuple[list[TokenPair], int]:
    """The sequences of at most max_length tokens, and how many were longer and left out.

    report is called with the number of pairs done, now and then.
    """
    sequences, num_left_out = [], 0
    for number, pair in enumerate(pairs, start=1):
        sequence = to_sequence(pair, policy)
        if len(sequence.ids) > max_length:
            num_left_out += 1
        else:
            sequences.append(sequence)
        if report and number % 1000 == 0:
            report(number)
    return sequences, num_left_out


def collate(
    sequences: Sequence[TokenPair],
    rows: Sequence[int],
    padding_id: int,
    echo_weight: float = 1.0,
) -> Batch:
    """The batch of sequences[row] for each row, padded on the right to the longest. Tokens that
    repeat the user input weigh `echo_weight`, all others 1."""
    longest = max(len(sequences[row].ids) for row in rows)
    ids = torch.full((len(rows), longest), padding_id, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(sequences[row].ids)] = sequences[row].ids
    lengths = torch.tensor([[len(sequences[row].ids)] for row in rows])
    starts = torch.tensor([[sequences[row].num_prompt] for row in rows])
    positions = torch.arange(longest)[None, :]
    real = positions < lengths
    completion = (real & (positions >= starts)).flatten().nonzero().squeeze(1)
    ends = starts + torch.tensor([[max(sequences[row].num_echo, 0)] for row in rows])
    weights = torch.where(positions < ends, echo_weight, 1.0).flatten()[completion]
    return Batch(ids, real.long(), completion, weights, list(rows), int(lengths.sum()))


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Which sequences make up each batch of one epoch: every one once, lengths alike.

    The order depends on (lengths, batch_size, seed, epoch) alone. Shuffled, sorted by length
    within pools of POOL_BATCHES batches, cut into batches, and these shuffled.
    """
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    pool_size = batch_size * POOL_BATCHES
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lambda row: lengths[row])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[index] for index in shuffled]


def steps_per_epoch(num_sequences: int, batch_size: int) -> int:
    """How many batches epoch_order gives."""
    return -(-num_sequences // batch_size)


class EpochSteps:
    """Which sequences make up the batch of each step of a run, epoch after epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        """As in epoch_order."""
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.per_epoch = steps_per_epoch(len(lengths), batch_size)
        self._epoch, self._order = -1, [[0]]

    def number(self, num_epochs: float) -> int:
        """Steps of so many passes, at least one."""
        return max(1, round(self.per_epoch * num_epochs))

    def rows(self, step: int) -> list[int]:
        """Of one step, from 0."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(self.lengths, self.batch_size, self.seed, epoch)
        return self._order[index]


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """All places, shortest first, in batches of `size`: for least padding."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return (order[start : start + size] for start in range(0, len(order), size))
