"""Tokenizers of policies: trained, read and written so that old and new libraries agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from .settings import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
# Without this, old transformers adds token_type_ids, which GPT-2 takes for words.
INPUT_NAMES = ["input_ids", "attention_mask"]


def train_backend(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer as GPT-2's, learned from texts; every string can be encoded.

    vocab_size: at least 257 (256 bytes and the end token); fewer when the texts give no more.
    """
    if vocab_size < 257:
        raise SettingsError("vocab_size", f"expected 257 or more, got {vocab_size}")
    backend = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """train_backend for transformers: end token and padding are <|endoftext|>."""
    return wrap_backend(train_backend(texts, vocab_size))


def _byte_level(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def wrap_backend(backend: tokenizers.Tokenizer, end: str = END_TOKEN) -> PreTrainedTokenizerFast:
    """The transformers face of a backend; decoding never eats spaces before punctuation."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        bos_token=end,
        pad_token=end,
        unk_token=end,
        clean_up_tokenization_spaces=False,
        model_input_names=INPUT_NAMES,
    )


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a GPT-2 folder: tokenizer.json, else vocab.json with merges.txt."""
    single, vocab, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    try:
        if single.is_file():
            backend = tokenizers.Tokenizer.from_file(str(single))
            backend.no_truncation()  # both belong to the training that the file comes from
            backend.no_padding()
            return backend
        if vocab.is_file() and merges.is_file():
            backend = _byte_level(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
            if backend.token_to_id(END_TOKEN) is not None:
                backend.add_special_tokens([END_TOKEN])
            return backend
    except Exception as error:  # the library raises bare Exception
        raise SettingsError("policy", f"the tokenizer in {folder} is broken: {error}") from None
    raise SettingsError(
        "policy",
        f"{folder} has no tokenizer: put vocab.json and merges.txt of gpt2 "
        "(huggingface.co/openai-community/gpt2) there",
    )


def write_backend(backend: tokenizers.Tokenizer, folder: Path, end: str = END_TOKEN) -> None:
    """Write tokenizer.json as tokenizers 0.13 and all newer read it, and tokenizer_config.json."""
    fields = json.loads(backend.to_str())
    fields["post_processor"] = None  # nothing is added to a text, whoever reads the file
    model = fields.get("model", {})
    merges = model.get("merges", [])
    # New libraries write ["a", "b"]; only a token with a space in it needs that.
    if all(isinstance(pair, list) and not any(" " in part for part in pair) for pair in merges):
        model["merges"] = [" ".join(pair) for pair in merges]
    write_json(fields, folder / "tokenizer.json", indent=None)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "bos_token": end,
        "pad_token": end,
        "unk_token": end,
        "clean_up_tokenization_spaces": False,
        "model_input_names": INPUT_NAMES,
    }
    write_json(settings, folder / "tokenizer_config.json", indent=2)


def vocab_sha256(backend: tokenizers.Tokenizer) -> str:
    """Of the tokens and their ids, without those that were added later: libraries differ in which
    they add. Merges are not in it."""
    vocab = backend.get_vocab(with_added_tokens=False)
    rows = sorted((number, token) for token, number in vocab.items())
    text = "\n".join(f"{number} {token}" for number, token in rows)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_vocabulary(
    folder: Path, backend: tokenizers.Tokenizer, num_embeddings: int, padded: bool, known: str
) -> None:
    """SettingsError("policy", ...) for a tokenizer that does not fit the embeddings, of which there
    are more where they are padded; then see check_known_vocabulary."""
    num_tokens = backend.get_vocab_size()
    if num_tokens > num_embeddings or (num_tokens != num_embeddings and not padded):
        reason = f"the tokenizer has {num_tokens} tokens, the model {num_embeddings}"
        raise SettingsError("policy", f"{folder}: {reason}")
    check_known_vocabulary(folder, backend, known)


def check_known_vocabulary(folder: Path, backend: tokenizers.Tokenizer, known: str) -> None:
    """SettingsError("policy", ...) where the vocabulary is not the one whose vocab_sha256 is
    `known`; "" is not known."""
    if known and known != vocab_sha256(backend):
        reason = "its vocabulary is not the one that its weights were trained with"
        raise SettingsError("policy", f"{folder}: {reason}")


def write_json(fields: dict[str, Any], path: Path, indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(fields, indent=indent, ensure_ascii=False, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")


class TokenReader:
    """Turns token ids into text, as a transformers tokenizer does, without importing it."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend

    def decode(
        self,
        ids: list[int],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of token ids; spaces are never cleaned up."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
