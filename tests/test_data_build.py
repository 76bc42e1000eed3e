from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptadapt_core.data.__main__ import main
from promptadapt_core.data.build import build
from promptadapt_core.data.duplicates import similarity
from promptadapt_core.data.settings import DataSettings
from promptadapt_core.modifiers import find_artists, normal
from promptadapt_core.prompts import content_words
from promptadapt_core.settings import SettingsError

ANIMALS = "cat dog fox owl bear wolf horse whale tiger eagle".split()
PLACES = "roof beach forest bridge castle market harbour mountain".split()
STYLES = ["highly detailed", "sharp focus", "digital painting", "artstation", "concept art"]


def prompts() -> list[dict]:
    rows = []
    for first, animal in enumerate(ANIMALS):
        for second, place in enumerate(PLACES):
            styles = [STYLES[(first + second + step) % 5] for step in range(3)]
            text = f"a {animal} in the {place} number{first}{second}, {', '.join(styles)}"
            rows.append({"id": f"{first}-{second}", "prompt": text, "source": ["good"]})
    return rows


def write(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run(folder: Path, rows: list[dict], **settings) -> tuple[list[dict], dict]:
    out = folder / "pairs.jsonl"
    file = write(folder / "prompts.jsonl", rows)
    report = build(DataSettings(prompts=str(file), out=str(out), **settings))
    assert json.loads((folder / "pairs.jsonl.report.json").read_text(encoding="utf-8")) == report
    assert sorted(path.name for path in folder.iterdir()) == [
        "pairs.jsonl", "pairs.jsonl.report.json", "prompts.jsonl",
    ]  # fmt: skip
    lines = out.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], report


def test_pairs_of_one_prompt(tmp_path):
    row = {"id": "x", "prompt": "a cat on a roof, 8 k, sharp focus, by greg rutkowski"}
    pairs, report = run(tmp_path, [row], kinds="main,steps", valid_share=0.0, test_share=0.0)
    assert pairs == [
        {"user_input": "a cat on a roof", "target": "a cat on a roof, 8k, sharp focus",
         "main": "a cat on a roof", "kind": "main", "split": "train", "id": "x", "cluster": "x"},
        {"user_input": "a cat on a roof, 8k", "target": "a cat on a roof, 8k, sharp focus",
         "main": "a cat on a roof", "kind": "steps", "split": "train", "id": "x", "cluster": "x"},
    ]  # fmt: skip
    assert report["rows_read"] == report["rows_used"] == 1
    assert report["pairs_by_kind_and_split"]["steps"] == {"train": 1, "valid": 0, "test": 0}


def test_same_input_same_bytes_and_no_row_depends_on_the_order(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    rows = prompts()
    first, _ = run(tmp_path / "a", rows)
    again, _ = run(tmp_path / "b", rows)
    turned, _ = run(tmp_path / "c", rows[::-1])
    assert first == again
    data = [(tmp_path / name / "pairs.jsonl").read_bytes() for name in "ab"]
    assert data[0] == data[1]
    key = json.dumps
    assert sorted(map(key, first)) == sorted(map(key, turned))
    other, _ = run(tmp_path / "a", rows, seed=1)
    assert other != first


def test_properties(tmp_path):
    pairs, report = run(tmp_path, prompts(), valid_share=0.2, test_share=0.2)
    assert {row["split"] for row in pairs} == {"train", "valid", "test"}
    assert report["pairs"] == len(pairs)
    splits: dict[str, set[str]] = {}
    for row in pairs:
        assert not find_artists(row["target"])
        if row["kind"] != "rephrased":
            assert row["target"].startswith(row["user_input"])
        splits.setdefault(normal(row["user_input"]), set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_near_copies_share_a_split(tmp_path):
    rows = []
    for number, row in enumerate(prompts()):
        rows.append(row)
        rows.append({"id": f"copy {number}", "prompt": row["prompt"] + ", highly intricate"})
    pairs, _ = run(tmp_path, rows, valid_share=0.2, test_share=0.2, kinds="main")
    words = [(frozenset(content_words(row["target"])), row["split"]) for row in pairs]
    for one, split in words:
        for other, other_split in words:
            assert split == other_split or similarity(one, other) < 0.8


def test_carried_splits_are_kept_and_copies_dropped_from_training(tmp_path):
    style = "highly detailed, sharp focus, digital painting, artstation"
    rows = [
        {"id": "1", "prompt": f"a cat on a red roof, {style}", "split": "train", "cluster": "p"},
        {"id": "2", "prompt": f"a cat on a red roof, {style}, 8k", "split": "test"},
        {"id": "3", "prompt": "a big dog, highly detailed, 8k", "split": "train"},
        {"id": "4", "prompt": "A big dog, concept art, bokeh, fog", "split": "valid"},
        {"id": "5", "prompt": f"a lighthouse, {style}", "split": "train", "cluster": "q"},
        {"id": "6", "prompt": f"a lighthouse, {style}, 8k"},
    ]
    pairs, report = run(tmp_path, rows, kinds="main", valid_share=0.4, test_share=0.4)
    assert {row["id"]: row["split"] for row in pairs} == {
        "2": "test", "4": "valid", "5": "train", "6": "train",
    }  # fmt: skip
    assert {row["id"]: row["cluster"] for row in pairs}["5"] == "q"
    assert report["rows_dropped"]["near copy in a held-out split"] == 1
    assert report["rows_dropped"]["main content in a held-out split"] == 1


def test_sources_are_left_out_and_reported(tmp_path):
    rows = [*prompts()[:4]]
    rows[0]["source"] = ["krea1k"]
    rows[1]["source"] = ["krea1k", "good"]
    pairs, report = run(tmp_path, rows, exclude_source=("krea",))
    assert {row["id"] for row in pairs} == {"0-1", "0-2", "0-3"}
    assert report["sources_left_out"] == {"krea1k": 1}
    assert report["sources_used"] == {"good": 3, "krea1k": 1}


def failure(**settings) -> tuple[str, str]:
    with pytest.raises(SettingsError) as caught:
        build(DataSettings(**settings))
    return caught.value.name, caught.value.reason


def test_bad_settings(tmp_path):
    file = str(write(tmp_path / "p.jsonl", prompts()[:2]))
    out = str(tmp_path / "o.jsonl")
    assert failure(prompts=file, out=str(tmp_path / "no" / "o.jsonl"))[0] == "out"
    assert failure(prompts=file, out=str(tmp_path))[0] == "out"
    assert failure(prompts=file, out="x" * 5000)[0] == "out"
    assert failure(prompts=file, out=os.devnull)[0] == "out"  # it would be replaced by a file
    assert failure(prompts=file, out=file) == ("out", "the pairs would overwrite the prompts")
    assert failure(prompts=file, out=out, kinds="all")[0] == "kinds"
    assert failure(prompts=file, out=out, valid_share=0.5, test_share=0.5)[0] == "valid_share"
    assert "too few modifiers 2" in failure(prompts=file, out=out, min_modifiers=9)[1]
    assert failure(prompts=file, out=out, exclude_source=("good",))[0] == "prompts"
    assert not Path(out).exists()


def test_command_line(tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", prompts())
    out = tmp_path / "pairs.jsonl"
    assert main(["build", "--prompts", str(file), "--out", str(out), "--limit", "20"]) == 0
    assert "20 rows read" in capsys.readouterr().out
    assert out.exists()
    assert main(["build", "--prompts", str(tmp_path / "missing"), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--prompts" in message
    assert "missing" in message
    assert main(["build", "--prompts", "no\nfile", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["build", "--prompts", str(file), "--seed", "-1"]) == 2
    assert "--seed: expected" in capsys.readouterr().err
    assert main(["lexicon", "--prompts", str(tmp_path / "missing"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for command in ("build", "lexicon"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--no-such-flag"])
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_importing_data_loads_no_torch():
    code = (
        "import sys, promptadapt_core.data.build, promptadapt_core.data.__main__; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=dict(os.environ))


def test_real_prompts(shared, tmp_path):
    """The first 1,500 real prompts give pairs with the promised properties."""
    out = tmp_path / "pairs.jsonl"
    build(DataSettings(prompts=str(shared / "data" / "prompts.jsonl.gz"), out=str(out), limit=1500))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 1000
    for row in rows:
        assert row["kind"] == "rephrased" or row["target"].startswith(row["user_input"])
        assert ",," not in row["target"]
        assert " ," not in row["target"]
        assert not row["target"].lower().endswith((" by", " and", " of"))
