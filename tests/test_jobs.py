"""Which text goes into which picture, and which pictures are kept. Hand-worked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from promptadapt_core import jobs
from promptadapt_core.job_settings import JobSettings
from promptadapt_core.jobs import Rendering, Version

TEXTS = ["a cat, 8k", "a cat, ink", "a cat, fog"]


def found(texts: list[str], user_input: str = "a cat") -> Any:
    """As an AdaptedInput."""
    adaptation = SimpleNamespace(user_input=user_input, gate="adapted")
    return SimpleNamespace(adaptation=adaptation, policy_hash="abc", texts=texts)


def test_one_prompt_for_all_images() -> None:
    for rank, text in enumerate(TEXTS, 1):
        plan = jobs.renderings(JobSettings(rank=rank), "a cat", TEXTS, 4)
        assert plan == [Rendering(text, rank, 0, 4)]
    assert jobs.renderings(JobSettings(rank=9), "a cat", TEXTS, 4)[0].rank == 3


def test_another_candidate_for_each_image() -> None:
    settings = JobSettings(images="different", rank=3)
    plan = jobs.renderings(settings, "a cat", TEXTS, 5)
    assert [(one.text, one.rank) for one in plan] == [
        (TEXTS[2], 3), (TEXTS[0], 1), (TEXTS[1], 2), (TEXTS[2], 3), (TEXTS[0], 1),
    ]  # fmt: skip
    assert [(one.first_image, one.num_images) for one in plan] == [(i, 1) for i in range(5)]
    left_alone = jobs.renderings(settings, "a cat", ["a cat"], 5)
    assert left_alone == [Rendering("a cat", 1, 0, 5)]  # in one go


def test_the_best_is_looked_for_among_all_and_the_plain_input_first() -> None:
    settings = JobSettings(keep_best="best", images="different", rank=2)
    plan = jobs.renderings(settings, "a cat", TEXTS, 2)
    assert plan == [Rendering(t, rank, 0, 2) for rank, t in enumerate(["a cat", *TEXTS])]
    assert jobs.renderings(settings, "a cat", ["a cat"], 2) == [Rendering("a cat", 0, 0, 2)]


@pytest.mark.parametrize(
    ("given", "num_batches"),
    [
        ({}, 2), ({"num_candidates": 5}, 2), ({"images": "different"}, 6),
        ({"keep_best": "all", "num_candidates": 3}, 8), ({"keep_best": "best"}, 4),
    ],
)  # fmt: skip
def test_how_much_there_is_to_render(given: dict[str, Any], num_batches: int) -> None:
    """Six pictures in two batches of three."""
    assert jobs.num_batches(JobSettings(**given), num_images=6, batches_each=2) == num_batches


def test_the_job_of_one_image() -> None:
    job = SimpleNamespace(
        prompt="a cat # note", hr_prompt="a cat # note", batch_size=2, n_iter=2, seed=7, subseed=3,
        subseed_strength=0, init_images=["p", "q"],
    )  # fmt: skip
    before = dict(vars(job))
    third = jobs.job_of(Rendering("a cat, ink", 2, 2, 1), job, 4)
    assert vars(third) == {
        "prompt": "a cat, ink", "hr_prompt": "a cat, ink", "batch_size": 1, "n_iter": 1, "seed": 9,
        "subseed": 5, "subseed_strength": 0, "init_images": ["p"],
    }  # fmt: skip
    job.subseed_strength, job.hr_prompt, job.init_images = 0.5, "a dog", ["p"]
    third = jobs.job_of(Rendering("a cat, ink", 2, 2, 1), job, 4)
    assert (third.seed, third.subseed) == (7, 5)  # as the host counts variations
    assert (third.hr_prompt, third.init_images) == ("a dog", ["p"])
    whole = jobs.job_of(Rendering("a cat, ink", 2, 0, 4), SimpleNamespace(**before), 4)
    assert vars(whole) == {**before, "prompt": "a cat, ink", "hr_prompt": "a cat, ink"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" a cat ", " a cat "), ("a cat # note", "a cat"), ("# note\na cat", "a cat"),
        ("a cat # note\non a roof", "a cat \non a roof"), ("a cat\n#x\n#y", "a cat"), ("#", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_comments_are_left_out(text: str, left: str) -> None:
    assert jobs.without_comments(text) == left


VERSIONS = [Version(rank, image) for rank in range(3) for image in range(2)]


@pytest.mark.parametrize(
    ("keep_best", "rewards", "numbers"),
    [
        ("all", [1.0, 5.0, 3.0, 5.0, 2.0, 4.0], [1, 3, 5, 2, 4, 0]),
        ("best", [1.0, 5.0, 3.0, 5.0, 2.0, 4.0], [2, 1]),  # a draw: the plain input stays
        ("best", [1.0, 1.0, 1.0, 1.0, 1.5, 0.5], [4, 1]),
    ],
)
def test_what_is_kept(keep_best: str, rewards: list[float], numbers: list[int]) -> None:
    assert jobs.kept(JobSettings(keep_best=keep_best), VERSIONS, rewards) == numbers


def test_what_is_said_of_it() -> None:
    rewards = [1.0, 5.0, 3.0, 4.0, 2.0, 4.0]
    lines = jobs.told(VERSIONS, rewards, [2, 1])
    assert lines == [
        "image 1: candidate 1 is best, reward 3.00, the plain input 1.00",
        "image 2: the plain input is best, reward 5.00, the plain input 5.00",
    ]


def processed(num_images: int, grid: bool = False, masks: bool = False) -> Any:
    """As the host's, of num_images pictures."""
    images = []
    for i in range(num_images):
        images.append(SimpleNamespace(info={"parameters": f"text {i}"}, name=i))
        images += [SimpleNamespace(info={}, name="mask")] if masks else []
    texts = [f"text {i}" for i in range(num_images)]
    if grid:
        images, texts = [SimpleNamespace(info={}, name="grid"), *images], ["text 0", *texts]
    rows = {name: [f"{name} {i}" for i in range(num_images)] for name in jobs.ROW}
    return SimpleNamespace(
        images=images, infotexts=texts, index_of_first_image=int(grid), **rows
    )  # fmt: skip


@pytest.mark.parametrize(("grid", "masks"), [(False, False), (True, False), (True, True)])
def test_pictures_without_grids_and_masks(grid: bool, masks: bool) -> None:
    rendering = Rendering("a cat", 2, 3, 2)
    made = jobs.pictures_of(rendering, "job", processed(2, grid, masks))
    assert [one.image.name for one in made] == [0, 1]
    assert [one.infotext for one in made] == ["text 0", "text 1"]
    assert [one.version for one in made] == [Version(2, 3), Version(2, 4)]
    assert made[1].row["all_seeds"] == "all_seeds 1"
    assert made[0].as_json() == {"rank": 2, "image": 3}


def test_an_interrupted_rendering_has_a_text_and_no_picture() -> None:
    empty = SimpleNamespace(images=[], infotexts=["text"], index_of_first_image=0)
    assert jobs.pictures_of(Rendering("a cat", 1, 0, 2), "job", empty) == []


def test_texts_of_images_keep_styles_and_wildcards_apart() -> None:
    def styled(text: str) -> str:
        return f"{text}, in style"

    typed = ["a cat", "a __pet__", "a cat"]
    shown = ["a cat, in style", "a dog, in style", "a cat, in style"]
    inputs = jobs.inputs_of_images(typed, shown, styled)
    assert [text for text, _ in inputs] == ["a cat", "a dog, in style", "a cat"]
    known = {"a cat": found(TEXTS), "a dog, in style": found(["a dog, in style, 8k"])}
    made = jobs.texts_of_images(JobSettings(images="different"), inputs, known, image_seed=7)
    assert [one.text for one in made] == [
        "a cat, 8k, in style", "a dog, in style, 8k", "a cat, fog, in style",
    ]  # fmt: skip
    assert [one.pairs["Prompt Adapt rank"] for one in made] == ["1", "1", "3"]
    assert {one.pairs["Prompt Adapt num candidates"] for one in made} == {"3"}
    assert {one.pairs["Prompt Adapt seed"] for one in made} == {"7"}


def test_only_what_was_the_same_is_replaced() -> None:
    assert jobs.replaced(["a", "x"], ["a", "b"], ["A", "B"]) == ["A", "x"]
