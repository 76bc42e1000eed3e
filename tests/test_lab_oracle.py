from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from promptadapt_core.lab.modifier_search import OracleSettings
from promptadapt_core.lab.oracle import (
    ConstantSuffix,
    compose,
    confirm,
    find_ceilings,
    find_constant_suffix,
)
from promptadapt_core.lab.reward_file import RewardFile
from promptadapt_core.lab.scenes import Scene
from promptadapt_core.lab.vocabulary import MODIFIERS
from promptadapt_core.settings import SettingsError

OUTSIDE = "a red house by the sea"
INSIDE = "a blue lamp in a room"
FEW = ("watercolor", "golden hour", "foggy", "black and white", "bokeh", "film grain", "8k")


def added(user_input: str, adapted_prompt: str) -> frozenset[str]:
    assert adapted_prompt.startswith(user_input)
    return frozenset(adapted_prompt.removeprefix(user_input).split(", ")[1:])


class Taste:
    """A reward with interactions. Outside the best set is golden hour, film grain, black and white
    (7.5); inside it is candlelight, oil painting, vignette (6.2). It counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.num_calls = 0

    def __call__(self, user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        self.asked += zip(user_inputs, adapted_prompts, strict=True)
        self.num_calls += 1
        return [
            self.of(text, added(text, prompt))
            for text, prompt in zip(user_inputs, adapted_prompts, strict=True)
        ]

    def of(self, user_input: str, names: frozenset[str]) -> float:
        inside = "room" in user_input
        reward = 4.0
        reward += 0.7 * ("vignette" in names) if inside else -0.2 * ("vignette" in names)
        reward += 1.0 * ("oil painting" in names) if inside else 0.4 * ("oil painting" in names)
        if "golden hour" in names:
            reward += -1.0 if inside else 1.0
        if "candlelight" in names:
            reward += 0.5 if inside else -0.5
        if "black and white" in names:
            reward += 0.5
        if "film grain" in names:  # spoils, but for black and white outside
            reward += 1.5 if "black and white" in names and not inside else -1.0
        if {"black and white", "golden hour"} <= names:
            reward += 0.5
        if {"black and white", "oil painting"} <= names:
            reward -= 2.0
        return reward - 1.5 * max(len(names) - 3, 0)


def brute_force(taste: Taste, user_inputs: list[str], names: tuple[str, ...]) -> float:
    sets = [frozenset(s) for k in range(6) for s in itertools.combinations(names, k)]
    return max(sum(taste.of(text, s) for text in user_inputs) / len(user_inputs) for s in sets)


def test_the_adapted_prompt() -> None:
    assert compose("a cat", ("golden hour", "bokeh")) == "a cat, golden hour, bokeh"
    assert compose("a cat", ()) == "a cat"


def test_the_best_sets_are_found() -> None:
    outside, inside = find_ceilings([OUTSIDE, INSIDE], Taste())
    assert set(outside.best.modifiers) == {"golden hour", "black and white", "film grain"}
    assert outside.best.reward == pytest.approx(4 + 1 + 0.5 + 1.5 + 0.5)
    assert set(inside.best.modifiers) == {"oil painting", "candlelight", "vignette"}
    assert inside.best.reward == pytest.approx(4 + 1 + 0.5 + 0.7)
    assert outside.plain_reward == inside.plain_reward == 4.0
    assert outside.adapted_prompt == compose(OUTSIDE, outside.best.modifiers)
    assert outside.finalists[0] == outside.best
    rewards = [scored.reward for scored in outside.finalists]
    assert rewards == sorted(rewards, reverse=True)


@pytest.mark.parametrize("user_input", [OUTSIDE, INSIDE])
@pytest.mark.parametrize("names", [FEW, (*FEW[:3], "oil painting", "candlelight", "vignette")])
def test_with_few_modifiers_it_is_as_good_as_brute_force(
    user_input: str, names: tuple[str, ...]
) -> None:
    taste = Taste()
    (ceiling,) = find_ceilings([user_input], taste, modifiers=names)
    assert ceiling.best.reward == pytest.approx(brute_force(taste, [user_input], names))


@pytest.mark.parametrize("max_renders", [1, 2, 30, 60, 150])
def test_the_budget_is_kept(max_renders: int) -> None:
    taste = Taste()
    settings = OracleSettings(max_renders=max_renders, patience=50)
    ceilings = find_ceilings([OUTSIDE, INSIDE], taste, settings)
    for ceiling in ceilings:
        asked = [prompt for text, prompt in taste.asked if text == ceiling.user_input]
        assert ceiling.num_rendered == len(asked) == len(set(asked)) <= max_renders
        assert ceiling.user_input in asked


@pytest.mark.parametrize("max_modifiers", [0, 1, 2])
def test_the_longest_list(max_modifiers: int) -> None:
    taste = Taste()
    settings = OracleSettings(max_modifiers=max_modifiers)
    (ceiling,) = find_ceilings([OUTSIDE], taste, settings)
    assert max(len(added(*pair)) for pair in taste.asked) == max_modifiers
    assert len(ceiling.best.modifiers) == max_modifiers


def test_singles_are_exhaustive_and_a_round_is_one_call() -> None:
    taste = Taste()
    find_ceilings([OUTSIDE, INSIDE], taste, OracleSettings(max_modifiers=1, patience=1))
    singles = {prompt for text, prompt in taste.asked if text == INSIDE}
    assert singles == {INSIDE, *(compose(INSIDE, [modifier.name]) for modifier in MODIFIERS)}
    assert taste.num_calls == 1


def test_what_the_user_input_says_is_not_added() -> None:
    taste = Taste()
    (ceiling,) = find_ceilings([OUTSIDE + ", golden hour"], taste, modifiers=FEW)
    assert "golden hour" not in ceiling.best.modifiers


def test_a_prior_finds_what_only_works_together() -> None:
    """Either word alone spoils, so that a search by rewards alone never tries both."""
    pair = frozenset({"foggy", "neon colors"})

    def of(names: frozenset[str]) -> float:
        return 5.0 if names == pair else -float(len(names & pair)) - 0.1 * len(names)

    def reward(user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        return [of(added(*row)) for row in zip(user_inputs, adapted_prompts, strict=True)]

    def prior(scene: Scene) -> float:
        assert [thing.subject for thing in scene.things] == ["house"]
        return len(pair & set(scene.modifiers)) - 0.01 * len(scene.modifiers)

    settings = OracleSettings(max_renders=80, beam_width=2)
    (blind,) = find_ceilings([OUTSIDE], reward, settings)
    (guided,) = find_ceilings([OUTSIDE], reward, settings, prior=prior)
    assert blind.best.modifiers == ()
    assert set(guided.best.modifiers) == pair


def test_the_search_is_deterministic_and_resumes(tmp_path: Path) -> None:
    inputs = [OUTSIDE, INSIDE, "a cat in a meadow"]
    settings = OracleSettings(inputs_at_once=1, max_renders=90)
    whole = find_ceilings(inputs, Taste(), settings)
    path = tmp_path / "rewards.jsonl"
    calls = iter(range(100))
    part = find_ceilings(inputs, Taste(), settings, path=path, should_stop=lambda: next(calls) == 7)
    assert part == whole[: len(part)]
    assert len(part) < len(whole)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-20], encoding="utf-8")  # killed within a write
    kept = text[:-20].count("\n") - 1
    taste = Taste()
    assert find_ceilings(inputs, taste, settings, path=path) == whole
    assert len(taste.asked) == sum(ceiling.num_rendered for ceiling in whole) - kept
    again = Taste()
    assert find_ceilings(inputs, again, settings, path=path) == whole
    assert again.asked == []


@pytest.mark.parametrize("inputs_at_once", [1, 2, 8])
def test_searches_side_by_side_are_equal(inputs_at_once: int) -> None:
    inputs = [OUTSIDE, INSIDE, "a cat in a meadow"]
    alone = [find_ceilings([text], Taste())[0] for text in inputs]
    assert find_ceilings(inputs, Taste(), OracleSettings(inputs_at_once=inputs_at_once)) == alone


def test_luck_does_not_outlast_other_seeds() -> None:
    """On the seeds of the search foggy had luck; on the others it shows its true worth."""
    worth = {"": 4.0, "foggy": 5.0, "bokeh": 6.0}

    def reward(luck: float):
        def rewards(user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
            sets = [", ".join(added(*r)) for r in zip(user_inputs, adapted_prompts, strict=True)]
            return [worth[names] + luck * (names == "foggy") for names in sets]

        return rewards

    settings = OracleSettings(max_modifiers=1)
    found = find_ceilings([OUTSIDE], reward(1.5), settings, modifiers=("foggy", "bokeh"))
    assert found[0].adapted_prompt == OUTSIDE + ", foggy"
    (confirmed,) = confirm(found, reward(0.0))
    assert confirmed.adapted_prompt == OUTSIDE + ", bokeh"
    assert [scored.reward for scored in confirmed.finalists] == [6.0, 5.75, 4.0]
    assert (confirmed.plain_reward, confirmed.num_rendered) == (4.0, 6)


def test_the_constant_suffix_is_as_good_as_brute_force() -> None:
    taste = Taste()
    inputs = [OUTSIDE, INSIDE, "a cat in a meadow", "a tree in the snow"]
    names = (*FEW, "oil painting", "vignette", "candlelight")
    suffix = find_constant_suffix(inputs, taste, modifiers=names)
    assert isinstance(suffix, ConstantSuffix)
    assert suffix.best.reward == pytest.approx(brute_force(taste, inputs, names))
    assert suffix.plain_reward == 4.0
    of_each = [ceiling.best.reward for ceiling in find_ceilings(inputs, taste, modifiers=names)]
    assert suffix.best.reward < sum(of_each) / 4


def test_the_finalists_of_a_suffix_are_scored_on_all_inputs() -> None:
    """The two screened inputs are outside, where golden hour is good; most inputs are inside."""
    taste = Taste()
    rooms = [f"{INSIDE} {number}" for number in range(8)]
    inputs = [OUTSIDE, *rooms[:4], "a cat in a meadow", *rooms[4:]]
    settings = OracleSettings(num_screened=2, num_finalists=30)
    suffix = find_constant_suffix(inputs, taste, settings, modifiers=FEW)
    assert suffix is not None
    assert "golden hour" not in suffix.best.modifiers
    assert suffix.best.reward == pytest.approx(brute_force(taste, inputs, FEW))


def test_a_suffix_that_only_harms_stays_empty_and_a_stop_gives_none(tmp_path: Path) -> None:
    def harm(user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        return [-float(len(prompt)) for prompt in adapted_prompts]

    suffix = find_constant_suffix([OUTSIDE, INSIDE], harm, modifiers=FEW)
    assert suffix is not None
    assert suffix.best.modifiers == ()
    assert find_constant_suffix([OUTSIDE], harm, should_stop=lambda: True) is None


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="modifiers: 'sparkling' is not"):
        find_ceilings([OUTSIDE], Taste(), modifiers=("sparkling",))
    with pytest.raises(SettingsError, match="user_inputs"):
        find_constant_suffix([], Taste())
    path = tmp_path / "rewards.jsonl"
    find_ceilings([OUTSIDE], Taste(), path=path, key="seed 1", modifiers=FEW)
    with pytest.raises(SettingsError, match="another kind"):
        find_ceilings([OUTSIDE], Taste(), path=path, key="seed 2", modifiers=FEW)
    path.write_text("not json\n")
    with pytest.raises(SettingsError, match="not a file of rewards"):
        find_ceilings([OUTSIDE], Taste(), path=path)
    with pytest.raises(SettingsError, match="path"):
        find_ceilings([OUTSIDE], Taste(), path=tmp_path)


def test_rewards_are_kept_exactly_and_asked_for_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "rewards.jsonl"
    asked: list[str] = []

    def third(user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        asked.extend(adapted_prompts)
        return [len(prompt) / 3 for prompt in adapted_prompts]

    known = RewardFile(third, path)
    assert known(["é", "é", "x"], ["éa", "éa", "x"]) == [2 / 3, 2 / 3, 1 / 3]
    assert asked == ["éa", "x"]
    assert RewardFile(third, path)(["x", "é"], ["x", "éa"]) == [1 / 3, 2 / 3]
    assert asked == ["éa", "x"]
    assert len([json.loads(line) for line in path.read_text("utf-8").splitlines()]) == 3


def test_rewards_of_any_text_read_back(tmp_path: Path) -> None:
    path, texts = tmp_path / "rewards.jsonl", ["a\u2028b", "a\x85b", "a\rb\nc", "a\ud800b", "é"]

    def unknown(user_inputs: list[str], adapted_prompts: list[str]) -> list[float]:
        raise AssertionError(adapted_prompts)

    assert RewardFile(lambda one, two: range(len(two)), path)(texts, texts) == [0, 1, 2, 3, 4]
    assert RewardFile(unknown, path)(texts, texts) == [0, 1, 2, 3, 4]
    # as an earlier version wrote it, and cut off within a character
    row = '{"user_input": "x\u2028", "adapted_prompt": "x", "reward": 5.0}\n'
    with open(path, "ab") as file:
        file.write(row.encode() + '{"user_input": "é'.encode()[:-1])
    assert RewardFile(unknown, path)(["x\u2028"], ["x"]) == [5]
    assert path.read_bytes().endswith(row.encode())


def test_a_reward_that_is_not_finite_is_refused() -> None:
    known = RewardFile(lambda user_inputs, adapted_prompts: [float("nan")])
    with pytest.raises(ValueError, match="not finite"):
        known(["a cat"], ["a cat, foggy"])
