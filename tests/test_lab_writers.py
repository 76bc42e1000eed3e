from __future__ import annotations

import json
import random
import statistics
from collections import Counter, defaultdict

import pytest

pytest.importorskip("numpy")

from promptadapt_core.lab import taste, vocabulary, writers  # noqa: E402
from promptadapt_core.lab.captions import read  # noqa: E402
from promptadapt_core.lab.scenes import Scene, Thing  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


@pytest.fixture(scope="module")
def pairs() -> list[writers.WriterPair]:
    return writers.write_pairs(1000, 0)


def plain(scene: Scene) -> Scene:
    return Scene(scene.things, scene.relation, scene.place)


def asked(text: str) -> bool:
    return text.endswith("?")


def test_a_target_is_the_main_content_and_its_modifiers(pairs):
    for pair in pairs:
        assert pair.target == ", ".join((pair.main, *pair.scene.modifiers))
        assert read(pair.target) == pair.scene
        assert read(pair.main) == plain(pair.scene)
        assert pair.main.startswith(("a ", "an "))
        assert 1 <= len(pair.scene.modifiers) <= 7


def test_a_user_input_says_the_same_with_one_modifier_at_most(pairs):
    for pair in pairs:
        said = read(pair.user_input)
        assert plain(said) == plain(pair.scene)
        assert said.modifiers in ((), pair.scene.modifiers[:1])
        if pair.style == "plain":
            assert pair.target.startswith(pair.user_input)
    shares = Counter(bool(read(pair.user_input).modifiers) for pair in pairs)
    assert 0.2 < shares[True] / len(pairs) < 0.3


def test_nothing_held_out_is_ever_written(pairs):
    texts = [text for pair in pairs for text in (pair.user_input, pair.target)]
    for text in (*texts, *writers.user_inputs(500, 0, held_out=False)):
        scene = read(text)
        assert not {thing.subject for thing in scene.things} & {*vocabulary.HELD_OUT_SUBJECTS}
        assert scene.place not in vocabulary.HELD_OUT_PLACES
        assert not asked(text)
    assert {pair.style for pair in pairs} == set(writers.WRITTEN_STYLES)
    assert {pair.writer for pair in pairs} == {writer.name for writer in writers.WRITERS}


def test_every_modifier_is_written(pairs):
    assert {name for pair in pairs for name in pair.scene.modifiers} == {*taste.NAMES}


def test_writers_gain_some_and_leave_more(pairs):
    gains = defaultdict(list)
    for pair in pairs:
        gains[pair.writer].append(taste.gain(pair.scene, pair.scene.modifiers))
    mean = {name: statistics.mean(values) for name, values in gains.items()}
    assert mean["novice"] < mean["hobbyist"] < mean["expert"]
    ceiling = statistics.mean(
        taste.gain(pair.scene, taste.best_modifiers(taste.modifier_values(pair.scene)))
        for pair in pairs[:200]
    )
    together = statistics.mean(value for values in gains.values() for value in values)
    assert 0.2 * ceiling < together < 0.5 * ceiling
    assert mean["expert"] < 0.8 * ceiling


def test_habits_differ(pairs):
    praise = Counter()
    number = Counter()
    for pair in pairs:
        number[pair.writer] += len(pair.scene.modifiers)
        praise[pair.writer] += sum(name in writers.PRAISE for name in pair.scene.modifiers)
    share = {name: praise[name] / number[name] for name in number}
    assert share["novice"] > 2 * share["hobbyist"] > 3 * share["expert"] > 0
    spoiled = [pair for pair in pairs if set(pair.scene.modifiers) & set(writers.SPOILERS)]
    assert 0 < len(spoiled) < 0.1 * len(pairs)


def test_experts_read_the_scene():
    expert = writers.WRITERS[-1]
    chosen: dict[str, Counter[str]] = {}
    for place in ("in a room", "in a forest"):
        scene = Scene((Thing("cup", "red"),), None, place)
        sets = [writers.choose_modifiers(expert, scene, random.Random(i)) for i in range(300)]
        assert all(len(set(names)) == len(names) for names in sets)
        chosen[place] = Counter(name for names in sets for name in names)
    assert chosen["in a room"]["candlelight"] > 10 * chosen["in a forest"]["candlelight"]
    assert chosen["in a forest"]["foggy"] > 10 * chosen["in a room"]["foggy"]


def test_the_same_seed_the_same_pairs_whatever_their_number(pairs):
    assert writers.write_pairs(20, 0) == pairs[:20]
    assert writers.write_pairs(20, 1) != pairs[:20]
    assert writers.write_pairs(0, 0) == []


def test_user_inputs_are_plain_different_and_repeatable():
    for held_out in (False, True):
        inputs = writers.user_inputs(300, 3, held_out)
        assert len(set(inputs)) == 300
        assert inputs[:50] == writers.user_inputs(50, 3, held_out)
        assert inputs != writers.user_inputs(300, 4, held_out)
        for text in inputs:
            assert read(text).things
            assert read(text).modifiers == ()


def test_inputs_out_of_domain_have_something_held_out_each():
    counts = Counter()
    for text in writers.user_inputs(400, 0, held_out=True):
        scene = read(text)
        subjects = {thing.subject for thing in scene.things}
        found = {
            "subject": bool(subjects & {*vocabulary.HELD_OUT_SUBJECTS}),
            "place": scene.place in vocabulary.HELD_OUT_PLACES,
            "style": asked(text),
        }
        assert any(found.values()), text
        counts.update(name for name, value in found.items() if value)
    assert min(counts.values()) > 80


def test_the_file_for_sft(tmp_path):
    path = tmp_path / "pairs.jsonl"
    writers.pairs_jsonl(path, 600, 0)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 600
    assert set(rows[0]) == {"user_input", "target", "main", "kind", "split"}
    splits = defaultdict(set)
    for row in rows:
        splits[row["split"]].add(plain(read(row["target"])))
    assert 3 <= len(splits["valid"]) <= 60
    assert not splits["valid"] & splits["train"]
    again = tmp_path / "again.jsonl"
    writers.pairs_jsonl(again, 600, 0)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(SettingsError, match="out: "):
        writers.pairs_jsonl(tmp_path / "nowhere" / "pairs.jsonl", 1, 0)


def test_the_trainer_reads_the_file(tmp_path):
    batches = pytest.importorskip("promptadapt_core.train.batches", exc_type=ImportError)
    path = tmp_path / "pairs.jsonl"
    writers.pairs_jsonl(path, 5, 0)
    read_back = batches.read_pairs(path)
    assert [pair.target for pair in read_back] == [p.target for p in writers.write_pairs(5, 0)]
    assert all(pair.target.startswith(pair.main) for pair in read_back)
