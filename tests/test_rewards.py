from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from promptadapt_core.baselines import BaselineCache
from promptadapt_core.decoding import Stopped
from promptadapt_core.images import ImageSettings
from promptadapt_core.rewards import (
    LOGGED,
    REWARD_METRICS,
    TERMS,
    NothingRewarded,
    RewardBatch,
    Rewarder,
    RewardSettings,
    describe,
    repeated_share,
)
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import MAX_SEED, SettingsError

CAT = "a cat"
# text: (10 * aesthetic with seed 1, with seed 2), (100 * cosine with seed 1, with seed 2)
LOOKS = {
    "a cat": ((50, 54), (26, 30)),
    "can you draw a cat?": ((50, 54), (26, 30)),
    "a cat, foggy": ((60, 62), (25, 30)),
    "a cat, 8k": ((48, 54), (31, 40)),
    "a dog": ((40, 41), (20, 20)),
    "a dog, 8k": ((45, 47), (24, 26)),
    "black": ((0, 0), (0, 0)),
    "nan": ((255, 50), (30, 30)),
}


class Drawer:
    """Draws LOOKS as the red and green of one pixel; refuses what is not there."""

    identity = "drawer"
    settings = ImageSettings()

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.calls: list[int] = []

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        self.calls.append(len(prompts))
        if should_stop is not None and should_stop():
            raise Stopped
        for text in prompts:
            if text not in LOOKS:
                raise SettingsError("prompts", f"I cannot draw {text}")
        self.drawn += zip(prompts, seeds, strict=True)
        pixels = [
            (*(both[seed - 1] for both in LOOKS[text]), 0)
            for text, seed in zip(prompts, seeds, strict=True)
        ]
        return np.array(pixels, dtype=np.uint8)[:, None, None, :]


class Ruler:
    """Reads the pixel back; a full red is no number."""

    identity = "ruler"
    relevance_knee, relevance_slope = 0.28, 20.0

    def __init__(self) -> None:
        self.num_scored = 0

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        self.num_scored += len(pixels)
        numbers = torch.from_numpy(pixels[:, 0, 0, :].astype(np.float32))
        aesthetic = torch.where(numbers[:, 0] == 255, torch.nan, numbers[:, 0] / 10)
        return Scores(aesthetic, numbers[:, 1] / 100)


def count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def new_rewarder(
    baselines: BaselineCache | None = None, guards: bool = False, **settings: float
) -> Rewarder:
    if not guards:
        settings = {"length_weight": 0.0, "copy_weight": 0.0, **settings}
    return Rewarder(Drawer(), Ruler(), RewardSettings(**settings), baselines, count_words)


def reward(rewarder: Rewarder, *pairs: tuple[str, str], **options: bool) -> RewardBatch:
    user_inputs, adapted_prompts = zip(*pairs, strict=True)
    return rewarder.reward(user_inputs, adapted_prompts, [[1, 2]] * len(pairs), **options)


def test_the_paper_by_hand() -> None:
    # gain: (6.0 - 5.0 + 6.2 - 5.4) / 2 = 0.9; relevance: (20 * (0.25 - 0.28) + 0) / 2 = -0.3
    batch = reward(new_rewarder(), (CAT, "a cat, foggy"), (CAT, "a cat, 8k"))
    assert batch.rewards.dtype == torch.float32
    assert batch.rewards.tolist() == pytest.approx([0.6, -0.1], abs=1e-5)
    assert batch.terms["aesthetic_gain"].tolist() == pytest.approx([0.9, -0.1], abs=1e-5)
    assert batch.terms["relevance"].tolist() == pytest.approx([-0.3, 0.0], abs=1e-5)
    assert batch.logged["aesthetic"].tolist() == pytest.approx([6.1, 5.1])
    assert batch.logged["baseline_aesthetic"].tolist() == pytest.approx([5.2, 5.2])
    assert batch.logged["cosine"].tolist() == pytest.approx([0.275, 0.355])
    assert batch.logged["baseline_cosine"].tolist() == pytest.approx([0.28, 0.28])
    assert batch.ok.tolist() == [True, True]
    assert batch.failures == ()
    assert batch.pictures is None


def test_relevance_is_to_the_user_input_never_to_the_adapted_prompt() -> None:
    rewarder, asked = new_rewarder(), []
    score = rewarder.scorer.score
    rewarder.scorer.score = lambda texts, pixels: asked.extend(texts) or score(texts, pixels)
    reward(rewarder, (CAT, "a cat, foggy"), ("a dog", "a dog, 8k"))
    assert set(asked) == {CAT, "a dog"}


def test_the_mean_is_over_the_clipped_terms() -> None:
    # cosines 0.26 and 0.30: (20 * -0.02 + 0) / 2 = -0.2, though their mean is at the knee
    batch = reward(new_rewarder(), (CAT, CAT))
    assert batch.terms["relevance"].item() == pytest.approx(-0.2, abs=1e-5)


def test_weights() -> None:
    batch = reward(new_rewarder(aesthetic_weight=2.0, relevance_weight=0.5), (CAT, "a cat, foggy"))
    assert batch.rewards.item() == pytest.approx(2 * 0.9 - 0.5 * 0.3, abs=1e-5)
    assert batch.raw_terms["relevance"].item() == pytest.approx(-0.3, abs=1e-5)
    assert batch.terms["relevance"].item() == pytest.approx(-0.15, abs=1e-5)


def test_the_same_picture_is_rendered_and_scored_once() -> None:
    rewarder = new_rewarder()
    batch = reward(rewarder, *[(CAT, "a cat, foggy")] * 3, (CAT, "a cat, 8k"), (CAT, CAT))
    assert len(rewarder.generator.drawn) == len(set(rewarder.generator.drawn)) == 6
    assert rewarder.scorer.num_scored == 6
    assert (batch.num_rendered, batch.num_baselines_rendered) == (4, 2)
    again = reward(rewarder, (CAT, "a cat, foggy"))
    assert (again.num_rendered, again.num_baselines_rendered) == (2, 0)


def test_the_user_input_itself_gains_exactly_nothing_and_costs_no_picture() -> None:
    rewarder = new_rewarder(guards=True)
    batch = reward(rewarder, (CAT, CAT))
    assert batch.terms["aesthetic_gain"].item() == 0.0
    assert batch.terms["length"].item() == batch.terms["copy"].item() == 0.0
    assert (batch.num_rendered, batch.num_baselines_rendered) == (0, 2)
    again = reward(rewarder, (CAT, CAT))
    assert again.num_baselines_rendered == 0
    assert torch.equal(again.rewards, batch.rewards)


def test_another_ones_user_input_is_rendered_once() -> None:
    rewarder = new_rewarder()
    batch = reward(rewarder, (CAT, "a dog"), ("a dog", "a dog, 8k"))
    assert sorted(rewarder.generator.drawn) == sorted(
        (text, seed) for text in ("a dog", "a dog, 8k", CAT) for seed in (1, 2)
    )
    assert batch.terms["aesthetic_gain"].tolist() == pytest.approx([-1.15, 0.55], abs=1e-5)


def test_baselines_on_disk_change_nothing_but_the_cost(tmp_path: Path) -> None:
    pairs = [(CAT, "a cat, foggy"), ("a dog", CAT), ("a dog", "a dog")]
    batches, rewarders = [], []
    for _ in range(2):
        rewarders.append(new_rewarder(BaselineCache(tmp_path, "drawer", "ruler")))
        batches.append(reward(rewarders[-1], *pairs))
    assert torch.equal(batches[0].rewards, batches[1].rewards)
    assert [batch.num_baselines_rendered for batch in batches] == [2, 0]  # the cat is a candidate
    # the candidates' batch does not depend on what is kept
    assert rewarders[0].generator.drawn[:4] == rewarders[1].generator.drawn


def test_a_candidate_that_fails_is_dropped_and_the_others_are_not() -> None:
    pairs = [(CAT, "a cat, foggy"), (CAT, "no such"), (CAT, "black"), (CAT, "nan"), (CAT, CAT)]
    rewarder = new_rewarder()
    batch = reward(rewarder, *pairs, keep_pictures=True)
    assert batch.ok.tolist() == [True, False, False, False, True]
    assert batch.rewards.tolist() == pytest.approx([0.6, 0.0, 0.0, 0.0, -0.2], abs=1e-5)
    for columns in (batch.terms, batch.raw_terms, batch.logged):
        for column in columns.values():
            assert column.isfinite().all()
            assert (column[~batch.ok] == 0.0).all()
    assert any("'no such' with seed 1 could not be rendered" in told for told in batch.failures)
    assert any("'black' with seed 2 could not be rendered: it is" in t for t in batch.failures)
    assert any("'nan' with seed 1 could not be scored" in told for told in batch.failures)
    assert [picture is not None for picture in batch.pictures] == [True, *[False] * 4]


def test_an_input_whose_own_picture_fails_drops_its_candidates_only() -> None:
    rewarder = new_rewarder()
    batch = reward(rewarder, ("no such", "a cat, 8k"), ("black", CAT), (CAT, "a cat, 8k"))
    assert batch.ok.tolist() == [False, False, True]
    assert rewarder.baselines.get("black", 1) is None
    assert rewarder.baselines.get(CAT, 1) is not None


def test_a_batch_without_any_reward_raises() -> None:
    told = "renderer: all 2 candidates failed; the first: 'a cow"
    with pytest.raises(NothingRewarded, match=told) as caught:
        reward(new_rewarder(), (CAT, "a cow"), (CAT, "a sow"))
    batch = caught.value.batch
    assert isinstance(caught.value, SettingsError)
    assert batch.ok.tolist() == [False, False]
    assert not batch.rewards.any()
    assert len(batch.failures) >= 2


def test_pictures_come_with_their_candidate() -> None:
    # A user input that is left alone has none, whether its scores are known or not: a resumed run
    # knows more of them, and its samples and its judge must say the same.
    rewarder = new_rewarder()
    for _ in range(2):
        batch = reward(rewarder, (CAT, "a cat, foggy"), (CAT, CAT), keep_pictures=True)
        assert batch.pictures[0].shape == (2, 1, 1, 3)
        assert batch.pictures[0][:, 0, 0, 0].tolist() == [60, 62]
        assert batch.pictures[1] is None


def test_stopping() -> None:
    with pytest.raises(Stopped):
        new_rewarder().reward([CAT], [CAT], [[1]], should_stop=lambda: True)


@pytest.mark.parametrize(
    ("user_input", "num_words", "expected"),
    [(CAT, 10, 0.0), (CAT, 11, -0.5), (CAT, 14, -2.0), ("a cat" + " on a mat" * 4, 16, -1.0)],
)
def test_the_length_guard(
    user_input: str, num_words: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budget 10 words; the last input has 14 of its own."""
    adapted_prompt = user_input + " 8k" * (num_words - count_words(user_input))
    for text in (user_input, adapted_prompt):
        monkeypatch.setitem(LOOKS, text, LOOKS[CAT])
    rewarder = new_rewarder(length_weight=0.5, length_budget=10)
    batch = reward(rewarder, (user_input, adapted_prompt))
    assert batch.terms["length"].item() == pytest.approx(expected)
    assert batch.logged["num_tokens"].item() == num_words


def test_tokens_are_clips_by_default() -> None:
    rewarder = Rewarder(Drawer(), Ruler(), RewardSettings(length_budget=3, length_weight=1.0))
    batch = reward(rewarder, (CAT, "a cat, foggy"))  # a, cat, the comma, foggy
    assert batch.logged["num_tokens"].item() == 4
    assert batch.terms["length"].item() == -1.0


def test_the_copy_guard() -> None:
    # of "cat" and "dog" one is lost; of no input is a pair said twice
    rewarder = new_rewarder(copy_weight=2.0)
    batch = reward(rewarder, (CAT, "a dog, 8k"), (CAT, "a cat, 8k"))
    assert batch.raw_terms["copy"].tolist() == [-1.0, 0.0]
    assert batch.terms["copy"].tolist() == [-2.0, 0.0]


def test_the_asking_of_a_request_is_no_content() -> None:
    asked = "can you draw a cat?"
    batch = reward(new_rewarder(), (asked, "a cat, 8k"), (asked, "a dog, 8k"))
    assert batch.raw_terms["copy"].tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("user_input", "adapted_prompt", "expected"),
    [
        (CAT, "a cat, oil painting, digital painting", 0.0),
        (CAT, "a cat, 8k, 8k, 8k", 1 / 3),  # (cat 8k) (8k 8k) (8k 8k)
        (CAT, "a cat, very foggy, very foggy", 0.0),  # stop words: (cat foggy) (foggy foggy)
        (CAT, "cat 8k cat 8k cat 8k", 3 / 5),
        ("8k 8k 8k cat", "8k 8k 8k cat, foggy", 0.0),
        ("8k 8k 8k cat", "8k 8k 8k 8k cat", 1 / 4),
        (CAT, "", 0.0),
        (CAT, "cat", 0.0),
    ],
)
def test_what_is_said_again(user_input: str, adapted_prompt: str, expected: float) -> None:
    assert repeated_share(user_input, adapted_prompt) == pytest.approx(expected)


def test_metrics_by_hand() -> None:
    batch = reward(new_rewarder(), (CAT, "a cat, foggy"), (CAT, "a cat, 8k"), (CAT, "a cow"))
    metrics = describe(batch)
    assert set(metrics) == set(REWARD_METRICS)
    # rewards 0.6 and -0.1; gains 0.9 and -0.1; relevances -0.3 and 0
    assert metrics["reward/mean"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["reward/std"] == pytest.approx(0.35, abs=1e-5)
    assert metrics["reward/aesthetic_gain_mean"] == pytest.approx(0.4, abs=1e-5)
    assert metrics["reward/aesthetic_gain_std"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["reward/aesthetic_gain_correlation"] == pytest.approx(1.0)
    assert metrics["reward/relevance_correlation"] == pytest.approx(-1.0)
    assert metrics["reward/relevance_raw_mean"] == pytest.approx(-0.15, abs=1e-5)
    assert metrics["reward/length_correlation"] == metrics["reward/length_std"] == 0.0
    assert metrics["reward/cosine"] == pytest.approx(0.315, abs=1e-5)
    assert metrics["reward/num_failed"] == 1.0
    assert metrics["reward/num_rendered"] == 4.0
    assert metrics["reward/num_baselines_rendered"] == 2.0


def test_metrics_of_one_candidate_are_finite() -> None:
    metrics = describe(reward(new_rewarder(guards=True), (CAT, "a cat, foggy")))
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["reward/std"] == metrics["reward/aesthetic_gain_correlation"] == 0.0


def test_every_term_has_a_weight_and_every_number_a_definition() -> None:
    assert list(RewardSettings().weights()) == list(TERMS)
    assert all(text for text in REWARD_METRICS.values())
    batch = reward(new_rewarder(), (CAT, CAT))
    assert list(batch.terms) == list(batch.raw_terms) == list(TERMS)
    assert list(batch.logged) == list(LOGGED)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], [], []), "user_inputs: expected one or more candidates, got none"),
        (([CAT], [], [[1]]), "adapted_prompts: expected one for each of 1 user inputs, got 0"),
        (([CAT], [CAT], []), "seeds: expected one for each of 1 user inputs, got 0"),
        (([CAT], [CAT], [[]]), "seeds: expected one or more for each candidate"),
        (([CAT], [CAT], [[-1]]), "seeds: expected 0 to"),
        (([CAT], [CAT], [["1"]]), "seeds: expected a list of whole numbers"),
        (([CAT], [None], [[1]]), "adapted_prompts: expected a list of texts"),
        (("a", [CAT], [[1]]), "user_inputs: expected a list of texts"),
    ],
)
def test_arguments_that_do_not_fit(arguments: tuple, sentence: str) -> None:
    rewarder = new_rewarder()
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        rewarder.reward(*arguments)
    assert rewarder.generator.calls == []


def test_settings_that_reward_nothing_are_refused() -> None:
    names = ("aesthetic", "relevance", "length", "copy")
    with pytest.raises(SettingsError, match="aesthetic_weight: all weights are 0"):
        RewardSettings(**{f"{name}_weight": 0.0 for name in names})
    with pytest.raises(SettingsError, match=r"num_seeds: expected 0 or at least num_images \(3\)"):
        RewardSettings(num_images=3, num_seeds=2)


def test_seeds_of_an_input() -> None:
    settings = RewardSettings(num_images=2, num_seeds=5)
    visits = [settings.seeds_of(CAT, visit) for visit in range(5)]
    assert len({seed for seeds in visits for seed in seeds}) == 5
    assert all(len(set(seeds)) == 2 for seeds in visits)
    assert settings.seeds_of(CAT, 5) == visits[0]
    fixed = RewardSettings()
    assert fixed.seeds_of(CAT, 0) == fixed.seeds_of(CAT, 7)
    assert fixed.seeds_of(CAT) != fixed.seeds_of("a dog")
    assert fixed.seeds_of(CAT) != RewardSettings(image_seed=MAX_SEED).seeds_of(CAT)
    assert all(0 <= seed < 2**32 for seed in fixed.seeds_of("half \ud83d"))


def test_global_generators_are_left_alone(untouched_generators: Callable) -> None:
    with untouched_generators():
        describe(reward(new_rewarder(), (CAT, "a cat, foggy")))


def test_the_lab(untouched_generators: Callable) -> None:
    """The bundled renderer and scorer: common seeds, one pass, the same numbers from the cache."""
    from promptadapt_core.lab.folders import WEIGHTS

    if not (WEIGHTS / "transformer").is_dir() or not (WEIGHTS / "scorer").is_dir():
        pytest.skip("needs the lab's bundled weights")
    pytest.importorskip("diffusers")
    from promptadapt_core.images import DiffusersGenerator
    from promptadapt_core.lab.folders import renderer_folder
    from promptadapt_core.scorers import OpenClipScorer

    generator = DiffusersGenerator.load(renderer_folder(), device="cpu", num_steps=2)
    rewarder = Rewarder(generator, OpenClipScorer.load(WEIGHTS / "scorer"))
    user_input = "a red house by the sea"
    seeds = [rewarder.settings.seeds_of(user_input)] * 2
    adapted_prompts = [f"{user_input}, golden hour", user_input]
    with untouched_generators():
        batch = rewarder.reward([user_input] * 2, adapted_prompts, seeds, keep_pictures=True)
    assert batch.ok.all()
    assert batch.terms["aesthetic_gain"][1] == 0.0
    assert batch.terms["aesthetic_gain"][0] != 0.0
    assert batch.pictures[0].shape == (2, 64, 64, 3)
    assert torch.equal(
        rewarder.reward([user_input] * 2, adapted_prompts, seeds).rewards, batch.rewards
    )
