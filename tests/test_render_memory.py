from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from promptadapt_core.images import DiffusersGenerator, ImageSettings
from promptadapt_core.render_memory import USUAL_BATCH, fitting_batch, probe_batch_size

MIB = 2**20


@pytest.mark.parametrize(
    ("one", "two", "available", "expected"),
    [
        (100, 150, 400, 7),  # 100 + 6 * 50
        (100, 150, 399, 6),
        (100, 150, 100, 1),
        (100, 150, 50, 1),  # not even one: rendering will say so
        (100, 100, 10_000, 64),
        (100, 101, 10**9, 64),
    ],
)
def test_every_picture_takes_as_much_as_the_second(
    one: int, two: int, available: int, expected: int
) -> None:
    assert fitting_batch(one, two, available) == expected


class Measured:
    """Stands in for a pipeline on a GPU: 100 MiB of weights, 300 for one picture, 50 for each."""

    vae_scale_factor, transformer, scheduler = 8, None, None

    def __init__(self, most: int = 99):
        self.most, self.steps, self.peak = most, [], 0

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, prompt: list[str], num_inference_steps: int, **rest: Any) -> Any:
        if len(prompt) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA")
        self.steps.append(num_inference_steps)
        self.peak = (100 + 300 + 50 * (len(prompt) - 1)) * MIB
        output = type("Output", (), {})()
        output.images = np.zeros((len(prompt), 8, 8, 3))
        return output


def on_gpu(pipeline: Measured, monkeypatch: pytest.MonkeyPatch) -> DiffusersGenerator:
    generator = DiffusersGenerator(pipeline, ImageSettings(num_steps=20), batch_size=5)
    generator.device = torch.device("cuda")
    fakes = {
        "memory_allocated": lambda device: 100 * MIB,
        "max_memory_allocated": lambda device: pipeline.peak,
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (1000 * MIB, 9999 * MIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return generator


def test_two_short_renderings_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Measured()
    generator = on_gpu(pipeline, monkeypatch)
    assert probe_batch_size(generator) == 11  # 300 + 10 * 50 of 0.8 * 1000
    assert pipeline.steps == [2, 2]
    assert (generator.batch_size, generator.settings.num_steps) == (5, 20)


def test_memory_for_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_batch_size(on_gpu(Measured(most=1), monkeypatch)) == 1


def test_a_processor_is_not_probed() -> None:
    pipeline = Measured()
    assert probe_batch_size(DiffusersGenerator(pipeline, ImageSettings())) == USUAL_BATCH
    assert pipeline.steps == []
