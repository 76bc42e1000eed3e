"""Promises about the files of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import promptadapt_core

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "promptadapt_core"
LARGEST_BYTES = 16 * 1024 * 1024
NAMES_THAT_EXPLAIN_NOTHING = {"utils", "helpers", "common", "misc", "manager"}


@pytest.fixture(scope="module")
def tracked() -> list[tuple[str, Path]]:
    """(mode, file) of what is in git."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    # safe.directory: the checkout may belong to another user, as in a container.
    run = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT.as_posix()}", "ls-files", "-s", "-z"],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    rows = [row.split("\t", 1) for row in run.stdout.split("\0") if row]
    return [(fields.split()[0], ROOT / name) for fields, name in rows]


def test_the_readme_ends_in_the_file_list() -> None:
    readme = (ROOT / "README.md").read_text("utf-8").rstrip()
    assert readme.endswith("```"), "the README ends with a fenced file list"
    file_list = readme.split("```")[-2]
    listed = set(re.findall(r"[\w./-]+", file_list))
    names = {file.name for file in CORE.glob("*.py")}
    names |= {f"{folder.parent.name}/" for folder in CORE.glob("*/__init__.py")}
    missing = {name for name in names if not any(word.endswith(name) for word in listed)}
    assert not missing


def test_the_licence_is_apache_and_its_parts_are_named() -> None:
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "OpenAI" in (ROOT / "NOTICE").read_text("utf-8")


def test_the_version_is_written_once() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'version = { attr = "promptadapt_core.__version__" }' in pyproject
    assert not re.search(r'^version = "', pyproject, re.MULTILINE)
    assert f"## [{promptadapt_core.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_hosts_install_nothing() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
    assert "\ndependencies = []\n" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_git_holds_no_large_file_and_no_link(tracked: list[tuple[str, Path]]) -> None:
    assert [file.name for mode, file in tracked if mode == "120000"] == []
    sizes = {file.name: file.stat().st_size for _, file in tracked if file.is_file()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_BYTES} == {}


def test_files_are_named_after_what_is_in_them() -> None:
    stems = {part.removesuffix(".py") for file in CORE.rglob("*.py") for part in file.parts}
    assert not stems & NAMES_THAT_EXPLAIN_NOTHING
    assert list((ROOT / "tests").rglob("__init__.py")) == []
