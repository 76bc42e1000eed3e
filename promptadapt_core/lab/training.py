"""What the trainings of all parts share: modules, optimizers, averaged weights, the step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .stages import Ema, bfloat16_pays, cosine_lr, make_adamw, set_lr, step_generator

COMMON_METRICS = {
    "train/loss": "what is minimised",
    "optim/lr": "learning rate",
    "optim/grad_norm": "norm of the gradient before clipping",
}


class Training:
    """Base of the stages (see the protocol in stages.py).

    A stage calls `prepare` in its __init__ and writes `losses`, `validate` and `save`. `model` is
    what is averaged; `extra` modules are trained with it and kept in the state.
    """

    clip_norm = 1.0
    metrics = COMMON_METRICS

    def prepare(
        self,
        model: nn.Module,
        extra: Sequence[nn.Module] = (),
        *,
        num_steps: int,
        seed: int,
        lr: float,
        ema_decay: float,
        validate_every: int,
        device: torch.device | str,
        precision: str = "auto",
        weight_decay: float = 0.01,
    ) -> None:
        """precision: "auto", "float32" or "bfloat16" (autocast)."""
        self.num_steps, self.seed, self.lr = num_steps, seed, lr
        self.validate_every, self.device = validate_every, torch.device(device)
        self.model = model.to(self.device).train()
        self.extra = nn.ModuleList(extra).to(self.device).train()
        self.optimizers = self.make_optimizers(weight_decay)
        self.ema = Ema(self.model, ema_decay)
        auto = precision == "auto" and bfloat16_pays(self.device)
        self.bfloat16 = precision == "bfloat16" or auto

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """0-dimensional terms to log under train/; "loss" is minimised."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Metrics on what is held out."""
        raise NotImplementedError

    def after_update(self) -> None:
        """Called when the optimizers have changed the weights, before they are averaged."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return cosine_lr(step, self.num_steps, self.lr)

    def make_optimizers(self, weight_decay: float) -> list[torch.optim.Optimizer]:
        return [make_adamw(nn.ModuleList([self.model, self.extra]), self.lr, weight_decay)]

    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        both = (*self.model.parameters(), *self.extra.parameters())
        return [parameter for parameter in both if parameter.requires_grad]

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step, see the protocol."""
        lr = self.rate(step)
        for optimizer in self.optimizers:
            set_lr(optimizer, lr)
        terms = self.losses(step, step_generator(self.seed, step))
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.trained(), self.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.after_update()
        self.ema.update(self.model)
        values = {f"train/{name}": float(value.detach()) for name, value in terms.items()}
        values |= {"optim/lr": lr, "optim/grad_norm": float(norm)}
        if (step + 1) % self.validate_every == 0 or step + 1 == self.num_steps:
            values |= self.validate()
        return values

    def state(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "model": self.model.state_dict(),
            "extra": self.extra.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See the protocol."""
        self.model.load_state_dict(state["model"])
        self.extra.load_state_dict(state["extra"])
        for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        self.ema.load_state(state["ema"])

    def arithmetic(self) -> contextlib.AbstractContextManager:
        """The precision of the forward pass."""
        if not self.bfloat16:  # torch before 2.5 has no autocast for MPS, not even a switched off
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
