"""A GPT-2 as its weights alone, for decoding without importing transformers.

Importing transformers' GPT-2 takes longer than everything else a fresh process does to adapt one
prompt. The module below holds the same tensors under the same names and has no forward of its
own: forward_gpt2 reads either.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

TANH_GELUS = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
PLAIN_CONFIG = {
    "add_cross_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
}


def is_plain_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes the GPT-2 of the paper, without later switches."""
    switches = all(config.get(name, plain) == plain for name, plain in PLAIN_CONFIG.items())
    return switches and config.get("activation_function", "gelu_new") in TANH_GELUS


class PlainGpt2(torch.nn.Module):
    """The weights of a GPT-2 under transformers' names, frozen; the head is the embedding."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]):
        """config: with n_layer, n_head, n_embd, n_positions, vocab_size, layer_norm_epsilon.
        weights: by name, from "transformer.wte.weight" on."""
        super().__init__()
        self.config = SimpleNamespace(**config)
        for name, tensor in weights.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, _Branch())
                module = module._modules[part]  # type: ignore[assignment]
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
        for name, module in self.named_modules():
            if name.rpartition(".")[2].startswith("ln_"):
                module.eps = config["layer_norm_epsilon"]  # type: ignore[assignment]
                module.normalized_shape = (config["n_embd"],)  # type: ignore[assignment]
        self.lm_head = self.transformer.wte
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class _Branch(torch.nn.Module):
    """A named place for weights; numbered children are walked in order."""

    def __iter__(self):
        return iter(self._modules.values())
