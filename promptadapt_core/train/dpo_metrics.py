"""Every metric of learning by DPO, defined once. Keys are `group/name`."""

from __future__ import annotations

# Of a round's own metrics.jsonl, one row every log_every steps. All "mean since the last row".
DPO_METRICS: dict[str, str] = {
    "train/loss": "of DPO, mean since the last row; log 2 = 0.693 where nothing is preferred",
    "train/nll": "negative log-likelihood of the chosen texts, nats a token, mean since then",
    "train/margin": "beta * (gain in log-probability of the chosen text over the reference, less "
    "that of the rejected), mean since then",
    "train/accuracy": "share of the pairs whose margin is above 0, since then",
    "train/chosen_gain": "log-probability of the chosen text less the reference's, nats, mean "
    "since then; far below 0: the policy forgets both texts",
    "train/rejected_gain": "the same of the rejected text",
    "train/epoch": "passes over the training pairs so far",
    "optim/lr": "learning rate of the last step",
    "optim/grad_norm": "norm of the gradient before clipping, mean since the last row",
    "valid/loss": "of DPO, of the validation pairs; the checkpoint with the lowest goes on",
    "valid/accuracy": "share of the validation pairs whose margin is above 0",
    "valid/margin": "mean margin of the validation pairs",
    "valid/best_loss": "the lowest valid/loss so far",
    "time/hours": "wall time of the round's learning so far, over all resumed parts",
}
# Of a round's row in the run's metrics.jsonl.
DPO_ROUND_METRICS: dict[str, str] = {
    "learned/num_steps": "optimizer steps of the round",
    "learned/margin": "mean difference of the rewards in a pair",
    "learned/length_gap": "mean tokens of the chosen text less those of the rejected; about 0, or "
    "length is what is learned",
    "learned/loss": "of DPO, over the last logged steps",
    "learned/accuracy": "share of the pairs that the policy tells apart as it should, likewise",
    "learned/valid_loss": "the lowest of the validation pairs in the round",
}
