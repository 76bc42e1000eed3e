"""What can be chosen about a diffusers pipeline: how it is put together and how it renders."""

from __future__ import annotations

import dataclasses

from .settings import Settings, setting

AUTO, NONE = "auto", "none"
# Short names of schedulers; what each stands for: image_samplers.py.
SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++-karras", "dpm++-sde", "euler", "euler-a", "heun", "lcm",
            "lightning", "pndm", "tcd", "turbo", "unipc")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RenderingSettings(Settings):
    """How a diffusers pipeline renders; ranges: images.ImageSettings."""

    num_steps: int | None = setting(
        None, "sampling steps of a picture; left out, what the renderer recommends"
    )
    guidance_scale: float | None = setting(
        None, "how strongly a prompt pulls; left out, what the renderer recommends"
    )
    size: int | None = setting(
        None, "pixels of each side of a picture; left out, what the renderer recommends"
    )
    render_batch_size: int = setting(8, "pictures rendered at once", low=1, high=4096)


@dataclasses.dataclass(frozen=True)
class PipelineOptions(Settings):
    """How a pipeline is put together. All but the defaults is part of its identity, except what
    saves memory only."""

    sampler: str = setting(
        AUTO,
        "scheduler of the renderer; auto is its own. dpm++ with 20 steps is the paper's; "
        "lcm, turbo, lightning, tcd take 1 to 8 steps of models or LoRAs made for them",
        choices=(AUTO, *SAMPLERS),
    )
    prediction: str = setting(
        AUTO,
        "what the U-Net of a renderer in one file predicts; auto is v of Stable Diffusion 2 and of "
        "files that say so, else epsilon",
        choices=(AUTO, "epsilon", "v_prediction"),
    )
    render_lora: tuple[str, ...] = setting(
        (), "a LoRA on top of the renderer, with its weight if not 1; may be repeated",
        metavar="FILE[=WEIGHT]",
    )  # fmt: skip
    tiny_decoder: str = setting(
        "", "folder of an AutoencoderTiny in place of the decoder: quicker, a little coarser",
        metavar="FOLDER",
    )  # fmt: skip
    attention_slicing: bool = setting(
        False, "attention of the renderer in slices: less memory, slower, the same pictures"
    )
    decoder_slicing: bool = setting(
        False, "decode one picture at a time: less memory, the same pictures"
    )
    decoder_tiling: bool = setting(
        False, "decode each picture in tiles: for pictures that do not fit otherwise"
    )
    render_offload: str = setting(
        NONE,
        "where the parts of the renderer wait that are not at work; CUDA only. model: each part in "
        "main memory until its turn; sequential: every layer, much slower",
        choices=(NONE, "model", "sequential"),
    )
    renderer_config: str = setting(
        "",
        "pipeline folder whose configs and tokenizers a renderer in one file takes; Stable "
        "Diffusion 1, 2 and XL need none",
        metavar="FOLDER",
    )
    download: bool = setting(
        False, "fetch what is named by a hub name or a known name and is not on this machine"
    )


@dataclasses.dataclass(frozen=True)
class PipelineRendering(RenderingSettings, PipelineOptions):
    """RenderingSettings for any pipeline: what trainers and evaluations offer."""

    render_batch_size: int = setting(
        8, "pictures rendered at once; 0 tries how many the GPU holds", low=0, high=4096
    )
    render_precision: str = setting(
        AUTO,
        "arithmetic of the renderer; auto is float16 on CUDA and MPS, else float32",
        choices=(AUTO, "float16", "bfloat16", "float32"),
    )
    negative_prompt: str | None = setting(
        None, "what pictures should not show; left out, what the renderer recommends",
        metavar="TEXT",
    )  # fmt: skip


def option_names() -> tuple[str, ...]:
    """The names of PipelineOptions' fields."""
    return tuple(field.name for field in dataclasses.fields(PipelineOptions))
