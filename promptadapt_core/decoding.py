"""Beam search, diverse beam search and sampling over any causal language model.

    completions = decode(model, tokenizer, eos_id, [DecodingRequest(prompt_ids)], mode="beam", ...)

Each request is a search of its own (beams, sampling); the searches of one batch share the
policy's forward passes and nothing else, so a request alone gives what it gives in a batch, as
far as matrix products of different sizes round alike. A plain GPT-2 runs on forward_gpt2, which
is the fast one; every other model on its own forward with its own cache (forward_any).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import forward_any, forward_gpt2
from .beams import BeamSearch, RankedTokens
from .hypotheses import (
    UNFINISHED_CHARACTER,
    Completion,
    DecodingRequest,
    Writer,
)
from .sampling import Nucleus, SampleSearch
from .settings import SettingsError

__all__ = [
    "UNFINISHED_CHARACTER", "Completion", "DecodingRequest", "Stopped", "context_length", "decode",
]  # fmt: skip

Search = BeamSearch | SampleSearch
Scores = RankedTokens | Nucleus


class Stopped(Exception):
    """should_stop() said so. Nothing is left behind."""


@torch.no_grad()  # not inference_mode: old RoPE models keep tables made here and train with them
def decode(
    policy_model: Any,
    tokenizer: Any,
    eos_id: int,
    requests: Sequence[DecodingRequest],
    *,
    mode: str = "beam",
    num_candidates: int = 1,
    num_beams: int = 8,
    max_new_tokens: int = 75,
    temperature: float = 1.0,
    top_p: float = 1.0,
    diversity_penalty: float = 1.0,
    length_penalty: float = 1.0,
    should_stop: Callable[[], bool] | None = None,
    batch_size: int = 16,
    packed: bool = True,
) -> list[list[Completion]]:
    """At most `num_candidates` completions of every request, best first.

    Ranked by logprob / num_tokens ** length_penalty. Modes beam and diverse give at most
    num_beams, mode sample as many as asked for, repeats included. diverse is one beam in each of
    num_beams groups. temperature and top_p belong to sample, diversity_penalty to diverse.
    Requests run `batch_size` at a time on the model's device; the model has to be in eval mode.
    packed: a CPU may read a copy of the weights (packed_weights); off while they are trained.

    Raises SettingsError for a prompt that does not fit the model and for settings out of range,
    Stopped once should_stop(), asked before every token, is true.
    """
    make_search = _search_maker(
        mode, num_candidates, num_beams, max_new_tokens, diversity_penalty, length_penalty
    )
    if not temperature > 0.0:
        raise SettingsError("temperature", f"expected a number above 0, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise SettingsError("top_p", f"expected a number above 0, at most 1, got {top_p}")

    def score(logits: torch.Tensor) -> Scores:
        if mode == "sample":
            return Nucleus(logits, temperature, top_p)
        return RankedTokens(logits, 2 * num_beams)

    context = context_length(policy_model)
    for request in requests:
        _check_length(request, context)
    found: list[list[Completion]] = [[] for _ in requests]
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].fed_ids))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        searches = []
        for place in places:
            room = max_new_tokens if context is None else context - len(requests[place].fed_ids)
            writer = Writer(requests[place], tokenizer, eos_id)
            searches.append(make_search(writer, requests[place], min(max_new_tokens, room)))
        sequences = [requests[place].fed_ids for place in places]
        with _full_precision(policy_model):
            forward = _forward(policy_model, mode == "beam", packed)
            _run(forward, sequences, searches, score, should_stop)
        for place, search in zip(places, searches, strict=True):
            found[place] = search.completions()[:num_candidates]
    return found


def _search_maker(
    mode: str,
    num_candidates: int,
    num_beams: int,
    max_new_tokens: int,
    diversity_penalty: float,
    length_penalty: float,
) -> Callable[[Writer, DecodingRequest, int], Search]:
    """search(writer, request, limit) for a mode, or SettingsError."""
    counts = {
        "num_candidates": num_candidates,
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
    }
    for name, value in counts.items():
        if value < 1:
            raise SettingsError(name, f"expected 1 or more, got {value}")
    if mode not in ("beam", "diverse", "sample"):
        raise SettingsError("mode", f"expected one of beam, diverse, sample, got {mode!r}")

    def search(writer: Writer, request: DecodingRequest, limit: int) -> Search:
        if mode == "sample":
            return SampleSearch(
                writer,
                seed=request.seed,
                num_samples=num_candidates,
                max_new_tokens=max_new_tokens,
                length_penalty=length_penalty,
                limit=limit,
            )
        return BeamSearch(
            writer,
            num_groups=num_beams if mode == "diverse" else 1,
            width=1 if mode == "diverse" else num_beams,
            length_penalty=length_penalty,
            limit=limit,
            diversity_penalty=diversity_penalty if mode == "diverse" else 0.0,
        )

    return search


def _run(
    forward: forward_any.AnyForward | forward_gpt2.Gpt2Forward,
    sequences: list[list[int]],
    searches: list[Search],
    score: Callable[[torch.Tensor], Scores],
    should_stop: Callable[[], bool] | None,
) -> None:
    """Take every search to its end. A search that is done takes no part in the next pass."""
    kept = [i for i, search in enumerate(searches) if search.running]
    active = [searches[i] for i in kept]
    sequences = [sequences[i] for i in kept]
    num_rows = [1] * len(active)
    logits: torch.Tensor | None = None
    rows: list[int] = []
    tokens: list[int] = []
    while active:
        if should_stop is not None and should_stop():
            raise Stopped
        logits = forward.begin(sequences) if logits is None else forward.extend(rows, tokens)
        scores = score(logits)
        rows, tokens = [], []
        first_row = 0
        still_active, new_num_rows = [], []
        for search, number in zip(active, num_rows, strict=True):
            own_rows, own_tokens = search.advance(scores, first_row)  # type: ignore[arg-type]
            first_row += number
            if own_rows:
                still_active.append(search)
                new_num_rows.append(len(own_rows))
                rows += own_rows
                tokens += own_tokens
        active, num_rows = still_active, new_num_rows


def _forward(
    model: Any, branching: bool, packed: bool
) -> forward_any.AnyForward | forward_gpt2.Gpt2Forward:
    if forward_gpt2.is_plain_gpt2(model):
        return forward_gpt2.Gpt2Forward(model, branching, packed)
    return forward_any.AnyForward(model)


def context_length(model: Any) -> int | None:
    """Most tokens of the model, None where nothing limits them (ALiBi)."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        length = getattr(model.config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def _check_length(request: DecodingRequest, context: int | None) -> None:
    length = len(request.fed_ids)
    if length == 0:
        raise SettingsError("user_input", "there is nothing to continue")
    if context is not None and length > context:
        raise SettingsError(
            "user_input", f"too long for the policy: {length} tokens, it reads at most {context}"
        )


def _full_precision(model: Any) -> contextlib.AbstractContextManager:
    """Outside a host's autocast: the same text in every host."""
    kind = model.device.type
    if kind in ("cuda", "cpu"):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
