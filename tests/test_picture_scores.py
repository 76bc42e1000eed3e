from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from promptadapt_core import picture_scores
from promptadapt_core.baselines import Baseline
from promptadapt_core.decoding import Stopped
from promptadapt_core.images import ImageSettings
from promptadapt_core.picture_scores import Picture, PictureScores, Row
from promptadapt_core.process_group import ProcessGroup
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError


class Digits:
    """Draws "37" as one pixel of 3, 7 and the seed. "?" is refused, "0" comes out black."""

    identity = "digits"
    settings = ImageSettings()

    def __init__(self) -> None:
        self.calls: list[list[Picture]] = []

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        self.calls.append(list(map(Picture, prompts, seeds)))
        if should_stop is not None and should_stop():
            raise Stopped
        if "?" in prompts:
            raise SettingsError("prompts", "a question")
        pixels = [(*divmod(int(p), 10), s) for p, s in zip(prompts, seeds, strict=True)]
        return np.array(pixels, dtype=np.uint8)[:, None, None, :]


class Reader:
    """Aesthetic is the first digit, relevance the second over the user input's length. A first
    digit of 9 gives NaN; a user input "!" is refused."""

    identity = "reader"
    relevance_knee, relevance_slope = 0.28, 20.0

    def __init__(self) -> None:
        self.num_scored = 0

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        self.num_scored += len(pixels)
        if "!" in user_inputs:
            raise RuntimeError("an exclamation\nand more")
        digits = torch.from_numpy(pixels[:, 0, 0, :].astype(np.float32))
        aesthetic = torch.where(digits[:, 0] == 9, torch.nan, digits[:, 0])
        return Scores(aesthetic, digits[:, 1] / torch.tensor([len(text) for text in user_inputs]))


def rows(*texts: str, user_input: str = "word", seed: int = 0) -> list[Row]:
    return [Row(user_input, Picture(text, seed)) for text in texts]


def run(wanted: list[Row], keep: bool = False) -> tuple[dict[Row, Baseline], PictureScores]:
    work = PictureScores(Digits(), Reader(), None, keep)
    return work.run(wanted), work


def test_each_row_has_its_own_scores() -> None:
    wanted = rows("31", "42", "31")
    scores, work = run(wanted)
    assert scores == {wanted[0]: Baseline(3.0, 0.25), wanted[1]: Baseline(4.0, 0.5)}
    assert work.generator.calls == [[Picture("31", 0), Picture("42", 0)]]
    assert (work.num_rendered, work.scorer.num_scored, work.failures) == (2, 2, [])


def test_one_picture_against_two_inputs_is_rendered_once() -> None:
    wanted = [*rows("34"), *rows("34", user_input="to"), *rows("34", seed=1)]
    scores, work = run(wanted)
    assert [scores[row].relevance for row in wanted] == [1.0, 2.0, 1.0]
    assert work.num_rendered == 2


def test_the_one_at_fault_is_told_apart() -> None:
    wanted = rows("31", "?", "42", "0", "91", "53")
    scores, work = run(wanted)
    assert [row.picture.text for row in scores] == ["31", "42", "53"]
    assert work.failures == [
        "'?' with seed 0 could not be rendered: prompts: a question",
        "'0' with seed 0 could not be rendered: it is all black",
        "'91' with seed 0 could not be scored: its scores are nan and 0.25",
    ]
    assert work.num_rendered == 5


@pytest.mark.parametrize(
    "kind", [RuntimeError, IndexError, KeyError, TypeError, AssertionError, MemoryError]
)
def test_whatever_a_renderer_raises_for_one_prompt(kind: type[Exception]) -> None:
    generate = Digits.generate

    class Moody(Digits):
        def generate(self, prompts: Sequence[str], *given: Any, **options: Any) -> np.ndarray:
            if "77" in prompts:
                raise kind("index out of range")
            return generate(self, prompts, *given, **options)

    work = PictureScores(Moody(), Reader(), None, False)
    assert [row.picture.text for row in work.run(rows("31", "77", "42"))] == ["31", "42"]
    assert len(work.failures) == 1
    assert "'77' with seed 0 could not be rendered: " in work.failures[0]
    assert "index out of range" in work.failures[0]


def test_a_user_input_that_cannot_be_scored() -> None:
    scores, work = run([*rows("31", "42"), *rows("31", user_input="!")])
    assert len(scores) == 2
    assert work.failures == ["'31' with seed 0 could not be scored: an exclamation"]


def test_pictures_are_kept_if_asked_for() -> None:
    assert run(rows("31", "42"))[1].pictures == {}
    kept = run(rows("31", "42", "?"), keep=True)[1].pictures
    assert {picture.text: pixels.tolist() for picture, pixels in kept.items()} == {
        "31": [[[3, 1, 0]]], "42": [[[4, 2, 0]]]
    }  # fmt: skip


def test_many_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = rows(*map(str, range(10, 21)))
    whole, _ = run(wanted)
    monkeypatch.setattr(picture_scores, "PICTURES_AT_ONCE", 4)
    scores, work = run(wanted)
    assert scores == whole
    assert [len(call) for call in work.generator.calls] == [4, 4, 3]


def test_stopping_is_no_failure() -> None:
    work = PictureScores(Digits(), Reader(), lambda: True, False)
    with pytest.raises(Stopped):
        work.run(rows("31", "42"))
    assert len(work.generator.calls) == 1


def test_nothing_asked_nothing_done() -> None:
    scores, work = run([])
    assert scores == {}
    assert work.generator.calls == []


class Threads(ProcessGroup):
    """Processes that are threads of this one."""

    def __init__(self, rank: int, number: int, barrier: threading.Barrier, board: list[Any]):
        super().__init__(rank, number)
        self.barrier, self.board = barrier, board

    def gather(self, work: Callable[[], Any]) -> list[Any]:
        self.board[self.rank] = work()
        self.barrier.wait(timeout=30)
        found = list(self.board)
        self.barrier.wait(timeout=30)
        return found


@pytest.mark.parametrize("number", [2, 3, 5])
def test_processes_share_the_pictures_and_know_all_scores(number: int) -> None:
    """Ten texts with two seeds each: one is black with seed 0, one refused, one unfit to be
    scored."""
    texts = [*map(str, range(11, 18)), "?", "00", "95"]
    wanted = [row for text in texts for seed in (0, 1) for row in rows(text, seed=seed)]
    wanted += rows("12", user_input="to")
    alone = PictureScores(Digits(), Reader(), None, True)
    expected = alone.run(wanted)
    barrier, board = threading.Barrier(number), [None] * number
    works = [
        PictureScores(Digits(), Reader(), None, True, Threads(rank, number, barrier, board))
        for rank in range(number)
    ]
    with ThreadPoolExecutor(number) as pool:
        for found in pool.map(lambda work: work.run(wanted), works):
            assert found == expected
    assert {len(work.failures) for work in works} == {len(alone.failures)} == {5}
    assert {work.num_rendered for work in works} == {alone.num_rendered} == {18}
    drawn = [list(work.pictures) for work in works]
    assert sorted(picture for some in drawn for picture in some) == sorted(alone.pictures)
    for text in texts:  # both pictures of a text are in one process
        assert sum(any(picture.text == text for picture in some) for some in drawn) <= 1
    tried = [{p for call in work.generator.calls for p in call} for work in works]
    assert max(map(len, tried)) <= -(-20 // number) + 1
