"""Pictures are scored and the best kept, with a scorer whose scores are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from PIL import Image  # noqa: E402

from promptadapt_core.job_settings import JobSettings  # noqa: E402
from promptadapt_core.jobs import Picture, Version  # noqa: E402
from promptadapt_core.keep_best import keep_best, score_images  # noqa: E402
from promptadapt_core.picture_rewards import PICTURES_AT_ONCE  # noqa: E402
from promptadapt_core.scorers import Scores  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


class Brightness:
    """aesthetic: the red of the first pixel. relevance: half."""

    identity, relevance_knee, relevance_slope = "brightness", 0.75, 4.0

    def __init__(self) -> None:
        self.texts: list[str] = []

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        self.texts += user_inputs
        red = torch.tensor(pixels[:, 0, 0, 0], dtype=torch.float32)
        return Scores(red, torch.full_like(red, 0.5))


def picture(red: int, rank: int, image: int, size: int = 8) -> Picture:
    made = Image.new("RGBA", (size, size), (red, 0, 0, 255))
    return Picture(made, f"text {rank}\nSteps: 2", Version(rank, image), {}, "job")


def test_scores_go_into_the_pictures_and_the_best_come_back() -> None:
    pictures = [picture(5, 0, 0), picture(3, 0, 1), picture(4, 1, 0), picture(6, 1, 1, size=16)]
    scorer = Brightness()
    kept, lines = keep_best(
        scorer, "a (cat:1.3) <lora:x:1>", pictures, JobSettings(keep_best="best")
    )
    assert [one.version for one in kept] == [Version(0, 0), Version(1, 1)]
    assert [one.score["reward"] for one in kept] == [4.0, 5.0]  # 4 * min(0.5 - 0.75, 0) = -1
    assert set(scorer.texts) == {"a cat"}
    assert kept[1].infotext.endswith(
        "Steps: 2, Prompt Adapt reward: 5.0000, Prompt Adapt aesthetic: 6.0000, "
        "Prompt Adapt relevance: 0.5000"
    )
    assert all(one.image.info["parameters"] == one.infotext for one in pictures)
    assert len(lines) == 2
    everything, _ = keep_best(scorer, "a cat", pictures, JobSettings(keep_best="all"))
    assert [one.version for one in everything] == [
        Version(1, 1), Version(0, 0), Version(1, 0), Version(0, 1),
    ]  # fmt: skip


def test_weights_count() -> None:
    images = [picture(5, 0, 0).image]
    settings = JobSettings(aesthetic_weight=2.0, relevance_weight=0.5)
    assert score_images(Brightness(), "a cat", images, settings)[0]["reward"] == 9.5


def test_an_interrupt_leaves_the_pictures_as_they_are() -> None:
    pictures = [picture(1, 0, i) for i in range(2 * PICTURES_AT_ONCE)]
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    settings = JobSettings(keep_best="best")
    kept, lines = keep_best(Brightness(), "a cat", pictures, settings, should_stop)
    assert kept == pictures
    assert "stopped" in lines[0]
    assert all(one.score is None and "reward" not in one.infotext for one in pictures)


def test_pictures_that_cannot_be_scored_come_back_and_say_why() -> None:
    class Broken(Brightness):
        def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
            return Scores(torch.full((len(pixels),), float("nan")), torch.zeros(len(pixels)))

    class Full(Brightness):
        def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
            raise torch.cuda.OutOfMemoryError("out of memory")

    pictures, settings = [picture(1, 0, 0)], JobSettings(keep_best="all")
    for scorer, reason in ((Broken(), "NaN"), (Full(), "out of memory")):
        kept, (line,) = keep_best(scorer, "a cat", pictures, settings)
        assert kept == pictures
        assert line.startswith("the pictures have no scores: ")
        assert reason in line


def test_the_picture_without_scores_is_told_by_its_number() -> None:
    class Broken(Brightness):
        def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
            found = super().score(user_inputs, pixels)
            found.aesthetic[pixels[:, 0, 0, 0] == 99] = float("nan")
            return found

    images = [picture(99 if i == 9 else 5, 0, i).image for i in range(PICTURES_AT_ONCE + 4)]
    with pytest.raises(SettingsError, match=r"picture 10 has scores .*NaN"):
        score_images(Broken(), "a cat", images, JobSettings())
