"""Counts tokens as the text encoder of an image model does: CLIP's byte-pair encoding.

CLIP reads 77 tokens at a time, two of which mark start and end, and drops or splits what is
longer. The merges are those of OpenAI's CLIP (github.com/openai/CLIP, MIT), the first 48,894 of
its bpe_simple_vocab_16e6.txt, which every Stable Diffusion with a CLIP encoder uses.
"""

from __future__ import annotations

import gzip
import html
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import SettingsError

if TYPE_CHECKING:
    import tokenizers

MERGES_FILE = Path(__file__).parent / "clip_merges.txt.gz"
END_OF_WORD = "</w>"
LONG_WORD = 64  # letters
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _plain_forms() -> dict[int, str | None]:
    """What CLIP's cleaning (ftfy.fix_text) writes plainer: curly quotes, ligatures, full and half
    width, and control characters, which go."""
    forms: dict[int, str | None] = dict.fromkeys(map(ord, "‘’ʼ‚‛"), "'")
    forms.update(dict.fromkeys(map(ord, "“”„‟"), '"'))
    for code in (*range(0xFB00, 0xFB07), 0x132, 0x133, 0x149, *range(0x1C4, 0x1CD),
                 *range(0x1F1, 0x1F4), 0x3000, *range(0xFF01, 0xFFF0)):  # fmt: skip
        forms[code] = unicodedata.normalize("NFKC", chr(code))
    dropped = (*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0xFEFF,
               *range(0x206A, 0x2070), *range(0xFFF9, 0xFFFD))  # fmt: skip
    forms.update(dict.fromkeys(dropped, None))
    return forms


PLAIN_FORMS = _plain_forms()


def encodable(text: str) -> str:
    """Lone surrogates, which no tokenizer takes, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_for_clip(text: str) -> str:
    """The text as CLIP's tokenizer sees it: entities resolved, plain quotes, NFC, single spaces,
    lower case. Repairing wrongly decoded text, which the original does too, is left out."""
    text = encodable(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))
    text = unicodedata.normalize("NFC", text.translate(PLAIN_FORMS))
    return " ".join(text.split()).lower()


class ClipTokenCounter:
    """Counts tokens, start and end not included. Reads its merges at the first count."""

    def __init__(self) -> None:
        self._cleans = True

    @classmethod
    def from_folder(cls, folder: str | Path) -> ClipTokenCounter:
        """The counter of another text encoder: a folder with tokenizer.json, or with the
        vocab.json and merges.txt of a CLIP. Raises SettingsError("folder", ...)."""
        folder = Path(folder)
        counter = cls()
        counter._tokenizer = _read_folder(folder)
        counter._cleans = not (folder / "tokenizer.json").is_file()  # which brings its own cleaning
        return counter

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return _clip_tokenizer()

    def encode(self, text: str) -> list[int]:
        """Token ids without start and end."""
        text = clean_for_clip(text) if self._cleans else text
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """How many tokens the text takes of the encoder's 75 a chunk."""
        return len(self.encode(text))


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes, in CLIP's order: printable ones for themselves
    (GPT-2, src/encoder.py), the other bytes by characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _clip_tokenizer() -> tokenizers.Tokenizer:
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split(" ")) for line in file.read().splitlines()]
    symbols = byte_symbols()
    words = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *map("".join, merges)]
    return _with_splitting({word: number for number, word in enumerate(words)}, merges)


def _with_splitting(
    vocabulary: dict[str, int], merges: list[tuple[str, ...]]
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    model = tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    words = Split(tokenizers.Regex(SPLIT_PATTERN), behavior="removed", invert=True)
    as_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Sequence([words, as_bytes])
    return tokenizer


def _read_folder(folder: Path) -> tokenizers.Tokenizer:
    import tokenizers

    single, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    try:
        if single.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(single))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        if vocabulary.is_file() and merges.is_file():
            read = tokenizers.models.BPE.read_file(str(vocabulary), str(merges))
            return _with_splitting(*read)
    except Exception as error:  # the library raises bare Exception
        raise SettingsError("folder", f"the tokenizer in {folder} is broken: {error}") from None
    raise SettingsError(
        "folder", f"{folder} has neither tokenizer.json nor vocab.json with merges.txt"
    )


def with_quick_words(tokenizer: Any) -> Any:
    """open_clip's SimpleTokenizer, its words of more than LONG_WORD letters cut by `tokenizers`:
    the same merges, but not a minute for a word of 20,000 letters. Others come back as they are."""
    by_loops = getattr(tokenizer, "bpe", None)
    if by_loops is None:
        return tokenizer

    @lru_cache(maxsize=1)
    def merges() -> tokenizers.models.BPE:
        import tokenizers

        ranked = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
        return tokenizers.models.BPE(tokenizer.encoder, ranked, end_of_word_suffix=END_OF_WORD)

    def cut(word: str) -> str:
        if len(word) <= LONG_WORD:
            return by_loops(word)
        return " ".join(token.value for token in merges().tokenize(word))

    tokenizer.bpe = cut
    return tokenizer


_DEFAULT = ClipTokenCounter()


@lru_cache(maxsize=4096)
def count_clip_tokens(text: str) -> int:
    """Tokens of the text for OpenAI's CLIP, start and end not included."""
    return _DEFAULT.count(text)
