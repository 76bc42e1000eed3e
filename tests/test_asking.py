import time

import pytest

from promptadapt_core.asking import without_asking


@pytest.mark.parametrize(
    ("user_input", "asked"),
    [
        ("can you draw a cat on a roof?", "a cat on a roof"),
        ("Could you please create an image of a red house?", "a red house"),
        ("please draw me a picture of two dogs", "two dogs"),
        ("please paint the old mill", "the old mill"),
        ("I want a castle in the clouds", "a castle in the clouds"),
        ("i would like to see the sea at night, please", "the sea at night"),
        ("show me a (cat:1.3) <lora:fur:0.5>", "a (cat:1.3) <lora:fur:0.5>"),
        ("draw a lighthouse.", "a lighthouse"),
        ("Generate an image of mount fuji", "mount fuji"),
        ("hey, can you make me a frog wizard", "a frog wizard"),
    ],
)
def test_the_asking_goes(user_input, asked):
    assert without_asking(user_input) == asked


@pytest.mark.parametrize(
    "user_input",
    [
        "a cat on a roof",
        "make love not war",
        "I want",
        "can you draw ?",
        "paint splashes on a wall",
        "a sign that says can you draw a cat?",
        "show jumping horse",
        "created by ants",
        "rendering of a kitchen",
        "i need you",
        "imagine dragons concert",
        "",
    ],
)
def test_everything_else_stays(user_input):
    assert without_asking(user_input) == user_input


def test_a_long_run_of_marks_is_read_fast():
    for mark in ("!", ". ", ", ", "?", "! "):
        request = "can you draw a cat" + mark * 5000
        started = time.perf_counter()
        without_asking(request)
        without_asking(request + "x")
        assert time.perf_counter() - started < 2.0  # it took minutes
