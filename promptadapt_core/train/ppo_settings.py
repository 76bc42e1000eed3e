"""The settings of PPO, once: default, range, help. Defaults are the paper's where it names one."""

from __future__ import annotations

import dataclasses

from ..pipeline_settings import option_names
from ..settings import MAX_SEED, SettingsError, setting
from .rewarded_training import RewardedTraining

# What the identity of the renderer says: options of the pipeline, settings of the pictures.
PICTURE_SETTINGS = ("num_steps", "guidance_scale", "size", "negative_prompt", "render_precision",
                    *option_names())  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PpoSettings(RewardedTraining):
    """Reinforcement learning of a policy by PPO."""

    algorithm: str = setting(
        "ppo",
        "ppo, with a value network; grpo or rloo, which compare the candidates of a user input and "
        "need a group_size of 2 or more",
        choices=("ppo", "grpo", "rloo"),
    )
    seed: int = setting(0, "of everything that is drawn", low=0, high=MAX_SEED)
    num_episodes: int = setting(12_000, "candidates to sample in the whole run", low=1)
    rollout_size: int = setting(256, "candidates sampled for one iteration", low=1, high=65536)
    group_size: int = setting(1, "candidates of one user input in a rollout", low=1, high=64)
    group_baseline: bool = setting(
        False,
        "learn from each reward less the mean of the other candidates of its user input: the luck "
        "of the seeds and how hard the input is cancel out; needs group_size 2 or more",
    )
    num_epochs: int = setting(4, "passes over each rollout", low=1, high=100)
    minibatch_size: int = setting(64, "candidates per optimizer step", low=1, high=65536)
    micro_batch_size: int = setting(64, "candidates per forward pass", low=1, high=65536)
    lr: float = setting(5e-5, "learning rate of the policy, constant", low=0.0, high=1.0)
    value_lr: float = setting(
        5e-5, "learning rate of the value network, constant", low=0.0, high=1.0
    )
    adam_beta1: float = setting(0.9, "first-moment decay of AdamW", low=0.0, high=0.9999)
    adam_beta2: float = setting(0.95, "second-moment decay of AdamW", low=0.0, high=0.9999)
    adam_eps: float = setting(1e-6, "AdamW's epsilon", low=1e-12, high=1e-2)
    weight_decay: float = setting(0.0, "of AdamW, on matrices only", low=0.0, high=1.0)
    max_grad_norm: float = setting(
        1.0, "gradients are clipped to this norm, each network's apart; 0 does not", low=0.0
    )
    kl_coef: float = setting(
        0.2, "weight of the KL to the SFT policy, per nat, at the start", low=0.0, high=100.0
    )
    kl_target: float = setting(
        6.0,
        "KL to the SFT policy, nats per completion, that kl_coef is moved to reach; 0 leaves it",
        low=0.0,
        high=10_000.0,
    )
    kl_horizon: float = setting(
        10_000.0, "candidates in which an error of 0.1 moves kl_coef by a tenth", low=1.0
    )
    gamma: float = setting(1.0, "discount per token", low=0.0, high=1.0)
    gae_lambda: float = setting(0.95, "of generalised advantage estimation", low=0.0, high=1.0)
    clip_range: float = setting(0.2, "of the probability ratio", low=0.001, high=10.0)
    value_clip_range: float = setting(0.2, "of the value, reward units", low=0.001, high=1e6)
    value_coef: float = setting(2.3, "weight of the value loss", low=0.0, high=1000.0)
    entropy_coef: float = setting(0.0, "bonus per nat of entropy", low=0.0, high=10.0)
    temperature: float = setting(1.0, "at which completions are sampled", low=0.05, high=5.0)
    min_length_limit: int = setting(
        15, "least of the longest completion in tokens, drawn at every rollout", low=1, high=512
    )
    max_length_limit: int = setting(75, "most of it", low=1, high=512)
    token_budget: int = setting(
        75, "longest adapted prompt in tokens of the CLIP text encoder", low=1, high=750
    )
    max_ref_kl: float = setting(
        100.0,
        "stop when the KL to the SFT policy, nats per completion, is above this; 0 never",
        low=0.0,
    )
    max_approx_kl: float = setting(
        0.0,
        "leave out the rest of a rollout's updates when one has moved the policy by more nats a "
        "token; 0 never",
        low=0.0,
    )
    min_mean_tokens: float = setting(
        1.5, "stop when completions have fewer tokens on average; 0 never", low=0.0
    )
    checkpoint_every: int = setting(5, "iterations between resumable states", low=1)
    samples_every: int = setting(5, "iterations between files of samples; 0 writes none", low=0)
    num_samples: int = setting(16, "candidates in a file of samples", low=1, high=4096)
    resume: bool = setting(False, "go on with the run in the folder")
    tensorboard: bool = setting(True, "write TensorBoard files where it is installed")
    group_timeout_minutes: float = setting(
        60.0,
        "of several processes (accelerate launch): how long one waits for another that is slow "
        "before it gives up; longer than one's share of an iteration's pictures takes",
        low=0.05,
        high=100_000.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length_limit > self.max_length_limit:
            raise SettingsError(
                "min_length_limit",
                f"expected at most max_length_limit ({self.max_length_limit}), "
                f"got {self.min_length_limit}",
            )
        if self.rollout_size % self.group_size:
            raise SettingsError(
                "group_size", f"expected a divisor of rollout_size ({self.rollout_size})"
            )
        if self.group_size < 2 and self.algorithm != "ppo":
            raise SettingsError("group_size", f"{self.algorithm} needs 2 or more")
        if self.group_baseline and self.group_size < 2:
            raise SettingsError("group_baseline", "needs a group_size of 2 or more")

    @property
    def num_iterations(self) -> int:
        """Rollouts in the run; the last is as large as the others."""
        return -(-self.num_episodes // self.rollout_size)
