"""Beam search of promptadapt_core.decoding beside transformers' generate: time, same output.

    python benchmarks/decoding.py [--size gpt2|bundled] [--runs 3] [--threads 2]

Random weights, nothing is downloaded. Both are measured in turn in one run, warm. Two bounds show
how far each is from what the machine can do: a bare forward pass of transformers with one token a
beam times the number of steps, and reading every weight once a step. The output is compared token
by token before anything is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from promptadapt_core.decoding import DecodingRequest, decode

# Named sizes: GPT-2 small (Promptist's), and that of the policy that comes with the package.
SIZES = {
    "gpt2": {"config": {}, "num_prompt_tokens": 12, "max_new_tokens": 75},
    "bundled": {
        "config": {"n_layer": 6, "n_embd": 256, "n_head": 8, "vocab_size": 6144},
        "num_prompt_tokens": 12,
        "max_new_tokens": 40,
    },
}
NUM_BEAMS = 8


class NumberTokenizer:
    """Tokens as numbers; the benchmark has no text."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(f" {token}" for token in ids)


def random_model(config: dict) -> GPT2LMHeadModel:
    """A GPT-2 with random weights. Its end token is token 0, with which no text is likely."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).eval()
    return model.requires_grad_(False)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_forward(model: GPT2LMHeadModel, num_steps: int) -> Callable[[], None]:
    """num_steps passes of one token for each beam, no search and no reordering."""

    @torch.inference_mode()
    def work() -> None:
        cache = model(torch.ones(NUM_BEAMS, 12, dtype=torch.long), use_cache=True).past_key_values
        token = torch.ones(NUM_BEAMS, 1, dtype=torch.long)
        for _ in range(num_steps):
            cache = model(token, past_key_values=cache, use_cache=True).past_key_values

    return work


def weight_reading(model: GPT2LMHeadModel, num_steps: int) -> Callable[[], None]:
    """Every weight is read once a step, as matrix-vector products have to."""
    weights = [weight for weight in model.parameters() if weight.dim() == 2]

    @torch.inference_mode()
    def work() -> None:
        for _ in range(num_steps):
            for weight in weights:
                weight.sum()

    return work


def contestants(
    model: GPT2LMHeadModel, num_prompt_tokens: int, max_new_tokens: int
) -> tuple[Callable[[], list[int]], Callable[[], list[int]]]:
    """(ours, transformers'): each gives the tokens of the best beam."""
    generator = torch.Generator().manual_seed(1)
    vocab_size = model.config.vocab_size
    prompt = torch.randint(1, vocab_size, (1, num_prompt_tokens), generator=generator)
    tokenizer = NumberTokenizer()

    def ours() -> list[int]:
        request = DecodingRequest(prompt[0].tolist())
        found = decode(
            model, tokenizer, 0, [request], num_beams=NUM_BEAMS, max_new_tokens=max_new_tokens
        )
        return found[0][0].ids

    def theirs() -> list[int]:
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=NUM_BEAMS,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
        )
        return [token for token in ids[0, num_prompt_tokens:].tolist() if token != 0]

    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="gpt2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    model = random_model(size["config"])
    num_steps = size["max_new_tokens"]
    ours, theirs = contestants(model, size["num_prompt_tokens"], num_steps)
    if ours() != theirs():
        sys.exit("the outputs differ")
    works = {
        "promptadapt_core.decoding": ours,
        "transformers generate": theirs,
        "bound: bare forwards of transformers": bare_forward(model, num_steps),
        "bound: reading the weights": weight_reading(model, num_steps),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.runs):
        for name, work in works.items():
            times[name].append(timed(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(
        f"{options.size}: {millions:.0f}M parameters, float32, {NUM_BEAMS} beams, {num_steps} new "
        f"tokens, CPU, {options.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, median of {options.runs} runs, same output\n"
    )
    print("| what | seconds | of generate's time |")
    print("| --- | --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {median / medians['transformers generate']:.2f} |")


if __name__ == "__main__":
    main()
