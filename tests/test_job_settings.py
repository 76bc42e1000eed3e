"""The settings of a job: values by place and by name, and what an adapter is given."""

from __future__ import annotations

from typing import Any

import pytest

from promptadapt_core.job_settings import (
    ADAPTING_NAMES,
    NAMES,
    JobSettings,
    from_arguments,
    job_settings,
    sent_arguments,
    switched,
)
from promptadapt_core.settings import MAX_SEED, AdaptSettings, SettingsError


def test_the_order_of_the_arguments_is_frozen() -> None:
    assert NAMES == (
        "policy", "mode", "num_candidates", "seed", "token_budget", "keep", "ban", "gate", "rank",
        "images", "keep_best", "scorer", "aesthetic_weight", "relevance_weight",
    )  # fmt: skip
    assert NAMES[: len(ADAPTING_NAMES)] == ADAPTING_NAMES
    assert ADAPTING_NAMES[-1] == "images"


def test_the_defaults_adapt_as_a_command_line_without_flags() -> None:
    given = JobSettings().for_adapter(image_seed=7)
    assert AdaptSettings(**given) == AdaptSettings(seed=7)
    assert "mode" not in given  # the policy's own


def test_values_come_as_controls_and_requests_give_them() -> None:
    settings = from_arguments(["mine", None, 3.0, 5, 60, " a red cat \n\nfoo", ["x", "y"]])
    assert settings == JobSettings(
        policy="mine", num_candidates=3, seed=5, token_budget=60, keep=("a red cat", "foo"),
        ban=("x", "y"),
    )  # fmt: skip
    assert type(settings.num_candidates) is int
    assert from_arguments([]) == JobSettings()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"policy": 1}, "policy"),
        ({"mode": "wild"}, "mode"),
        ({"num_candidates": 2.5}, "num_candidates"),
        ({"num_candidates": True}, "num_candidates"),
        ({"seed": -2}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"keep": 3}, "keep"),
        ({"gate": "yes"}, "gate"),
        ({"rank": 0}, "rank"),
        ({"images": "all"}, "images"),
        ({"aesthetic_weight": float("nan")}, "aesthetic_weight"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError) as error:
        job_settings(values)
    assert error.value.name == name


def test_too_many_values_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most 14 values"):
        from_arguments([None] * 15)


def test_a_seed_is_the_images_unless_it_is_set() -> None:
    assert JobSettings().for_adapter(7)["seed"] == 7
    assert JobSettings(seed=0).for_adapter(7)["seed"] == 0
    assert JobSettings().for_adapter(-3)["seed"] == MAX_SEED - 2  # no seed a host knows fails


@pytest.mark.parametrize(
    ("given", "num_images", "wanted"),
    [
        ({}, 4, 1),
        ({"rank": 3}, 1, 3),
        ({"num_candidates": 5, "rank": 3}, 1, 5),
        ({"images": "different"}, 4, 4),
        ({"images": "different", "num_candidates": 6}, 4, 6),
        ({"images": "different"}, 100, 64),
        ({"keep_best": "all", "num_candidates": 2, "rank": 5}, 4, 2),
        ({"keep_best": "all", "images": "different"}, 4, 1),
    ],
)
def test_as_many_candidates_as_a_job_needs(
    given: dict[str, Any], num_images: int, wanted: int
) -> None:
    assert job_settings(given).candidates_wanted(num_images) == wanted


@pytest.mark.parametrize(
    ("num_missing", "left"), [(0, [1, 2, 3]), (1, [1, 2]), (3, []), (9, [])]
)  # fmt: skip
def test_arguments_of_later_scripts_are_not_taken(num_missing: int, left: list[int]) -> None:
    assert sent_arguments([1, 2, 3], 3, num_missing) == left


def test_arguments_beyond_the_last_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most 3 values, got 5"):
        sent_arguments([1, 2, 3], 3, -2)


def test_the_switch_and_the_axes() -> None:
    names = ADAPTING_NAMES
    assert switched([], names, {}) == (False, JobSettings())
    assert switched([False, 5], names, {}) == (False, JobSettings())  # off, nothing is looked at
    assert switched([True, "mine"], names, {}) == (True, JobSettings(policy="mine"))
    assert switched([False, "mine"], names, {"seed": 3}) == (
        True, JobSettings(policy="mine", seed=3),
    )  # fmt: skip
    with pytest.raises(SettingsError, match="enabled: expected true or false, got 'on'"):
        switched(["on"], names, {})
