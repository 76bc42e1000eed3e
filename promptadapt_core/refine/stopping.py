"""Passes of a network that can be broken off between two of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..decoding import Stopped


@contextmanager
def stopping_between_layers(
    networks: torch.nn.Module, should_stop: Callable[[], bool] | None
) -> Iterator[None]:
    """Within it, forward and backward passes raise decoding.Stopped once should_stop() is true.

    It is asked at every module that holds no other, on the way forward and on the way back: a pass
    of a large network takes many seconds on a CPU. What is computed stays the same.
    """
    if should_stop is None:
        yield
        return

    def check(*_: Any) -> None:
        if should_stop():
            raise Stopped

    def ask_again_on_the_way_back(_module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(check)

    leaves = [module for module in networks.modules() if not list(module.children())]
    hooks = [module.register_forward_pre_hook(check) for module in leaves]
    hooks += [module.register_forward_hook(ask_again_on_the_way_back) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
