"""Pictures a second of OpenClipScorer beside open_clip alone, and the real head's golden scores.

    python benchmarks/scorer_speed.py [--model ViT-L-14-quickgelu] [--head FILE] [--pictures 16]

Random weights of the true shape, nothing is downloaded. "open_clip alone" is what its README shows:
the transform picture by picture, then the encoders on the whole batch. Both are measured in turn,
once warm, on the same pictures and texts. With --cpu-time seconds of the processor count instead of
the clock's, for a machine that is shared; then use one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from promptadapt_core.aesthetic_heads import AestheticHead, read_head
from promptadapt_core.devices import pick_device
from promptadapt_core.scorers import OpenClipScorer

# Of the paper's head, on the embeddings that LAION published: rating0.npy to rating9.npy.
GOLDEN = (1.66, 2.36, 3.07, 3.67, 4.24, 4.70, 5.07, 5.37, 5.58, 5.75)


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def golden_error(head: AestheticHead, embeddings: Path) -> float:
    """The largest distance from the published scores."""
    rows = [np.load(embeddings / f"rating{number}.npy")[0] for number in range(10)]
    scores = head(torch.from_numpy(np.stack(rows))).tolist()
    return max(abs(one - other) for one, other in zip(scores, GOLDEN, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--head", help="file of an aesthetic head; left out, a random one")
    parser.add_argument("--embeddings", type=Path, help="folder of rating0.npy to rating9.npy")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()

    device = pick_device(options.device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(options.model)
    tokenize = open_clip.get_tokenizer(options.model)
    width = open_clip.get_model_config(options.model)["embed_dim"]
    head = read_head(options.head) if options.head else AestheticHead(torch.randn(width), 5.0)
    scorer = OpenClipScorer(
        model, preprocess, tokenize, width, head, identity="random", device=device,
        batch_size=options.pictures,
    )  # fmt: skip
    shape = (options.pictures, options.size, options.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    texts = [f"a lighthouse by the sea, number {number}" for number in range(options.pictures)]

    @torch.no_grad()
    def alone() -> torch.Tensor:
        inputs = torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels])
        images = scorer.model.encode_image(inputs.to(device), normalize=True)
        words = scorer.model.encode_text(tokenize(texts).to(device), normalize=True)
        return (images * words).sum(dim=1).cpu()

    found: dict[str, list[float]] = {"open_clip alone": [], "OpenClipScorer": []}
    off = float((scorer.score(texts, pixels).relevance - alone().clamp(min=0)).abs().max())
    for _ in range(options.rounds):
        found["open_clip alone"].append(seconds(alone, device, clock))
        found["OpenClipScorer"].append(seconds(lambda: scorer.score(texts, pixels), device, clock))
    print(f"{options.model}, {options.pictures} pictures of {options.size}, {device}")
    rates = {}
    for name, times in found.items():
        rates[name] = options.pictures / statistics.median(times)
        spread = ", ".join(f"{one:.2f}" for one in times)
        print(f"  {name}: {rates[name]:.3f} pictures a second ({spread} s)")
    print(
        f"  ratio {rates['OpenClipScorer'] / rates['open_clip alone']:.3f}; cosines {off:.1e} off"
    )
    if options.head and options.embeddings:
        print(f"  golden scores at most {golden_error(head, options.embeddings):.4f} off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
