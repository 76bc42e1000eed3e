"""The value function of PPO: a network of its own.

It begins as a copy of the SFT policy without its head, "to avoid excessive competition of two
objectives" (Hao et al. 2023, arXiv 2212.09611, section 3.1), and a value head of zeros: the first
estimate is 0 everywhere.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..rollouts import TokenBatch, hidden_before


class ValueNetwork(torch.nn.Module):
    """body: a transformers model without head; value_head: (1, H) and a bias."""

    def __init__(self, policy_model: Any):
        """Copies the body of the policy; shares nothing with it and draws nothing."""
        super().__init__()
        self.body = copy.deepcopy(policy_model.base_model)
        weight = policy_model.get_output_embeddings().weight
        self.value_head = torch.nn.utils.skip_init(
            torch.nn.Linear, weight.shape[1], 1, device=weight.device, dtype=weight.dtype
        )
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.requires_grad_(True)
        self.eval()  # dropout off, always

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """(b, T), reward units: the return expected before each token; anything at padding."""
        return self.value_head(hidden_before(self.body, batch)).squeeze(-1)
