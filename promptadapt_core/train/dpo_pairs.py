"""Pairs of texts become token sequences, side by side; and their log-probs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import runs
from ..objectives import completion_logprobs
from ..policy import Policy
from ..settings import SettingsError
from .batches import Batch, Pair, TokenPair, collate, to_sequence
from .losses import completion_nll

DIGITS = 2**32


class PairTokens(NamedTuple):
    """A chosen and a rejected text in tokens, of the same policy prompt."""

    chosen: TokenPair
    rejected: TokenPair

    @property
    def length(self) -> int:
        """Of the longer one, in tokens."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


def is_valid(user_input: str, valid_share: float) -> bool:
    """Whether the pairs of a user input validate: always the same, whatever else there is."""
    digest = hashlib.sha256(user_input.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") < valid_share * DIGITS


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of pairs.jsonl; SettingsError("resume", ...) where it is broken."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise SettingsError("resume", f"{path} cannot be read: {error}") from None


def to_tokens(
    rows: Sequence[dict[str, Any]],
    policy: Policy,
    max_length: int,
    valid_share: float,
    report: runs.Reporter,
) -> tuple[list[PairTokens], list[PairTokens]]:
    """(training, validation) pairs; those with a text longer than max_length tokens are left out.
    Where all would validate, all train. SettingsError("max_length", ...) where none is left."""
    train: list[PairTokens] = []
    valid: list[PairTokens] = []
    for row in rows:
        pair = PairTokens(*(
            to_sequence(Pair(row["user_input"], row[name], "train"), policy)
            for name in ("chosen", "rejected")
        ))  # fmt: skip
        if pair.length <= max_length:
            (valid if is_valid(row["user_input"], valid_share) else train).append(pair)
    num_left = len(train) + len(valid)
    if not num_left:
        raise SettingsError("max_length", f"every pair is longer than {max_length} tokens")
    if num_left < len(rows):
        report.say(f"left out {len(rows) - num_left:,} pairs longer than {max_length} tokens")
    return (train, valid) if train else (valid, [])


def check_same_tokens(reference: Policy, policy: Policy, texts: Iterable[str]) -> None:
    """SettingsError("reference", ...) unless both make the same tokens of everything."""
    same = reference.eos_id == policy.eos_id
    same = same and reference.backend.get_vocab() == policy.backend.get_vocab()
    if not (same and all(reference.encode(text) == policy.encode(text) for text in texts)):
        raise SettingsError(
            "reference",
            f"{reference.manifest.name!r} has another tokenizer than the policy: their "
            "probabilities are of other tokens and cannot be compared",
        )


def pair_batch(
    pairs: Sequence[PairTokens], rows: Sequence[int], padding_id: int, echo_weight: float
) -> Batch:
    """The chosen texts of `rows`, then the rejected ones. echo_weight: 0 where the policy is made
    to begin with the user's own text, which is then no choice of its."""
    texts = [pairs[row].chosen for row in rows] + [pairs[row].rejected for row in rows]
    return collate(texts, range(len(texts)), padding_id, echo_weight)


def text_logprobs(
    model: Any, batch: Batch, whole_logits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, tokens), both (2P,): nats of each whole text and how many of its tokens count,
    both without those that weigh 0."""
    nll = completion_nll(model, batch, whole_logits)
    shape = batch.ids.shape
    places = batch.completion_index
    logprobs = nll.new_zeros(shape.numel()).index_copy(0, places, -nll * batch.weights)
    counted = torch.zeros_like(logprobs).index_copy(0, places, batch.weights)
    counted = counted.reshape(shape)
    return completion_logprobs(logprobs.reshape(shape), counted > 0), counted.sum(-1)
