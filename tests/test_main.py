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


def test_a_bad_line_of_a_file_is_named_before_anything_is_adapted(capsys, tmp_path):
    file = tmp_path / "inputs.txt"
    for line, sentence in [("a\0dog", "expected text, got a NUL"), ("x" * 20_001, "expected at")]:
        file.write_text(f"a cat\n\n{line}\n", encoding="utf-8")
        code, out, err = run(capsys, "adapt", "--file", str(file))
        assert (code, out) == (2, "")
        assert err.startswith(f"promptadapt: --file: line 3: {sentence}")
    file.write_text("a cat\na dog\n", encoding="utf-8")
    code, _, err = run(capsys, "adapt", "--file", str(file), "--keep", "cat")
    assert (code, err.startswith("promptadapt: --keep: line 2: ")) == (2, True)


def test_a_line_ends_at_a_newline_only(capsys, tmp_path):
    file = tmp_path / "inputs.txt"
    file.write_bytes("\ufeffa cat\u2028at night\r\na\x85dog\x0c\r\n".encode())
    code, out, _ = run(capsys, "adapt", "--file", str(file), "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.split("\n") if line]
    assert [row["user_input"] for row in rows] == ["a cat\u2028at night", "a\x85dog\x0c"]


def test_a_line_too_long_for_the_policy_does_not_cost_the_others(capsys, tmp_path):
    file = tmp_path / "inputs.txt"
    long = " ".join(f"tree{number}" for number in range(200))
    file.write_text(f"a cat\n{long}\na dog\n", encoding="utf-8")
    code, out, _ = run(capsys, "adapt", "--file", str(file), "--json", "--token-budget", "750")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["gate"][:35] for row in rows] == [
        "adapted", "left alone: it is too long for the ", "adapted",
    ]  # fmt: skip
    assert rows[1]["candidates"][0]["adapted_prompt"] == long


@pytest.mark.parametrize(
    "arguments",
    [
        ["adapt", "a cat", "--file", ""],
        ["adapt", "--file", "a\0b"],
        ["adapt", "--file", "x" * 5000],
        ["adapt", "a cat", "--policy", "x" * 5000],
        ["adapt", "a cat", "--policy", "~nobody-of-this-name/policy"],
        ["adapt", "a cat", "--ban", "_"],
        ["policies", "--models-folder", "x" * 5000],
    ],
)
def test_odd_paths_and_words_are_one_short_sentence(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"promptadapt: {arguments[-2]}: ")
    assert len(err) < 500


def test_usage_errors_stay_on_one_short_line(capsys):
    for arguments in (["adapt", "a", "--bad\nflag"], ["adapt", "a", "--seed", "9" * 5000]):
        with pytest.raises(SystemExit):
            main(arguments)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert len(err) < 500


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks otherwise there")
def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "promptadapt_core", "policies", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence():
    command = [sys.executable, "-m", "promptadapt_core", "policies"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"promptadapt: [Errno 28]")
    assert done.stderr.count(b"\n") == 1
