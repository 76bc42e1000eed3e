from __future__ import annotations

import dataclasses
import json

import pytest

from promptadapt_core.train.costs import MOST_SECONDS, Part, Plan, Probe, seconds_text

GIB = 2**30


def plan(**changes: object) -> Plan:
    made = Plan(
        trainer="ppo",
        counts={"iterations": 2, "images": 100},
        first_sentence="plan: 2 iterations",
        parts=(
            Part("rendering", 100, "picture", 3.0, repeats=True),
            Part("scoring", 100, "picture", 0.5, repeats=True),
            Part("plain inputs", 10, "picture", 3.5),
            Part("updates", 50, "candidate", 0.3),
        ),
        rendered_share=0.8,
        memory_bytes=3 * GIB,
        disk_bytes=GIB // 4,
        probe=Probe(12.0, 32, 8, 8, 8, 20, 20),
    )
    return dataclasses.replace(made, **changes)


def test_the_parts_add_up() -> None:
    """300 + 50 + 35 + 15 seconds; of the first two a fifth repeats itself."""
    made = plan()
    assert made.seconds == pytest.approx(400.0)
    assert made.seconds_now == pytest.approx(0.8 * 350.0 + 50.0)
    assert made.reward_share == pytest.approx(385.0 / 400.0)


def test_it_is_told_in_two_sentences() -> None:
    assert plan().sentences() == [
        "plan: 2 iterations",
        "expected, from a probe: at most about 7 min, renderer and scorer 96% of it, memory 3.0 "
        "GiB, disk 0.25 GiB at most",
    ]
    alone = plan(parts=(Part("learning", 10, "text", 1.0),), memory_bytes=0)
    assert alone.sentences()[1].endswith("about 10 s, no pictures, disk 0.25 GiB at most")


def test_the_table_has_a_line_for_each_part() -> None:
    lines = plan().lines()
    assert lines[1].split() == ["rendering", "100", "x", "3", "s", "a", "picture", "5", "min"]
    assert lines[5].split() == ["all,", "without", "repeats", "7", "min"]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert "about 6 min if the policy goes on repeating itself as now: 80% of" in lines[6]
    assert not any("repeating" in line for line in plan(rendered_share=1.0).lines())


@pytest.mark.parametrize(
    ("probe", "told", "not_told"),
    [
        (Probe(12.0, 32, 8, 8, 8, 20, 20), "12 s: 8 pictures of 20 steps, 8 at once", "fewer"),
        (Probe(12.0, 0, 2, 2, 8, 4, 20), "the time of 20 steps is computed from fewer", "candid"),
        (Probe(12.0, 0, 2, 2, 8, 4, 20), "the run renders 8 at once", "candidates"),
        (Probe(3.0), "measured in 3 s", ":"),
    ],
)
def test_what_was_measured_is_told(probe: Probe, told: str, not_told: str) -> None:
    assert told in probe.sentence()
    assert not_told not in probe.sentence()


def test_a_program_reads_the_same_numbers() -> None:
    made = plan()
    found = json.loads(json.dumps(made.as_json()))
    assert (found["iterations"], found["images"]) == (2, 100)
    assert found["seconds_at_most"] == pytest.approx(sum(p["seconds"] for p in found["parts"]))
    assert found["renderer_and_scorer_share"] == pytest.approx(made.reward_share)
    assert found["probe"]["num_pictures"] == 8


def test_no_duration_is_too_long_to_be_told() -> None:
    assert Part("rendering", 1e300, "picture", 1e300).seconds == MOST_SECONDS
    assert plan(parts=(Part("rendering", 1e300, "picture", 1e300),)).sentences()


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.345, "12.3 s"), (0.45, "0.45 s"), (0.0123, "12.3 ms"), (0.0, "0 ms")]
)
def test_seconds_have_three_digits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
