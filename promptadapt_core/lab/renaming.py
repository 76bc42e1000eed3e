"""Weights of a model on their way to another one's names: each taken once, none left over."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..settings import SettingsError

Weights = dict[str, torch.Tensor]


class Source:
    """The weights of one part of the renderer; `part` is for messages."""

    def __init__(self, part: str, weights: Mapping[str, torch.Tensor]):
        self.part = part
        self.left = dict(weights)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A copy in half precision. SettingsError("weights", ...) when it is missing, of another
        shape or too large for half precision."""
        if name not in self.left:
            raise SettingsError("weights", f"{self.part} has no {name}")
        half = self.left.pop(name).to(torch.float16, copy=True).contiguous()
        if shape is not None and tuple(half.shape) != shape:
            reason = f"{self.part}: {name} is {tuple(half.shape)}, expected {shape}"
            raise SettingsError("weights", reason)
        if not torch.isfinite(half).all():
            raise SettingsError("weights", f"{self.part}: {name} does not fit half precision")
        return half

    def finish(self) -> None:
        """SettingsError("weights", ...) for what was not taken."""
        if self.left:
            extra = ", ".join(sorted(self.left)[:3])
            raise SettingsError("weights", f"{self.part} has what ComfyUI cannot take: {extra}")
