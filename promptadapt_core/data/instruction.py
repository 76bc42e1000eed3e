"""Main content rephrased by a local instruction model (any Hugging Face causal LM folder).

The folder is only read from disk: nothing is downloaded. Each main content draws from its own
generator, and the arithmetic is float32: padding to the others of its batch moves the last digits.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

from .. import decoding
from ..devices import pick_device
from ..policy import Policy
from ..prompts import content_words
from ..settings import SettingsError

LEAST_KEPT = 0.75  # share of the content words that a rephrasing must keep
MOST_MORE_WORDS = 6
BATCH_SIZE = 32
MAX_NEW_TOKENS = 64
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
        try:
            policy = Policy.load(folder, device=pick_device("auto"))
        except SettingsError as error:
            raise SettingsError("rephraser", error.reason) from None
        self.model = policy.model
        self.tokenizer: Any = policy.tokenizer
        self.eos_id = policy.eos_id

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
        if getattr(self.tokenizer, "chat_template", None) and hasattr(
            self.tokenizer,
            "apply_chat_template",  # not in old versions
        ):
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

    def answers(self, mains: Sequence[str], seed: int) -> list[str]:
        """One sampled answer each, the same in any batch."""
        requests = [
            decoding.DecodingRequest(
                self.tokenizer(self.question(main), add_special_tokens=False)["input_ids"],
                seed=_own_seed(seed, main),
            )
            for main in mains
        ]
        completions = decoding.decode(
            self.model,
            self.tokenizer,
            self.eos_id,
            requests,
            mode="sample",
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            batch_size=BATCH_SIZE,
        )
        return [found[0].text for found in completions]


def _own_seed(seed: int, main: str) -> int:
    """The seed of one main content: it does not depend on the others."""
    digest = hashlib.sha256(f"{seed}/{main}/instruction".encode()).digest()
    return int.from_bytes(digest[:8], "big")


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
