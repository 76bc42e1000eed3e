"""What is content, what is a modifier, who is an artist: by hand-written cases and human pairs."""

from __future__ import annotations

import csv
import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptadapt_core import lexicon as lexicon_file
from promptadapt_core import modifiers


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        ("a cat, 8 k, 3 d render", "a cat, 8k, 3d render"),
        ("1 9 8 0 s street , , 3 5 mm , f 1. 8", "1980s street, 35mm, f/1.8"),
        ("sci - fi city, post - processing! !", "sci-fi city, post-processing"),
        ("old man - photo", "old man - photo"),
        ("a cat https://example.com/x.png on a roof --ar 16:9 --v 4", "a cat on a roof"),
        ("<b>cat</b> : : dog | | bird ::2", "cat, dog | bird"),
        ("the king ' s horse, d & d", "the king's horse, d&d"),
        ("  a “cat” , ", 'a "cat"'),
        ("10,000 men", "10,000 men"),
    ],
)
def test_clean(typed: str, cleaned: str) -> None:
    assert modifiers.clean(typed) == cleaned


@given(st.text(max_size=200))
def test_text_functions_take_anything(text: str) -> None:
    cleaned = modifiers.clean(text)
    assert "\n" not in cleaned
    assert "  " not in cleaned
    assert all(part == part.strip() and part for part in modifiers.split_modifiers(text))
    modifiers.trim(text)
    modifiers.is_modifier(text)
    for phrase in modifiers.find_artists(text, thorough=True):
        assert phrase in text


def test_clean_takes_long_runs_of_marks_fast() -> None:
    for mark in ("(", ",", " -", "! ", ". ", "<", "1 ", "_ "):
        start = time.perf_counter()
        modifiers.clean(mark * 10_000)
        modifiers.trim(mark * 2_000)
        assert time.perf_counter() - start < 2.0, mark


def test_split_modifiers_keeps_initials_and_numbers_together() -> None:
    text = "a hobbit by j. r. r. tolkien, 10,000 men; fog. God rays| mr. bean"
    expected = ["a hobbit by j. r. r. tolkien", "10,000 men", "fog", "God rays", "mr. bean"]
    assert modifiers.split_modifiers(text) == expected


def test_normal_is_one_key_for_all_spellings() -> None:
    keys = {modifiers.normal(text) for text in ("Hyper-detailed!", "hyper detailed")}
    assert len(keys) == 1
    assert modifiers.normal("猫 ,") == "猫"


@pytest.mark.parametrize(
    "segment",
    "highly detailed|sharp focus|trending on artstation|soft lighting|8k|"
    "oil painting|octane render|"
    "cinematic|golden hour|by greg rutkowski|Greg Rutkowski|depth of field|vibrant colors|"
    "strong dramatic cinematic lighting|unreal engine 5|concept art|award "
    "winning photography".split("|"),
)
def test_is_modifier(segment: str) -> None:
    assert modifiers.is_modifier(segment)


@pytest.mark.parametrize(
    "segment",
    "a cat on a roof|two men sitting at a table|a portrait of an old woman|wearing a red dress|"
    "riding a horse|with a dog|a house by the sea|donald trump eating pizza|in a forest".split("|"),
)
def test_is_no_modifier(segment: str) -> None:
    assert not modifiers.is_modifier(segment)


def test_is_modifier_is_fast() -> None:
    segments = ["soft golden volumetric lighting", "a cat on a roof", "trending on artstation"]
    segments *= 300
    modifiers.is_modifier(segments[0])
    start = time.perf_counter()
    for segment in segments:
        modifiers.is_modifier(segment)
    assert (time.perf_counter() - start) / len(segments) < 200e-6  # 20e-6 on an idle machine


@pytest.mark.parametrize(
    ("engineered", "main"),
    [
        ("a cat on a roof", "a cat on a roof"),
        ("a cat on a roof, highly detailed, sharp focus, 8 k", "a cat on a roof"),
        ("a red fox in the snow, by greg rutkowski, artstation", "a red fox in the snow"),
        ("painting of a castle by unknown fellow, concept art", "painting of a castle"),
        ("a beautiful painting of an owl, octane render", "a painting of an owl"),
        ("4k, sharp focus, a man riding a horse at sea", "a man riding a horse at sea"),
        ("fantasy animal concept art trending on pixiv", "fantasy animal"),
        ("digital painting: a dog in a boat, smooth", "a dog in a boat"),
        ("A robot repairs a clock. A girl watches him. Cinematic. 8K.",
         "A robot repairs a clock, A girl watches him"),
        ("highly detailed", "highly detailed"),
    ],
)  # fmt: skip
def test_trim(engineered: str, main: str) -> None:
    assert modifiers.trim(engineered).main == main


def test_trim_gives_back_what_it_took() -> None:
    text = "a beautiful red fox in the snow, sharp focus, art by artgerm and wlop, 8 k"
    trimmed = modifiers.trim(text)
    assert trimmed.modifiers == ("beautiful", "sharp focus", "8k")
    assert trimmed.artists == ("art by artgerm and wlop",)


@pytest.mark.parametrize(
    "text",
    ["a house by the sea", "a street by night", "a man standing by a lake", "side by side",
     "a castle surrounded by birds", "killed by a bear, by candlelight", "stand by me"],
)  # fmt: skip
def test_by_is_no_artist(text: str) -> None:
    assert modifiers.find_artists(text) == []
    assert modifiers.find_artists(text, thorough=True) == []
    assert modifiers.remove_artists(text, thorough=True) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a cat painted by monet", "a cat"),
        ("a cat, art by artgerm and greg rutkowski", "a cat"),
        ("a cat, Greg rutkowski, 8k", "a cat, 8k"),
        ("a cat in the style of studio ghibli", "a cat"),
        ("a mural by banksy on a wall", "a mural on a wall"),
        ("a fox, artgerm, wlop, sharp focus", "a fox, sharp focus"),
        ("a fox by greg rutkowski trending on artstation", "a fox, trending on artstation"),
        ("by H. R. Giger", ""),
    ],
)
def test_known_artists_go(text: str, left: str) -> None:
    assert modifiers.remove_artists(text) == left
    assert modifiers.remove_artists(text, thorough=True) == left


def test_thorough_takes_unknown_names_too() -> None:
    text = "a dog by Zorvald Quintling of a garden, by wlop, Ploxi Brandvik and Ygra Onx, fog"
    assert "Zorvald" in modifiers.remove_artists(text)
    assert modifiers.remove_artists(text, thorough=True) == "a dog of a garden, fog"
    assert modifiers.remove_artists("a van gogh style cat") == "a van gogh style cat"
    assert "gogh" not in modifiers.remove_artists("a van gogh style cat", thorough=True)


def test_is_explicit() -> None:
    for text in ("a nude woman", "NSFW", "naked on the beach", "schoolgirl in a bikini", "hentai"):
        assert modifiers.is_explicit(text)
    for text in ("a cat", "a girl in a red dress", "chicken breast on a plate", "naked mole rat",
                 "a woman in a bikini", "grass and glass", "essex cathedral"):  # fmt: skip
        assert not modifiers.is_explicit(text)


def test_lexicon_is_small_and_read_fast() -> None:
    assert os.path.getsize(lexicon_file.PATH) <= 300_000
    modifiers.lexicon.cache_clear()
    start = time.perf_counter()
    known = modifiers.lexicon()
    assert time.perf_counter() - start < 0.2  # 0.01 on an idle machine
    assert known.artists["greg rutkowski"] > 100
    assert len(known.weights) > 5_000
    assert max(len(key.split()) for key in (*known.artists, *known.weights)) <= 4  # no prompts


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+(?:'[^\W_]+)?", modifiers.clean(text).lower()))


def test_trim_agrees_with_people(shared) -> None:
    """60 pairs written by people (Toloka BestPrompts, CC BY 4.0), word-set Jaccard."""
    path = shared / "data" / "modifiers" / "toloka_gold_pairs.csv"
    with open(path, newline="", encoding="utf-8") as file:
        pairs = [(row["Prompt"], row["Filtered"]) for row in csv.DictReader(file)]
    overlaps = []
    for engineered, filtered in pairs:
        ours, theirs = _words(modifiers.trim(engineered).main), _words(filtered)
        overlaps.append(len(ours & theirs) / len(ours | theirs))
    assert len(overlaps) == 60
    assert sum(overlaps) / len(overlaps) >= 0.87


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [("a cat!!! b", "a cat b"), ("wow! a cat", "wow! a cat"), ("a cat ! , b", "a cat, b")],
)
def test_clean_takes_exclamation_marks(typed: str, cleaned: str) -> None:
    assert modifiers.clean(typed) == cleaned


def test_clean_takes_long_runs_of_exclamation_marks_fast() -> None:
    started = time.perf_counter()
    modifiers.clean("!" * 19_000 + "x")
    assert time.perf_counter() - started < 2.0  # it took minutes
