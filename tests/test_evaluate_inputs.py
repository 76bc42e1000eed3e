from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptadapt_core.evaluate.inputs import (
    MOST_DOMAINS,
    NUM_TRAINING_PAIRS,
    PAIRS_SEED,
    EvaluationInput,
    described,
    lab_inputs,
    load_inputs,
    training_inputs,
    unseen_inputs,
)
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.settings import MAX_INPUT_CHARACTERS, SettingsError


def written(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_text_file_has_one_a_line_and_no_duplicates(tmp_path: Path) -> None:
    path = written(tmp_path / "in.txt", "\ufeffa cat\n\n  ein grüner Hund \na cat\n")
    inputs = load_inputs(EvaluateSettings(user_inputs=path))
    assert inputs.rows == [
        EvaluationInput("a cat", "inputs"),
        EvaluationInput("ein grüner Hund", "inputs"),
    ]
    assert inputs.notes == ["left out 1 user inputs that are there twice"]


def test_rows_have_domains_and_targets_and_domains_stay_together(tmp_path: Path) -> None:
    rows = [
        {"user_input": "a cat", "domain": "animals", "target": "a cat, 8k"},
        {"user_input": "a car", "domain": "things"},
        {"user_input": "a dog", "domain": "animals", "target": None, "more": 1},
        {"user_input": "a cow", "domain": "animals"},
        {"user_input": "a cat", "domain": "things"},
    ]
    path = written(tmp_path / "in.jsonl", "\n".join(map(json.dumps, rows)))
    inputs = load_inputs(EvaluateSettings(user_inputs=path, num_inputs=2))
    assert inputs.rows == [
        EvaluationInput("a cat", "animals", "a cat, 8k"),
        EvaluationInput("a dog", "animals"),
        EvaluationInput("a car", "things"),
    ]
    assert inputs.domains == ["animals", "things"]
    assert inputs.places_of("things") == [2]
    assert described(inputs) == {"animals": 2, "things": 1}


def test_what_training_saw_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "in.txt", "a cat\na dog\n")
    seen = written(tmp_path / "seen.jsonl", '{"user_input": "a cat", "target": "a cat, 8k"}\n')
    inputs = load_inputs(EvaluateSettings(user_inputs=path, exclude=(seen,)))
    assert [row.user_input for row in inputs.rows] == ["a dog"]
    assert inputs.notes == ["left out 1 user inputs that are to be excluded"]
    with pytest.raises(SettingsError, match="^user_inputs: all of them"):
        load_inputs(EvaluateSettings(user_inputs=path, exclude=(path,)))
    with pytest.raises(SettingsError, match="^exclude: there is no file"):
        load_inputs(EvaluateSettings(user_inputs=path, exclude=("nothing.txt",)))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("in.txt", "\n \n", "holds no user inputs"),
        ("in.jsonl", "{}\n", "line 1 of .* needs the text user_input"),
        ("in.jsonl", '{"user_input": "a"}\nno\n', "line 2 of .* is not JSON"),
        ("in.jsonl", '{"user_input": "a", "domain": 3}', "expected a text as domain"),
        ("in.jsonl", '{"user_input": " "}', "line 1 of .*: expected some words"),
        ("in.jsonl", '{"user_input": "a", "target": "\\ud800"}', "target has half a character"),
        ("in.jsonl", '{"user_input": "a", "domain": "\\u0000"}', "expected a domain of at most"),
        ("in.json", '[{"user_input": "a"}]', "in.json is expected as .jsonl"),
        ("in.txt", "a\n" + "b" * (MAX_INPUT_CHARACTERS + 1), "line 2 of .*: expected at most"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(SettingsError, match=f"^user_inputs: .*{told}"):
        load_inputs(EvaluateSettings(user_inputs=path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xff\xfe\x00")
    for path, told in (
        (tmp_path / "in.txt", "is not UTF-8"),
        (tmp_path / "none.txt", "there is no file"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=f"^user_inputs: .*{told}"):
            load_inputs(EvaluateSettings(user_inputs=str(path)))
    with pytest.raises(SettingsError, match="^user_inputs: expected a file"):
        load_inputs(EvaluateSettings(renderer="F"))


def test_the_lab_brings_its_own_that_no_training_saw() -> None:
    from promptadapt_core.lab.captions import read
    from promptadapt_core.lab.writers import is_held_out, write_pairs

    rows = lab_inputs(5, 90_001)
    assert [row.domain for row in rows] == ["in-domain"] * 5 + ["out-of-domain"] * 5
    assert len({row.user_input for row in rows}) == 10
    known, unknown = rows[:5], rows[5:]
    assert not {row.user_input for row in known} & training_inputs(False)
    assert len(training_inputs(True)) == 20_000
    some_pairs = {pair.user_input for pair in write_pairs(200, PAIRS_SEED)}
    assert some_pairs <= training_inputs(False)
    assert all(row.target and not is_held_out(read(row.target)) for row in known)
    assert all(read(row.target).things == read(row.user_input).things for row in known)
    assert all(read(row.target).modifiers for row in known)
    assert not any(row.target for row in unknown)
    assert rows == lab_inputs(5, 90_001)
    first = [row.user_input for row in known]
    assert unseen_inputs(3, 90_001, False, first[:2])[0] == first[2]


def test_the_pairs_are_those_of_the_bundled_policy() -> None:
    from promptadapt_core.policies import LAB_SFT_POLICY, resolve_policy

    card = (resolve_policy(LAB_SFT_POLICY).parent / "README.md").read_text(encoding="utf-8")
    assert f"--num-pairs {NUM_TRAINING_PAIRS} --seed {PAIRS_SEED}\n" in card


def test_others_take_the_place_of_what_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptadapt_core.evaluate.inputs.training_inputs", lambda _: frozenset())
    first = [row.user_input for row in lab_inputs(3, 90_001)]
    seen = written(tmp_path / "seen.txt", "\n".join(first[:2]))
    inputs = load_inputs(EvaluateSettings(num_inputs=3, exclude=(seen,)))
    assert described(inputs) == {"in-domain": 3, "out-of-domain": 3}
    assert not {row.user_input for row in inputs.rows} & set(first[:2])


def test_names_of_files_and_domains_are_as_one_means_them(tmp_path: Path) -> None:
    upper = written(tmp_path / "IN.JSONL", '{"user_input": "a cat", "domain": "one\\n two"}\n')
    assert load_inputs(EvaluateSettings(user_inputs=upper)).rows == [
        EvaluationInput("a cat", "one two")
    ]
    many = [{"user_input": f"cat {n}", "domain": f"d{n}"} for n in range(MOST_DOMAINS + 1)]
    path = written(tmp_path / "in.jsonl", "\n".join(map(json.dumps, many)))
    with pytest.raises(SettingsError, match=f"at most {MOST_DOMAINS} domains, got"):
        load_inputs(EvaluateSettings(user_inputs=path))


def test_the_lab_has_no_end_of_inputs_to_offer() -> None:
    with pytest.raises(SettingsError, match="^num_inputs: the lab has at most"):
        unseen_inputs(100_000, 1, False, ())
