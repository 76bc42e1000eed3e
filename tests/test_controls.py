"""The controls of a page come from the settings table."""

from __future__ import annotations

import dataclasses

import pytest

from promptadapt_core.controls import (
    AXES,
    CHECKBOX,
    DROPDOWN,
    LABELS,
    NUMBER,
    ROWS,
    SLIDER,
    TEXT,
    choices_of,
    is_account,
    job_controls,
    numbered,
    rank_of,
)
from promptadapt_core.job_settings import NAMES, JobSettings

CHOICES = {"policy": ["promptadapt-sd", "mine"], "scorer": ["lab"]}


def test_every_setting_has_its_control_in_order() -> None:
    made = job_controls(NAMES, CHOICES)
    kinds = [control.kind for control in made]
    assert kinds == [
        DROPDOWN, DROPDOWN, SLIDER, NUMBER, SLIDER, TEXT, TEXT, CHECKBOX, SLIDER, DROPDOWN,
        DROPDOWN, DROPDOWN, SLIDER, SLIDER,
    ]  # fmt: skip
    assert [control.name for control in made] == list(NAMES)
    assert len({control.label for control in made}) == len(made) == len(LABELS)
    assert set(AXES) < set(NAMES)
    assert sorted(name for row in ROWS for name in row) == sorted(NAMES)


def test_ranges_defaults_and_help_are_the_tables() -> None:
    made = {control.name: control.options for control in job_controls(NAMES, CHOICES)}
    for field in dataclasses.fields(JobSettings):
        options = made[field.name]
        assert options["info"] == field.metadata["help"]
        if "minimum" in options:
            low, high = field.metadata["low"], field.metadata["high"]
            assert (options["minimum"], options["maximum"]) == (low, high)
            assert options["step"] in (1, 0.05)
        if field.name not in ("keep", "ban"):
            assert options["value"] == field.default
    assert made["keep"]["value"] == ""
    assert made["policy"]["choices"] == CHOICES["policy"]
    assert made["mode"]["choices"] == list(choices_of("mode"))
    assert choices_of("policy") == ()


def test_a_default_that_is_not_offered_gives_way() -> None:
    (policy,) = job_controls(["policy"], {"policy": ["mine"]})
    assert policy.options["value"] == "mine"
    (policy,) = job_controls(["policy"], {})  # nothing was found: its name can be typed
    assert (policy.kind, policy.options["value"]) == (TEXT, "promptadapt-sd")


def test_choices_lead_back_to_candidates() -> None:
    texts = ["a cat, 8k", "2. a dog"]
    assert numbered(texts) == ["1. a cat, 8k", "2. 2. a dog"]
    assert [rank_of(choice) for choice in numbered(texts * 20)] == list(range(1, 41))


@pytest.mark.parametrize(
    ("username", "password", "known"),
    [
        ("me", "secret", True), ("you", "b:c", True), ("me", "b:c", False), ("", "", False),
        ("me", "", False), ("ü", "secret", False),
    ],
)  # fmt: skip
def test_accounts_are_known_by_both_parts(username: str, password: str, known: bool) -> None:
    assert is_account(username, password, "me:secret,you:b:c") is known
