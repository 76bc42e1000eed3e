"""The parser, by examples: what is one piece, of which kind, and what a reader sees of it."""

import sys
import time

import pytest

from promptadapt_core.settings import MAX_INPUT_CHARACTERS
from promptadapt_core.syntax import (
    WHITESPACE,
    ends_like_weight,
    plain_text,
    segments,
    without_stray_syntax,
)


def test_whitespace_is_all_whitespace():
    assert set(WHITESPACE) == {
        chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()
    }


def protected(text):
    found = segments(text)
    return [(text[s.start : s.end], s.kind) for s in found if s.kind != "text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (red cat:1.2) here", [("(red cat:1.2)", "emphasis")]),
        ("((x)) [x]", [("((x))", "emphasis"), ("[x]", "emphasis")]),
        ("[cat:dog:0.5]", [("[cat:dog:0.5]", "schedule")]),
        ("[cat:10]", [("[cat:10]", "schedule")]),
        ("[cat::.5]", [("[cat::.5]", "schedule")]),
        ("[note: cat]", [("[note: cat]", "emphasis")]),
        ("[a|[b|c]]", [("[a|[b|c]]", "alternation")]),
        ("a BREAK b AND c", [("BREAK", "break"), ("AND", "and")]),
        ("break BREAKFAST and HAND_AND", []),
        ("a :0.8 AND b:1.2", [(":0.8", "weight"), ("AND", "and"), (":1.2", "weight")]),
        (
            "a :0.8 <lora:x:1>\nAND b",
            [(":0.8", "weight"), ("<lora:x:1>", "network"), ("\n", "newline"), ("AND", "and")],
        ),
        ("a :0.8 BREAK b AND c", [("BREAK", "break"), ("AND", "and")]),
        ("a cat :0.8", []),
        (
            "<lora:a b:0.8><lyco:x:1><hypernet:y>",
            [("<lora:a b:0.8>", "network"), ("<lyco:x:1>", "network"), ("<hypernet:y>", "network")],
        ),
        ("a < b > c <3 <>", []),
        ("embedding:foo, x", [("embedding:foo", "embedding")]),
        ("embedding:SDXL/bad-hand_v5.pt.", [("embedding:SDXL/bad-hand_v5.pt", "embedding")]),
        ("embedding:a\\b", [("embedding:a\\b", "embedding")]),
        ("(embedding:foo:1.2)", [("(embedding:foo:1.2)", "emphasis")]),
        ("my embedding: foo", []),
        (
            "__a__ x__b/c-d*__ __s(k=v)__",
            [("__a__", "wildcard"), ("__b/c-d*__", "wildcard"), ("__s(k=v)__", "wildcard")],
        ),
        ("____ long_hair __", []),
        ("{a|{b|c}} ${x}", [("{a|{b|c}}", "choice"), ("${x}", "variable")]),
        (r"cat \(fluffy\) \(", [(r"\(fluffy\)", "escape"), (r"\(", "escape")]),
        (r"\(a BREAK b\)", [(r"\(", "escape"), ("BREAK", "break"), (r"\)", "escape")]),
        (r"(a \) b) \\", [(r"(a \) b)", "emphasis"), (r"\\", "escape")]),
        (r"\(a (b c\) d)", [(r"\(", "escape"), (r"(b c\) d)", "emphasis")]),
        ("(a\nBREAK b)", [("(a\nBREAK b)", "emphasis")]),
        ("(a (b", []),
        ("a) :( ]", []),
        ("(a [b) c]", [("(a [b)", "emphasis")]),
        ("a\r\n\r\nb", [("\r\n\r\n", "newline")]),
        ("a\n \nb", [("\n", "newline"), ("\n", "newline")]),
    ],
)
def test_what_is_protected(text, expected):
    assert protected(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "a cat"),
        ("(red cat:1.2)", "red cat"),
        ("(red cat: 1.2 ) x", "red cat x"),
        ("((red (cat:1.1)) hat:1.3)", "red cat hat"),
        ("(red)(cat) visual(colour)x [a][b]", "red cat visual colour x a b"),
        ("((a)(b)c)", "a b c"),
        ("{sun|moon}light photo{graph|s} gr[a|e]y", "sunlight photograph gray"),
        ("(a|b) (x:y)", "a|b x:y"),
        ("a cat, <lora:x:1>, night", "a cat, night"),
        ("a (embedding:foo:1.2) cat", "a cat"),
        ("embedding:foo. a man, embedding:bar. x", "a man, x"),
        ("a __color__ cat", "a cat"),
        ("[cat:dog:0.5] [cat::0.5] [cat:0.5] [:cat:3]", "dog cat cat cat"),
        ("[[a:b:0.3]:c:0.5] [a|b:c:0.5] [a:b|c:0.5]", "c a b"),
        ("[a|b] [|b] {a|b} {{a|b}|c} {x}", "a b a a x"),
        ("{2$$a|b} {0.5::a|b} {1-2$$ and $$a|b} {2$${a|b}|c}", "a a a a"),
        ("{__x__|b} ${season} c", "b c"),
        (r"cat \(fluffy\) \[x\] a\\b", r"cat (fluffy) [x] a\b"),
        ("a BREAK b AND c :0.8", "a, b, c"),
        ("a cat.\nred,\n\nblue", "a cat, red, blue"),
        ("BREAK, a\n,b", "a,b"),
        ("  a \t cat ,, on  a roof. , ", "a cat, on a roof"),
        ("at 12:30, 1,000 men, .5", "at 12:30, 1,000 men, .5"),
        ("sad :( cat", "sad :( cat"),
        ("(a cat", "(a cat"),
        ("<lora:x:1>", ""),
        ("一只(红色:1.2)的猫\n🐱‍👤", "一只红色的猫, 🐱‍👤"),
        ("قطة (حمراء:1.2)", "قطة حمراء"),
        ("(cafe\u0301:1.1)", "cafe\u0301"),
    ],
)
def test_plain_text(text, expected):
    assert plain_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (", oil painting, 4k.", "oil painting, 4k"),
        ("a (b:1.2), <lora:x:1>", "a (b:1.2), <lora:x:1>"),
        ("a (b, c] \\", "a b, c"),
        ("cat AND dog BREAK x", "cat and dog break x"),
        ("AN(D a < b\nc", "AN D a b c"),
        ("(((", ""),
    ],
)
def test_text_from_a_policy_cannot_break_the_syntax_around_it(text, expected):
    assert without_stray_syntax(text) == expected


def test_ends_like_weight():
    assert ends_like_weight("at 12:30")
    assert ends_like_weight("x :0.5 ")
    assert not ends_like_weight("16:9 format")


HOSTILE = [
    "(", "[", "{", "<", "__", "\\", "AND ", "(a:1.2", ")", "]", "([{", "(a", "<a:", "<a", "__a",
    "__a(", "\\(", "\\)(", "BREAK\n", "\n", " ", ":", "|", "1", ":1", "{1$$", "$", "${", "[:",
    "[|", "embedding:", "embedding:a.", ", ", ",.", " .", ",.x", "\u0301", "é", "🐱", "a ", "_",
    "(a [b) c]",
]  # fmt: skip
NESTS = [
    ("(", "x", ")"), ("(a", "x", ")"), ("[a|", "b", "]"), ("[|", "!", "]"), ("[a:", "b", ":1]"),
    ("{", "1", "}"), ("{2$$", "1", "}"), ("{", " ", "}"), ("(x:", "1", "a)"), ("\\(", "x", "\\)"),
    ("[", "\n", "]"), ("([", "x", ")]"), ("{$$", "$", "}"), ("[:", "9", "]"), ("${", "x", "}"),
]  # fmt: skip


def hostile_texts():
    for piece in HOSTILE:
        yield (piece * MAX_INPUT_CHARACTERS)[:MAX_INPUT_CHARACTERS]
    for opener, content, closer in NESTS:
        depth = MAX_INPUT_CHARACTERS // (len(opener) + len(closer)) // 2
        filling = content * (MAX_INPUT_CHARACTERS - depth * (len(opener) + len(closer)))
        yield opener * depth + filling + closer * depth


def seconds(function, text):
    """Processor time of the best of three calls: a busy machine must not fail a test."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function(text)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("text", list(hostile_texts()), ids=lambda text: repr(text[:12]))
def test_hostile_text_takes_linear_time(text):
    assert seconds(segments, text) < 0.2
    assert seconds(plain_text, text) < 0.2
    assert seconds(without_stray_syntax, text) < 0.2
