from __future__ import annotations

import gzip
import json

import pytest

from promptadapt_core.data.reading import Row, read_rows
from promptadapt_core.settings import SettingsError


def reason(file) -> str:
    with pytest.raises(SettingsError) as caught:
        list(read_rows(str(file)))
    assert caught.value.name == "prompts"
    return caught.value.reason


def test_json_rows_keep_what_they_carry(tmp_path):
    file = tmp_path / "prompts.jsonl"
    row = {"id": 7, "prompt": "a cat", "source": "x", "flags": ["minor"], "split": "test",
           "cluster": "c"}  # fmt: skip
    file.write_text(json.dumps(row) + "\n\n" + '{"prompt": "a dog"}\n', encoding="utf-8")
    first, second = read_rows(str(file))
    assert first == Row("7", "a cat", ("x",), ("minor",), "test", "c")
    assert second.engineered_prompt == "a dog"
    assert (second.split, second.sources) == (None, ())
    assert len(second.id) == 16


def test_gzip_text_and_limit(tmp_path):
    packed = tmp_path / "prompts.jsonl.gz"
    packed.write_bytes(gzip.compress('{"prompt": "ein Bär"}\n{"prompt": "b"}\n'.encode()))
    assert [row.engineered_prompt for row in read_rows(str(packed))] == ["ein Bär", "b"]
    assert len(list(read_rows(str(packed), limit=1))) == 1
    plain = tmp_path / "prompts.txt"
    plain.write_text("\ufeffa cat, 8k\n\n  a dog \n", encoding="utf-8")
    assert [row.engineered_prompt for row in read_rows(str(plain))] == ["a cat, 8k", "a dog"]


def test_a_row_is_left_out_only_when_all_its_sources_are():
    row = Row("1", "x", ("krea1k", "refl"))
    assert not row.comes_only_from(("krea",))
    assert row.comes_only_from(("krea", "re"))
    assert not row.comes_only_from(())
    assert not Row("1", "x").comes_only_from(("krea",))


def test_bad_files_are_named(tmp_path):
    def put(name: str, content: bytes):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    good = gzip.compress(b'{"prompt": "a cat on a roof"}\n' * 500, mtime=0)
    assert "is not a file" in reason(tmp_path / "missing.jsonl")
    assert "is not a file" in reason(tmp_path)
    assert "expected a file" in reason("")
    assert "holds no prompts" in reason(put("empty.jsonl", b""))
    assert "holds no prompts" in reason(put("blank.txt", b"\n \n"))
    assert "truncated" in reason(put("cut.jsonl.gz", good[:-20]))
    assert "sound gzip" in reason(put("broken.jsonl.gz", good[:20] + b"\0\0\0" + good[23:]))
    assert "line 2 is not valid JSON" in reason(put("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n'))
    assert "line 1 has no text in the field `prompt`" in reason(put("b.jsonl", b'{"text": "x"}\n'))
    assert "line 1 has no text in the field `prompt`" in reason(put("c.jsonl", b'{"prompt": 3}\n'))
    assert "line 1 is not a JSON object" in reason(put("d.jsonl", b"[]\n"))
    assert "not UTF-8" in reason(put("e.jsonl", b'{"prompt": "\xff"}\n'))
    assert "split 'dev'" in reason(put("f.jsonl", b'{"prompt": "x", "split": "dev"}\n'))
    assert "half a character" in reason(put("h.jsonl", b'{"prompt": "a \\ud800 cat"}\n'))
    assert "half a character" in reason(put("i.jsonl", b'{"prompt": "x", "id": "\\ud800"}\n'))
    assert "is not a file" in reason("x" * 5000)
    assert "`source`" in reason(put("g.jsonl", b'{"prompt": "x", "source": 3}\n'))
