"""Every metric of metrics.jsonl, defined once. Keys are `group/name`."""

from __future__ import annotations

SFT_METRICS: dict[str, str] = {
    "train/loss": "nats per completion token (target and end token, those that repeat the user "
    "input weighing echo_weight), dropout on, mean over the steps since the last row",
    "train/epoch": "passes over the training pairs so far",
    "train/tokens": "real tokens read so far, policy prompts included, padding not",
    "train/tokens_per_second": "real tokens per second since the last row, without the time of "
    "validations and checkpoints",
    "train/padding_share": "share of the tokens computed since the last row that were padding",
    "optim/lr": "learning rate of the last step",
    "optim/grad_norm": "norm of the gradient before clipping, mean since the last row",
    "valid/loss": "the same of the validation pairs, dropout off; the best checkpoint is the one "
    "with the lowest",
    "valid/nll_per_token": "nats per completion token of the validation pairs, each weighing 1",
    "valid/nll_per_word": "nats of the completions per whitespace word of the targets",
    "valid/nll_per_word_added": "nats of what follows the user's own text, or its rephrasing, per "
    "whitespace word added there (end token included)",
    "valid/best_loss": "the lowest valid/loss so far",
    "valid/num_since_best": "validations since the lowest",
    "time/hours": "wall time of training so far, over all resumed parts",
}
