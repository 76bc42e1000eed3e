"""`demo` with the lab's own weights; pictures of one step are mud, and quick."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from PIL import Image

from promptadapt_core import runs
from promptadapt_core.__main__ import main
from promptadapt_core.demo import sheets, showing
from promptadapt_core.demo.comparing import (
    RememberedPictures,
    Wording,
    Workshop,
    image_seeds,
    mean_scores,
)
from promptadapt_core.demo.settings import DemoSettings
from promptadapt_core.images import ImageSettings
from promptadapt_core.lab.folders import CACHE_VARIABLE
from promptadapt_core.policies import LAB_SFT_POLICY, lab_policies
from promptadapt_core.settings import MAX_SEED, SettingsError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["a red cat by the sea", "show me a glorious <house> in a forest"]

pytestmark = pytest.mark.skipif(
    LAB_SFT_POLICY not in lab_policies(), reason="the lab's policies are not bundled"
)


class Drawn:
    """Pictures of one colour, which the prompt and the seed give; black for "nothing"."""

    identity = "drawn"
    settings = ImageSettings(size=64)

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, should_stop: Any = None
    ) -> np.ndarray:
        self.asked += zip(prompts, seeds, strict=True)
        colours = [
            (len(text) % 256, seed % 256, 99) if text != "nothing" else (0, 0, 0)
            for text, seed in zip(prompts, seeds, strict=True)
        ]
        return np.array(colours, dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "lab_cache"


@pytest.fixture(autouse=True)
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))


@pytest.fixture(scope="module")
def workshop(cache: Path) -> Workshop:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache))
        return Workshop.load("cpu", num_steps=1)


@pytest.fixture
def drawing(workshop: Workshop) -> Workshop:
    """With the true scorer and judge."""
    return Workshop(Drawn(), workshop.scorer, workshop.judge)


def no_resource_from_elsewhere(text: str) -> bool:
    found = re.findall(r'(?:src|href|srcset)="([^"]{0,40})|url\(([^)]{0,40})|@import', text)
    return all(first.startswith("data:") for first, _ in found)


def test_the_command_writes_a_page_and_a_picture_and_prints_a_table(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    untouched_generators: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Any] = []

    def refused(*arguments: Any) -> None:
        tried.append(arguments)
        raise OSError("nothing is downloaded")

    monkeypatch.setattr(socket.socket, "connect", refused)
    out = tmp_path / "new" / "demo"
    arguments = ["--policy", LAB_SFT_POLICY, "--out", str(out), "--num-steps", "1"]
    with untouched_generators():
        assert main(["demo", *TEXTS, *arguments, "--num-images", "2", "--seed", "5"]) == 0
    told = capsys.readouterr()
    assert not tried
    assert sorted(path.name for path in out.iterdir()) == ["demo.html", "demo.png"]
    lines = told.out.splitlines()
    assert lines[0].split() == ["aesthetic", "relevance", "reward", "judge's", "taste"]
    assert lines[1].startswith("a red cat by the sea ")
    assert len(re.findall(r"-?\d+\.\d+ -> -?\d+\.\d+", lines[1])) == 4
    assert lines[2].startswith("  -> a red cat by the sea, ")
    assert lines[4].startswith("  -> a glorious <house> in a forest, ")
    assert lines[5] == "  words that mean nothing in the lab: glorious"
    assert lines[6].startswith("mean ")
    assert lines[7:] == [f"wrote {out / 'demo.html'} and {out / 'demo.png'}"]

    text = (out / "demo.html").read_text(encoding="utf-8")
    assert no_resource_from_elsewhere(text)
    assert "<house>" not in text
    assert "show me a glorious &lt;house&gt; in a forest" in text
    assert text.count("<img ") == 8  # 2 texts, before and after, 2 seeds
    assert text.count("<section>") == text.count("</section>") == 2
    added = lines[2].removeprefix("  -> a red cat by the sea, ")
    assert f"a red cat by the sea, <mark>{added}</mark>" in text
    with Image.open(out / "demo.png") as picture:
        assert picture.width > 4 * 64 * 2
        assert picture.height > 2 * 64 * 2


def test_the_same_command_gives_the_same_picture(workshop: Workshop, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        settings = DemoSettings(
            policy=LAB_SFT_POLICY, out=str(tmp_path / name), num_steps=1, num_images=1
        )
        made = showing.show(settings, TEXTS[:1], runs.Silent())
        found.append(made.picture.read_bytes())
    assert found[0] == found[1]


def test_every_wording_has_the_same_seeds_and_is_rendered_once(drawing: Workshop) -> None:
    texts, seeds = ["a cat", "a dog"], [3, 4]
    changed = [Wording("a cat, foggy", "foggy"), Wording("a dog")]
    done: list[tuple[int, int]] = []
    found = drawing.compare(texts, [changed], seeds, lambda *counts: done.append(counts))
    wanted = {(text, seed) for text in ("a cat", "a dog", "a cat, foggy") for seed in seeds}
    assert set(drawing.generator.asked) == wanted
    assert len(drawing.generator.asked) == len(wanted)
    assert done[-1] == (6, 6)
    assert [item.user_input for item in found] == texts
    for item, others in zip(found, changed, strict=True):
        assert [shown.wording.text for shown in item.shown] == [item.user_input, others.text]
        for shown in item.shown:
            assert shown.pictures[:, 0, 0, 1].tolist() == seeds
            assert {len(shown.wording.text)} == set(shown.pictures[:, :, :, 0].ravel().tolist())


def test_scores_are_those_of_the_scorer_the_reward_and_the_judge(drawing: Workshop) -> None:
    [item] = drawing.compare(["a cat"], [[Wording("a cat, foggy, at night")]], [1, 2])
    before, after = item.shown
    for shown in item.shown:
        scored = drawing.scorer.score(["a cat"] * 2, shown.pictures)
        assert shown.scores["aesthetic"] == pytest.approx(float(scored.aesthetic.mean()), abs=1e-3)
        assert shown.scores["cosine"] == pytest.approx(float(scored.relevance.mean()), abs=1e-4)
        tastes = drawing.judge.taste(shown.pictures)
        assert shown.tastes == pytest.approx(tastes, abs=1e-3)
        assert shown.scores["taste"] == pytest.approx(float(tastes.mean()), abs=1e-3)
        terms = [shown.scores[name] for name in ("aesthetic_gain", "relevance", "length", "copy")]
        assert shown.scores["reward"] == pytest.approx(sum(terms), abs=1e-4)
    gain = after.scores["aesthetic"] - before.scores["aesthetic"]
    assert before.scores["aesthetic_gain"] == 0.0
    assert after.scores["aesthetic_gain"] == pytest.approx(gain, abs=1e-4)
    assert 0.0 <= before.scores["asked"] <= 1.0


def test_an_input_that_asks_for_nothing_known_has_no_share_of_what_was_asked(
    drawing: Workshop,
) -> None:
    [item] = drawing.compare(["zxqv"], [[Wording("zxqv, foggy")]], [1])
    assert np.isnan(item.shown[0].scores["asked"])
    assert np.isnan(mean_scores([item], 0)["asked"])
    assert item.remarks == ["words that mean nothing in the lab: zxqv"]


def test_a_black_picture_is_told(drawing: Workshop) -> None:
    with pytest.raises(SettingsError, match="'nothing' with seed 1 could not be rendered") as told:
        drawing.compare(["a cat"], [[Wording("nothing")]], [1])
    assert told.value.name == "user_input"


def test_pictures_are_remembered() -> None:
    inner, counts = Drawn(), []
    generator = RememberedPictures(inner, counts.append)
    texts = [f"text {number}" for number in range(20)]
    first = generator.generate(texts, [1] * 20)
    again = generator.generate(texts[::-1], [1] * 20)
    assert (again == first[::-1]).all()
    assert len(inner.asked) == 20
    assert counts == [16, 20]


def test_seeds_go_on_behind_the_highest() -> None:
    assert image_seeds(7, 3) == [7, 8, 9]
    assert image_seeds(MAX_SEED, 2) == [MAX_SEED, 0]


def test_an_engineered_text_is_left_alone_and_that_is_said(tmp_path: Path) -> None:
    engineered = "a cat, golden hour, highly detailed, sharp focus, 8k, artstation"
    settings = DemoSettings(
        policy=LAB_SFT_POLICY, out=str(tmp_path), num_steps=1, num_images=1
    )  # fmt: skip
    made = showing.show(settings, [engineered], runs.Silent())
    [item] = made.comparisons
    assert item.shown[1].wording.text == engineered
    assert item.shown[0].scores == pytest.approx(item.shown[1].scores, nan_ok=True)
    assert "(left alone: it is engineered already" in made.page.read_text(encoding="utf-8")
    assert showing.table([item])[2].startswith("  -> left alone: ")


def test_odd_texts_are_shown(workshop: Workshop, tmp_path: Path) -> None:
    settings = DemoSettings(
        policy=LAB_SFT_POLICY, out=str(tmp_path), num_steps=1, num_images=1
    )  # fmt: skip
    texts = ["猫 \ud83d on a roof", "a cat, " * 100, "a" * 900]
    made = showing.show(settings, texts, runs.Silent())
    assert [item.user_input[:9] for item in made.comparisons] == [
        "猫 \ufffd on a ", "a cat, a ", "aaaaaaaaa",
    ]  # fmt: skip
    assert made.page.read_text(encoding="utf-8").count("<section>") == 3
    lines = showing.table(made.comparisons)
    assert "  the text has 300 tokens, of which the first 75 are read" in lines
    assert max(map(len, lines)) < 1000


def test_a_folder_or_policy_that_is_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, sentence in [
        (["--policy", LAB_SFT_POLICY, "--out", str(tmp_path / "file")], "--out: "),
        (["--policy", "no-such"], "--policy: there is no policy 'no-such'"),
        (["--policy", str(tmp_path)], "--policy: "),
        (["--policy", LAB_SFT_POLICY, "--device", "warp9"], "--device: "),
    ]:
        assert main(["demo", "a cat", "--out", str(tmp_path / "out"), *arguments]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.splitlines()[-1].startswith(f"promptadapt: {sentence}")


def demo_without(missing: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from promptadapt_core.__main__ import main\n"
        "sys.exit(main(['demo', 'a cat', '--policy', 'lab-sft', '--num-images', '1',"
        f" '--num-steps', '1', '--device', 'cpu', '--out', {str(tmp_path)!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, CACHE_VARIABLE: str(tmp_path / "cache")},
    )  # fmt: skip


def test_a_missing_package_is_told_with_what_brings_it(tmp_path: Path) -> None:
    run = demo_without("open_clip", tmp_path)
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert "open_clip" in last
    assert 'pip install "promptadapt[train]"' in last


def test_on_a_cpu_it_needs_no_diffusers_and_fills_no_cache(tmp_path: Path) -> None:
    run = demo_without("diffusers", tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "demo.png").is_file()
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_one_sentence(
    drawing: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Workshop, "load", lambda *_: drawing)
    monkeypatch.setattr(runs, "write_text", full)
    with pytest.raises(SettingsError, match="cannot be written .No space left") as told:
        showing.show(DemoSettings(policy=LAB_SFT_POLICY, out=str(tmp_path)), [], runs.Silent())
    assert told.value.name == "out"


def test_pictures_stand_side_by_side_with_a_gap() -> None:
    pictures = np.stack([np.full((4, 4, 3), number, dtype=np.uint8) for number in range(5)])
    paper = sheets.mosaic(pictures, columns=3)
    assert paper.shape == (2 * 4 + 2, 3 * 4 + 2 * 2, 3)
    assert paper[0, [0, 6, 12], 0].tolist() == [0, 1, 2]
    assert paper[6, [0, 6], 0].tolist() == [3, 4]
    assert paper[0, 4].tolist() == paper[9, 15].tolist() == [255] * 3
    assert sheets.mosaic(pictures[:1]).shape == (4, 4, 3)
