"""The settings of supervised fine-tuning, once: default, range, help."""

from __future__ import annotations

import dataclasses

from ..settings import MAX_SEED, Settings, setting


@dataclasses.dataclass(frozen=True)
class SftSettings(Settings):
    """Supervised fine-tuning on pairs."""

    pairs: str = setting("", "pairs made by promptadapt_core.data build", metavar="FILE")
    base: str = setting(
        "scratch",
        "scratch, a folder with a causal language model, or its hub name",
        metavar="scratch|FOLDER|NAME",
    )
    out: str = setting("", "run folder: config.json, metrics.jsonl, checkpoints", metavar="FOLDER")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")
    precision: str = setting(
        "auto",
        "arithmetic of the matrix products; auto is bf16 where it is faster",
        choices=("auto", "fp32", "bf16"),
    )
    seed: int = setting(0, "of the weights and the order of the pairs", low=0, high=MAX_SEED)
    num_epochs: float = setting(4.0, "passes over the training pairs", low=0.01, high=1000.0)
    batch_size: int = setting(64, "pairs per optimizer step", low=1, high=65536)
    micro_batch_size: int = setting(64, "pairs per forward pass", low=1, high=65536)
    echo_weight: float = setting(
        1.0,
        "weight in the loss of the target's first tokens, which repeat the user input: decoding "
        "writes them itself",
        low=0.0,
        high=1.0,
    )
    max_length: int = setting(
        160, "longest pair in tokens; a longer one is left out", low=8, high=8192
    )
    lr: float = setting(1e-3, "peak learning rate; 5e-5 suits a pretrained base", low=0.0, high=1.0)
    warmup_share: float = setting(0.03, "share of the steps that warm up", low=0.0, high=1.0)
    final_lr_share: float = setting(
        0.05, "share of lr left at the end of the cosine", low=0.0, high=1.0
    )
    weight_decay: float = setting(0.1, "of AdamW, on matrices only", low=0.0, high=1.0)
    adam_beta2: float = setting(0.98, "second-moment decay of AdamW", low=0.0, high=0.9999)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", low=0.0, high=1000.0)
    dropout: float = setting(0.1, "of a policy from scratch", low=0.0, high=0.9)
    validate_every: int = setting(200, "optimizer steps between validations", low=1)
    checkpoint_every: int = setting(200, "optimizer steps between resumable states", low=1)
    log_every: int = setting(20, "optimizer steps between rows of metrics.jsonl", low=1)
    max_valid_pairs: int = setting(
        2000, "validate on at most this many pairs, always the same; 0 takes all", low=0
    )
    patience: int = setting(
        0, "stop after this many validations without a better one; 0 never", low=0
    )
    resume: bool = setting(False, "go on with the run in the folder")
    tensorboard: bool = setting(True, "write TensorBoard files where it is installed")
    lora_rank: int = setting(
        0, "train LoRA matrices of this rank on the base; 0 trains all", low=0, high=1024
    )
    vocab_size: int = setting(5120, "of a tokenizer from scratch", low=300, high=100_000)
    hidden_size: int = setting(256, "of a policy from scratch", low=8, high=8192)
    num_layers: int = setting(8, "of a policy from scratch", low=1, high=128)
    num_heads: int = setting(8, "of a policy from scratch", low=1, high=128)
