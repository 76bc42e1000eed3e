"""A copy of a policy that learns from the rounds of one refinement."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from ..decoding import Stopped
from ..objectives import ref_kl
from ..policy import Policy
from ..rollouts import Rollout, estimated, needs_whole_logits, token_batch
from ..train.bases import Trainee, with_seeded_lora
from ..train.ppo_settings import PpoSettings
from ..train.ppo_update import Learner, make_optimizer, minibatches_of, update
from ..train.value import ValueNetwork
from .settings import RefineSettings
from .stopping import stopping_between_layers

MINIBATCH, MICRO_BATCH = 32, 8  # completions in a step of the optimizer, and in a forward pass
CPU = torch.device("cpu")


class PolicyCopy:
    """The copy, the frozen policy that it began as and, for PPO, a value network; all float32 and
    in evaluation mode.

    policy: what writes, and what learns unless the method is best_of_n. networks: all that a host
    has to move to the device at once; the state of the optimizer is there only while it learns.
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
        rank = settings.lora_rank
        lora = with_seeded_lora(model, rank, settings.seed) if rank else None
        self.trainee = Trainee(self.policy, model, lora)
        own = ppo_settings(settings)
        optimizer = make_optimizer(model, value, own, fused=False)
        self._learner = Learner(model, value, optimizer, own, CPU, False)
        self._knows_logits = False
        parts = [model, self.ref_model, *([value] if value is not None else [])]
        self.networks = torch.nn.ModuleList(parts)

    @property
    def num_bytes_to_learn(self) -> int:
        """What learning takes on the device beside the networks, roughly: gradients and two
        moments of what learns, and the activations of a micro-batch."""
        if self.trainee is None:
            return 0
        learning = sum(p.nbytes for p in self.networks.parameters() if p.requires_grad)
        return 3 * learning + 3 * sum(p.nbytes for p in self.ref_model.parameters())

    def learn(
        self,
        rollout: Rollout,
        round_number: int,
        should_stop: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """Update the policy on a rewarded rollout; metrics as in train/ppo_metrics.py.

        SettingsError("lr", ...) for a loss that is not finite: the weights are those before it.
        decoding.Stopped, midway, once should_stop() is true.
        """
        assert self.trainee is not None
        learner, device = self._learner, next(self.trainee.model.parameters()).device
        learner.device, learner.should_stop = device, should_stop
        try:
            _move_state(learner.optimizer, device)
            with stopping_between_layers(self.networks, should_stop):
                return self._updated(rollout, round_number)
        finally:
            learner.optimizer.zero_grad(set_to_none=True)
            _move_state(learner.optimizer, CPU)

    def _updated(self, rollout: Rollout, round_number: int) -> dict[str, float]:
        learner, device = self._learner, self._learner.device
        if not self._knows_logits:
            probe = token_batch(rollout, [0], device)
            learner.whole_logits = needs_whole_logits(learner.model, probe)
            self._knows_logits = True
        first_epoch = minibatches_of(rollout, learner.settings, round_number, 0)
        micro_batches = [rows for minibatch in first_epoch for rows in minibatch]
        rollout = estimated(
            rollout,
            _until(learner.should_stop, micro_batches),
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

    def restart(self) -> None:
        """Make the policy what it began as."""
        assert self.trainee is not None
        with torch.no_grad():
            if self.trainee.lora is not None:  # the product of two matrices, of which B began as 0
                for name, matrix in self.trainee.trained().items():
                    if "lora_B" in name:
                        matrix.zero_()
                return
            began = self.ref_model.parameters()
            for mine, its in zip(self.trainee.model.parameters(), began, strict=True):
                mine.copy_(its)

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
        minibatch_size=MINIBATCH,
        micro_batch_size=MICRO_BATCH,
        lr=settings.lr,
        value_lr=settings.lr,
        kl_coef=settings.kl_coef,
        temperature=settings.temperature,
        seed=settings.seed,
    )


def _until(
    should_stop: Callable[[], bool] | None, batches: Sequence[list[int]]
) -> Iterator[list[int]]:
    for batch in batches:
        if should_stop is not None and should_stop():
            raise Stopped
        yield batch


def _move_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """The moments of AdamW to the device."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                state[name] = value.to(device)
