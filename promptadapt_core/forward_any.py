"""Steps of any causal language model of transformers, through its own forward and cache.

Works with the caches of all versions: tuples of tensors (4.30) and Cache objects (since 4.36).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


class AnyForward:
    """Feeds prompts once, then one token a row; rows may be repeated, reordered and dropped."""

    def __init__(self, model: Any):
        self._model = model
        self._device = model.device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = set(inspect.signature(base.forward).parameters)
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._lengths: list[int] = []

    def begin(self, sequences: list[list[int]]) -> torch.Tensor:
        """Logits (rows, vocabulary) after each sequence of token ids; row i is sequence i."""
        longest = max(map(len, sequences))
        ids = [[0] * (longest - len(one)) + one for one in sequences]
        mask = [[0] * (longest - len(one)) + [1] * len(one) for one in sequences]
        self._mask = torch.tensor(mask, device=self._device)
        self._lengths = [len(one) for one in sequences]
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        last_only = {}
        for name in ("logits_to_keep", "num_logits_to_keep"):
            if name in self._accepted:
                last_only = {name: 1}
                break
        return self._step(torch.tensor(ids, device=self._device), positions, **last_only)

    def extend(self, rows: list[int], tokens: list[int]) -> torch.Tensor:
        """Logits (new rows, vocabulary): new row i is the old row rows[i] and tokens[i]."""
        if rows != list(range(len(self._lengths))):
            index = torch.tensor(rows, device=self._device)
            self._mask = self._mask[index]
            self._cache = reordered(self._model, self._cache, index, len(self._lengths))
            self._lengths = [self._lengths[row] for row in rows]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(rows), 1)], dim=1)
        positions = torch.tensor(self._lengths, device=self._device)[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        return self._step(torch.tensor(tokens, device=self._device)[:, None], positions)

    def _step(self, ids: torch.Tensor, positions: torch.Tensor, **more: int) -> torch.Tensor:
        """ids, positions: (rows, tokens). Logits (rows, vocabulary) after the last token."""
        if "position_ids" in self._accepted:
            more["position_ids"] = positions  # type: ignore[assignment]
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **more,
        )
        self._cache = output.past_key_values
        return output.logits[:, -1]


def reordered(model: Any, cache: Any, index: torch.Tensor, num_rows: int) -> Any:
    """A cache whose row i is the old row index[i]. num_rows: how many the old cache has."""
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(index)
        return cache
    if all(tensor.shape[0] == num_rows for layer in cache for tensor in layer):
        return tuple(
            tuple(tensor.index_select(0, index.to(tensor.device)) for tensor in layer)
            for layer in cache
        )
    return model._reorder_cache(cache, index)  # layouts of their own, as old Bloom's
