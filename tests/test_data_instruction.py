from __future__ import annotations

import shutil

import pytest

from promptadapt_core.settings import SettingsError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
instruction = pytest.importorskip("promptadapt_core.data.instruction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {text: number for number, text in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(names), n_positions=1024, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(place, safe_serialization=True)
    return place


def test_an_answer_does_not_depend_on_the_batch(folder, untouched_generators):
    rephraser = instruction.Rephraser(str(folder))
    mains = ["a cat", "an old sailor on a very long pier"]
    with untouched_generators():
        together = rephraser.answers(mains, 3)
    assert together == rephraser.answers(mains, 3)
    alone = rephraser.answers(mains[:1], 3)[0]
    assert alone
    assert together[0] == alone
    assert rephraser.answers(mains, 4) != together
    if not hasattr(rephraser.tokenizer, "apply_chat_template"):
        return  # transformers before 4.34
    rephraser.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    assert rephraser.question("a cat").endswith("|a cat|")


def test_a_folder_without_a_model_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SettingsError, match="rephraser"):
            instruction.Rephraser(str(place))


def test_a_broken_model_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SettingsError, match="rephraser"):
        instruction.Rephraser(str(tmp_path / "cut"))


def test_what_is_acceptable():
    assert instruction.acceptable("a cat on a roof", "a roof with a cat on it")
    assert not instruction.acceptable("a cat on a roof", "A cat on a roof")
    assert not instruction.acceptable("a cat on a roof", "")
    assert not instruction.acceptable("a cat on a roof", "a dog on a floor")
    assert not instruction.acceptable("a cat on a roof", "a cat on a roof " + "very " * 6)
    assert not instruction.acceptable("a cat on a roof", "a roof with a cat, seen at night")
    assert not instruction.acceptable("the heavenly monarch ehther", "a heavenly monarch, desert")
    assert instruction.first_line('\nNew: "A red cat."\nI hope this helps') == "A red cat"
