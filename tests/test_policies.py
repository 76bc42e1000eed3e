"""The names of the lab's policies. What else policies.py does is tested in test_policy.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptadapt_core import __main__ as command
from promptadapt_core import policies
from promptadapt_core.settings import SettingsError


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The lab's policies, in a folder of the test; each is only as much as a list looks at."""
    folders = {name: tmp_path / "lab" / name for name in ("lab", "lab-sft")}
    for folder in folders.values():
        write_policy(folder)
    monkeypatch.setattr(policies, "LAB_FOLDERS", folders)
    return folders


def write_policy(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_labs_policies_have_names(lab: dict[str, Path]) -> None:
    for name, folder in lab.items():
        assert policies.resolve_policy(name) == folder
        assert policies.resolve_policy(name, allow_folders=False) == folder
    assert policies.lab_policies() == ["lab", "lab-sft"]


def test_no_list_offers_them(lab: dict[str, Path]) -> None:
    assert not {info.name for info in policies.find_policies()} & set(lab)


def test_what_a_list_offers_by_the_same_name_comes_first(
    lab: dict[str, Path], tmp_path: Path
) -> None:
    own = write_policy(tmp_path / "models" / "lab")
    assert [info.folder for info in policies.find_policies(own.parent)][-1] == own
    assert policies.resolve_policy("lab", own.parent) == own
    assert policies.resolve_policy("lab-sft", own.parent) == lab["lab-sft"]


def test_they_come_before_a_folder_that_happens_to_be_here(
    lab: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_policy(tmp_path / "here" / "lab")
    monkeypatch.chdir(tmp_path / "here")
    assert policies.resolve_policy("lab") == lab["lab"]
    assert policies.resolve_policy("./lab").resolve() == tmp_path / "here" / "lab"


def test_a_copy_of_the_package_without_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LAB_FOLDERS", {"lab": tmp_path / "none"})
    assert policies.lab_policies() == []
    with pytest.raises(SettingsError, match="there is no policy 'lab'"):
        policies.resolve_policy("lab")


def test_the_command_names_them_in_one_line(
    lab: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(*arguments: str) -> list[str]:
        assert command.main(["policies", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    assert lines()[-1] == "for the lab's pictures only, by --policy NAME: lab, lab-sft"
    assert not any("lab-sft" in line for line in lines("--json"))
    monkeypatch.setattr(policies, "LAB_FOLDERS", {})
    assert not any("lab" in line.split() for line in lines())
