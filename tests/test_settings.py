import argparse
import dataclasses

import pytest

from promptadapt_core.data.settings import DataSettings
from promptadapt_core.settings import (
    MAX_SEED,
    AdaptSettings,
    Settings,
    SettingsError,
    add_flags,
    flag,
    given,
    setting,
)
from promptadapt_core.train.sft_settings import SftSettings

TABLES = [AdaptSettings, DataSettings, SftSettings]


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_has_help_and_a_default_in_its_range(table):
    assert table() == table()
    for field in dataclasses.fields(table):
        assert field.metadata["help"], field.name
        assert field.metadata["help"][0].islower() or field.metadata["help"][0].isdigit()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_candidates", 0, "num_candidates: expected a number from 1 to 64, got 0"),
        ("num_candidates", 1000, "num_candidates: expected a number from 1 to 64, got 1000"),
        ("num_candidates", "3", "num_candidates: expected int, got '3'"),
        ("num_candidates", True, "num_candidates: expected int, got True"),
        ("token_budget", -1, "token_budget: expected a number from 1 to 750, got -1"),
        ("mode", "best", "mode: expected one of beam, diverse, sample, got 'best'"),
        ("temperature", float("nan"), "temperature: expected a finite number, got nan"),
        ("seed", MAX_SEED + 1, None),
        ("ban", "word", "ban: expected a list of strings, got 'word'"),
        ("ban", 5, "ban: expected a list of strings, got 5"),
        ("ban", ("!!",), "ban: expected a word or phrase, got '!!'"),
        ("temperature", 10**400, "temperature: expected a finite number, got inf"),
        pytest.param("seed", 10**5000, None, id="seed of 5001 digits"),
        ("gate", 1, "gate: expected bool, got 1"),
    ],
)
def test_a_bad_value_names_the_setting(name, value, sentence):
    with pytest.raises(SettingsError) as caught:
        AdaptSettings(**{name: value})
    assert caught.value.name == name
    if sentence:
        assert str(caught.value) == sentence


def test_values_come_out_in_their_own_type():
    settings = AdaptSettings(temperature=1, ban=["a", "b"], seed=MAX_SEED)
    assert settings.temperature == 1.0
    assert isinstance(settings.temperature, float)
    assert settings.ban == ("a", "b")


def test_flags_that_were_not_given_stay_away():
    parser = argparse.ArgumentParser()
    add_flags(parser, AdaptSettings)
    assert given(AdaptSettings, parser.parse_args([])) == {}
    typed = ["--num-candidates", "4", "--ban", "8k", "--ban", "dark art", "--no-gate", "--artists"]
    assert given(AdaptSettings, parser.parse_args(typed)) == {
        "num_candidates": 4,
        "ban": ["8k", "dark art"],
        "gate": False,
        "artists": True,
    }


def test_help_shows_range_and_default():
    parser = argparse.ArgumentParser()
    add_flags(parser, AdaptSettings)
    text = " ".join(parser.format_help().split())
    assert "--token-budget INT" in text
    assert "(1 to 750) [default: 75]" in text


def test_flag_of_a_setting_that_is_on_switches_it_off():
    assert flag("gate", True) == "--no-gate"
    assert flag("num_candidates") == "--num-candidates"


def test_an_optional_setting_takes_none():
    @dataclasses.dataclass(frozen=True)
    class Optional(Settings):
        limit: "int | None" = setting(None, "at most this many", low=1)

    assert Optional().limit is None
    assert Optional(limit=2).limit == 2
    with pytest.raises(SettingsError, match="limit: expected 1 or more, got 0"):
        Optional(limit=0)
