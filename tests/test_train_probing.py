from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptadapt_core.baselines import Baseline, BaselineCache
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.probing import (
    Pictures,
    num_kept,
    peak_bytes,
    probe_reward,
    reward_parts,
    sizes_to_try,
)


class Words:
    """A reward without pictures that anybody could time."""

    def __init__(self, ok: bool = True):
        self.ok, self.calls = ok, 0

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        return [visit, visit + 1]

    def reward(self, user_inputs: Any, texts: Any, seeds: Any, should_stop: Any = None) -> Any:
        self.calls += 1
        ok = torch.full((len(user_inputs),), self.ok)
        return SimpleNamespace(ok=ok, failures=("it is all black",))


@pytest.mark.parametrize(
    ("whole", "group_size", "sizes"),
    [
        (256, 4, [8, 32, 256]),
        (1024, 1, [8, 32, 256]),
        (8, 2, [8]),
        (4, 4, [4]),
        (30, 10, [10, 30]),
        (128, 64, [64, 128]),
    ],
)
def test_probes_grow_in_whole_groups(whole: int, group_size: int, sizes: list[int]) -> None:
    assert sizes_to_try(whole, group_size) == sizes


def test_plain_pictures_that_are_known_are_counted() -> None:
    """Two user inputs, two visits with the seeds 0, 1 and 1, 2: six pictures, of which three."""
    cache = BaselineCache(None, "renderer", "scorer")
    scores = Baseline(5.0, 0.3)
    cache.add({("a", 0): scores, ("a", 2): scores, ("b", 1): scores, ("c", 0): scores})
    reward = Words()
    assert num_kept(reward, ["a", "b"], 2) == 0
    reward.rewarder = SimpleNamespace(baselines=cache)  # type: ignore[attr-defined]
    assert num_kept(reward, ["a", "b"], 2) == 3
    assert num_kept(reward, ["a", "b"], 1) == 2


def test_a_reward_of_another_kind_is_called_twice() -> None:
    reward = Words()
    assert probe_reward(reward, list("abcdef"), None).candidate >= 0.0
    assert reward.calls == 2
    parts, probe = reward_parts(reward, ["a"], Pictures(40, 6, 2, 8), 1.0, None)
    assert [(part.name, part.number, part.unit) for part in parts] == [
        ("rewards", 20, "candidate"),
        ("plain inputs", 3, "user input"),
    ]
    assert probe.num_pictures == 0


def test_nothing_rewarded_is_an_error() -> None:
    with pytest.raises(SettingsError, match="none of the first 3 user inputs .* all black"):
        probe_reward(Words(ok=False), list("abc"), None)


def test_the_peak_is_in_bytes() -> None:
    held = torch.ones(2**24)
    peak = peak_bytes(held.device)
    if not peak:
        pytest.skip("this system does not tell")
    assert 4 * held.numel() < peak < 2**40
