from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.scoring import Parts, Plain, Scoring, chunks
from promptadapt_core.images import ImageSettings
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError

# text: 10 * aesthetic of its first and its second picture, 100 * cosine of the same
LOOKS = {
    "a cat": ((50, 54), (26, 30)),
    "a cat, foggy": ((60, 62), (25, 30)),
    "a dog": ((40, 41), (20, 28)),
    "a dog, 8k": ((45, 47), (24, 26)),
    "a cow": ((45, 45), (30, 30)),
    "black": ((0, 0), (0, 0)),
}
SETTINGS = EvaluationReward(num_images=2)


class Drawer:
    """Draws LOOKS as red and green of one pixel; black where it knows nothing. left: pictures
    until it is killed."""

    settings = ImageSettings()

    def __init__(self, identity: str = "drawer", left: int = 10**9):
        self.identity, self.left = identity, left
        self.drawn: list[tuple[str, int]] = []

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        self.left -= len(prompts)
        if self.left < 0:
            raise KeyboardInterrupt
        self.drawn += zip(prompts, seeds, strict=True)
        pictures = np.zeros((len(prompts), 1, 1, 3), dtype=np.uint8)
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            aesthetics, cosines = LOOKS.get(prompt, LOOKS["black"])
            user_input = prompt.split(",")[0]
            place = SETTINGS.seeds_of(user_input).index(seed)
            pictures[row, 0, 0, :2] = aesthetics[place], cosines[place]
        return pictures


class Reader:
    """Reads them off again."""

    identity, relevance_knee, relevance_slope = "reader", 0.28, 20.0

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        red, green = (torch.from_numpy(pixels[:, 0, 0, n].astype(np.float32)) for n in (0, 1))
        return Scores(red / 10.0, green / 100.0)


class Redness:
    """A judge."""

    metrics: Mapping[str, str] = {"judge/taste": "red of the pictures", "judge/cat": "of cats"}
    identity = "redness"

    def judge_each(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        pictures: Sequence[np.ndarray | None],
    ) -> dict[str, np.ndarray]:
        red = [np.nan if some is None else some[:, 0, 0, 0].mean() for some in pictures]
        cats = [1.0 if "cat" in text else np.nan for text in user_inputs]
        return {"judge/taste": np.array(red), "judge/cat": np.array(cats)}


def never() -> bool:
    return False


def scoring(folder: Path, drawer: Drawer | None = None, judge: bool = True) -> Scoring:
    parts = Parts(drawer or Drawer(), Reader(), Redness() if judge else None)
    return Scoring(parts, SETTINGS, folder)


def plain(made: Scoring, *user_inputs: str) -> dict[str, Plain]:
    return made.plain(user_inputs, never, runs.Silent())


def test_the_plain_user_input_and_the_best_of_its_pictures(tmp_path: Path) -> None:
    """Cat: 20 * (0.26 - 0.28) = -0.4 of the first picture, 0 of the second; the second is the
    better one by both, and 0.2 above the mean of 5.0 and 5.4."""
    found = plain(scoring(tmp_path), "a cat")["a cat"]
    assert found.values == pytest.approx(
        {"reward": -0.2, "aesthetic_gain": 0.0, "relevance": -0.2, "length": 0.0, "copy": 0.0,
         "aesthetic": 5.2, "cosine": 0.28, "num_tokens": 2.0, "judge/taste": 52.0, "judge/cat": 1.0}
    )  # fmt: skip
    assert found.best == pytest.approx(
        {"reward": 0.2, "aesthetic_gain": 0.2, "relevance": 0.0, "length": 0.0, "copy": 0.0,
         "aesthetic": 5.4, "cosine": 0.3, "num_tokens": 2.0, "judge/taste": 54.0, "judge/cat": 1.0}
    )  # fmt: skip
    assert found.best_seed == SETTINGS.seeds_of("a cat")[1]


def test_candidates_are_measured_against_the_same_seeds(tmp_path: Path) -> None:
    """Foggy cat: gains 1.0 and 0.8; relevance -0.6 and 0. Dog: 0.5 and 0.6; -0.8 and -0.4."""
    drawer = Drawer()
    made = scoring(tmp_path, drawer)
    plain(made, "a cat", "a dog")
    assert len(drawer.drawn) == 4
    cat, itself, dog = made.score(
        ["a cat", "a cat", "a dog"], ["a cat, foggy", "a cat", "a dog, 8k"], never, runs.Silent()
    )
    assert cat is not None
    assert itself is not None
    assert dog is not None
    assert cat["reward"] == pytest.approx(0.9 - 0.3, abs=1e-5)
    assert cat["judge/taste"] == 61.0
    assert itself["reward"] == pytest.approx(-0.2, abs=1e-5)
    assert dog["reward"] == pytest.approx(0.55 - 0.6, abs=1e-5)
    assert dog["aesthetic_gain"] == pytest.approx(0.55, abs=1e-5)
    assert math.isnan(dog["judge/cat"])
    assert len(drawer.drawn) == 8
    assert {seed for text, seed in drawer.drawn if "dog" in text} == set(SETTINGS.seeds_of("a dog"))


def test_everything_is_measured_once_and_kept(tmp_path: Path) -> None:
    first = scoring(tmp_path)
    before = (
        plain(first, "a cat", "a dog"),
        first.score(["a cat", "a dog"], ["a cat, foggy", "a dog, 8k"], never, runs.Silent()),
    )
    drawer = Drawer()
    again = scoring(tmp_path, drawer)
    after = (
        plain(again, "a cat", "a dog"),
        again.score(["a cat", "a dog"], ["a cat, foggy", "a dog, 8k"], never, runs.Silent()),
    )
    np.testing.assert_equal(after, before)
    assert drawer.drawn == []
    # and without a line at the end, its candidates alone are measured anew, on the kept baselines
    lines = again._file.path.read_bytes().splitlines(keepends=True)
    again._file.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    third = scoring(tmp_path, drawer)
    plain(third, "a cat", "a dog")
    assert drawer.drawn == []
    found = third.score(["a cat", "a dog"], ["a cat, foggy", "a dog, 8k"], never, runs.Silent())
    np.testing.assert_equal(found, before[1])
    assert len(drawer.drawn) == 4


@pytest.mark.parametrize("left", range(0, 9))
def test_killed_anywhere_it_goes_on_to_the_same(tmp_path: Path, left: int) -> None:
    def whole(made: Scoring) -> object:
        return plain(made, "a cat", "a dog"), made.score(
            ["a cat", "a dog"], ["a cat, foggy", "a dog, 8k"], never, runs.Silent()
        )

    expected = whole(scoring(tmp_path / "whole"))
    drawer = Drawer(left=left)
    if left < 8:
        with pytest.raises(KeyboardInterrupt):
            whole(scoring(tmp_path / "killed", drawer))
    second = Drawer()
    np.testing.assert_equal(whole(scoring(tmp_path / "killed", second)), expected)
    assert len(second.drawn) == (8 if left < 4 else 4 if left < 8 else 8)


def test_another_renderer_or_judge_is_measured_anew(tmp_path: Path) -> None:
    plain(scoring(tmp_path), "a cat")
    for drawer, judge in ((Drawer("another"), True), (Drawer(), False)):
        plain(scoring(tmp_path, drawer, judge), "a cat")
        assert len(drawer.drawn) == 2


def test_without_a_judge_nothing_is_judged(tmp_path: Path) -> None:
    made = scoring(tmp_path, judge=False)
    assert list(plain(made, "a cat")["a cat"].values) == list(made.metrics)
    assert not any(name.startswith("judge/") for name in made.metrics)


def test_what_fails_is_left_out_and_told(tmp_path: Path) -> None:
    drawer = Drawer()
    made = scoring(tmp_path, drawer)
    assert set(plain(made, "a cat", "black", "a dog")) == {"a cat", "a dog"}
    assert len(made.failures) == 2
    assert "all black" in made.failures[0]
    number = len(drawer.drawn)
    scores = made.score(
        ["a cat", "black", "black", "a dog"],
        ["a cat, unknown", "black", "black, 8k", "a dog, 8k"],
        never,
        runs.Silent(),
    )
    assert [score is None for score in scores] == [True, True, True, False]
    assert not any("black" in text for text, _ in drawer.drawn[number:])


def test_a_candidate_that_fails_alone_does_not_end_it(tmp_path: Path) -> None:
    made = scoring(tmp_path)
    plain(made, "a cat")
    assert made.score(["a cat"], ["a cat, unknown"], never, runs.Silent()) == [None]
    assert "candidates failed" in made.failures[-1]


def test_a_renderer_that_draws_nothing_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^renderer: all 2 user inputs failed; .*all black"):
        plain(scoring(tmp_path), "black", "a horse")
    made = scoring(tmp_path)
    plain(made, "a cat")
    with pytest.raises(SettingsError, match=r"^renderer: all 9 candidates failed"):
        made.score(["a cat"] * 9, [f"a cat, {n}" for n in range(9)], never, runs.Silent())


def test_the_file_is_read_by_people_too(tmp_path: Path) -> None:
    made = scoring(tmp_path)
    plain(made, "a cow")
    made.score(["a cow"], ["a cow"], never, runs.Silent())
    header, line = made._file.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(header)["renderer"] == "drawer"
    row = json.loads(line)["plain"][0]
    assert row["user_input"] == "a cow"
    assert row["values"]["judge/cat"] is None
    assert row["values"]["aesthetic"] == 4.5


def test_chunks_are_even() -> None:
    assert [len(part) for part in chunks(range(65), 32)] == [21, 22, 22]
    assert [list(part) for part in chunks(range(3), 32)] == [[0, 1, 2]]
    assert chunks([], 32) == []
