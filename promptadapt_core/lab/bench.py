"""The lab's renderer, scorer and judge, loaded together to be measured."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from .. import runs
from ..devices import pick_device
from ..images import DiffusersGenerator
from ..scorers import OpenClipScorer
from .autoencoder import decode, encode, load_autoencoder
from .bundle import JUDGE_NAME, SCORER_NAME
from .folders import WEIGHTS, renderer_folder
from .judge import Judge
from .measures import MEGABYTE

if TYPE_CHECKING:
    from .settings import ReportSettings

Loaded = TypeVar("Loaded")

NUMBERS_OF_STEPS = (1, 2, 4, 8, 16)
TIMED_BATCHES = (1, 16)
TIMED_CAPTION = "a red house by the sea, golden hour"
BATCH_SIZE = 32
LEAST_SECONDS = 0.5  # of one timing
SCORED = 256  # pictures in one timing of the scorer


class Bench:
    """See the module. Made by `load_bench`; its pictures are (N, 64, 64, 3) uint8."""

    def __init__(
        self,
        weights: Path,
        generator: DiffusersGenerator,
        scorer: OpenClipScorer,
        judge: Judge,
        report: runs.Reporter,
    ):
        self.weights, self.generator, self.scorer, self.judge = weights, generator, scorer, judge
        self.report = report
        self.autoencoder = load_autoencoder(weights / "vae")
        self.timings: dict[str, float] = {}
        self.num_expected = self.num_rendered = 0

    def expect(self, number: int) -> None:
        """How many pictures will be rendered in all, for the progress."""
        self.num_expected, self.num_rendered = number, 0

    def render(self, texts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One picture for each text."""
        parts = []
        for start in range(0, len(texts), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            parts.append(self.generator.generate(list(texts[rows]), list(seeds[rows])))
            self.num_rendered += len(parts[-1])
            if self.num_rendered <= self.num_expected:
                self.report.step(self.num_rendered, self.num_expected, {})
        return np.concatenate(parts)

    def autoencoded(self, pictures: np.ndarray) -> np.ndarray:
        """The pictures after encoder and decoder."""
        return decode(self.autoencoder, encode(self.autoencoder, pictures))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.scorer.embed_texts(list(texts)).numpy()

    def embed_images(self, pictures: np.ndarray) -> np.ndarray:
        return self.scorer.embed_images(pictures).numpy()

    def aesthetic(self, pictures: np.ndarray) -> np.ndarray:
        """(N,) the head's scores."""
        return self.scorer.score([""] * len(pictures), pictures).aesthetic.numpy()

    def machine(self) -> str:
        """What the speeds were measured on."""
        device = self.generator.pipeline.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        return (
            f"{name}; {platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} "
            f"threads, torch {torch.__version__}, Python {platform.python_version()}"
        )

    def image_settings(self) -> dict[str, Any]:
        """Steps, guidance and what else the pictures depend on."""
        return dataclasses.asdict(self.generator.settings)

    def file_sizes(self) -> dict[str, int]:
        """Bytes of every weight file."""
        paths = sorted(self.weights.rglob("*.safetensors"))
        return {path.relative_to(self.weights).as_posix(): path.stat().st_size for path in paths}

    def speeds(self) -> dict[str, float]:
        """What was timed: seconds to load, pictures per second, memory in MB."""
        found = dict(self.timings)
        usual = self.generator.settings
        for number in NUMBERS_OF_STEPS:
            self.generator.settings = dataclasses.replace(usual, num_steps=number)
            for batch in TIMED_BATCHES:
                if number == NUMBERS_OF_STEPS[0]:
                    self._timed_render(batch)  # what is only slow the first time
                name = f"renders per second, {number} steps, {batch} at once"
                found[name] = per_second(lambda batch=batch: self._timed_render(batch))
        self.generator.settings = usual
        pixels = np.random.Generator(np.random.PCG64(0)).integers(
            256, size=(SCORED, 64, 64, 3), dtype=np.uint8
        )
        texts = [TIMED_CAPTION] * SCORED
        self.scorer.score(texts[:1], pixels[:1])
        self.judge.read(pixels[:1])
        found["pictures scored per second"] = per_second(
            lambda: len(self.scorer.score(texts, pixels).aesthetic)
        )
        found["pictures judged per second"] = per_second(
            lambda: len(self.judge.read(pixels).tastes)
        )
        if (peak := peak_memory()) is not None:
            found["peak memory with everything loaded, MB"] = peak
        return found

    def _timed_render(self, number: int) -> int:
        return len(self.generator.generate([TIMED_CAPTION] * number, range(number)))


def load_bench(settings: ReportSettings, report: runs.Reporter) -> Bench:
    """Load everything, timed. SettingsError names what is missing or broken."""
    device = pick_device(settings.device)
    weights = Path(settings.weights) if settings.weights else WEIGHTS
    timings: dict[str, float] = {}

    def timed(name: str, load: Callable[[], Loaded]) -> Loaded:
        began = time.monotonic()
        loaded = load()
        timings[f"seconds to {name}"] = time.monotonic() - began
        return loaded

    folder = timed("put the pipeline folder in place", lambda: renderer_folder(weights))
    generator = timed("load the renderer", lambda: _load_generator(folder, device, settings))
    if (peak := peak_memory()) is not None:
        generator.generate([TIMED_CAPTION], [0])
        timings["peak memory of rendering one picture, MB"] = peak_memory() or peak
    scorer = timed(
        "load the scorer", lambda: OpenClipScorer.load(weights / SCORER_NAME, str(device))
    )
    judge = timed("load the judge", lambda: Judge.load(weights / JUDGE_NAME, device))
    bench = Bench(weights, generator, scorer, judge, report)
    bench.timings = timings
    return bench


def _load_generator(
    folder: Path, device: torch.device, settings: ReportSettings
) -> DiffusersGenerator:
    chosen: dict[str, Any] = {
        "num_steps": settings.num_steps, "guidance_scale": settings.guidance_scale
    }  # fmt: skip
    return DiffusersGenerator.load(folder, device=str(device), batch_size=BATCH_SIZE, **chosen)


def per_second(work: Callable[[], int]) -> float:
    """How many pictures a second `work`, which returns their number, makes."""
    began, number = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < LEAST_SECONDS:
        number += work()
    return number / seconds


def peak_memory() -> float | None:
    """The most memory that this process has had so far, MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
