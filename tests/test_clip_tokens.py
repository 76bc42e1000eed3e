from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptadapt_core import clip_tokens
from promptadapt_core.clip_tokens import ClipTokenCounter, count_clip_tokens
from promptadapt_core.settings import SettingsError

pytest.importorskip("tokenizers")

WORDS = ["cat", "Roof", "8k", "hyper-detailed", "café", "naïve", "Łódź", "猫", "кошка", "🐈",
         "👩‍🚀", "it's", "they’re", "“quoted”", "1980s", "f/1.8", "#tag", "@name", "(red:1.2)",
         "ﬁne",
         "&amp;", "a&lt;b", "...", "!!!", "日本の猫", "e\u0301te\u0301", "ＦＵＬＬ", "¿qué?", "x_y",
         "100%", "مرحبا", "\u200bzero", "\u00a0", "\t", "\n",
         "O'Neill", "don't", "I'D"]  # fmt: skip


def varied_texts() -> list[str]:
    """Every word alone, and 400 mixtures that a small linear generator picks."""
    texts, state = list(WORDS), 1
    for _ in range(400):
        picked = []
        for _ in range(6):
            state = (state * 1103515245 + 12345) % 2**31
            picked.append(WORDS[(state >> 16) % len(WORDS)])
        texts.append((" ", ", ", "")[state % 3].join(picked))
    return [*texts, "", "   "]


@pytest.fixture(scope="module")
def counter() -> ClipTokenCounter:
    return ClipTokenCounter()


# Ids from OpenAI's CLIP: 320 "a", 2368 "cat", 525 "on", 5901 "roof", 267 ",".
def test_known_ids(counter: ClipTokenCounter) -> None:
    assert counter.encode("a cat") == [320, 2368]
    assert counter.encode("A  Cat,\n a CAT") == [320, 2368, 267, 320, 2368]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), (" \n ", 0), ("cat", 1), ("CAT", 1), ("a cat, a cat", 5), ("2024", 4), ("&amp;", 1)],
)
def test_hand_counted(text: str, expected: int) -> None:
    assert count_clip_tokens(text) == expected


def test_equals_the_tokenizer_of_open_clip(counter: ClipTokenCounter) -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    for text in varied_texts():
        assert counter.encode(text) == tokenizer.encode(text), text


def test_equals_open_clip_on_real_prompts(counter: ClipTokenCounter, shared: Path) -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    with gzip.open(shared / "data" / "prompts.jsonl.gz", "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file][::60]
    assert len(prompts) > 1000
    for prompt in prompts:
        assert counter.encode(prompt) == tokenizer.encode(prompt), prompt


def test_broken_text_is_counted_too(counter: ClipTokenCounter) -> None:
    for text in ("\ud800 cat", "\x00", "cat\x07", "\U0010ffff"):
        assert counter.count(text) >= 0
    assert counter.count("cat\x07") == 1


def test_importing_loads_no_tokenizer() -> None:
    code = "import sys, promptadapt_core.clip_tokens; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_is_fast_enough_to_count_while_decoding(counter: ClipTokenCounter) -> None:
    counter.count("warm")
    text = "a cat on a roof, golden hour, highly detailed, oil painting"
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        counter.count(text)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_the_merges_file_carries_no_date_or_name() -> None:
    header = clip_tokens.MERGES_FILE.read_bytes()[:10]
    assert header[3] == 0  # no flags: no file name
    assert header[4:8] == bytes(4)  # modification time


def clip_folder(folder: Path) -> Path:
    """A tiny CLIP-shaped tokenizer that knows the one merge "a t"."""
    symbols = clip_tokens.byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "at</w>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n", encoding="utf-8")
    return folder


def test_another_encoder_from_vocab_and_merges(tmp_path: Path) -> None:
    counter = ClipTokenCounter.from_folder(clip_folder(tmp_path))
    assert counter.count("At  cat") == 3  # at | c at


def test_another_encoder_from_tokenizer_json(tmp_path: Path) -> None:
    import tokenizers

    words = {"<s>": 0, "<unk>": 1, "a": 2, "cat": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert ClipTokenCounter.from_folder(tmp_path).encode("a cat a cat") == [2, 3, 2, 3]


@pytest.mark.parametrize("name", ["missing", "broken"])
def test_a_bad_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if name == "broken":
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match=name) as caught:
        ClipTokenCounter.from_folder(folder)
    assert caught.value.name == "folder"
