"""A free rewrite gets the person's syntax back: examples, as an artist expects to read them."""

import pytest

from promptadapt_core.prompts import parse


@pytest.mark.parametrize(
    ("user_input", "rewrite", "expected"),
    [
        ("a cat", "A fluffy cat, oil painting", "A fluffy cat, oil painting"),
        ("a (red cat:1.2)", "a red cat, oil painting", "a (red cat:1.2), oil painting"),
        ("a (red cat:1.2)", "Portrait of a Red Cat, 4k", "Portrait of a (red cat:1.2), 4k"),
        ("a (red cat:1.2)", "a red fluffy cat sitting, 4k", "a (red cat:1.2) sitting, 4k"),
        ("a cat, (red hat:1.2)", "a cat sitting, 4k", "a cat sitting, (red hat:1.2), 4k"),
        ("a cat <lora:x:1>", "the cat, 4k", "the cat, 4k <lora:x:1>"),
        ("a cat, <lora:x:1>", "the cat, 4k", "the cat, 4k, <lora:x:1>"),
        ("<lora:x:1>, a cat", "the cat, 4k", "<lora:x:1>, the cat, 4k"),
        ("a __animal__ on a roof", "a on a roof at night", "a __animal__ on a roof at night"),
        ("a cat, __style__, night", "a cat sits, dark night", "a cat sits, __style__, dark night"),
        (r"yuna \(ff10\), smile", "smiling yuna (ff10), smile", r"smiling yuna \(ff10\), smile"),
        (r"yuna \(ff10\), smile", "lovely yuna ff10, smile", r"lovely yuna \(ff10\), smile"),
        ("a cat BREAK a dog", "a cat, soft fur, a dog, 4k", "a cat, soft fur BREAK a dog, 4k"),
        ("a cat AND a dog :0.8", "the cat, a dog, 4k", "the cat AND a dog, 4k :0.8"),
        ("a cat :0.8 AND a dog", "the cat, a dog, 4k", "the cat :0.8 AND a dog, 4k"),
        ("a cat BREAK a dog", "two animals", None),
        ("a cat AND a dog", "the cat and a dog", None),
        ("a cat\na dog", "the cat, a dog, 4k", "the cat\na dog, 4k"),
        ("a cat,\na dog", "the cat, a dog, 4k", "the cat,\na dog, 4k"),
        ("a cat\na dog", "the cat and a dog", "the cat\nand a dog"),
        ("(cat:1.2) and (dog:1.2)", "dog and cat", "(cat:1.2) (dog:1.2) and cat"),
        ("[cat:dog:0.5], {red|blue} sky", "the dog, red sky", "the [cat:dog:0.5], {red|blue} sky"),
        ("一只(猫:1.2), 夜", "好看 一只猫, 夜晚", "好看 一只猫, 夜晚 (猫:1.2)"),
        ("(a cat!:1.2) __x__, dog", "the a cat! dog", "the (a cat!:1.2) __x__ dog"),
        ("<lora:x:1>", "oil painting", "<lora:x:1> oil painting"),
        ("a (cat:1.2)", "", None),
        ("a (cat:1.2)", " ,. ", None),
    ],
)
def test_restore(user_input, rewrite, expected):
    parsed = parse(user_input)
    assert parsed.restore(rewrite) == expected
    if expected is not None:
        assert parsed.lost_spans(expected) == []


def test_a_rewrite_that_only_adds_keeps_the_input_verbatim():
    parsed = parse("(masterpiece:1.2),  1girl BREAK red hair, <lora:x:1>")
    rewrite = parsed.plain + ", oil painting"
    expected = "(masterpiece:1.2),  1girl, oil painting BREAK red hair, <lora:x:1>"
    assert parsed.restore(rewrite) == expected


def test_kept_words_come_back_where_the_policy_lost_them():
    parsed = parse("a red cat on a roof", keep=["red cat"])
    assert parsed.restore("a cat on the roof, 4k") == "a red cat on the roof, 4k"
    assert parsed.restore("animal, 4k") == "animal, 4k red cat"


def test_texts_too_long_to_align_are_given_up():
    parsed = parse("(a:1.2) " + "b " * 5000)
    assert parsed.restore("c " * 5000) is None
