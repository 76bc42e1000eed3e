"""A generator of its own for everything that a trainer draws."""

from __future__ import annotations

import hashlib

import torch


def generator_of(seed: int, purpose: str, number: int) -> torch.Generator:
    """On the CPU. The same arguments give the same numbers, in whatever process and order."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
