"""Main content rephrased by a local instruction model (any Hugging Face causal LM folder).

The folder is only read from disk: nothing is downloaded. Each main content draws from its own
generator, and the arithmetic is float32: padding to the others of its batch moves the last digits.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..devices import pick_device
from ..prompts import content_words
from ..settings import SettingsError

LEAST_KEPT = 0.75  # share of the content words that a rephrasing must keep
MOST_MORE_WORDS = 6
BATCH_SIZE = 32
TEMPERATURE = 0.7
TOP_P = 0.9

_TASK = (
    "Say the description of a picture in other words. Keep every person, thing and place, add "
    "nothing, be short. Answer with the new description alone."
)
_SHOWN = (
    ("a cat on a roof", "a roof with a cat on it"),
    ("portrait of an old sailor", "an old sailor's portrait"),
    ("cyberpunk city street at night", "a street at night in a cyberpunk city"),
)


class Rephraser:
    """An instruction model and its tokenizer, ready to rephrase."""

    def __init__(self, folder: str):
        path = Path(folder)
        if not path.is_dir():
            raise SettingsError("rephraser", f"{folder} is not a folder")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
        except Exception as error:  # whatever a foreign or broken file can raise
            first_line = (str(error).splitlines() or ["unknown reason"])[0]
            raise SettingsError(
                "rephraser", f"{folder} holds no causal language model ({first_line})"
            ) from None
        self.device = pick_device("auto")
        self.model = model.float().to(self.device).eval()
        self.end_ids = self._end_ids()
        self.takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters

    def _end_ids(self) -> set[int]:
        """The tokens that end an answer."""
        config = getattr(self.model, "generation_config", None)
        named = getattr(config, "eos_token_id", None)
        ids = set(named) if isinstance(named, (list, tuple)) else {named}
        return {token for token in ids | {self.tokenizer.eos_token_id} if token is not None}

    def rephrase_all(self, mains: Sequence[str], seed: int) -> dict[str, list[str]]:
        """Main content -> rephrasings that pass acceptable(): none or one of each."""
        found: dict[str, list[str]] = {}
        ordered = sorted(mains, key=lambda main: (len(main), main))  # alike lengths share a batch
        for start in range(0, len(ordered), BATCH_SIZE):
            batch = ordered[start : start + BATCH_SIZE]
            for main, answer in zip(batch, self.answers(batch, seed), strict=True):
                text = first_line(answer)
                if acceptable(main, text):
                    found[main] = [text]
            done = start + len(batch)
            print(f"\rrephrased {done}/{len(ordered)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return found

    def question(self, main: str) -> str:
        """The text that the model continues with a rephrasing of `main`."""
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "system", "content": _TASK}]
            for text, answer in _SHOWN:
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": main})
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        shown = "".join(f"Description: {text}\nNew: {answer}\n\n" for text, answer in _SHOWN)
        return f"{_TASK}\n\n{shown}Description: {main}\nNew:"

    @torch.inference_mode()
    def answers(self, mains: Sequence[str], seed: int) -> list[str]:
        """One sampled answer each, from one left-padded batch."""
        prompts = [
            self.tokenizer(self.question(main), add_special_tokens=False)["input_ids"]
            for main in mains
        ]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        ids, mask = ids.to(self.device), mask.to(self.device)
        generators = [random.Random(f"{seed}/{main}/instruction") for main in mains]
        chosen: list[list[int]] = [[] for _ in mains]
        ended = [False] * len(mains)
        cache = None
        room = [2 * len(main.split()) + 16 for main in mains]
        for _ in range(max(room)):
            more = {}
            if self.takes_positions:
                more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            output = self.model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu()
            tokens = [
                draw(row, source.random()) for row, source in zip(logits, generators, strict=True)
            ]
            for index, token in enumerate(tokens):
                ended[index] = ended[index] or token in self.end_ids
                ended[index] = ended[index] or len(chosen[index]) == room[index]
                if not ended[index]:
                    chosen[index].append(token)
            if all(ended):
                break
            ids = torch.tensor(tokens, device=self.device)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in chosen]


def draw(logits: torch.Tensor, point: float) -> int:
    """The token at `point` (0 to 1) of the likeliest tokens of mass TOP_P. `logits` is (V,)."""
    shares, order = (logits / TEMPERATURE).softmax(-1).sort(descending=True, stable=True)
    before = shares.cumsum(-1) - shares
    shares = shares.where(before < TOP_P, torch.zeros(()))
    bounds = shares.cumsum(-1)
    place = int((bounds < point * bounds[-1]).sum())
    return int(order[min(place, len(order) - 1)])


def first_line(answer: str) -> str:
    """The answer without what models put around it: more lines, quotes, a label, a full stop."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    text = lines[0] if lines else ""
    for label in ("New:", "Description:", "New description:"):
        text = text.removeprefix(label).strip()
    return text.strip("\"'“” ").rstrip(".").strip()


def acceptable(main: str, text: str) -> bool:
    """Whether `text` says the same as `main` in other words, as far as words can tell."""
    if not text or text.lower() == main.lower():
        return False
    if len(text.split()) >= len(main.split()) + MOST_MORE_WORDS:
        return False
    wanted, found = set(content_words(main)), set(content_words(text))
    if len(found - wanted) > len(wanted - found):  # a word for a word; more is invented
        return False
    return bool(wanted) and len(wanted & found) >= LEAST_KEPT * len(wanted)
