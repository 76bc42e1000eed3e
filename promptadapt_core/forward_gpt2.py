"""Steps of a plain GPT-2 on the weights of the transformers model, faster than its own forward.

At one token a row most of a step is reading the weights; what else transformers does each step
(masks, cache objects, copying all keys and values to append one and once more to reorder beams)
is left out:

- Keys and values lie in buffers made beforehand and are written in place.
- The beams of one request share one pool: the prompt once, then every token any beam ever had.
  A mask says which of them are a beam's own past, so a beam that moves copies its row of the
  mask, not its keys and values. When the pool is full, what no beam needs any more is dropped.
- The head and the last norm see the last token only.
- On a CPU the weights are packed for products of few rows (packed_weights).

The arithmetic is that of GPT-2 (Radford et al. 2019; transformers modeling_gpt2.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .packed_weights import products
from .plain_gpt2 import PLAIN_CONFIG, PlainGpt2, is_plain_config

STEPS_OF_ROOM = 24  # tokens a row that fit before the pool is cleared of what is not needed
PLAIN_MODULES = {
    "GPT2LMHeadModel", "GPT2Model", "GPT2Block", "GPT2Attention", "GPT2SdpaAttention", "GPT2MLP",
    "Conv1D", "LayerNorm", "Embedding", "Dropout", "Linear", "ModuleList",
}  # fmt: skip


def is_plain_gpt2(model: Any) -> bool:
    """Whether the model is a PlainGpt2, or transformers' GPT-2 in eval mode with nothing changed or
    attached."""
    if isinstance(model, PlainGpt2):
        return True
    if type(model).__name__ != "GPT2LMHeadModel" or model.training:
        return False
    config = {name: getattr(model.config, name) for name in (*PLAIN_CONFIG, "activation_function")}
    if not is_plain_config(config):
        return False
    if any(parameter.device != model.device or parameter.dtype != model.dtype
           for parameter in model.parameters()):  # fmt: skip
        return False
    return all(_is_plain(module) for module in model.modules())


def _is_plain(module: torch.nn.Module) -> bool:
    """A module as the library made it: its own class, no hook, no replaced forward."""
    kind = type(module)
    if kind.__name__ not in PLAIN_MODULES and not kind.__module__.endswith(".activations"):
        return False
    if not kind.__module__.startswith(("transformers.", "torch.nn.")):
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and "forward" not in vars(module)


class Gpt2Forward:
    """Feeds prompts once, then one token a row; rows may be repeated, reordered and dropped.

    branching: the rows of a request fork and die all the time (beams) and share a pool. Without,
    each row is one chain with a pool of its own. packed: see packed_weights.products.
    """

    def __init__(self, model: Any, branching: bool, packed: bool = True):
        self._model = model
        self._products = products(model, packed)
        self._blocks = list(model.transformer.h)
        self._num_heads = model.config.n_head
        self._head_size = model.config.n_embd // model.config.n_head
        self._branching = branching
        self._num_used = 0  # slots filled in every pool
        self._keys: list[torch.Tensor] = []  # per layer (pools, heads, slots, head_size)
        self._values: list[torch.Tensor] = []
        self._mask = torch.empty(0)  # (pools, width, used): 0 where a row sees a slot, else -inf
        self._masked = False
        self._lengths: list[int] = []  # tokens behind every row of a pool
        self._pools: list[tuple[int, int]] = []  # of each row: its pool, its place there

    @torch.inference_mode()
    def begin(self, sequences: list[list[int]]) -> torch.Tensor:
        """Logits (rows, vocabulary) after each sequence of token ids; row i is sequence i."""
        device = self._model.device
        self._lengths = [len(one) for one in sequences]
        longest = max(self._lengths)
        ids = [one + [0] * (longest - len(one)) for one in sequences]
        lengths = torch.tensor(self._lengths, device=device)
        unused = torch.arange(longest, device=device) >= lengths[:, None]
        self._mask = torch.zeros(unused.shape, dtype=self._model.dtype, device=device)
        self._mask = self._mask.masked_fill(unused, -torch.inf)[:, None]
        self._masked = self._branching or longest > min(self._lengths)
        self._pools = [(i, 0) for i in range(len(sequences))]
        self._make_room(len(sequences), longest)
        positions = torch.arange(longest, device=device)[None]
        hidden = self._hidden(torch.tensor(ids, device=device), positions, causal=True)
        rows = torch.arange(len(sequences), device=device)
        return self._logits(hidden[rows, lengths - 1])

    @torch.inference_mode()
    def extend(self, rows: list[int], tokens: list[int]) -> torch.Tensor:
        """Logits (new rows, vocabulary): new row i is the old row rows[i] and tokens[i].

        With branching, the rows of one request stay together and in the order of requests.
        """
        device = self._model.device
        parents = [self._pools[row] for row in rows]
        pools, members = self._grouped(parents)
        if pools != list(range(len(self._lengths))):
            self._select(pools)
        width = max(map(len, members))
        padded = [one + one[:1] * (width - len(one)) for one in members]
        past = torch.tensor([[parents[i][1] for i in one] for one in padded], device=device)
        chosen = torch.tensor([[tokens[i] for i in one] for one in padded], device=device)
        if self._num_used + width > self._keys[0].shape[2]:
            self._clear(past)
        own = torch.full((width, width), -torch.inf, dtype=self._mask.dtype, device=device)
        own = own.fill_diagonal_(0.0).expand(len(members), width, width)
        seen = self._mask.gather(1, past[:, :, None].expand(-1, -1, self._num_used))
        self._mask = torch.cat([seen, own], dim=2)
        positions = torch.tensor(self._lengths, device=device)[:, None].expand(-1, width)
        self._lengths = [length + 1 for length in self._lengths]
        logits = self._logits(self._hidden(chosen, positions, causal=False).flatten(0, 1))
        self._pools = [(pool, i) for pool, one in enumerate(members) for i in range(len(one))]
        if any(len(one) < width for one in members):
            logits = logits[[pool * width + place for pool, place in self._pools]]
        return logits

    def _grouped(self, parents: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
        """(the old pool of each new pool, the new rows in it)."""
        if not self._branching:
            return [pool for pool, _ in parents], [[i] for i in range(len(parents))]
        groups: dict[int, list[int]] = {}
        for i, (pool, _) in enumerate(parents):
            groups.setdefault(pool, []).append(i)
        return list(groups), list(groups.values())

    def _hidden(self, ids: torch.Tensor, positions: torch.Tensor, causal: bool) -> torch.Tensor:
        """ids: (pools, tokens); positions the same or (1, tokens). Appends their keys and values
        to the pools. Returns the residual stream (pools, tokens, n_embd)."""
        transformer = self._model.transformer
        hidden = transformer.wte.weight[ids] + transformer.wpe.weight[positions]
        shape = hidden.shape
        stream = hidden.flatten(0, 1)
        for layer, block in enumerate(self._blocks):
            stream = stream + self._attention(layer, _norm(block.ln_1, stream), shape[:2], causal)
            product = self._products.blocks[layer]
            stream = stream + product.outer(product.inner(_norm(block.ln_2, stream)))
        self._num_used += shape[1]
        return stream.view(shape)

    def _attention(
        self, layer: int, stream: torch.Tensor, shape: torch.Size, causal: bool
    ) -> torch.Tensor:
        """stream and result: (pools * tokens, n_embd). shape: (pools, tokens)."""
        product = self._products.blocks[layer]
        projected = product.attention_in(stream)
        projected = projected.view(*shape, 3, self._num_heads, self._head_size)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        end = self._num_used + shape[1]
        self._keys[layer][:, :, self._num_used : end] = key
        self._values[layer][:, :, self._num_used : end] = value
        if causal:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            keys, values = self._keys[layer][:, :, :end], self._values[layer][:, :, :end]
            mask = self._mask[:, None] if self._masked else None
            mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return product.attention_out(mixed.transpose(1, 2).reshape(stream.shape))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (rows, n_embd)."""
        return self._products.head(_norm(self._model.transformer.ln_f, hidden))

    def _make_room(self, num_pools: int, num_needed: int) -> None:
        """Buffers for so many slots and some more; what is in use is kept."""
        size = num_needed + STEPS_OF_ROOM * (8 if self._branching else 1)
        shape = (num_pools, self._num_heads, size, self._head_size)
        for buffers in (self._keys, self._values):
            old = buffers[:]
            buffers[:] = [self._mask.new_empty(shape) for _ in self._blocks]
            for new, earlier in zip(buffers, old, strict=False):
                new[:, :, : self._num_used] = earlier[:, :, : self._num_used]

    def _select(self, pools: list[int]) -> None:
        """Keep these pools, in this order; one may be taken several times."""
        index = torch.tensor(pools, device=self._mask.device)
        self._mask = self._mask[index]
        self._lengths = [self._lengths[pool] for pool in pools]
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = buffer[index]

    def _clear(self, past: torch.Tensor) -> None:
        """Drop the slots that no row of `past` (pools, width) sees, then see that there is room."""
        width = past.shape[1]
        if self._branching:
            seen = self._mask.gather(1, past[:, :, None].expand(-1, -1, self._num_used))
            needed = (seen == 0).any(1)
            number = int(needed.sum(-1).max())
            # Needed slots first and in order; fewer in one pool leaves masked ones at its end.
            order = (~needed).to(torch.uint8).argsort(dim=-1, stable=True)[:, :number]
            for buffers in (self._keys, self._values):
                for buffer in buffers:
                    for pool, slots in enumerate(order):
                        buffer[pool, :, :number] = buffer[pool].index_select(1, slots)
            self._mask = self._mask.gather(2, order[:, None].expand(-1, self._mask.shape[1], -1))
            self._num_used = number
        if self._num_used + 8 * width > self._keys[0].shape[2]:
            self._make_room(len(past), self._num_used + STEPS_OF_ROOM * width)


def _norm(module: torch.nn.LayerNorm, stream: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(
        stream, module.normalized_shape, module.weight, module.bias, module.eps
    )
