from __future__ import annotations

from promptadapt_core.data import vocabulary
from promptadapt_core.data.targets import Target


def learn(rows, **fields):
    """The vocabulary of (main, modifiers, number of writers)."""
    targets = [Target(main, found) for main, found, count in rows for _ in range(count)]
    clusters = [str(number) for number in range(len(targets))]
    return vocabulary.learn(targets, fields.pop("clusters", clusters), **fields)


ROWS = [
    ("a cat", ("sharp focus", "highly detailed", "8k"), 900),
    ("a lighthouse in the sea", ("Sharp Focus", "artstation", "fur"), 40),
    ("fur of a dog", ("highly detailed", "sharp focus"), 200),
    ("a house", ("highly detaild", "dramatic lighting", "blue eyes", "no people"), 20),
    ("a tree", ("dramatic lighting", "seen once"), 1),
    ("a boat", ("sharp lighting", "dramatic focus", "highly dramatic", "detailed", "zork quux"), 5),
]


def test_few_prompts_teach_nothing():
    assert learn([("a cat", ("8k",), 10)]) is None


def test_usual_modifiers_are_accepted_and_spelt_as_usual():
    known = learn(ROWS)
    target = Target("a hut", ("SHARP-FOCUS", "highly detaild", "dramatic lighting", "8K"))
    assert known.filtered(target).modifiers == (
        "sharp focus", "highly detailed", "dramatic lighting", "8k",
    )  # fmt: skip


def test_content_is_not_accepted():
    known = learn(ROWS)
    assert known.spelling("fur") == ""  # 40 times at the end, 200 times in main content
    assert known.spelling("blue eyes") == ""
    assert known.spelling("no people") == ""
    assert known.spelling("seen once") == ""
    assert known.spelling("zork quux") == ""  # words of no other segment: a name
    assert known.spelling("sharp dramatic lighting") == "sharp dramatic lighting"


def test_near_copies_are_one_writer():
    count = sum(number for _, _, number in ROWS)
    assert learn(ROWS, clusters=["one"] * count).spellings == {}


def test_what_stands_among_artists_is_one():
    cleaned = ["a cat, greg rutkowski, zork quux, alphonse mucha"] * 3 + ["a cat, sharp focus"] * 3
    names = vocabulary.names_among_artists(cleaned)
    assert "zorkquux" in names
    assert "sharpfocus" not in names


def test_corrections_go_to_much_more_frequent_neighbours():
    accepted = {"artstation": 90, "soft light": 20, "35mmlenses": 90}
    seen = {**accepted, "artstaion": 3, "artstations": 20, "softlights": 5, "85mmlenses": 1}
    assert vocabulary.corrections(seen, accepted) == {"artstaion": "artstation"}
