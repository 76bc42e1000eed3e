"""install.py complains and never acts."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "install.py"


@pytest.fixture
def install() -> ModuleType:
    """install.py as a module that is not in sys.modules, as hosts load such files."""
    spec = importlib.util.spec_from_file_location("install", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_install(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(FILE), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return time.perf_counter() - started, run


def test_it_is_silent_and_fast_where_all_is_there() -> None:
    runs = [run_install() for _ in range(3)]
    for _, run in runs:
        assert (run.returncode, run.stdout) == (0, "")
        loaded = {line.split("|")[-1].strip() for line in run.stderr.splitlines()}
        assert "importlib.metadata" in loaded
        assert not loaded & {"torch", "transformers", "numpy", "pip", "subprocess"}
    assert min(seconds for seconds, _ in runs) < 1.0


def test_importing_it_does_nothing(install: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(install.main)
    assert capsys.readouterr().out == ""


def test_it_names_what_is_missing_and_what_is_old(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
    install.REQUIREMENTS = (
        ("no-such-package", "no_such_module", "1.2"),
        ("pytest", "pytest", "999"),
        ("hypothesis", "hypothesis", "1.0"),
    )
    assert install.main([]) == 0
    printed = capsys.readouterr().out
    assert "no-such-package is missing" in printed
    assert f"pytest {pytest.__version__} is older than 999" in printed
    assert "hypothesis" not in printed
    assert '-m pip install "no-such-package>=1.2" "pytest>=999"' in printed


def test_it_can_be_skipped(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
    install.REQUIREMENTS = (("no-such-package", "no_such_module", ""),)
    assert install.main(["--skip-install"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("COMMANDLINE_ARGS", "--listen --skip-install")
    assert install.main([]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("COMMANDLINE_ARGS", "--listen")
    assert install.main([]) == 0
    assert "no-such-package is missing" in capsys.readouterr().out


def test_an_old_python_is_named(
    install: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
    install.MINIMUM_PYTHON, install.REQUIREMENTS = (99, 0), ()
    assert install.main([]) == 0
    assert f"Python {sys.version.split()[0]} is older than" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.1.2+cu121", (2, 1, 2)),
        ("4.30.2", (4, 30, 2)),
        ("5.0.0rc1", (5,)),
        ("2.10", (2, 10)),
        ("unknown", ()),
    ],
)
def test_versions_compare_by_number(
    install: ModuleType, version: str, numbers: tuple[int, ...]
) -> None:
    assert install.version_numbers(version) == numbers


def test_it_asks_for_what_pyproject_asks_for(install: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = re.search(r"^run = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    asked = [
        f"{package}>={minimum}" if minimum else package
        for package, _, minimum in install.REQUIREMENTS
    ]
    assert re.findall(r'"(.+?)"', block.group(1)) == asked
