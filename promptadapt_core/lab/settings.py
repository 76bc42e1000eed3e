"""The settings of the lab's command line, in the one table of promptadapt_core/settings.py.

The defaults of LabSettings are the full build; every size can be made small, as the tests do.
"""

from __future__ import annotations

import dataclasses

from ..settings import MAX_SEED, Settings, SettingsError, setting

PARTS = ("vae", "renderer", "clip", "aesthetic", "judge")


@dataclasses.dataclass(frozen=True)
class LabSettings(Settings):
    """How the lab is built."""

    out: str = setting(
        "", "folder of the build: pictures, states, metrics and weights", metavar="FOLDER"
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")
    part: str = setting(
        "all", "train only this part; it needs those before it", choices=("all", *PARTS)
    )
    seed: int = setting(
        0, "of the pictures, the first weights and every batch", low=0, high=MAX_SEED
    )
    num_pictures: int = setting(100_000, "pictures to draw and train on", low=64, high=5_000_000)
    num_judge_pictures: int = setting(
        80_000, "other pictures, which only the judge learns from", low=64, high=5_000_000
    )
    num_vae_steps: int = setting(6_500, "optimizer steps of the autoencoder", low=1)
    num_vae_decoder_steps: int = setting(
        5_000, "optimizer steps that then sharpen its decoder alone; 0 is none", low=0
    )
    num_vae_encoder_steps: int = setting(
        3_000, "optimizer steps of the encoder that is then published with it", low=1
    )
    vae_batch_size: int = setting(8, "pictures per step of the autoencoder", low=2, high=4096)
    num_renderer_layers: int = setting(
        3, "blocks of the renderer; its width is 64 times this", low=2, high=24
    )
    num_renderer_steps: int = setting(7_000, "optimizer steps of the renderer", low=1)
    renderer_batch_size: int = setting(96, "pictures per step of the renderer", low=2, high=4096)
    renderer_lr: float = setting(2e-3, "peak learning rate of the renderer", low=0.0, high=1.0)
    num_clip_steps: int = setting(4_200, "optimizer steps of the CLIP", low=1)
    clip_batch_size: int = setting(128, "pairs per step of the CLIP", low=4, high=4096)
    num_aesthetic_steps: int = setting(3_000, "optimizer steps of the aesthetic head", low=1)
    aesthetic_batch_size: int = setting(
        256, "ratings per step of the aesthetic head", low=4, high=65536
    )
    num_judge_steps: int = setting(12_000, "optimizer steps of the judge", low=1)
    judge_batch_size: int = setting(64, "pictures per step of the judge", low=2, high=4096)
    num_calibration_pictures: int = setting(
        512,
        "renders of plain user inputs from which the relevance knee is found",
        low=2,
        high=100_000,
    )
    save_every_seconds: float = setting(
        60.0, "seconds between resumable states", low=0.0, high=86_400.0
    )
    num_threads: int = setting(
        0,
        "threads of a build on the CPU; another number rounds differently; 0 leaves it to torch",
        low=0,
        high=1024,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise SettingsError("out", "expected the folder of the build")


@dataclasses.dataclass(frozen=True)
class RenderSettings(Settings):
    """How one text becomes picture files. The sizes are those of the renderer's latents."""

    out: str = setting(
        "picture.png", "the file to write; more pictures are NAME-2, NAME-3, ...", metavar="FILE"
    )
    seed: int = setting(0, "of the first picture; the next have the next", low=0, high=MAX_SEED)
    num_images: int = setting(1, "pictures to render", low=1, high=1024)
    num_steps: int | None = setting(
        None, "sampling steps; more is finer [default: the renderer's own]", low=1, high=1000
    )
    guidance_scale: float | None = setting(
        None,
        "how strongly the prompt pulls; 1 is not at all [default: the renderer's own]",
        low=0.0,
        high=100.0,
    )
    size: int | None = setting(
        None,
        "pixels of each side; the lab's renderer has learned 64 [default: the renderer's own]",
        low=16,
        high=128,
    )
    scale: int = setting(1, "enlarge the written file this many times", low=1, high=16)
    device: str = setting("cpu", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")
    weights: str = setting(
        "", "folder of other lab weights, such as OUT/weights of a build", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size % 8:
            raise SettingsError("size", f"expected a multiple of 8, got {self.size}")
        if not self.out:
            raise SettingsError("out", "expected the file to write")


@dataclasses.dataclass(frozen=True)
class ReportSettings(Settings):
    """How the lab is measured."""

    out: str = setting("", "folder for report.html, report.json and pictures", metavar="FOLDER")
    weights: str = setting(
        "", "folder of other lab weights, such as OUT/weights of a build", metavar="FOLDER"
    )
    num_pictures: int = setting(
        1000, "pictures behind each measure; few give a quick look", low=20, high=100_000
    )
    seed: int = setting(0, "of the scenes and the renders", low=0, high=MAX_SEED)
    num_steps: int | None = setting(
        None, "sampling steps of the renders [default: the renderer's own]", low=1, high=1000
    )
    guidance_scale: float | None = setting(
        None,
        "how strongly the prompt pulls; 1 is not at all [default: the renderer's own]",
        low=0.0,
        high=100.0,
    )
    device: str = setting("cpu", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise SettingsError("out", "expected a folder for the report")


@dataclasses.dataclass(frozen=True)
class PairsSettings(Settings):
    """How many training pairs the simulated writers write."""

    out: str = setting("", "the file to write, JSON lines", metavar="FILE")
    num_pairs: int = setting(30_000, "pairs to write", low=1, high=10_000_000)
    seed: int = setting(0, "of the writers and what they write about", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise SettingsError("out", "expected the file to write")


@dataclasses.dataclass(frozen=True)
class InputsSettings(Settings):
    """How many plain user inputs the lab makes up for reinforcement learning."""

    out: str = setting("", "the file to write, one user input a line", metavar="FILE")
    num_inputs: int = setting(
        1000, "user inputs to write, in domain and out of domain in turn", low=1, high=20_000
    )
    domain: str = setting(
        "both", "both, in (as the simulated writers write) or out (what they never write)",
        choices=("both", "in", "out"), metavar="both|in|out",
    )  # fmt: skip
    seed: int = setting(0, "of the user inputs", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise SettingsError("out", "expected the file to write")


@dataclasses.dataclass(frozen=True)
class ExportSettings(Settings):
    """How the renderer becomes one checkpoint file for ComfyUI."""

    out: str = setting("", "the checkpoint to write, .safetensors", metavar="FILE")
    weights: str = setting(
        "", "folder of other lab weights, such as OUT/weights of a build", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.endswith(".safetensors"):
            raise SettingsError(
                "out", f"expected a file that ends in .safetensors, got {self.out!r}"
            )
