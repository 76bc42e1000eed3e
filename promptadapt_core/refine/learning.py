"""A copy of a policy that learns from the rounds of one refinement."""

from __future__ import annotations

import copy
import dataclasses

import torch

from ..objectives import ref_kl
from ..policy import Policy
from ..rollouts import Rollout, estimated, needs_whole_logits, token_batch
from ..train.bases import Trainee, with_lora
from ..train.ppo_settings import PpoSettings
from ..train.ppo_update import Learner, make_optimizer, minibatches_of, update
from ..train.value import ValueNetwork
from .settings import RefineSettings

MOST_TOGETHER = 32  # completions in one forward pass, and in one step of the optimizer


class PolicyCopy:
    """The copy, the frozen policy that it began as and, for PPO, a value network; all float32 and
    in evaluation mode.

    policy: what writes, and what learns unless the method is best_of_n. networks: all that a host
    has to move to the device at once; the state of the optimizer follows by itself.
    """

    def __init__(self, policy: Policy, settings: RefineSettings):
        self.settings = settings
        self.policy = policy.clone()
        self.trainee: Trainee | None = None
        model = self.policy.model.float().eval()
        self.networks: torch.nn.Module = model
        if not settings.learns:
            return
        if hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("eager")  # the same kernel with and without gradient
        self.ref_model = copy.deepcopy(model).requires_grad_(False)
        model.requires_grad_(True)
        value = ValueNetwork(model) if settings.method == "ppo" else None
        lora = None
        if settings.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed % 2**63)
                lora = with_lora(model, settings.lora_rank)
        self.trainee = Trainee(self.policy, model, lora)
        own = ppo_settings(settings)
        optimizer = make_optimizer(model, value, own, fused=False)
        self._learner = Learner(model, value, optimizer, own, torch.device("cpu"), False)
        self._knows_logits = False
        parts = [model, self.ref_model, *([value] if value is not None else [])]
        self.networks = torch.nn.ModuleList(parts)

    def learn(self, rollout: Rollout, round_number: int) -> dict[str, float]:
        """Update the policy on a rewarded rollout; metrics as in train/ppo_metrics.py.

        SettingsError("lr", ...) for a loss that is not finite: the weights are those before it.
        """
        assert self.trainee is not None
        learner, device = self._learner, next(self.trainee.model.parameters()).device
        learner.device = device
        _move_state(learner.optimizer, device)
        if not self._knows_logits:
            probe = token_batch(rollout, [0], device)
            learner.whole_logits = needs_whole_logits(learner.model, probe)
            self._knows_logits = True
        first_epoch = minibatches_of(rollout, learner.settings, round_number, 0)
        rollout = estimated(
            rollout,
            [rows for micro_batches in first_epoch for rows in micro_batches],
            policy_model=learner.model,
            ref_model=self.ref_model,
            values=learner.value_network,
            temperature=self.settings.temperature,
            device=device,
            whole_logits=learner.whole_logits,
        )
        kl = ref_kl(rollout.old_logprobs, rollout.ref_logprobs, rollout.completion_mask)
        row = update(learner, rollout, self.settings.kl_coef, round_number)
        return {**row, "kl/ref_kl": kl.item()}

    def refined(self) -> Policy:
        """The policy as it is now, on the CPU, LoRA matrices merged; it shares nothing with the
        copy."""
        if self.trainee is None:
            return self.policy.clone()
        merged = self.policy.clone(self.trainee.merged())
        merged.model.to("cpu").requires_grad_(False)
        name = f"{merged.manifest.name}-refined"
        merged.manifest = dataclasses.replace(merged.manifest, name=name)
        return merged


def ppo_settings(settings: RefineSettings) -> PpoSettings:
    """The same as the training loops know it; one user input is one group."""
    return PpoSettings(
        algorithm=settings.method,
        group_size=2,  # or more: whatever a round brings
        num_epochs=settings.num_epochs,
        minibatch_size=MOST_TOGETHER,
        micro_batch_size=MOST_TOGETHER,
        lr=settings.lr,
        value_lr=settings.lr,
        kl_coef=settings.kl_coef,
        temperature=settings.temperature,
        seed=settings.seed,
    )


def _move_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """A host moved the weights; the moments of AdamW go where they are."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                state[name] = value.to(device)
