from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from PIL import Image

from promptadapt_core.lab import __main__ as command
from promptadapt_core.lab import progress, rendering
from promptadapt_core.lab.__main__ import main
from promptadapt_core.lab.autoencoder import build_autoencoder
from promptadapt_core.lab.folders import CACHE_VARIABLE, bundle_weights
from promptadapt_core.lab.renderer import build_transformer, widened
from promptadapt_core.lab.writers import user_inputs, write_pairs

ROOT = Path(__file__).resolve().parents[1]
SLOW = {"transformers", "diffusers", "open_clip", "torchvision", "peft", "scipy"}
HEAVY = {"torch", "numpy", "PIL"} | SLOW


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of a renderer, which draws mud."""
    folder = tmp_path_factory.mktemp("lab")
    widened(build_transformer(0, num_layers=2)).save_pretrained(folder / "renderer")
    build_autoencoder(0).save_pretrained(folder / "vae")
    bundle_weights(folder / "renderer", folder / "vae", folder / "weights")
    return folder / "weights"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache folder for all tests of this file."""
    folder = tmp_path_factory.getbasetemp() / "lab_cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


def exit_code(*arguments: str) -> int:
    """Of the command line, however it ends."""
    try:
        return main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def render(weights: Path, *arguments: str) -> int:
    return exit_code("render", "--weights", str(weights), "--num-steps", "1", *arguments)


def loaded_by(*arguments: str) -> set[str]:
    """The packages that a command loads in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "promptadapt_core.lab", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}


def test_help_does_not_load_torch() -> None:
    for arguments in (["--help"], ["render", "--help"], ["build", "--help"], ["pairs", "--help"]):
        loaded = loaded_by(*arguments)
        assert "argparse" in loaded
        assert not loaded & HEAVY


def test_rendering_loads_no_more_than_it_needs(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    loaded = loaded_by("render", "a cat", "--out", str(out), "--weights", str(weights))
    assert out.is_file()
    assert "torch" in loaded
    assert not loaded & SLOW, "importing diffusers alone takes longer than all of the command"


def test_user_inputs_are_written_in_turn(tmp_path: Path) -> None:
    out = tmp_path / "inputs.txt"
    loaded = loaded_by("inputs", "--out", str(out), "--num-inputs", "5", "--seed", "3")
    assert "torch" not in loaded
    inside, outside = user_inputs(3, 3, held_out=False), user_inputs(2, 3, held_out=True)
    expected = [inside[0], outside[0], inside[1], outside[1], inside[2]]
    assert out.read_text(encoding="utf-8").splitlines() == expected
    for domain, texts in (("in", inside), ("out", outside)):
        number = str(len(texts))
        assert exit_code(
            "inputs", "--out", str(out), "--num-inputs", number, "--seed", "3", "--domain", domain
        ) == 0  # fmt: skip
        assert out.read_text(encoding="utf-8").splitlines() == texts


def test_pairs_are_written_without_torch(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    loaded = loaded_by("pairs", "--out", str(out), "--num-pairs", "3", "--seed", "7")
    assert not loaded & (HEAVY - {"numpy"})
    expected = [pair.target for pair in write_pairs(3, 7)]
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["target"] for row in rows] == expected


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "pairs.jsonl")
    assert exit_code("pairs", "--out", out, "--num-pairs", "1200") == 0
    assert capsys.readouterr().out == f"wrote {out}, 1,200 pairs\n"


def test_the_size_is_the_one_that_the_weights_recommend(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Path(shutil.copytree(weights, tmp_path / "weights"))
    (small / "renderer.json").write_text('{"size": 32}', encoding="utf-8")
    out = str(tmp_path / "x.png")
    assert render(small, "a cat", "--out", out) == 0
    assert pixels_of(Path(out)).shape == (32, 32, 3)
    assert "has learned 64 pixels only, not 32" in capsys.readouterr().err
    assert render(small, "a cat", "--out", out, "--size", "64") == 0
    assert pixels_of(Path(out)).shape == (64, 64, 3)


def test_render_writes_a_picture_as_a_user_types_it(weights: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable, "-m", "promptadapt_core.lab", "render", "a glorious red house",
            "--out", str(tmp_path / "x.png"), "--weights", str(weights), "--num-steps", "1",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"wrote {tmp_path / 'x.png'}\n"
    assert run.stderr == "words that mean nothing in the lab: glorious\n"
    assert pixels_of(tmp_path / "x.png").shape == (64, 64, 3)


def test_more_pictures_are_numbered_and_have_the_next_seeds(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three, one = tmp_path / "three.png", tmp_path / "one.png"
    assert render(weights, "a cat", "--out", str(three), "--num-images", "3", "--seed", "7") == 0
    names = ["three.png", "three-2.png", "three-3.png"]
    assert capsys.readouterr().out == f"wrote {', '.join(str(tmp_path / n) for n in names)}\n"
    assert render(weights, "a cat", "--out", str(one), "--seed", "9") == 0
    assert np.abs(pixels_of(tmp_path / "three-3.png") - pixels_of(one)).max() <= 1
    assert (pixels_of(three) != pixels_of(one)).any()


def test_an_empty_text_and_unknown_words_are_remarked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.webp")
    assert render(weights, "", "--out", out, "--scale", "2") == 0
    assert capsys.readouterr().err == "the text is empty: the picture shows anything\n"
    assert pixels_of(Path(out)).shape == (128, 128, 3)
    assert render(weights, "Quelle horreur, \ud83d\udc31 家!", "--out", out) == 0
    assert "words that mean nothing in the lab: Quelle" in capsys.readouterr().err


def test_remarks() -> None:
    assert rendering.remarks("a red house by the sea, golden hour", 64) == []
    many = " ".join(f"zzq{letter}" for letter in "abcdefghijlm")
    assert rendering.remarks(many, 64)[0].endswith("zzqg, zzqh and 4 more")
    assert rendering.remarks("cat " * 80, 64) == [
        "the text has 80 tokens, of which the first 75 are read"
    ]
    assert rendering.remarks("a cat", 128) == ["the renderer has learned 64 pixels only, not 128"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.gif"], "--out: expected a file that ends in .png"),
        (["--out", "x"], "--out: expected a file that ends in .png"),
        (["--out", "nowhere/x.png"], "--out: the folder nowhere does not exist"),
        (["--out", f"{'x' * 5000}.png"], "--out: "),
        (["--size", "100000"], "--size: expected a number from 16 to 128, got 100000"),
        (["--size", "-64"], "--size: expected a number from 16 to 128"),
        (["--size", "33"], "--size: expected a multiple of 8, got 33"),
        (["--size", "big"], "argument --size: invalid int value"),
        (["--num-images", "0"], "--num-images: expected a number from 1 to 1024"),
        (["--num-steps", "0"], "--num-steps: expected a number from 1 to 1000"),
        (["--guidance-scale", "nan"], "--guidance-scale: expected a finite number"),
        (["--seed", "-1"], "--seed: expected a number from 0"),
        (["--device", "toaster"], "--device: 'toaster' cannot be used here"),
        (["--weights", "nowhere"], "--weights: "),
        (["--weights", "x" * 5000], "--weights: "),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert render(weights, "a cat", *arguments) == 2
    error = capsys.readouterr().err
    assert f"promptadapt_core.lab: {sentence}" in error.replace(" render:", ":")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_text_as_long_as_a_book_is_refused(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(weights, "cat " * 10_000) == 2
    assert "TEXT: expected at most 20,000 characters" in capsys.readouterr().err


def test_missing_and_truncated_weights_name_the_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "weights"
    shutil.copytree(weights, broken)
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    out = str(tmp_path / "x.png")
    assert render(broken, "a cat", "--out", out) == 2
    assert f"--weights: {file}" in capsys.readouterr().err
    file.unlink()
    assert render(broken, "a cat", "--out", out) == 2
    assert f"--weights: {file} is missing" in capsys.readouterr().err
    report = ["report", "--out", str(tmp_path / "report"), "--weights", str(weights)]
    assert exit_code(*report) == 2  # these weights have no scorer
    assert "--weights: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["build"], "--out: expected the folder of the build"),
        (["build", "--out", "new", "--part", "soul"], "argument --part: invalid choice: 'soul'"),
        (["build", "--out", "new", "--device", "toaster"], "--device: 'toaster'"),
        (["build", "--out", "new", "--num-pictures", "3"], "--num-pictures: expected a number"),
        (["build", "--out", "file"], "--out: file is a file, expected a folder"),
        (["build", "--out", "new", "--part", "renderer"], "--part: renderer needs vae"),
        (["report"], "--out: expected a folder for the report"),
        (["report", "--out", "file"], "--out: file cannot be written"),
        (["report", "--out", "new", "--num-pictures", "1"], "--num-pictures: expected a number"),
        (["pairs"], "--out: expected the file to write"),
        (["inputs"], "--out: expected the file to write"),
        (["inputs", "--out", "x.txt", "--domain", "here"], "--domain"),
        (["pairs", "--out", "nowhere/x.jsonl"], "--out: nowhere"),
        (["pairs", "--out", "x.jsonl", "--num-pairs", "0"], "--num-pairs: expected a number"),
        (["export"], "--out: expected a file that ends in .safetensors, got ''"),
        (["export", "--out", "x.ckpt"], "--out: expected a file that ends in .safetensors"),
        (["export", "--out", "x.safetensors", "--weights", "nowhere"], "--weights: "),
    ],
)
def test_bad_commands_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


class PressesControlC(progress.BuildProgress):
    """Presses Ctrl-C at the second step of the judge."""

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        super().step(step, num_steps, metrics)
        if num_steps == 4 and step == 2:
            signal.raise_signal(signal.SIGINT)


def test_control_c_saves_a_build_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    line = ["build", "--out", str(tmp_path), "--part", "judge", "--num-judge-pictures", "64",
            "--num-judge-steps", "4", "--judge-batch-size", "2", "--device", "cpu"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(progress, "BuildProgress", PressesControlC)
        assert main(line) == 130
    assert "stopped in judge and saved; the same command goes on" in capsys.readouterr().err
    assert main(line) == 0
    assert "judge: going on after step 2 of 4" in capsys.readouterr().err
