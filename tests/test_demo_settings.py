"""What the demo refuses and says before anything slow is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from promptadapt_core.__main__ import main
from promptadapt_core.demo import outputs
from promptadapt_core.demo.settings import DEFAULT_TEXTS, DemoSettings, known_words
from promptadapt_core.lab.captions import read
from promptadapt_core.settings import SettingsError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "diffusers", "open_clip", "numpy", "PIL", "matplotlib"}


def command(*arguments: str) -> int:
    """The exit code, however it ends."""
    try:
        return main(["demo", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)


def loaded_by(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "promptadapt_core", *arguments],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    return run, {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}


def test_help_says_what_the_lab_knows_without_torch() -> None:
    run, loaded = loaded_by("demo", "--help")
    assert run.returncode == 0
    words = " ".join(run.stdout.split())
    for word in ("lighthouse", "purple", "in a meadow", "--train", *DEFAULT_TEXTS):
        assert word in words
    assert not loaded & HEAVY


def test_bad_input_is_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    run, loaded = loaded_by("demo", "a cat", "", "--out", str(tmp_path / "out"))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("promptadapt: TEXT: ")
    assert not loaded & HEAVY
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["", "a cat"], "TEXT: "),
        ([" \n"], "TEXT: "),
        (["a\0cat"], "TEXT: "),
        (["a", "x" * 1_001], "TEXT: expected at most 1,000 characters, got 1,001; the lab"),
        (["x" * 1_000_000], "TEXT: expected at most 1,000 characters"),
        (["a cat"] * 33, "TEXT: expected at most 32, got 33"),
        (["a cat", "--num-images", "0"], "--num-images: expected a number from 1 to 16"),
        (["a cat", "--num-steps", "0"], "--num-steps: expected a number from 1 to 1000"),
        (["a cat", "--seed", "-1"], "--seed: expected a number from 0"),
        (["a cat", "--out", ""], "--out: expected a folder"),
        (["a cat", "--num-episodes", "8"], "--num-episodes: is of --train"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"promptadapt: {sentence}")
    assert told.err.count("\n") == 1
    assert len(told.err) < 500


def test_the_texts_shown_without_text_are_all_read_by_the_lab() -> None:
    for text in DEFAULT_TEXTS:
        assert read(text).things
    outputs.check_texts(DEFAULT_TEXTS)
    assert "a red cat by the sea; " in known_words()


def test_training_starts_from_the_policy_that_only_imitates() -> None:
    assert DemoSettings().policy_name == "lab"
    assert DemoSettings(train=True).policy_name == "lab-sft"
    assert DemoSettings(policy="mine").policy_name == "mine"


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    folder = outputs.prepare_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    (folder / "mine.txt").write_text("kept", encoding="utf-8")
    assert outputs.prepare_folder(str(folder)) == folder
    assert (folder / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out, reason in [
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "file" / "below", "cannot be written"),
        (tmp_path / ("x" * 5000), "cannot be written"),
        ("a\0b", "no folder can have this name|cannot be written"),
    ]:
        with pytest.raises(SettingsError, match=reason) as caught:
            outputs.prepare_folder(str(out))
        assert caught.value.name == "out"
        assert len(caught.value.reason) < 400
