"""The settings of DPO, once: default, range, help."""

from __future__ import annotations

import dataclasses

from ..settings import setting
from .mining_settings import MiningSettings

ADAMW, ADAMW_8BIT = "adamw", "adamw8bit"


@dataclasses.dataclass(frozen=True)
class DpoSettings(MiningSettings):
    """Learning from pairs of a better and a worse adapted prompt, mined or voted on."""

    votes: str = setting(
        "",
        ".jsonl with the texts user_input, chosen and rejected (adapted prompts): learn from these "
        "in place of mined pairs, in one round; nothing is rendered",
        metavar="FILE",
    )
    reference: str = setting(
        "",
        "the frozen policy that preferences are compared with; left out, the one that each round "
        "begins with",
        metavar="FOLDER|NAME",
    )
    pairs_per_input: int = setting(
        2, "pairs of one user input, the largest difference first", low=1, high=1024
    )
    margin: float = setting(0.3, "least difference of the rewards in a pair", low=0.0, high=1e6)
    length_gap: int = setting(
        3,
        "most tokens by which the texts of a pair differ in length; of what is left pairs are left "
        "out until neither side is longer on average",
        low=0,
        high=8192,
    )
    beta: float = setting(0.1, "weight of staying near the reference", low=1e-6, high=100.0)
    sft_coef: float = setting(
        0.5,
        "weight of the chosen texts' own negative log-likelihood, nats a token: at 0 both texts "
        "may get less likely, and others that nobody looked at likelier",
        low=0.0,
        high=100.0,
    )
    num_epochs: float = setting(2.0, "passes over the pairs of a round", low=0.01, high=1000.0)
    batch_size: int = setting(32, "pairs per optimizer step", low=1, high=65536)
    micro_batch_size: int = setting(32, "pairs per forward pass", low=1, high=65536)
    lr: float = setting(2e-5, "peak learning rate of a round", low=0.0, high=1.0)
    warmup_share: float = setting(0.1, "share of a round's steps that warm up", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "of AdamW, on matrices only", low=0.0, high=1.0)
    adam_beta2: float = setting(0.98, "second-moment decay of AdamW", low=0.0, high=0.9999)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0 does not", low=0.0)
    optimizer: str = setting(
        ADAMW,
        "adamw8bit keeps the moments in 8 bits: less memory on a GPU; needs bitsandbytes",
        choices=(ADAMW, ADAMW_8BIT),
    )
    lora_rank: int = setting(
        0, "train LoRA matrices of this rank, merged after each round; 0 trains all", low=0,
        high=1024,
    )  # fmt: skip
    gradient_checkpointing: bool = setting(
        False, "compute activations twice in place of keeping them: less memory, slower"
    )
    precision: str = setting(
        "auto",
        "arithmetic of the matrix products; auto is bf16 where it is faster",
        choices=("auto", "fp32", "bf16"),
    )
    max_length: int = setting(
        160, "longest text in tokens; a pair with a longer one is left out", low=8, high=8192
    )
    valid_share: float = setting(
        0.1,
        "share of the user inputs whose pairs validate: the checkpoint with the lowest validation "
        "loss goes on; 0 takes the last",
        low=0.0,
        high=0.5,
    )
    log_every: int = setting(10, "optimizer steps between rows of a round's metrics", low=1)
    checkpoint_every: int = setting(
        50, "optimizer steps between validations and resumable states", low=1
    )

    @property
    def num_lessons(self) -> int:
        """Rounds of learning."""
        return 1 if self.votes else self.num_rounds
