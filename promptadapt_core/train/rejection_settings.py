"""The settings of rejection sampling, once: default, range, help."""

from __future__ import annotations

import dataclasses

from ..settings import setting
from .mining_settings import MiningSettings


@dataclasses.dataclass(frozen=True)
class RejectionSettings(MiningSettings):
    """Sampling many, learning from the best by supervised fine-tuning, and again."""

    best_per_input: int = setting(
        1, "candidates of one user input that are learned from, the best first", low=1, high=1024
    )
    num_epochs: float = setting(2.0, "passes over the pairs of a round", low=0.01, high=1000.0)
    batch_size: int = setting(64, "pairs per optimizer step", low=1, high=65536)
    micro_batch_size: int = setting(64, "pairs per forward pass", low=1, high=65536)
    lr: float = setting(5e-5, "peak learning rate of a round", low=0.0, high=1.0)
    warmup_share: float = setting(0.1, "share of a round's steps that warm up", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "of AdamW, on matrices only", low=0.0, high=1.0)
    echo_weight: float = setting(
        0.0,
        "weight in the loss of the tokens that repeat the user input, where decoding writes them "
        "itself; a policy that writes its whole text learns them too",
        low=0.0,
        high=1.0,
    )
    max_length: int = setting(
        160, "longest pair in tokens; a longer one is left out", low=8, high=8192
    )
    lora_rank: int = setting(
        0, "train LoRA matrices of this rank, merged after each round; 0 trains all", low=0,
        high=1024,
    )  # fmt: skip
    precision: str = setting(
        "auto",
        "arithmetic of the matrix products; auto is bf16 where it is faster",
        choices=("auto", "fp32", "bf16"),
    )
