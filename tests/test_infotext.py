"""What a picture remembers, through the hosts' own way of writing and reading."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptadapt_core import __version__, infotext
from promptadapt_core.job_settings import NAMES, JobSettings

# modules/infotext_utils.py of Automatic1111 1.10.1
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")
FULL = JobSettings(
    policy="mine, too", mode="diverse", num_candidates=3, seed=5, token_budget=60,
    keep=('red: "cat"', "foo"), ban=("8k",), gate=False, rank=2, images="different",
    keep_best="all", scorer="other", aesthetic_weight=0.5, relevance_weight=2.0,
)  # fmt: skip


def written(pairs: dict[str, Any], before: str = "Steps: 2, Seed: 7") -> str:
    def quote(value: str) -> str:
        return json.dumps(value, ensure_ascii=False) if any(m in value for m in ",:\n") else value

    return ", ".join([before, *(f"{key}: {quote(value)}" for key, value in pairs.items())])


def read(line: str) -> dict[str, str]:
    found = {}
    for key, value in PAIR.findall(line.strip()):
        if value[0] == value[-1] == '"':
            value = json.loads(value)
        size = SIZE.match(value)
        found.update({f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value})
    return found


def pairs(given: JobSettings, original: str = "a cat", rank: int = 2) -> dict[str, str]:
    return infotext.picture_values(given, original, rank, 5, 3, "adapted", "0123456789")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    line = written({"Original": infotext.packed(text)}) + ", Version: v1.10.1"
    found = read(line)
    assert infotext.unpacked(found["Original"]) == text
    assert found["Version"] == "v1.10.1"


@pytest.mark.parametrize("text", ["a cat", "a, b: c\nd", "naïve 猫", "a(b:1.2) <lora:x:1>"])
def test_plain_texts_stay_readable(text: str) -> None:
    assert infotext.packed(text) == text


@pytest.mark.parametrize(
    "value",
    ["json:", "json:{", "json:3", "json:[1]", "json:" + "[" * 99_999, "typed by a person"],
    ids=len,
)
def test_what_a_person_edited_stays(value: str) -> None:
    assert infotext.unpacked(value) == value


def test_every_control_comes_back() -> None:
    params = read(written(pairs(FULL)))
    for name in NAMES:
        value = getattr(FULL, name)
        expected = "\n".join(value) if isinstance(value, tuple) else value
        assert infotext.control_of(params, name) == expected
    assert infotext.original_of(params) == "a cat"
    assert params["Prompt Adapt"] == __version__
    assert params["Prompt Adapt policy hash"] == "0123456789"


def test_defaults_are_not_written_and_come_back() -> None:
    found = infotext.picture_values(JobSettings(), "a cat", 1, 7, 1, "adapted", "")
    assert list(found) == [
        "Prompt Adapt", "Prompt Adapt original", "Prompt Adapt policy", "Prompt Adapt mode",
        "Prompt Adapt seed", "Prompt Adapt rank", "Prompt Adapt result",
    ]  # fmt: skip
    params = read(written(found))
    assert infotext.control_of(params, "token_budget") == 75
    assert infotext.control_of(params, "seed") == 7  # the one that was used


def test_the_picture_of_the_plain_input_has_rank_0_and_leaves_the_control() -> None:
    params = read(written(pairs(JobSettings(), rank=0)))
    assert params["Prompt Adapt rank"] == "0"
    assert infotext.control_of(params, "rank") == 1


@pytest.mark.parametrize(
    ("key", "value", "name", "default"),
    [
        ("Prompt Adapt gate", "perhaps", "gate", True),
        ("Prompt Adapt seed", "many", "seed", -1),
        ("Prompt Adapt rank", "99", "rank", 1),
        ("Prompt Adapt mode", "wild", "mode", "auto"),
        ("Prompt Adapt aesthetic weight", "nan", "aesthetic_weight", 1.0),
    ],
)
def test_nonsense_is_passed_over(key: str, value: str, name: str, default: Any) -> None:
    params = {**read(written(pairs(JobSettings()))), key: value}
    assert infotext.control_of(params, name) == default
    assert infotext.control_of(params, "policy") == "promptadapt-sd"


def test_the_user_input_is_put_back_only_where_it_is_adapted_again() -> None:
    by_script = {**read(written(pairs(JobSettings()))), "Script": "Prompt Adapt", "Prompt": "x"}
    assert infotext.restore(by_script, always_on_shown=False)
    assert by_script["Prompt"] == "a cat"
    assert infotext.always_on_of(by_script) is False
    twin = {**read(written(pairs(JobSettings()))), "Prompt Adapt always on": "True", "Prompt": "x"}
    for shown in (False, True):
        params = dict(twin)
        assert infotext.restore(params, always_on_shown=shown) is shown
        assert params["Prompt"] == ("a cat" if shown else "x")
        assert infotext.always_on_of(params) is shown
    other = {"Prompt": "x", "Script": "X/Y/Z plot"}
    assert not infotext.restore(other, always_on_shown=True)
    assert other == {"Prompt": "x", "Script": "X/Y/Z plot"}
    assert infotext.always_on_of(other) is None
    assert infotext.control_of(other, "mode") is None


def test_values_of_images_count_pictures_of_the_job_and_of_a_batch() -> None:
    found = infotext.of_images([{"a": "same", "b": str(i)} for i in range(5)])
    assert found["a"] == "same"
    value = found["b"]
    assert isinstance(value, infotext.PerImage)
    for iteration in range(3):
        p = SimpleNamespace(iteration=iteration, batch_size=2)
        batch = ["x"] * (2 if iteration < 2 else 1)
        for i in range(len(batch)):
            number = str(2 * iteration + i)
            assert value(p=p, index=i, all_prompts=batch, comments=[]) == number
            assert value(p=p, index=2 * iteration + i, all_prompts=["x"] * 5) == number
    last = SimpleNamespace(iteration=2, batch_size=2)  # a grid is told of after the last batch
    assert value(p=last, index=0, all_prompts=["x"], use_main_prompt=True) == "0"
    one = infotext.of_images([{"a": "x"}, {}])["a"]
    assert [one(index=i, all_prompts=["x", "x"]) for i in range(2)] == ["x", None]


def test_our_pairs_can_be_taken_out() -> None:
    others = {"Steps": "2", "Script": "Prompt Adapt", "Prompt Adapter": "x"}
    ours = {**pairs(FULL), infotext.ALWAYS_ON: "True", infotext.FAILED: "x"}
    assert infotext.without_ours({**others, **ours}) == others


def test_scores_go_to_the_end() -> None:
    scores = infotext.score_values({"reward": 5.12345, "aesthetic": 5.5, "relevance": 0.25})
    text = infotext.with_values("a cat\nSteps: 2, Seed: 7", scores)
    assert text == (
        "a cat\nSteps: 2, Seed: 7, Prompt Adapt reward: 5.1235, Prompt Adapt aesthetic: 5.5000, "
        "Prompt Adapt relevance: 0.2500"
    )
    assert infotext.with_values("", scores) == ""
    assert infotext.with_values("x", {"Key": "a, b"}) == 'x, Key: "a, b"'
