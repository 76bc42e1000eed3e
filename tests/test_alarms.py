from __future__ import annotations

import json
import math
import random

import pytest

from promptadapt_core.alarms import (
    Alarm,
    AlarmSettings,
    Watch,
    added_text,
    distinct_share,
    is_gaming,
    most_frequent,
    normal_deviation,
    trend,
    word_pairs,
)

TERMS = ("reward/aesthetic_gain_mean", "reward/relevance_mean", "reward/copy_mean")
JUDGES = ("judge/taste", "judge/correct")
LENGTH = "rollout/length"
WORDS = [f"word{number}" for number in range(300)]
KEYS = (*TERMS, *JUDGES, LENGTH)


def new_watch(**settings: float) -> Watch:
    return Watch(AlarmSettings(**settings), terms=TERMS, judges=JUDGES, length=LENGTH)


def random_additions(generator: random.Random, number: int = 16) -> list[str]:
    return [", ".join(generator.choices(WORDS, k=6)) for _ in range(number)]


def noise(generator: random.Random) -> dict[str, float]:
    metrics = {name: generator.gauss(0.0, 0.05) for name in KEYS}
    return {**metrics, LENGTH: generator.gauss(20.0, 3.0)}


def run(seed: int, num_steps: int = 48, watch: Watch | None = None, **drifts: float) -> list[Alarm]:
    """A run of noise; drifts: what a key of KEYS, by its last word, gains per step."""
    generator = random.Random(seed)
    watch = watch or new_watch()
    alarms = []
    for step in range(num_steps):
        metrics = noise(generator)
        for name in metrics:
            metrics[name] += step * drifts.get(name.split("/")[1].removesuffix("_mean"), 0.0)
        alarms += watch.add(step, metrics, random_additions(generator))
    return alarms


def test_a_trend_by_hand() -> None:
    # steps 0..5, values 0 1 1 2 2 3: slope 19 / 35, residual sum of squares 12 / 35
    found = trend(list(enumerate([0.0, 1.0, 1.0, 2.0, 2.0, 3.0])))
    assert found is not None
    assert (found.first_step, found.last_step) == (0, 5)
    assert found.rise == pytest.approx(5 * 19 / 35)
    # spread 17.5, 4 degrees of freedom
    t = (19 / 35) / math.sqrt(12 / 35 / 4 / 17.5)
    assert found.deviation == pytest.approx(normal_deviation(t, 4))


def test_a_trend_needs_points() -> None:
    assert trend([]) is None
    assert trend([(step, float(step)) for step in range(5)]) is None
    assert trend([(step, math.nan if step % 2 else 1.0) for step in range(10)]) is None


def test_lines_without_noise() -> None:
    up = trend([(step, 0.1 * step) for step in range(8)])
    down = trend([(step, 5.0 - 0.1 * step) for step in range(8)])
    flat = trend([(step, 0.1) for step in range(8)])
    assert up is not None
    assert down is not None
    assert flat is not None
    assert up.deviation == math.inf
    assert down.deviation == -math.inf
    assert (flat.rise, flat.deviation) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),  # tables of Student's t and the normal: equal one-sided tails
    [(2.132, 4, 1.645), (3.747, 4, 2.326), (7.173, 4, 3.090), (4.144, 10, 3.090)],
)  # fmt: skip
def test_deviations_agree_with_the_tables(t: float, freedom: int, expected: float) -> None:
    assert normal_deviation(t, freedom) == pytest.approx(expected, rel=0.02)
    assert normal_deviation(-t, freedom) == -normal_deviation(t, freedom)


def test_noise_raises_an_alarm_in_one_run_of_a_hundred_at_most() -> None:
    with_alarm = [seed for seed in range(100) if run(seed)]
    assert len(with_alarm) <= 1


def test_noise_that_mirrors_a_term_is_still_noise() -> None:
    num_alarmed = 0
    for seed in range(100):
        generator, watch = random.Random(seed), new_watch()
        alarms = []
        for step in range(48):
            value = generator.gauss(0.0, 0.1)
            other = -0.9 * value + generator.gauss(0.0, 0.04)
            alarms += watch.add(step, {TERMS[0]: value, JUDGES[0]: other})
        num_alarmed += bool(alarms)
    assert num_alarmed <= 4  # the two are one series: half of the protection is gone


def test_healthy_learning_raises_none() -> None:
    alarmed = [
        seed
        for seed in range(20)
        if run(seed, aesthetic_gain=0.02, relevance=0.01, taste=0.02, length=0.1)
    ]
    assert len(alarmed) <= 1


def test_a_term_that_rises_while_the_judge_falls() -> None:
    alarms = run(0, aesthetic_gain=0.03, taste=-0.03)
    assert {alarm.name for alarm in alarms} == {"gaming"}
    first = alarms[0]
    assert first.step <= 24
    assert first.sentence.startswith("reward/aesthetic_gain_mean rose by ")
    assert "while judge/taste fell by " in first.sentence
    assert "standard errors" in first.sentence


def test_every_planted_fall_of_the_judge_is_noticed() -> None:
    assert all(run(seed, aesthetic_gain=0.02, correct=-0.02) for seed in range(20))


def test_a_slow_one_is_found_over_a_longer_window() -> None:
    def gamed(step: int) -> dict[str, float]:
        swing = 0.1 * (-1) ** step
        return {TERMS[0]: 0.004 * step + swing, JUDGES[0]: -0.004 * step + swing}

    watch = new_watch()
    steps = [alarm.step for step in range(200) for alarm in watch.add(step, gamed(step))]
    assert steps
    assert min(steps) > 24


def test_a_term_that_pays_for_another() -> None:
    assert run(1, aesthetic_gain=0.03, relevance=-0.02)


def test_a_small_loss_for_a_large_gain_is_a_trade() -> None:
    assert not run(1, aesthetic_gain=0.3, relevance=-0.02)
    settings = AlarmSettings()
    rising = [(step, 1.0 * step) for step in range(12)]
    for fall, is_found in ((-0.24, False), (-0.26, True)):
        falling = [(step, fall * step) for step in range(12)]
        up, down = trend(rising), trend(falling)
        assert up is not None
        assert down is not None
        assert is_gaming(up, down, settings, settings.trade_share) == is_found


def test_a_judge_that_is_asked_seldom_is_compared_over_the_same_steps() -> None:
    watch = new_watch()
    steps = []
    for step in range(120):
        metrics = {TERMS[0]: 0.1 * step}
        if step % 10 == 0:
            metrics[JUDGES[0]] = 5.0 - 0.1 * step
        steps += [alarm.step for alarm in watch.add(step, metrics)]
    assert steps
    assert min(steps) == 50  # its sixth answer


def test_an_alarm_is_silent_for_a_window() -> None:
    watch = new_watch()
    steps = [
        alarm.step
        for step in range(60)
        for alarm in watch.add(step, {TERMS[0]: 0.1 * step, JUDGES[0]: -0.1 * step})
    ]
    assert steps == [5, 17, 29, 41, 53]


def test_numbers_that_are_missing_or_not_finite_are_passed_over() -> None:
    watch = new_watch()
    for step in range(40):
        metrics = {TERMS[0]: math.nan, JUDGES[0]: -0.1 * step, LENGTH: math.inf, "else/other": 1.0}
        assert watch.add(step, metrics if step % 2 else {}) == []


@pytest.mark.parametrize(
    ("user_input", "adapted_prompt", "expected"),
    [
        ("a cat", "a cat, oil painting, 8k", "oil painting, 8k"),
        ("A Cat ", " a cat,  Oil  painting.", "oil painting"),
        ("a cat", "a cat", ""),
        ("a cat", "painting of a cat", "painting of a cat"),
        ("", "8k", "8k"),
    ],
)
def test_what_is_added(user_input: str, adapted_prompt: str, expected: str) -> None:
    assert added_text(user_input, adapted_prompt) == expected


def test_shares_by_hand() -> None:
    assert most_frequent(["8k", "foggy", "8k"]) == ("8k", 2 / 3)
    assert most_frequent([]) == ("", 0.0)
    pairs = word_pairs(["oil painting of fog", "oil painting", "", "fog"])
    assert pairs == [("oil", "painting"), ("painting", "fog"), ("oil", "painting")]
    assert distinct_share(pairs, 3) == 2 / 3
    assert distinct_share(pairs, 2) == 1.0
    assert distinct_share([], 3) == distinct_share(pairs, 0) == 1.0


@pytest.mark.parametrize("text", ["trending, artstation, 8k", ""])
def test_one_text_for_most_inputs(text: str) -> None:
    generator, watch = random.Random(0), new_watch()
    alarms = []
    for step in range(20):
        additions = random_additions(generator)
        if step >= 10:
            additions[:8] = [text] * 8
        alarms += watch.add(step, {}, additions)
    assert alarms[0].name == "collapse"
    assert 11 <= alarms[0].step <= 14
    shown = "add nothing" if not text else "add the same text, 'trending, artstation, 8k'"
    assert (
        f"of the outputs {shown}; at the start no text came to more than 1%" in alarms[0].sentence
    )


def test_what_was_common_at_the_start_is_no_collapse() -> None:
    generator, watch = random.Random(0), new_watch()
    for step in range(20):
        additions = ["8k"] * 6 + random_additions(generator, 10)
        assert watch.add(step, {}, additions) == []


def test_fewer_and_fewer_different_words() -> None:
    generator, watch = random.Random(0), new_watch()
    alarms = []
    for step in range(20):
        words = WORDS if step < 10 else WORDS[:6]
        additions = [", ".join(generator.choices(words, k=6)) for _ in range(16)]
        alarms += watch.add(step, {}, additions)
    assert {alarm.name for alarm in alarms} == {"collapse"}
    assert "of the word pairs added are different ones, at the start 100%" in alarms[0].sentence


@pytest.mark.parametrize("drift", [1.0, -0.5])
def test_a_length_that_drifts(drift: float) -> None:
    alarms = run(0, length=drift)
    assert {alarm.name for alarm in alarms} == {"length"}
    assert alarms[0].sentence.startswith("rollout/length is ")
    assert "at the start it was 2" in alarms[0].sentence


def test_a_length_within_the_band_is_fine() -> None:
    watch = new_watch()
    for step in range(40):
        assert watch.add(step, {LENGTH: 20.0 + 0.2 * step}) == []


def test_a_run_that_is_resumed_raises_the_same_alarms() -> None:
    drifts = {"aesthetic_gain": 0.03, "taste": -0.03, "length": 1.0}
    whole = run(3, **drifts)
    assert {alarm.name for alarm in whole} == {"gaming", "length"}
    generator, watch, alarms = random.Random(3), new_watch(), []
    for step in range(48):
        if step in (3, 20, 33):
            state = json.loads(json.dumps(watch.state()))
            watch = new_watch()
            watch.load_state(state)
        metrics = noise(generator)
        for name in metrics:
            metrics[name] += step * drifts.get(name.split("/")[1].removesuffix("_mean"), 0.0)
        alarms += watch.add(step, metrics, random_additions(generator))
    assert alarms == whole


def test_a_reward_that_is_the_same_for_all_is_told_once_in_a_while() -> None:
    """Five iterations: the scorer of a broken head gives every picture the same."""
    names = ("rollout/reward_std", "reward/relevance_std", "reward/aesthetic_gain_std")
    watch = Watch(spreads=names)
    alarms = []
    for step in range(1, 21):
        spreads = (0.4 if step < 3 else 3e-8, 0.1 * (step % 5), 1e-3)
        alarms += watch.add(step, dict(zip(names, spreads, strict=True)))
    assert [(alarm.name, alarm.step) for alarm in alarms] == [("constant", 7), ("constant", 19)]
    assert alarms[0].sentence == (
        "rollout/reward_std is 0 since step 3: what is the same for every candidate teaches nothing"
    )
    watch = Watch(spreads=names)
    assert [watch.add(step, {names[0]: 0.0}) != [] for step in range(1, 7)] == [
        False, False, False, False, True, False,
    ]  # fmt: skip


def test_a_watch_of_nothing() -> None:
    assert Watch().add(0, {}) == []
    assert Watch().add(0, {"reward/mean": 1.0}, ["8k"]) == []
