from __future__ import annotations

from pathlib import Path

import pytest

from promptadapt_core.evaluate.kept import KeptFile
from promptadapt_core.settings import SettingsError


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "kept", "scores", {"of": ("a", 1)})
    file.add({"text": "grün \u2028 \ud800", "value": 0.1})
    file.add({"value": None})
    again = KeptFile(tmp_path / "kept", "scores", {"of": ("a", 1)})
    assert again.entries == [{"text": "grün \u2028 \ud800", "value": 0.1}, {"value": None}]
    assert again.path == file.path


def test_another_identity_has_another_file(tmp_path: Path) -> None:
    KeptFile(tmp_path, "scores", {"of": "a"}).add({"value": 1})
    assert KeptFile(tmp_path, "scores", {"of": "b"}).entries == []
    assert KeptFile(tmp_path, "adapted", {"of": "a"}).entries == []
    assert KeptFile(tmp_path, "scores", {"of": "a"}).entries == [{"value": 1}]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, cut: int) -> None:
    file = KeptFile(tmp_path, "scores", {})
    file.add({"value": 1})
    file.add({"value": 22})
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-cut])
    again = KeptFile(tmp_path, "scores", {})
    assert again.entries == [{"value": 1}]
    again.add({"value": 22})
    assert file.path.read_bytes() == content


def test_even_the_first_line_may_be_cut_off(tmp_path: Path) -> None:
    file = KeptFile(tmp_path, "scores", {"of": "a"})
    file.path.write_bytes(b'{"kind"')
    again = KeptFile(tmp_path, "scores", {"of": "a"})
    again.add({"value": 1})
    assert KeptFile(tmp_path, "scores", {"of": "a"}).entries == [{"value": 1}]


def test_a_file_that_is_something_else_is_told(tmp_path: Path) -> None:
    file = KeptFile(tmp_path, "scores", {})
    for content, told in ((b"no\n", "is broken"), (b'{"kind": 1}\n', "another evaluation's")):
        file.path.write_bytes(content)
        with pytest.raises(SettingsError, match=f"^out: .*{told}"):
            KeptFile(tmp_path, "scores", {})
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"^out: .* cannot be used"):
        KeptFile(tmp_path / "file", "scores", {})
