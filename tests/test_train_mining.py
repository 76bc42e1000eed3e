from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import StopAfter, WordReward

from promptadapt_core import prompts, runs
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.decoding import Stopped
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import choosing, mined, mining, mining_metrics, rounds_preparing
from promptadapt_core.train.mining_settings import MiningSettings

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
TINY: dict[str, Any] = {
    "device": "cpu", "num_rounds": 2, "round_inputs": 6, "group_size": 4, "mining_batch": 8,
    "measure_inputs": 0, "min_length_limit": 4, "max_length_limit": 10, "tensorboard": False,
}  # fmt: skip


class SeenReward(WordReward):
    """Two pictures of each candidate, which can be looked at."""

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        return [len(user_input), 100]  # the same at every visit

    def reward(self, user_inputs: Any, *arguments: Any, **options: Any) -> Any:
        batch = super().reward(user_inputs, *arguments, **options)
        batch.pictures = [np.full((2, 4, 4, 3), 9, np.uint8) for _ in user_inputs]
        return batch


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    return policy_for(SUBJECTS)


@pytest.fixture(scope="module")
def adapter(inputs: Path) -> PromptAdapter:
    return PromptAdapter(Policy.load(inputs / "policy"))


def tiny(inputs: Path, out: Path, **changes: Any) -> MiningSettings:
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip
    return MiningSettings(**chosen)


def mine_of(settings: MiningSettings, reward: Any, judge: Any = None) -> mining.Mine:
    prepared = rounds_preparing.prepare(settings, "rejection", reward, judge, runs.Silent())
    return mining.Mine(settings, prepared.works, prepared.asked, reward, judge, runs.Silent())


def never() -> bool:
    return False


def dig(
    mine: mining.Mine, adapter: PromptAdapter, path: Path, first: int = 0, stop: Any = never,
    most_images: int = 0,
) -> list[mined.Batch]:  # fmt: skip
    return mine.dig(adapter, path, first, mine.settings.round_inputs, most_images, stop)


def test_a_round_can_be_looked_at(inputs: Path, adapter: PromptAdapter, tmp_path: Path) -> None:
    path = tmp_path / "round" / "candidates.jsonl"
    batches = dig(mine_of(tiny(inputs, tmp_path / "run"), SeenReward()), adapter, path)
    assert [len(batch.groups) for batch in batches] == [2, 2, 2]
    assert sorted(g.user_input for b in batches for g in b.groups) == sorted(SUBJECTS)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["batch"] for row in rows if "batch" in row] == [0, 1, 2]
    group = rows[0]
    assert group["seeds"] == [len(group["user_input"]), 100]
    assert group["plain"] == {
        "reward": 0.0, "terms": {"word": 0.0, "length": 0.0}, "judged": {}
    }  # fmt: skip
    assert len(group["candidates"]) == 4
    for one in group["candidates"]:
        assert one["adapted_prompt"].startswith(group["user_input"])
        if one["left_alone"]:
            assert one["adapted_prompt"] == group["user_input"]
        else:
            assert one["target"] == one["adapted_prompt"]  # there is no syntax in it
        assert one["worth"]["reward"] == pytest.approx(sum(one["worth"]["terms"].values()))
    assert mined.MinedFile(path).batches == batches


def test_the_same_text_and_seeds_are_rendered_once_in_a_run(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path
) -> None:
    reward = SeenReward()
    mine = mine_of(tiny(inputs, tmp_path / "run", round_inputs=18), reward)
    first = dig(mine, adapter, tmp_path / "1.jsonl")
    second = dig(mine, adapter, tmp_path / "2.jsonl", first=9)
    assert len(reward.drawn) == len(set(reward.drawn))
    every = [
        (group.user_input, one.adapted_prompt, group.seeds)
        for batch in (*first, *second)
        for group in batch.groups
        for one in group.candidates
    ]
    assert len(every) == 2 * 18 * 4 > len(set(every))
    paid = [row for row in set(every) if row[0] != row[1]]
    assert mine.num_images == 2 * len(paid)  # two seeds
    assert mine.num_asked == 2 * len(every)
    assert all(
        one.worth is not None
        for batch in second for group in batch.groups for one in group.candidates
    )  # fmt: skip


@pytest.mark.parametrize("asked", [1, 6, 14, 25, 33])
def test_mining_that_is_broken_off_goes_on_the_same(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path, asked: int
) -> None:
    """Whole batches are neither sampled nor rendered again."""
    whole, path = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    settings = tiny(inputs, tmp_path / "run", round_inputs=12)
    expected = dig(mine_of(settings, SeenReward()), adapter, whole)
    again = dataclasses.replace(settings, resume=True)
    with pytest.raises(Stopped):
        dig(mine_of(again, SeenReward()), adapter, path, stop=StopAfter(asked))
    kept = path.read_bytes() if path.exists() else b""
    with open(path, "ab") as file:
        file.write(b'{"user_input": "a cat", "policy_text": "a cat", "seeds": [1], "pl')
    reward, mine = SeenReward(), None
    mine = mine_of(again, reward)
    assert dig(mine, adapter, path) == expected
    assert path.read_bytes() == whole.read_bytes()
    assert path.read_bytes().startswith(kept)
    num_kept = kept.count(b'"batch"')
    assert reward.calls <= len(expected) - num_kept
    paid_before = {
        (g.user_input, one.adapted_prompt, g.seeds)
        for batch in expected[:num_kept] for g in batch.groups for one in g.candidates
    }  # fmt: skip
    assert not paid_before & set(reward.drawn)
    assert mine.num_images == mined.num_rendered(expected)


def test_a_line_that_makes_no_sense_ends_what_is_read(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "candidates.jsonl"
    batches = dig(mine_of(tiny(inputs, tmp_path / "run"), SeenReward()), adapter, path)
    lines = path.read_text("utf-8").splitlines(keepends=True)
    for broken in ("{", "[]\n", '{"user_input": 1}\n', "\xff\xfe", '{"batch": 1}\n'):
        path.write_text("".join([*lines[:3], broken, *lines[3:]]), "utf-8")
        assert mined.MinedFile(path).batches == batches[:1]
        assert path.read_text("utf-8") == "".join(lines[:3])


def test_a_disk_that_fills_leaves_whole_batches(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    settings = tiny(inputs, tmp_path / "run")
    expected = dig(mine_of(settings, SeenReward()), adapter, whole)
    real, calls = os.fsync, []

    def fills(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    mine = mine_of(dataclasses.replace(settings, resume=True), SeenReward())
    with monkeypatch.context() as patched:
        patched.setattr(mined.os, "fsync", fills)
        with pytest.raises(SettingsError, match="out: .*parts.jsonl cannot be used .No space left"):
            dig(mine, adapter, path)
    again = mine_of(dataclasses.replace(settings, resume=True), SeenReward())
    assert dig(again, adapter, path) == expected
    assert path.read_bytes() == whole.read_bytes()


def test_images_are_limited_and_counted(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path
) -> None:
    """Two seeds and four candidates: a user input may cost 8."""
    for limit in (8, 25, 40):
        settings = tiny(inputs, tmp_path / str(limit), round_inputs=1000, max_images=limit)
        mine = mine_of(settings, reward := SeenReward())
        dig(mine, adapter, tmp_path / f"{limit}.jsonl", most_images=limit)
        drawn = [row for row in reward.drawn if row[0] != row[1]]
        assert limit - 8 < 2 * len(drawn) == mine.num_images <= limit


def test_each_round_has_its_share_of_the_images() -> None:
    """100 images, of which 2 * 4 * 1 measure: 92 for three rounds."""
    settings = MiningSettings(
        num_rounds=3, group_size=4, mining_batch=8, measure_inputs=2, max_images=100
    )
    assert [settings.most_images(done, 1) for done in (1, 2, 3, 4)] == [30, 61, 92, 100]
    assert MiningSettings().most_images(1, 4) == 0
    with pytest.raises(SettingsError, match="max_images: expected at least 120 for"):
        settings.most_images(1, 6)


def test_a_candidate_that_failed_has_no_worth(
    inputs: Path, adapter: PromptAdapter, tmp_path: Path
) -> None:
    reward = SeenReward()
    reward.failing = "the sea"
    batches = dig(mine_of(tiny(inputs, tmp_path / "run"), reward), adapter, tmp_path / "c.jsonl")
    groups = mined.groups_of(batches)
    for group in groups:
        found = [one.worth is None for one in group.candidates]
        assert found == [group.user_input == "the sea"] * 4
    row = mining_metrics.mining_metrics(batches, groups, reward.metrics)
    assert row["mined/num_dropped"] == 4
    assert math.isfinite(row["mined/reward"])


def test_a_reward_that_is_no_number_is_none() -> None:
    batch: Any = type("Batch", (), {})()
    batch.rewards = torch.tensor([1.0, math.nan, 1.0, 1.0])
    batch.terms = {"word": torch.tensor([1.0, 1.0, math.inf, 1.0])}
    batch.ok = torch.tensor([True, True, True, False])
    found = [mining._worth(batch, {"judge/x": np.array([math.nan] * 4)}, i) for i in range(4)]
    assert found == [mined.Worth(1.0, {"word": 1.0}, {"judge/x": None}), None, None, None]


class Onlooker:
    metrics = {"judge/brightness": "mean of the pictures, 0 to 255"}
    identity = "onlooker"

    def judge_each(self, user_inputs: Any, adapted_prompts: Any, pictures: Any) -> dict[str, Any]:
        return {"judge/brightness": np.array([float(some.mean()) for some in pictures])}


def test_a_judge_looks_on(inputs: Path, adapter: PromptAdapter, tmp_path: Path) -> None:
    mine = mine_of(tiny(inputs, tmp_path / "run"), SeenReward(), Onlooker())
    batches = dig(mine, adapter, tmp_path / "c.jsonl")
    groups = mined.groups_of(batches)
    row = mining_metrics.mining_metrics(batches, groups, Onlooker.metrics)
    assert row["judge/brightness"] == 9.0
    assert "reward/word_mean" not in row  # not in the tables that were given
    assert "judge/brightness" not in mining_metrics.mining_metrics(batches, groups, {})


def test_metrics_by_hand() -> None:
    """Rewards 0, 1 and 2, 4: means 1.75, of the best 2.5, of the plain ones 0.5."""
    groups = [group("a", {"a x": 0.0, "a y": 1.0}, plain=0.0), group("b", {"b x": 2.0, "b y": 4.0})]
    row = mining_metrics.mining_metrics([], groups, {"reward/word_mean": ""})
    assert row["mined/reward"] == 1.75
    assert row["mined/reward_std"] == pytest.approx(math.sqrt((1.75**2 + 0.75**2 + 0.25**2
                                                               + 2.25**2) / 4))  # fmt: skip
    assert row["mined/best_reward"] == 2.5
    assert row["mined/plain_reward"] == 0.5
    assert row["reward/word_mean"] == 1.75
    assert row["mined/distinct_share"] == 1.0


def test_syntax_is_not_learned(adapter: PromptAdapter) -> None:
    """A policy reads and writes plain text; syntax is put in around it."""
    asked = adapter.settings(mode="sample", gate=False, min_modifiers=0)
    typed = "(a cat:1.2) <lora:fur:0.8>"
    work, _ = adapter.prepare(prompts.parse(typed, ()), asked)
    assert work is not None
    adapted = work.parsed.append("oil painting, 8k")
    assert "<lora:fur:0.8>" in adapted
    assert mining.learned_texts(work, adapted, True) == ("a cat", "a cat, oil painting, 8k")
    assert mining.learned_texts(work, typed, True) == ("a cat", "a cat")
    assert mining.learned_texts(work, "a fine cat, 8k", False) == ("a cat", "a fine cat, 8k")


@pytest.mark.parametrize("text", ["draw me a cat., 8k", "a cat, 8k", "a cat. 8k", "8k, a cat"])
def test_what_was_asked_for_is_no_addition(adapter: PromptAdapter, text: str) -> None:
    asked = adapter.settings(mode="sample", gate=False, min_modifiers=0)
    work, _ = adapter.prepare(prompts.parse("draw me a cat.", ()), asked)
    assert work is not None
    assert mining.learned_texts(work, text, True) == ("a cat", "a cat, 8k")


def test_what_is_put_in_the_middle_is_learned_as_an_addition(adapter: PromptAdapter) -> None:
    asked = adapter.settings(mode="sample", gate=False, min_modifiers=0)
    work, _ = adapter.prepare(prompts.parse("a cat\nBREAK a dog", ()), asked)
    assert work is not None
    read, learned = mining.learned_texts(work, work.parsed.append("8k, sharp focus"), True)
    assert read == "a cat, a dog"
    assert learned == "a cat, a dog, 8k, sharp focus"


# What is chosen


def group(user_input: str, rewards: dict[str, float], plain: float = 1.0) -> mined.Group:
    """Candidates by their texts; the term "word" is the reward, "cost" minus the words."""

    def worth(text: str, reward: float) -> mined.Worth:
        return mined.Worth(reward, {"word": reward, "cost": -float(len(text.split()))}, {})

    candidates = tuple(
        mined.Scored(text, text, worth(text, reward), 3, False, text == user_input)
        for text, reward in rewards.items()
    )
    return mined.Group(user_input, user_input, (1,), worth(user_input, plain), candidates)


def num_words(text: str) -> int:
    return len(text.split())


BEST: dict[str, Any] = {"floors": {}, "plain_margin": 0.0, "best_per_input": 1}
PAIRS: dict[str, Any] = {
    "floors": {}, "plain_margin": 0.0, "margin": 0.5, "length_gap": 1, "pairs_per_input": 1,
    "count_tokens": num_words,
}  # fmt: skip


def test_the_best_by_hand() -> None:
    groups = [
        group("a", {"a x": 1.5, "a y": 3.0, "a z": 2.0, "a": 9.0}),
        group("b", {"b x": 0.5, "b y": 0.9}),  # worse than the plain one
        group("c", {"c long one": 2.0, "c x": 2.0}),  # of equal ones the shorter
    ]
    found = choosing.best_candidates(groups, **BEST)
    assert [one.candidate.target for one in found] == ["a y", "c x"]
    two = choosing.best_candidates(groups, **{**BEST, "best_per_input": 2})
    assert [one.candidate.target for one in two] == ["a y", "a z", "c x", "c long one"]
    clear = choosing.best_candidates(groups, **{**BEST, "plain_margin": 1.5})
    assert [one.candidate.target for one in clear] == ["a y"]
    floored = choosing.best_candidates(groups, **{**BEST, "floors": {"cost": -1.0, "word": 0.9}})
    assert [one.candidate.target for one in floored] == ["a y", "c x"]


def test_a_text_that_came_twice_is_chosen_once() -> None:
    twice = group("a", {"a x": 2.0})
    both = dataclasses.replace(twice, candidates=twice.candidates * 2)
    assert len(choosing.best_candidates([both], **{**BEST, "best_per_input": 5})) == 1
    merged = mined.groups_of(
        [mined.Batch(0, (twice,), 0, 0, 5), mined.Batch(1, (twice, group("b", {})), 0, 0, 5)]
    )
    assert [len(one.candidates) for one in merged] == [2, 0]


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"floors": {"cost": 0.0}}, "floor", "of 3 candidates none keeps the floor cost=0"),
        ({"floors": {"nose": 0.0}}, "floor", "no term 'nose'; it has cost, word"),
        ({"plain_margin": 5.0}, "plain_margin", "none is better than its plain user input by 5"),
    ],
)
def test_what_left_nothing_is_named(changes: dict[str, Any], name: str, told: str) -> None:
    groups = [group("a", {"a x": 1.5, "a y": 3.0}), group("b", {"b x": 2.0, "b": 1.0})]
    for choose, base in ((choosing.best_candidates, BEST), (choosing.best_pairs, PAIRS)):
        with pytest.raises(SettingsError, match=told) as caught:
            choose(groups, **{**base, **changes})  # type: ignore[operator]
        assert caught.value.name == name


@pytest.mark.parametrize(
    ("groups", "changes", "name", "told"),
    [
        ([group("a", {"a": 1.0})], {}, "policy", "of 1 candidates none adds anything"),
        ([dataclasses.replace(group("a", {"a x": 1.0}), plain=None)], {}, "renderer", "has a"),
        ([group("a", {"a x": 1.5, "a y": 1.6})], {}, "margin", "better than another by 0.5"),
        ([group("a", {"a x": 1.5, "a y z w": 3.0})], {}, "length_gap", "of 1 pairs all differ by"),
        (
            [group("a", {"a x": 1.5, "a y z": 3.0})], {}, "length_gap",
            "length is all they differ in",
        ),
    ],
)  # fmt: skip
def test_what_left_no_pair_is_named(
    groups: list[mined.Group], changes: dict[str, Any], name: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        choosing.best_pairs(groups, **{**PAIRS, **changes})
    assert caught.value.name == name


def test_pairs_by_hand() -> None:
    groups = [
        group("a", {"a x": 1.5, "a y": 3.0, "a z": 2.0}),
        group("b", {"b x": 0.5, "b y": 0.9, "b z": -3.0}),  # all worse than the plain one
        group("c", {"c x": 4.0, "c y": 3.6}),  # too near
    ]
    found = choosing.best_pairs(groups, **PAIRS)
    assert [(p.chosen.target, p.rejected.target, p.margin) for p in found] == [("a y", "a x", 1.5)]
    more = choosing.best_pairs(groups, **{**PAIRS, "pairs_per_input": 9})
    assert [(p.chosen.target, p.rejected.target) for p in more] == [
        ("a y", "a x"), ("a y", "a z"), ("a z", "a x")
    ]  # fmt: skip


def test_what_no_rule_let_through_is_the_worse_text_at_most() -> None:
    """It is worth as much as the plain user input, 1.0, and may not be written again."""
    better = group("a", {"a x": 3.0})
    junk = mined.Scored("a", "a !!", better.plain, 3, True, True)
    empty = dataclasses.replace(junk, target="a")
    of_both = dataclasses.replace(better, candidates=(*better.candidates, junk, empty))
    found = choosing.best_pairs([of_both], **{**PAIRS, "pairs_per_input": 9})
    assert [(p.chosen.target, p.rejected.target, p.margin) for p in found] == [("a x", "a !!", 2.0)]
    worse = dataclasses.replace(of_both, candidates=(junk, *group("a", {"a x": 0.2}).candidates))
    with pytest.raises(SettingsError, match="none is better than another by 0.5"):
        choosing.best_pairs([worse], **{**PAIRS, "plain_margin": -5.0})
    best = choosing.best_candidates([of_both], **{**BEST, "best_per_input": 5})
    assert [one.candidate.target for one in best] == ["a x"]


def texts_of(lengths: Sequence[int], user_input: str) -> list[str]:
    """Different texts of so many words."""
    return [" ".join([user_input, *[f"w{n}"] * length]) for n, length in enumerate(lengths)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_reward_of_length_alone_teaches_no_length(sign: float) -> None:
    """Whether long texts are paid or punished."""
    draws = random.Random(5)
    groups = []
    for number in range(40):
        texts = texts_of([draws.randint(1, 9) for _ in range(8)], f"u{number}")
        rewards = {text: 10 + sign * num_words(text) + draws.uniform(-0.2, 0.2) for text in texts}
        groups.append(group(f"u{number}", rewards))
    chosen = {**PAIRS, "margin": 0.1, "length_gap": 3, "pairs_per_input": 50}
    pairs = choosing.best_pairs(groups, **chosen)
    assert len(pairs) > 20
    assert abs(sum(pair.length_gap for pair in pairs)) <= 0.25 * len(pairs)
    assert all(abs(pair.length_gap) <= 3 for pair in pairs)
    assert all(
        num_words(p.chosen.target) - num_words(p.rejected.target) == p.length_gap for p in pairs
    )


def unequal(gaps: Sequence[int]) -> list[choosing.ChosenPair]:
    """Pairs of such gaps in length, the first with the smallest margin."""
    one = group("a", {"a x": 3.0}).candidates[0]
    return [
        choosing.ChosenPair(group("a", {}), one, one, float(place), gap)
        for place, gap in enumerate(gaps)
    ]


@pytest.mark.parametrize(
    ("gaps", "left"),
    [
        ([1, 1, 1, 0], [0]),  # of [1, 0] one side is longer by half a token
        ([9, 2, -1, -1], [2, -1, -1]),
        ([8, 3, 3, -2, -2, -2], [3, 3, -2, -2, -2]),
        ([-8, -3, 4, 4, -1], [-8, 4, 4, -1]),  # not the largest, which would turn the mean round
        ([3, -1, -1], []),  # with any of them one side is longer
        ([0, 5, 0, 0, 0, 0, -5, 0], [0, 5, 0, 0, 0, 0, -5, 0]),
    ],
)
def test_neither_side_stays_longer(gaps: list[int], left: list[int]) -> None:
    assert [pair.length_gap for pair in choosing._balanced(unequal(gaps))] == left


def test_of_any_pairs_neither_side_stays_longer() -> None:
    draws = random.Random(3)
    for _ in range(300):
        most, shift = draws.choice([1, 4, 60]), draws.randint(-3, 3)
        gaps = [draws.randint(-most, most) + shift for _ in range(draws.randint(1, 30))]
        left = [pair.length_gap for pair in choosing._balanced(unequal(gaps))]
        assert abs(sum(left)) <= 0.25 * len(left)


def test_floors_are_read_and_checked() -> None:
    assert MiningSettings(floor=("a=1", "b = -2.5", "a=0")).floors() == {"a": 1.0, "b": -2.5}
    for text in ("a", "a=", "=1", "a=x", "a=nan", "a=inf"):
        with pytest.raises(SettingsError, match="floor: expected TERM=NUMBER"):
            MiningSettings(floor=(text,))
    with pytest.raises(SettingsError, match="mining_batch: expected a multiple"):
        MiningSettings(mining_batch=10, group_size=8)
    with pytest.raises(SettingsError, match="min_length_limit"):
        MiningSettings(min_length_limit=20, max_length_limit=10)
