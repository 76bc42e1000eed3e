"""A renderer of the true Stable Diffusion 1.5 shape with random weights: time, memory, and that a
picture does not depend on its batch.

    python benchmarks/stable_diffusion.py make FOLDER       # once: FOLDER/folder and one file
    python benchmarks/stable_diffusion.py FOLDER/folder [--size 256] [--num-steps 2] ...
    python benchmarks/stable_diffusion.py FOLDER/sd15.safetensors

Nothing is downloaded. The weights (860 million in the U-Net) are float16 on disk: 2.1 GB each.
Peak memory is the process's, or the GPU's where it is on one. Every process measures one renderer.
With --cpu-time seconds of the processor count instead of the clock's, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
PROMPT = "a lighthouse by the sea, oil painting"


def make(place: Path) -> None:
    """Both layouts of one random checkpoint."""
    import diffusers
    import transformers

    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "tiny_pipelines.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=transformers.CLIPTextModel(config).half(),
        tokenizer=tiny.clip_tokenizer(place / "folder" / "tokenizer"), safety_checker=None,
        scheduler=diffusers.PNDMScheduler(
            **tiny.NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
        ),
        feature_extractor=None, requires_safety_checker=False,
    ).to(torch.float16)  # fmt: skip
    pipeline.save_pretrained(place / "folder")
    tiny.save_single_file(pipeline, place / "sd15.safetensors", "sd1")


def measure(options: argparse.Namespace) -> None:
    from promptadapt_core.images import DiffusersGenerator
    from promptadapt_core.pipeline_settings import PipelineOptions
    from promptadapt_core.train.probing import peak_bytes

    clock = time.process_time if options.cpu_time else time.perf_counter
    began = clock()
    generator = DiffusersGenerator.load(
        options.renderer, device=options.device, precision=options.precision,
        options=PipelineOptions(sampler=options.sampler), num_steps=options.num_steps,
        size=options.size, guidance_scale=options.guidance_scale,
    )  # fmt: skip
    loaded = clock() - began
    print(f"{options.renderer}: loaded in {loaded:.1f} s, {gib(peak_bytes(generator.device))} GiB")
    print(f"  {dataclasses.asdict(generator.settings)}", flush=True)
    first: np.ndarray | None = None
    for size in options.batches:
        generator.batch_size = size
        number = max(size, options.least)
        began = clock()
        pictures = generator.generate([PROMPT] * number, list(range(number)))
        seconds = clock() - began
        told = f"{seconds / number:.2f} s a picture, {gib(peak_bytes(generator.device))} GiB"
        if first is None:
            first = pictures
        shared = min(len(first), len(pictures))
        off = int(np.abs(first[:shared].astype(int) - pictures[:shared]).max())
        print(f"  batch {size}: {told}; {shared} pictures at most {off} of 255 off", flush=True)
    if options.save:
        np.save(options.save, first)


def gib(number: int) -> str:
    return f"{number / 2**30:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("renderer", help="make, or what was made")
    parser.add_argument("place", nargs="?", type=Path, help="folder for make")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=2)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--least", type=int, default=1, help="pictures of every batch size")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--save", help=".npy of the first pictures")
    options: Any = parser.parse_args()
    if options.renderer == "make":
        make(options.place)
    else:
        measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
