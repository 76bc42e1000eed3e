"""How many pictures at once a GPU holds, found by rendering one and two."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .images import DiffusersGenerator

USUAL_BATCH = 8  # where memory cannot be measured
MOST = 64  # more at once is hardly quicker
SHARE = 0.8  # of the free memory; the rest is the policy's and what the allocator wastes
PROBE_PROMPT, PROBE_STEPS = "a picture", 2


def fitting_batch(one: int, two: int, available: int, most: int = MOST) -> int:
    """How many pictures fit. one, two: peak bytes of batches of one and two; every further
    picture takes as much again as the second. 1 or more."""
    each = max(two - one, 1)
    return max(1, min(most, 1 + (available - one) // each))


def probe_batch_size(generator: DiffusersGenerator) -> int:
    """The batch size for a generator on CUDA, from two short renderings; USUAL_BATCH elsewhere,
    where torch cannot tell. Raises what DiffusersGenerator.generate raises."""
    device = generator.device
    if device.type != "cuda":
        return USUAL_BATCH
    probe = copy.copy(generator)
    num_steps = min(PROBE_STEPS, generator.settings.num_steps)
    probe.settings = dataclasses.replace(generator.settings, num_steps=num_steps)
    held = torch.cuda.memory_allocated(device)
    peaks = []
    for number in (1, 2):
        probe.batch_size = number
        torch.cuda.reset_peak_memory_stats(device)
        probe.generate([PROBE_PROMPT] * number, list(range(number)))
        if probe.batch_size < number:  # memory for one only
            return 1
        peaks.append(torch.cuda.max_memory_allocated(device) - held)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return fitting_batch(peaks[0], peaks[1], int(SHARE * free))
