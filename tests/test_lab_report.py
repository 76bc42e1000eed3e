from __future__ import annotations

import html.parser
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core.lab import galleries, grids, measures, report
from promptadapt_core.lab.captions import read
from promptadapt_core.lab.judge import JudgeReading
from promptadapt_core.lab.judge_network import (
    COLOUR_NAMES,
    MODIFIER_NAMES,
    PLACE_NAMES,
    SUBJECT_NAMES,
)
from promptadapt_core.lab.measures import Measure
from promptadapt_core.lab.scenes import Scene, Thing
from promptadapt_core.lab.settings import ReportSettings
from promptadapt_core.lab.taste import taste
from promptadapt_core.settings import MAX_SEED, SettingsError

RED_CAT = Scene((Thing("cat", "red"),), place="by the sea")
TWO = Scene((Thing("cat", "red"), Thing("dog", "blue")), "beside", None)


def reading_of(scenes: Sequence[Scene]) -> JudgeReading:
    """What a judge that is always right says."""
    number = len(scenes)
    subjects = np.zeros((number, len(SUBJECT_NAMES)), np.float32)
    colours = np.full((number, len(SUBJECT_NAMES), len(COLOUR_NAMES)), 0.1, np.float32)
    places = np.zeros((number, len(PLACE_NAMES)), np.float32)
    modifiers = np.full((number, len(MODIFIER_NAMES)), 0.1, np.float32)
    tastes = np.zeros(number, np.float32)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            subject = SUBJECT_NAMES.index(thing.subject)
            subjects[row, subject] = 1
            if thing.colour:
                colours[row, subject, COLOUR_NAMES.index(thing.colour)] = 1
        places[row, PLACE_NAMES.index(scene.place)] = 1
        for name in scene.modifiers:
            if name in MODIFIER_NAMES:
                modifiers[row, MODIFIER_NAMES.index(name)] = 0.9
        tastes[row] = taste(scene, np.zeros((64, 64, 3), np.uint8))
    return JudgeReading(subjects, colours, places, modifiers, tastes)


class PerfectBench:
    """Renders every prompt as it says, and reads every picture: pictures are noise that stands for
    a scene."""

    def __init__(self) -> None:
        self.scenes: dict[bytes, Scene] = {}
        self.judge = self
        self.num_rendered = self.num_expected = 0

    def expect(self, number: int) -> None:
        self.num_expected, self.num_rendered = number, 0

    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        assert len(prompts) == len(seeds)
        self.num_rendered += len(prompts)
        return np.stack([self.noise(read(text)) for text in prompts])

    def noise(self, scene: Scene) -> np.ndarray:
        seed = random.Random(repr(scene)).getrandbits(60)
        pixels = np.random.Generator(np.random.PCG64(seed)).integers(
            256, size=(64, 64, 3), dtype=np.uint8
        )
        self.scenes[pixels.tobytes()] = scene
        return pixels

    def read(self, pixels: np.ndarray) -> JudgeReading:
        return reading_of([self.scenes.get(one.tobytes(), RED_CAT) for one in pixels])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.embed_images(np.stack([self.noise(read(text)) for text in texts]))

    def embed_images(self, pictures: np.ndarray) -> np.ndarray:
        centred = pictures.reshape(len(pictures), -1)[:, :256].astype(np.float64) - 127.5
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    def aesthetic(self, pictures: np.ndarray) -> np.ndarray:
        return self.read(pictures).tastes

    def image_settings(self) -> dict[str, Any]:
        return {"num_steps": 8, "guidance_scale": 3.0}

    def autoencoded(self, pictures: np.ndarray) -> np.ndarray:
        return pictures

    def machine(self) -> str:
        return "a fast one"

    def speeds(self) -> dict[str, float]:
        return {"renders per second": 12.5}

    def file_sizes(self) -> dict[str, int]:
        return {"transformer/model.safetensors": 9_000_000, "judge/judge.safetensors": 2_000_000}


def settings(out: Path, **changes: Any) -> ReportSettings:
    return ReportSettings(**{"out": str(out), "num_pictures": 20, **changes})


def test_a_perfect_lab_meets_everything() -> None:
    bench = PerfectBench()
    accepted, modifiers, others = report.measure(bench, settings(Path("x")))  # type: ignore[arg-type]
    assert bench.num_rendered == bench.num_expected
    assert all(measure.met for measure in accepted), [m for m in accepted if not m.met]
    assert [measure.name for measure in modifiers] == list(MODIFIER_NAMES)
    assert {measure.value for measure in modifiers} == {1.0}
    assert all(measure.target is None for measure in others)


def test_a_blind_judge_is_at_chance() -> None:
    class BlindBench(PerfectBench):
        def read(self, pixels: np.ndarray) -> JudgeReading:
            return reading_of([RED_CAT] * len(pixels))

    accepted, modifiers, _ = report.measure(BlindBench(), settings(Path("x")))  # type: ignore[arg-type]
    by_name = {measure.name: measure for measure in accepted}
    assert by_name["judge reads the subject, rendered"].value < 0.3
    assert {measure.value for measure in modifiers} == {0.5}
    told = next(measure for measure in accepted if measure.name.startswith("effective modifiers"))
    assert told.value == 0.0
    assert told.met is False


def test_subjects_colours_and_places_by_hand() -> None:
    reading = reading_of([Scene((Thing("cat", "red"), Thing("fish", "green"))), RED_CAT])
    # asked: a red cat and a blue dog with no place; a red cat in the snow
    asked = [TWO, Scene((Thing("cat", "red"),), place="in the snow")]
    assert measures.right_subjects(reading, asked).tolist() == [True, False, True]
    assert measures.right_colours(reading, asked).tolist() == [True, False, True]
    assert measures.right_places(reading, asked).tolist() == [False]


def test_a_colour_counts_only_where_its_subject_is_there_once() -> None:
    two_cats = Scene((Thing("cat", "red"), Thing("cat", "blue"), Thing("dog")))
    assert measures.right_colours(reading_of([two_cats]), [two_cats]).tolist() == []


def test_balanced_accuracy_of_a_modifier() -> None:
    measure = measures.modifier_measure(
        "foggy", np.array([0.9, 0.6, 0.4, 0.8]), np.array([0.1, 0.7, 0.2, 0.1])
    )
    assert measure.value == (0.75 + 1 - 0.25) / 2
    assert measure.low is not None
    assert measure.high is not None
    assert measure.low <= measure.value <= measure.high
    assert measure.met is False
    assert "surer with it in 75%" in measure.note


def test_retrieval_asks_within_sets() -> None:
    images = np.eye(6)
    texts = np.eye(6)[[0, 1, 3, 4, 4, 4]]
    assert measures.retrieval(texts, images, among=3).tolist() == [1, 1, 0, 0, 1, 0]
    assert measures.retrieval(texts, images, among=6).tolist() == [1, 1, 0, 0, 1, 0]
    assert measures.retrieval(texts, images, among=4).tolist() == [1, 1, 0, 0]


def test_a_target_is_reached_from_its_own_side() -> None:
    assert Measure("share", 0.9, target=0.9).met is True
    assert Measure("share", 0.89, target=0.9).met is False
    assert Measure("size", 16.1, target=16.0, at_most=True).met is False
    assert Measure("size", 1.0).met is None
    sizes = measures.size_measures({"a": 20_000_000, "b": 5_000_000})
    assert [(m.value, m.met) for m in sizes] == [(25.0, True), (20.0, False)]
    assert sizes[1].note == "a"


def test_the_report_is_one_page_and_one_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "load_bench", lambda *_: PerfectBench())
    monkeypatch.setattr(galleries, "SUBJECTS", galleries.SUBJECTS[:2])
    monkeypatch.setattr(galleries, "EFFECTIVE", galleries.EFFECTIVE[:4])
    out = tmp_path / "new" / "report"
    found = report.write_report(settings(out))
    assert json.loads((out / "report.json").read_text("utf-8")) == found
    text = (out / "report.html").read_text("utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("data:image/png;base64,") == len(found["grids"]) == 6
    check_tags(text)
    for name in found["grids"].values():
        assert (out / name).stat().st_size < 3_000_000
    lines = report.readable(found).splitlines()
    assert len(lines) == len(found["acceptance"])
    assert all(line.startswith("met") for line in lines)


def check_tags(text: str) -> None:
    """Every tag is closed in its turn."""
    open_tags: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert not open_tags


def test_a_report_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be written"):
        report.write_report(settings(tmp_path / "file"))


def test_seeds_go_on_after_the_highest() -> None:
    assert report.row_seeds(5, 3) == [5, 6, 7]
    assert report.row_seeds(MAX_SEED, 2) == [MAX_SEED, 0]


def test_what_json_cannot_write_is_null() -> None:
    assert report.finite({"a": [float("nan"), 1.5], "b": "x"}) == {"a": [None, 1.5], "b": "x"}


def test_a_sheet_has_room_for_every_cell_and_label() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    rows = [[grids.Cell(pixels, "one"), grids.Cell(pixels)], [grids.Cell(None, "two")]]
    picture = grids.sheet(rows, scale=2)
    assert picture.width == 3 * grids.GAP + 2 * 128
    assert picture.height == 3 * grids.GAP + 2 * (128 + grids.LINE)
    assert picture.getpixel((grids.GAP, grids.GAP)) == (0, 0, 0)
    assert picture.getpixel((0, 0)) == grids.PAPER
    empty = (grids.GAP + 64, 2 * grids.GAP + 128 + grids.LINE + 64)
    assert picture.getpixel(empty) == grids.PAPER


def test_blocks_of_columns_stand_apart() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    rows = [[grids.Cell(pixels)] * 4]
    apart = grids.sheet(rows, scale=1, block=2)
    assert apart.width == grids.sheet(rows, scale=1).width + grids.BLOCK_GAP
    third = 3 * grids.GAP + 2 * 64 + grids.BLOCK_GAP
    assert apart.getpixel((third - 1, 40)) == grids.PAPER
    assert apart.getpixel((third, 40)) == (0, 0, 0)


def test_labels_never_run_into_the_next_cell() -> None:
    long = "a very long label that goes on and on, supercalifragilisticexpialidociously long"
    for line in grids._lines(long, 80):
        assert grids._width(line) <= 80
    assert len(grids._lines(long, 80)) == 4
    assert grids._lines("", 80) == []
    assert grids._lines("häuser 家", 80) == ["h?user ?"]


def test_gallery_captions_say_the_scene_in_reading_order() -> None:
    assert galleries.plain_caption(galleries.PLAIN_SCENES[0]) == "a red house by the sea"
    foggy = Scene((Thing("cat", "red"),), place="in a room", modifiers=("foggy",))
    assert galleries.plain_caption(foggy) == "a red cat in a room, foggy"
    assert read(galleries.plain_caption(TWO)) == TWO


def test_the_same_scenes_for_the_same_seed() -> None:
    assert report.plain_scenes(5, 3) == report.plain_scenes(5, 3)
    assert report.plain_scenes(5, 3) != report.plain_scenes(5, 4)
    scenes, captions = report.plain_scenes(50, 0)
    assert not any(scene.modifiers for scene in scenes)
    assert [read(caption) for caption in captions] == scenes
