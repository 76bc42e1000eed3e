"""The command line with the bundled policy."""

import json
import os
import subprocess
import sys

import pytest

from promptadapt_core.__main__ import main


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_adapt_prints_one_adapted_prompt(capsys):
    code, out, err = run(capsys, "adapt", "a cat on a roof")
    assert (code, err) == (0, "")
    assert out.startswith("a cat on a roof, ")
    assert out.count("\n") == 1


def test_json_has_one_object_per_input_with_the_documented_fields(capsys):
    code, out, _ = run(
        capsys, "adapt", "a cat on a roof", "a red house", "--json", "--num-candidates", "3"
    )
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["user_input"] for row in rows] == ["a cat on a roof", "a red house"]
    for row in rows:
        assert list(row) == ["user_input", "policy", "gate", "candidates"]
        assert row["gate"] == "adapted"
        assert len({candidate["adapted_prompt"] for candidate in row["candidates"]}) == 3
        for candidate in row["candidates"]:
            assert list(candidate) == [
                "adapted_prompt", "added", "logprob", "num_tokens", "num_clip_tokens",
            ]  # fmt: skip
            assert candidate["adapted_prompt"] == f"{row['user_input']}, {candidate['added']}"
            assert candidate["logprob"] < 0 < candidate["num_tokens"]


def test_an_engineered_prompt_is_left_alone_with_the_reason(capsys):
    engineered = "a cat, golden hour, highly detailed, sharp focus, 8k, artstation"
    code, out, err = run(capsys, "adapt", engineered)
    assert (code, out) == (0, engineered + "\n")
    assert err.startswith("left alone: it is engineered already (")
    code, out, err = run(capsys, "adapt", engineered, "--no-gate")
    assert out.startswith(engineered + ", ")


def test_a_file_gives_one_object_per_line(capsys, tmp_path):
    file = tmp_path / "inputs.txt"
    file.write_text("a cat\n\n猫と屋根\na <lora:fur:0.8> dog\n", encoding="utf-8")
    code, out, _ = run(capsys, "adapt", "--file", str(file), "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["user_input"] for row in rows] == ["a cat", "猫と屋根", "a <lora:fur:0.8> dog"]
    assert "<lora:fur:0.8>" in rows[2]["candidates"][0]["adapted_prompt"]


def test_policies_lists_the_bundled_policy(capsys):
    code, out, _ = run(capsys, "policies", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert "promptadapt-sd" in [row["name"] for row in rows]
    assert all(row["size_bytes"] > 0 and row["folder"] for row in rows)


BAD = [
    (["adapt"], "TEXT: expected at least one text"),
    (["adapt", ""], "TEXT: "),
    (["adapt", " \t\n"], "TEXT: "),
    (["adapt", "a\0cat"], "TEXT: "),
    (["adapt", "x" * 1_000_000], "TEXT: "),
    (["adapt", "a cat", "--keep", "dog"], "--keep: "),
    (["adapt", "a cat", "--ban", "!!"], "--ban: "),
    (["adapt", "a cat", "--num-candidates", "0"], "--num-candidates: expected a number from 1"),
    (["adapt", "a cat", "--num-candidates", "1000"], "--num-candidates: expected a number from 1"),
    (["adapt", "a cat", "--token-budget", "-1"], "--token-budget: expected a number from 1"),
    (["adapt", "a cat", "--seed", "-1"], "--seed: expected a number from 0"),
    (["adapt", "a cat", "--temperature", "nan"], "--temperature: expected a finite number"),
    (["adapt", "a cat", "--policy", "no-such-policy"], "--policy: "),
    (["adapt", "a cat", "--policy", "../../etc"], "--policy: "),
    (["adapt", "a cat", "--policy", "microsoft/Promptist"], "--policy: "),
    (["adapt", "a cat", "--device", "warp9"], "--device: "),
    (["adapt", "--file", "no-such-file.txt"], "--file: no-such-file.txt cannot be read"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, arguments, sentence):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"promptadapt: {sentence}")
    assert err.count("\n") == 1
    assert len(err) < 500


@pytest.mark.parametrize(
    "arguments", [["adapt", "a", "--mode", "best"], ["fly"], [], ["adapt", "a", "--seed", "x"]]
)
def test_bad_usage_is_one_sentence_and_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unbalanced_brackets_are_ordinary_text(capsys):
    code, out, _ = run(capsys, "adapt", "a (((cat [on a roof", "--no-gate")
    assert code == 0
    assert out.startswith("a (((cat [on a roof")


def test_a_pipe_of_another_code_page_gets_utf8():
    done = subprocess.run(
        [sys.executable, "-m", "promptadapt_core", "adapt", "猫 🐈 on a roof"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        check=True,
    )
    assert done.stdout.decode("utf-8").startswith("猫 🐈 on a roof, ")
