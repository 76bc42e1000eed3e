from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.decoding import Stopped
from promptadapt_core.images import ImageSettings
from promptadapt_core.picture_memory import PictureMemory
from promptadapt_core.refine.learning import PolicyCopy
from promptadapt_core.refine.outcome import OWN, PLAIN, Refinement
from promptadapt_core.refine.refining import Progress, Refiner
from promptadapt_core.refine.settings import RefineSettings
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.rewards import Rewarder, repeated_share
from promptadapt_core.rollouts import Rollout, sample_rollout
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.ppo_preparing import weights_hash

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
USER_INPUT = "a cat"


class Painter:
    """Red: 100, and 50 more with the word watercolor; green: number of words; blue: the seed."""

    identity, settings = "painter", ImageSettings()
    failing = ""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        if should_stop is not None and should_stop():
            raise Stopped
        if self.failing and any(self.failing in text for text in adapted_prompts):
            raise ValueError("this word cannot be painted")
        self.drawn += zip(adapted_prompts, seeds, strict=True)
        rows = [
            (100 + 50 * ("watercolor" in text), len(text.split()), seed % 256)
            for text, seed in zip(adapted_prompts, seeds, strict=True)
        ]
        return np.array(rows, dtype=np.uint8).reshape(-1, 1, 1, 3)


class Eye:
    """aesthetic: red / 20, and a tenth for each word. relevance: above the knee."""

    identity = "eye"
    relevance_knee, relevance_slope = 0.28, 20.0

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        numbers = torch.from_numpy(pixels[:, 0, 0].astype(np.float32))
        return Scores(numbers[:, 0] / 20 + numbers[:, 1] / 10, torch.full((len(pixels),), 0.3))


def worth(text: str) -> float:
    """The reward of an adapted prompt, by hand: 50 more of red are 2.5 points."""
    added = len(text.split()) - len(USER_INPUT.split())
    return 2.5 * ("watercolor" in text) + 0.1 * added


def count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


@pytest.fixture(scope="module")
def adapter(policy_for: Callable[[Sequence[str]], Path]) -> PromptAdapter:
    return PromptAdapter.load(policy_for(SUBJECTS) / "policy")


def refiner(
    adapter: PromptAdapter, painter: Painter | None = None, scorer: Any = None, **options: Any
) -> Refiner:
    settings = {"num_rounds": 3, "num_candidates": 4, "lr": 5e-3}
    names = set(RefineSettings.__dataclass_fields__)
    settings |= {name: options.pop(name) for name in list(options) if name in names}
    rewarder = Rewarder(
        painter or Painter(), scorer or Eye(), RewardSettings(), count_tokens=count_words
    )
    return Refiner(
        adapter, rewarder, options.pop("user_input", USER_INPUT), RefineSettings(**settings),
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(adapter: PromptAdapter) -> Refinement:
    return refiner(adapter).run()


def test_every_prompt_is_rendered_once_with_the_same_seeds(adapter: PromptAdapter) -> None:
    painter = Painter()
    search = refiner(adapter, painter, num_images=2)
    found = search.run()
    assert len(painter.drawn) == len(set(painter.drawn)) == found.num_images
    texts = {text for text, _ in painter.drawn}
    assert texts == {one.adapted_prompt for one in found.tried}
    assert {seed for _, seed in painter.drawn} == set(found.image_seeds)
    assert len(painter.drawn) == 2 * len(texts)
    kept = [seed % 256 for seed in found.image_seeds]
    for one in found.tried:
        number = 2 if one in (found.plain, found.best) else 1
        assert one.pictures[:, 0, 0, 2].tolist() == kept[:number]


def test_only_pictures_that_are_shown_are_kept(
    adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptadapt_core.refine import outcome, refining

    for module in (outcome, refining):
        monkeypatch.setattr(module, "MOST_CELLS", 3)
    found = refiner(adapter, num_images=2).run()
    assert found.best.round < 3, "a best prompt that is beaten later loses a picture"
    numbers = {one.adapted_prompt: len(one.pictures) for one in found.ranked}
    assert (numbers.pop(USER_INPUT), numbers.pop(found.best.adapted_prompt)) == (2, 2)
    assert list(numbers.values()) == [1, 1] + [0] * (len(found.tried) - 4)
    assert found.sheet().ndim == 3


def test_what_is_taken_of_a_round_depends_on_no_probability(
    adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding gives the likeliest completion first; a mean place of a half is fair."""
    from promptadapt_core.refine import refining

    def numbered(*arguments: Any, **options: Any) -> Rollout:
        rollout = sample_rollout(*arguments, **options)
        return dataclasses.replace(rollout, image_seeds=[[i] for i in range(len(rollout))])

    monkeypatch.setattr(refining, "sample_rollout", numbered)
    places = []
    for seed in range(12):
        search = refiner(adapter, num_candidates=2, method="best_of_n", seed=seed)
        taken, sources = search._write(1)
        assert 0 < len(sources) <= 2
        places += [place / 15 for (place,) in taken.image_seeds]  # of 16 draws
        assert len(taken) < 16 or len(sources) < 2
    assert sum(places) / len(places) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("wanted", "drawn"), [(2, 16), (8, 64), (9, 72), (33, 256), (100, 256), (256, 256)]
)
def test_a_round_draws_more_than_it_wants(adapter: PromptAdapter, wanted: int, drawn: int) -> None:
    """And no more than fit into memory together."""
    search = refiner(adapter, num_candidates=wanted)
    assert search.num_times * search.asked.num_candidates == drawn
    if wanted in (9, 256):
        taken, sources = search._write(1)
        assert 9 <= len(sources) <= min(wanted, len(taken) + 1)


def test_the_policys_own_answer_has_the_seed(adapter: PromptAdapter) -> None:
    assert refiner(adapter, seed=7).usual.seed == 7


def test_the_answer_is_the_best_of_what_was_tried(found: Refinement) -> None:
    plain, own, *others = found.tried
    assert (plain.source, plain.adapted_prompt, plain.reward) == (PLAIN, USER_INPUT, 0.0)
    assert own.source == OWN
    assert all(one.adapted_prompt.startswith(USER_INPUT) for one in others)
    for one in found.tried:
        if repeated_share(USER_INPUT, one.adapted_prompt) == 0:
            assert one.reward == pytest.approx(worth(one.adapted_prompt), abs=1e-5)
    assert found.best.reward == max(one.reward for one in found.tried)
    assert found.adapted_prompt == found.best.adapted_prompt
    assert found.accepted
    assert found.gain == pytest.approx(found.best.reward)
    assert found.sentence() == f"better than your text by {found.gain:.2f}"
    rewards = [one.reward for one in found.ranked]
    assert rewards == sorted(rewards, reverse=True)


def test_rounds_are_as_large_as_asked_for(found: Refinement) -> None:
    assert [one.number for one in found.rounds] == [1, 2, 3]
    assert all(one.num_new <= 4 for one in found.rounds)
    assert found.rounds[0].num_new == 4
    assert found.num_images == 1 + sum(one.num_new for one in found.rounds)
    assert all(len(one.rewards) >= one.num_new - 1 for one in found.rounds)
    best = [one.best_reward for one in found.rounds]
    assert best == sorted(best)


def test_the_copy_learns_and_the_policy_stays(adapter: PromptAdapter) -> None:
    before = weights_hash(adapter.policy.clone().model)
    search = refiner(adapter, num_rounds=6, num_candidates=6)
    found = search.run()
    assert weights_hash(adapter.policy.clone().model) == before
    assert weights_hash(search.copy.ref_model) == before
    assert weights_hash(search.copy.policy.model) != before
    means = [sum(one.rewards) / len(one.rewards) for one in found.rounds]
    assert means[-1] > means[0] + 0.3
    assert found.rounds[0].metrics["kl/ref_kl"] == pytest.approx(0.0, abs=1e-5)
    assert found.rounds[-1].metrics["kl/ref_kl"] > 0.1
    refined = PromptAdapter(search.refined_policy(), count_words)
    assert refined.policy.manifest.name.endswith("-refined")
    assert "watercolor" in refined.adapt(USER_INPUT)[0].adapted_prompt


@pytest.mark.parametrize("method", ["ppo", "best_of_n"])
def test_other_methods(adapter: PromptAdapter, method: str) -> None:
    search = refiner(adapter, method=method)
    before = weights_hash(search.copy.policy.model)
    found = search.run()
    assert found.accepted
    assert (weights_hash(search.copy.policy.model) == before) is (method == "best_of_n")
    assert bool(found.rounds[0].metrics) is (method == "ppo")


@pytest.mark.parametrize("method", ["grpo", "ppo", "best_of_n"])
def test_the_same_seed_finds_the_same(
    adapter: PromptAdapter, method: str, untouched_generators: Callable
) -> None:
    with untouched_generators():
        one, same = (refiner(adapter, method=method, num_rounds=2).run() for _ in range(2))
    other = refiner(adapter, method=method, num_rounds=2, seed=1).run()
    assert [t.adapted_prompt for t in one.tried] == [t.adapted_prompt for t in same.tried]
    assert [r.rewards for r in one.rounds] == [r.rewards for r in same.rounds]
    assert [t.adapted_prompt for t in one.tried] != [t.adapted_prompt for t in other.tried]


def test_nothing_better_gives_the_text_back(adapter: PromptAdapter) -> None:
    found = refiner(adapter, margin=9.0).run()
    assert not found.accepted
    assert found.adapted_prompt == USER_INPUT
    assert (found.gain, found.answer) == (0.0, found.plain)
    best = f"{found.best.reward:+.2f}"
    expected = f"the best of {len(found.tried) - 1} prompts gains {best}, more than 9 is asked for"
    assert expected in found.sentence()


def test_a_second_run_renders_nothing_anew(adapter: PromptAdapter) -> None:
    memory, first, second = PictureMemory(), Painter(), Painter()
    found = refiner(adapter, first, memory=memory).run()
    again = refiner(adapter, second, memory=memory).run()
    assert first.drawn
    assert not second.drawn
    assert (found.num_rendered, again.num_rendered) == (len(first.drawn), 0)
    other = {"seconds": 0, "num_rendered": 0}
    assert again.as_json() | other == found.as_json() | other


def test_a_stop_loses_no_whole_batch(adapter: PromptAdapter) -> None:
    memory, painter, asked = PictureMemory(), Painter(), []

    def third_batch() -> bool:
        asked.append(len(painter.drawn))
        return len(painter.drawn) >= 5  # the text, then two batches of two

    with pytest.raises(Stopped):
        refiner(adapter, painter, memory=memory, batch_size=2, should_stop=third_batch).run()
    assert len(memory) == 5
    second = Painter()
    refiner(adapter, second, memory=memory, batch_size=2).run()
    assert not set(second.drawn) & set(painter.drawn)


def test_the_budget_of_pictures(adapter: PromptAdapter) -> None:
    painter = Painter()
    found = refiner(adapter, painter, num_images=2, max_images=13).run()
    assert len(painter.drawn) == found.num_images == 12  # the text and five prompts, two each
    assert found.notes == ["stopped: the budget of 13 pictures is spent"]


def test_the_budget_of_seconds(adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later than the one before."""
    from promptadapt_core.refine import refining

    times = iter(range(10_000))
    monkeypatch.setattr(refining.time, "monotonic", lambda: float(next(times)))
    found = refiner(adapter, num_rounds=100, max_seconds=20.0).run()
    assert 1 <= len(found.rounds) < 10
    assert found.notes == ["stopped: the budget of 20 s is spent"]
    assert found.seconds <= 20.0 + 3.0  # the last looks


@pytest.mark.parametrize("seconds", [12, 15, 18, 25])
def test_a_spent_budget_is_told_once(
    adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """In whatever place of a round it is noticed."""
    from promptadapt_core.refine import refining

    times = iter(range(10_000))
    monkeypatch.setattr(refining.time, "monotonic", lambda: float(next(times)))
    options = {"max_seconds": float(seconds), "batch_size": 1, "method": "best_of_n"}
    found = refiner(adapter, num_rounds=100, **options).run()
    assert found.notes == [f"stopped: the budget of {seconds} s is spent"]


def test_prompts_that_fail_are_paid_for_and_not_tried_again(adapter: PromptAdapter) -> None:
    painter, asked = Painter(), []
    painter.failing = ","  # everything but the user input
    paint = painter.generate

    def noted(texts: Sequence[str], seeds: Sequence[int], **options: Any) -> np.ndarray:
        asked.extend(texts if len(texts) == 1 else [])
        return paint(texts, seeds, **options)

    painter.generate = noted
    found = refiner(adapter, painter, num_rounds=20, max_images=7, method="best_of_n").run()
    assert len(asked) == len(set(asked)) == found.num_images == 7
    assert found.best is found.plain
    assert "stopped: the budget of 7 pictures is spent" in found.notes


def test_a_prompt_that_cannot_be_rendered_is_left_out(adapter: PromptAdapter) -> None:
    painter = Painter()
    painter.failing = "oil"
    found = refiner(adapter, painter).run()
    assert len(found.tried) > 3
    assert not any("oil" in one.adapted_prompt for one in found.tried)
    assert any("this word cannot be painted" in note for note in found.notes)


def test_a_text_that_cannot_be_rendered_is_told(adapter: PromptAdapter) -> None:
    painter = Painter()
    painter.failing = "cat"
    with pytest.raises(SettingsError, match="renderer: your text: .*this word cannot be painted"):
        refiner(adapter, painter).run()


def test_where_the_copy_cannot_learn_the_search_goes_on(
    adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(PolicyCopy, "learn", full)
    found = refiner(adapter).run()
    assert found.notes == ["the policy stopped learning: memory does not suffice"]
    assert len(found.rounds) == 3
    assert found.accepted

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(PolicyCopy, "learn", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        refiner(adapter).run()


def test_a_copy_whose_loss_is_no_number_begins_anew(
    adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing of use would be written in the rounds that are left."""
    before = weights_hash(adapter.policy.clone().model)

    def broken(copy: PolicyCopy, *arguments: Any) -> Any:
        with torch.no_grad():
            for parameter in copy.policy.model.parameters():
                parameter.mul_(3.0)
        raise SettingsError("lr", "policy/loss is not finite")

    monkeypatch.setattr(PolicyCopy, "learn", broken)
    search = refiner(adapter)
    found = search.run()
    (note,) = found.notes
    assert "stopped learning in round 1 and is what it was at first" in note
    assert weights_hash(search.copy.policy.model) == before
    assert [one.num_new for one in found.rounds][0] > 0
    assert len(found.rounds) == 3


def test_learning_is_interrupted(adapter: PromptAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, begun, ended = PolicyCopy.learn, [], []

    def noted(*arguments: Any) -> Any:
        begun.append(True)
        metrics = learn(*arguments)
        ended.append(True)
        return metrics

    monkeypatch.setattr(PolicyCopy, "learn", noted)
    with pytest.raises(Stopped):
        refiner(adapter, should_stop=lambda: bool(begun)).run()
    assert begun
    assert not ended


def test_progress_is_told(adapter: PromptAdapter) -> None:
    told: list[Progress] = []
    found = refiner(adapter, report=told.append, batch_size=2).run()
    assert told[0].text == "your text"
    assert told[0].num_images == 1
    assert [one.num_images for one in told] == sorted(one.num_images for one in told)
    assert told[-1].num_images == found.num_images <= told[-1].most_images == 13
    assert told[-1].best is found.best


def test_what_the_user_protects_stays(adapter: PromptAdapter) -> None:
    found = refiner(
        adapter, user_input="(a cat:1.2) <lora:paint:0.8>", adapt={"ban": ("watercolor",)}
    ).run()
    for one in found.tried:
        assert one.adapted_prompt.startswith("(a cat:1.2)")
        assert "<lora:paint:0.8>" in one.adapted_prompt
        assert "watercolor" not in one.adapted_prompt


@pytest.mark.parametrize("user_input", ["", "   ", "!!!", "a cat\x00"])
def test_text_that_is_none(adapter: PromptAdapter, user_input: str) -> None:
    with pytest.raises(SettingsError, match="user_input"):
        refiner(adapter, user_input=user_input)


def test_settings_that_do_not_fit(adapter: PromptAdapter) -> None:
    for wrong, told in (
        ({"max_images": 3, "num_images": 2}, "max_images: expected 0 or at least 4"),
        ({"num_candidates": 1}, "num_candidates: grpo compares"),
        ({"method": "evolution"}, "method: expected one of"),
        ({"num_rounds": 0}, "num_rounds"),
    ):
        with pytest.raises(SettingsError, match=told):
            RefineSettings(**wrong)
    with pytest.raises(SettingsError, match="image_seeds: expected 2, one for each picture, got 1"):
        refiner(adapter, num_images=2, image_seeds=[4])


def test_it_is_told_as_json(found: Refinement) -> None:
    told = json.loads(json.dumps(found.as_json()))
    assert told["adapted_prompt"] == found.adapted_prompt
    assert len(told["tried"]) == len(found.tried)
    assert set(told["tried"][0]) == {
        "adapted_prompt", "source", "round", "reward", "terms", "aesthetic", "cosine",
    }  # fmt: skip
    assert sum(told["tried"][0]["terms"].values()) == pytest.approx(told["tried"][0]["reward"])
