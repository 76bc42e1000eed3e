"""install.py complains and never acts."""

from __future__ import annotations

import ast
import importlib.metadata
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
FORBIDDEN = {"run", "Popen", "call", "check_call", "system", "open", "urlopen", "write_text"}


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


def test_it_changes_no_package_with_any_hosts_pins() -> None:
    """Nothing in it could: it starts no process, opens no file and knows no package index."""
    tree = ast.parse(FILE.read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}  # fmt: skip
    assert imported == {"importlib.metadata", "importlib.util", "os", "re", "sys"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not {name for name in called if name.split(".")[-1] in FORBIDDEN}
    before = {(one.name, one.version) for one in importlib.metadata.distributions()}
    assert run_install("--reinstall")[1].returncode == 0
    assert {(one.name, one.version) for one in importlib.metadata.distributions()} == before


@pytest.mark.parametrize(
    "pins",
    [
        {"torch": "2.1.2+cu121", "transformers": "4.30.2", "tokenizers": "0.13.3",
         "safetensors": "0.4.2", "numpy": "1.26.2", "pillow": "9.5.0"},
        {"torch": "2.3.1+cu121", "transformers": "4.46.1", "tokenizers": "0.20.3",
         "safetensors": "0.4.2", "numpy": "1.26.2", "pillow": "9.5.0"},
        {"torch": "2.9.0", "transformers": "4.48.1", "tokenizers": "0.21.0",
         "safetensors": "0.5.2", "numpy": "1.26.4", "pillow": "10.4.0"},
        {"torch": "2.11.0", "transformers": "4.56.2", "tokenizers": "0.22.1",
         "safetensors": "0.7.0", "numpy": "2.2.6", "pillow": "11.3.0"},
    ],
    ids=["Automatic1111", "Forge", "reForge", "Forge Neo"],
)  # fmt: skip
def test_it_is_satisfied_with_the_pins_of_each_host(
    install: ModuleType, pins: dict[str, str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
    monkeypatch.setattr(install, "installed_version", pins.get)
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: name)
    assert install.main([]) == 0
    assert capsys.readouterr().out == ""


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
