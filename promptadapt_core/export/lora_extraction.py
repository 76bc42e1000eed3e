"""LoRA matrices from the difference of two policies, where training merged them.

A sum of merged LoRA matrices of rank r, of n rounds, has rank n * r at most, so the singular value
decomposition gives it back (Eckart and Young 1936). What float16 rounded on the way is left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..policy import Policy
from ..settings import SettingsError
from ..train.bases import with_seeded_lora

HALF_ROUNDING = 2.0**-11 / 3**0.5  # of a weight, root mean square, where float16 keeps it
MOST_LEFT = 1e-3  # of the difference, beside what float16 rounded


def extract_lora(base: Policy, policy: Policy, rank: int, most_times: int, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json as peft does.

    rank: of one round. most_times: rounds. SettingsError("lora", ...) where the difference has a
    higher rank, or lies in weights that LoRA does not train.
    """
    old = {name: weight.float() for name, weight in base.model.state_dict().items()}
    new = {name: weight.float() for name, weight in policy.model.state_dict().items()}
    if set(old) != set(new) or any(old[name].shape != new[name].shape for name in old):
        raise SettingsError("lora", "the policy and the one it began with have other shapes")
    for times in _doubling(most_times):
        model = with_seeded_lora(base.clone(base.model).model, rank * times, 0)
        left = _fill(model, old, new)
        if left is not None:
            model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
            return
    raise SettingsError(
        "lora",
        f"the run changed more than matrices of rank {rank} in each of {most_times} rounds can: "
        "export the whole policy",
    )


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return list(dict.fromkeys([*found, most]))


def _fill(model: Any, old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> float | None:
    """Put the difference into the matrices of a peft model; the largest share of a difference that
    is left, or None where it is too much."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    worst = 0.0
    for name, weight in old.items():
        difference = new[name] - weight
        rounding = HALF_ROUNDING * new[name].norm().item()
        layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        kept = torch.zeros_like(difference) if layer is None else _set(layer, difference)
        left = (difference - kept).norm().item()
        size = difference.norm().item()
        if left > max(MOST_LEFT * size, 2.0 * rounding + 1e-7):
            return None
        worst = max(worst, left / size if size else 0.0)
    return worst


def _set(layer: Any, difference: torch.Tensor) -> torch.Tensor:
    """The best matrices of the layer's rank; the difference that they make."""
    transposed = getattr(layer, "fan_in_fan_out", False)
    wanted = difference.T if transposed else difference  # (out, in)
    rank, scaling = layer.r["default"], layer.scaling["default"]
    left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    rank = min(rank, len(values))
    root = (values[:rank] / scaling).sqrt()
    with torch.no_grad():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.zero_()
        up.zero_()
        down[:rank] = root[:, None] * right[:rank]
        up[:, :rank] = left[:, :rank] * root[None, :]
        made = scaling * (up @ down)
    return made.T if transposed else made
