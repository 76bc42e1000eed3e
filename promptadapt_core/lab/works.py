"""The works of a build, each in its own folder: data that is made once, and stages of training."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import runs
from ..pipeline_files import hash_files
from ..settings import MAX_SEED, SettingsError
from .aesthetic import AestheticStage, load_embedder
from .autoencoder import Trainee, encode, load_trainee
from .autoencoder_training import AutoencoderStage, EncoderStage
from .clip import ClipStage
from .dataset import LABELS_NAME, PICTURES_NAME, read_scenes, world_fingerprint, write_pictures
from .judge_training import JudgeStage
from .renderer import RendererStage
from .row_file import fill, read_rows
from .scenes import Scene
from .settings import LabSettings
from .stages import WEIGHTS_NAME, Stage, run_stage
from .taste import rating

DECODER_LR = 1.5e-3
MOST_VALID, VALID_SHARE = 512, 1 / 8  # pictures held out of every training


class Works:
    """Does any work of the build in `path`, given those before it."""

    def __init__(
        self,
        settings: LabSettings,
        path: Path,
        device: torch.device,
        report: runs.Reporter,
        should_stop: Callable[[], bool],
    ):
        self.settings, self.path, self.device = settings, path, device
        self.watch: dict[str, Any] = {"report": report, "should_stop": should_stop}

    def do(self, name: str) -> str:
        """Do it, or go on with it; "done" or "stopped"."""
        settings = self.settings
        if name == "pictures":
            return write_pictures(
                self.path / name, settings.num_pictures, settings.seed, **self.watch
            )
        if name == "judge-pictures":
            return write_pictures(
                self.path / name, settings.num_judge_pictures, self.judge_seed, **self.watch
            )
        if name == "ratings":
            return self._fill(name, self._rate, {"seed": settings.seed})
        if name == "latents":
            return self._write_latents()
        if name == "embeddings":
            return self._write_embeddings()
        return self._train(name)

    def _train(self, name: str) -> str:
        every, folder = self.settings.save_every_seconds, self.path / name
        try:
            return run_stage(self.stage(name), folder, save_every_seconds=every, **self.watch)
        except SettingsError as error:
            if error.name != "lr":
                raise
            setting = "renderer_lr" if name == "renderer" else "seed"  # the others have no flag
            raise SettingsError(setting, error.reason) from None

    def stage(self, name: str) -> Stage:
        """The stage, ready to train."""
        settings = self.settings
        part = name.split("-")[0]
        common: dict[str, Any] = {
            "num_steps": getattr(settings, f"num_{name.replace('-', '_')}_steps"),
            "batch_size": getattr(settings, f"{part}_batch_size"),
            "seed": self.judge_seed if name == "judge" else settings.seed,
            "device": self.device,
            "num_valid": num_valid(
                settings.num_judge_pictures if name == "judge" else settings.num_pictures
            ),
        }
        return getattr(self, f"_{name.replace('-', '_')}")(common)

    def _vae(self, common: dict[str, Any]) -> Stage:
        return AutoencoderStage(self.pictures, **common)

    def _vae_decoder(self, common: dict[str, Any]) -> Stage:
        start = load_trainee(self._weights("vae"))
        common |= {"seed": next_seed(common["seed"]), "lr": DECODER_LR}  # other batches than before
        return AutoencoderStage(self.pictures, start=start, decoder_only=True, **common)

    def _vae_encoder(self, common: dict[str, Any]) -> Stage:
        return EncoderStage(self.pictures, self._trainee(), **common)

    def _renderer(self, common: dict[str, Any]) -> Stage:
        latents = torch.from_numpy(read_rows(self._rows("latents")))
        labels = read_rows(self.path / "pictures" / LABELS_NAME, mapped=True)
        layers, lr = self.settings.num_renderer_layers, self.settings.renderer_lr
        return RendererStage(latents, labels, self.scenes, num_layers=layers, lr=lr, **common)

    def _clip(self, common: dict[str, Any]) -> Stage:
        return ClipStage(self.pictures, self.scenes, read_rows(self._rows("ratings")), **common)

    def _aesthetic(self, common: dict[str, Any]) -> Stage:
        embeddings = torch.from_numpy(read_rows(self._rows("embeddings")))
        return AestheticStage(embeddings, read_rows(self._rows("ratings")), **common)

    def _judge(self, common: dict[str, Any]) -> Stage:
        pictures = read_rows(self.path / "judge-pictures" / PICTURES_NAME, mapped=True)
        scenes = read_scenes(self.judge_seed, self.settings.num_judge_pictures)
        return JudgeStage(pictures, scenes, **common)

    def _rate(self, start: int, end: int) -> np.ndarray:
        """One person's rating of each picture."""
        seed, rows = self.settings.seed, range(start, end)
        raters = (random.Random(f"rating {seed} {row}") for row in rows)
        triples = zip(self.scenes[start:end], self.pictures[start:end], raters, strict=True)
        return np.array([rating(*triple) for triple in triples], dtype=np.float32)

    def _write_latents(self) -> str:
        model = self._trainee().to(self.device)

        def make(start: int, end: int) -> np.ndarray:
            return encode(model, np.asarray(self.pictures[start:end])).numpy()

        return self._fill("latents", make, {"vae": hash_files(self._weights("vae"))})

    def _write_embeddings(self) -> str:
        folder = self._weights("clip")
        embedder = load_embedder(folder, self.device)

        def make(start: int, end: int) -> np.ndarray:
            return embedder.embed_images(np.asarray(self.pictures[start:end])).numpy()

        return self._fill("embeddings", make, {"clip": hash_files(folder)})

    def _fill(
        self, name: str, make: Callable[[int, int], np.ndarray], origin: dict[str, Any]
    ) -> str:
        origin = {**origin, "world": world_fingerprint()}
        return fill(self._rows(name), len(self.pictures), make, origin, **self.watch)

    def _trainee(self) -> Trainee:
        """The autoencoder in training, with its sharpest decoder."""
        name = "vae-decoder" if self.settings.num_vae_decoder_steps else "vae"
        return load_trainee(self._weights(name))

    def _weights(self, name: str) -> Path:
        return self.path / name / WEIGHTS_NAME

    def _rows(self, name: str) -> Path:
        return self.path / name / f"{name}.npy"

    @property
    def judge_seed(self) -> int:
        """The judge's own: it shares neither pictures nor first weights with the others."""
        return next_seed(self.settings.seed)

    @cached_property
    def pictures(self) -> np.ndarray:
        """(N, 64, 64, 3) uint8, mapped from the disk."""
        return read_rows(self.path / "pictures" / PICTURES_NAME, mapped=True)

    @cached_property
    def scenes(self) -> list[Scene]:
        return read_scenes(self.settings.seed, self.settings.num_pictures)


def next_seed(seed: int) -> int:
    return (seed + 1) % (MAX_SEED + 1)


def num_valid(number: int) -> int:
    """How many of so many pictures are held out."""
    return min(MOST_VALID, int(number * VALID_SHARE))
