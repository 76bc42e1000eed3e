"""The optimizer of DPO and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..settings import SettingsError
from .dpo_settings import ADAMW_8BIT, DpoSettings
from .sft import fused_works, parameter_groups

FINAL_LR_SHARE = 0.1  # of lr at the end


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: DpoSettings, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices; with its moments in 8 bits where that is asked for,
    SettingsError("optimizer", ...) where it cannot be had."""
    groups = parameter_groups(list(parameters), settings.weight_decay)
    options: dict[str, Any] = {
        "lr": settings.lr, "betas": (0.9, settings.adam_beta2), "eps": 1e-8,
    }  # fmt: skip
    if settings.optimizer != ADAMW_8BIT:
        return torch.optim.AdamW(groups, fused=fused_works(device), **options)
    return eight_bit(device)(groups, **options)


def eight_bit(device: torch.device) -> type[torch.optim.Optimizer]:
    """bitsandbytes' AdamW (Dettmers et al., arXiv 2110.02861), once it has made one step;
    SettingsError("optimizer", ...) where it cannot."""
    try:
        import bitsandbytes

        made = bitsandbytes.optim.AdamW8bit
    except ImportError:
        raise SettingsError(
            "optimizer", f"{ADAMW_8BIT} needs bitsandbytes: pip install bitsandbytes"
        ) from None
    except (RuntimeError, OSError, AttributeError) as error:  # as it fails without its libraries
        raise SettingsError("optimizer", f"bitsandbytes cannot be used here: {error}") from None
    weight = torch.zeros(64, 128, device=device, requires_grad=True)  # large enough for 8 bits
    weight.grad = torch.ones_like(weight)
    try:
        made([weight], lr=0.1).step()
        moved = bool((weight != 0).all())
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            "optimizer", f"bitsandbytes has no {ADAMW_8BIT} for {device}: {reason}"
        ) from None
    if not moved:
        raise SettingsError("optimizer", f"bitsandbytes has no {ADAMW_8BIT} that works on {device}")
    return made


def lr_at(step: int, num_steps: int, settings: DpoSettings) -> float:
    """The learning rate of step 0 .. num_steps - 1: a linear warm-up, then down to a tenth."""
    num_warmup = round(settings.warmup_share * num_steps)
    if step < num_warmup:
        return settings.lr * (step + 1) / num_warmup
    done = (step - num_warmup) / max(num_steps - 1 - num_warmup, 1)
    return settings.lr * (1.0 - (1.0 - FINAL_LR_SHARE) * min(done, 1.0))
