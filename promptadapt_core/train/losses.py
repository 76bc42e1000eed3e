"""The loss of supervised fine-tuning: negative log-likelihood of completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from .batches import Batch, TokenPair


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager:
    """What a forward pass is computed in. precision: "fp32" or "bf16"."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def completion_nll(model: Any, batch: Batch, whole_logits: bool = False) -> torch.Tensor:
    """(N,) float32, nats: minus the log-prob of each token in batch.completion_index.

    model: a transformers causal LM. The head, the largest matrix of a small policy, is applied
    only to the positions that predict a completion's token, unless `whole_logits`.
    """
    options = {"attention_mask": batch.attention_mask, "use_cache": False}
    before = batch.completion_index - 1  # a policy prompt is never empty, so it is the same row
    if whole_logits:
        logits = model(batch.ids, **options).logits.flatten(0, 1).index_select(0, before)
    else:
        hidden = model.base_model(batch.ids, **options).last_hidden_state
        logits = model.get_output_embeddings()(hidden.flatten(0, 1).index_select(0, before))
    targets = batch.ids.flatten().index_select(0, batch.completion_index)
    return F.cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def needs_whole_logits(model: Any, batch: Batch) -> bool:
    """Whether the model does more to its logits than the head alone (scaling, capping)."""
    training = model.training
    model.eval()
    try:
        short = completion_nll(model, batch)
        whole = completion_nll(model, batch, whole_logits=True)
        return not torch.allclose(short, whole, rtol=1e-3, atol=1e-3)
    except (AttributeError, TypeError, RuntimeError):
        return True
    finally:
        model.train(training)


@torch.no_grad()
def validation_nll(
    model: Any,
    pairs: list[TokenPair],
    batches: Iterable[Batch],
    whole_logits: bool,
    arithmetic: Callable[[], AbstractContextManager],
) -> list[torch.Tensor]:
    """For each pair the nats (num completion tokens,) float32 of its completion, dropout off.

    batches: of all the pairs, each once; Batch.rows says which. arithmetic: makes the autocast.
    """
    training = model.training
    model.eval()
    result: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
    try:
        for batch in batches:
            with arithmetic():
                nll = completion_nll(model, batch, whole_logits)
            lengths = [len(pairs[row].ids) - pairs[row].num_prompt for row in batch.rows]
            for row, part in zip(batch.rows, nll.cpu().split(lengths), strict=True):
                result[row] = part
    finally:
        model.train(training)
    return result


def validation_metrics(
    nll: list[torch.Tensor], pairs: list[TokenPair], echo_weight: float = 1.0
) -> dict[str, float]:
    """The group `valid` of the metrics from validation_nll's result."""
    num_echo = [max(pair.num_echo, 0) for pair in pairs]
    echoed = sum(part[:n].sum(dtype=torch.float64).item()
                 for part, n in zip(nll, num_echo, strict=True))  # fmt: skip
    totals = [part.sum(dtype=torch.float64).item() for part in nll]
    num_tokens = sum(len(part) for part in nll)
    lighter = (1 - echo_weight) * sum(num_echo)
    row = {
        "valid/loss": (sum(totals) - (1 - echo_weight) * echoed) / (num_tokens - lighter),
        "valid/nll_per_token": sum(totals) / num_tokens,
        "valid/nll_per_word": sum(totals) / sum(pair.num_words for pair in pairs),
    }
    added = [(part[pair.num_echo :], pair.num_added_words)
             for part, pair in zip(nll, pairs, strict=True) if pair.num_echo >= 0]  # fmt: skip
    num_added = sum(words for _, words in added)
    if num_added:
        nats = sum(part.sum(dtype=torch.float64).item() for part, _ in added)
        row["valid/nll_per_word_added"] = nats / num_added
    return row
