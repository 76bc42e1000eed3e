from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from promptadapt_core import model_folders
from promptadapt_core.policies import BUNDLED_FOLDER, DEFAULT_POLICY
from promptadapt_core.settings import SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models folder with a policy "mine", a scorer "ViT" and a folder of something else."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "ViT").mkdir()
    (tmp_path / "ViT" / "scorer.json").write_text("{}")
    (tmp_path / "other").mkdir()
    return tmp_path


def test_the_bundled_policy_comes_first_and_the_labs_last(folder: Path) -> None:
    names = model_folders.policy_names([folder])
    assert names[:2] == [DEFAULT_POLICY, "mine"]
    assert all(name.startswith("lab") for name in names[2:])
    assert len(names) == len(set(names))
    assert model_folders.policy_names() == [name for name in names if name != "mine"]


def test_a_policy_is_found_by_its_name(folder: Path, tmp_path: Path) -> None:
    assert model_folders.policy_folder("mine", [tmp_path / "none", folder]) == folder / "mine"
    bundled = model_folders.policy_folder(DEFAULT_POLICY, [folder])
    assert bundled == BUNDLED_FOLDER / DEFAULT_POLICY
    for name in ("gone", "", "../mine", str(folder / "mine")):
        with pytest.raises(SettingsError, match="there is no policy") as caught:
            model_folders.policy_folder(name, [folder])
        assert caught.value.name == "policy"


def test_scorers_are_folders_with_a_description(folder: Path) -> None:
    assert model_folders.scorer_names([folder]) == ["lab", "ViT"]
    assert model_folders.scorer_folder("ViT", [folder]) == folder / "ViT"
    lab = model_folders.scorer_folder("lab", [folder])
    assert json.loads((lab / "scorer.json").read_text("utf-8"))["model"] == "lab-clip"
    with pytest.raises(SettingsError, match="found: lab, ViT") as caught:
        model_folders.scorer_folder("gone", [folder])
    assert caught.value.name == "scorer"


def test_a_folder_that_may_not_be_read_hides_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def guarded(path: Path) -> bool:
        if path.parent.name == "other":  # as before Python 3.14 where a folder is not ours
            raise PermissionError(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded)
    assert model_folders.scorer_names([folder]) == ["lab", "ViT"]
    assert "mine" in model_folders.policy_names([folder])


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_out_of_the_folder_is_not_offered(folder: Path) -> None:
    inside = folder / "inside"
    inside.mkdir()
    (inside / "linked").symlink_to(folder / "ViT")
    assert model_folders.scorer_names([inside]) == ["lab"]


def test_the_state_changes_with_the_files(folder: Path) -> None:
    mine = folder / "mine"
    before = model_folders.folder_state(mine)
    assert model_folders.folder_state(mine) == before
    (mine / "model.safetensors").write_bytes(b"123456")
    after = model_folders.folder_state(mine)
    os.utime(mine / "config.json", (1, 1))
    assert len({before, after, model_folders.folder_state(mine)}) == 3
    shutil.copytree(mine, folder / "copy")
    assert model_folders.folder_state(folder / "copy") != model_folders.folder_state(mine)
