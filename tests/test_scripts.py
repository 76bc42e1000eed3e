"""The Automatic1111 and Forge script with the gradio of each host: the checks of webui_checks.py,
run by a pytest of the environment of webui_host.py. Without network or pip they skip and say why.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import webui_host as host

pytest.importorskip("torch")

from promptadapt_core.adapter import PromptAdapter  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ROOT / "tests" / "webui_checks.py"
# Two names of the folder: one that could be a module's, one that could not.
FOLDERS = {"3.41.2": "prompt-adapt", "4.40.0": "promptadapt"}
USER_INPUTS = (
    "a cat on a roof",
    "a red house",
    "a (red:1.3) cat <lora:foo:0.8> BREAK __colors__ {a|b} [roof:moon:0.5]",
)
RUN_SECONDS = 600.0


def checks() -> list[str]:
    tree = ast.parse(CHECKS.read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """What the command line writes with the newest packages, by user input."""
    adapter = PromptAdapter.load()
    return {text: adapter.adapt(text, seed=7)[0].adapted_prompt for text in USER_INPUTS}


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
    expected: dict[str, str],
) -> Any:
    """gradio -> {name of a check: [its failures and skips]}; each is run once."""
    cache = getattr(pytestconfig, "cache", None)
    kept = Path(cache.mkdir("gradio")) if cache else tmp_path_factory.mktemp("gradio")
    known: dict[str, dict[str, list[str]] | str] = {}

    def outcome(gradio: str) -> dict[str, list[str]]:
        if gradio not in known:
            try:
                python = host.find_python(gradio, kept)
                base = tmp_path_factory.mktemp(f"gradio {gradio}")
                known[gradio] = run_checks(python, base, FOLDERS[gradio], expected)
            except host.Unavailable as error:
                known[gradio] = str(error)
        if isinstance(known[gradio], str):
            pytest.skip(f"there is no gradio {gradio} here: {known[gradio]}")
        return known[gradio]

    return outcome


def run_checks(
    python: Path, base: Path, folder: str, expected: dict[str, str]
) -> dict[str, list[str]]:
    extension = host.copy_extension(base / "extensions" / folder)
    report = base / "report.xml"
    options = [
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-c",
        str(base / "none.ini"),
        "--tb=short",
    ]
    (base / "none.ini").write_text("[pytest]\n", "utf-8")
    environment = {
        **os.environ, "PROMPTADAPT_EXTENSION": str(extension), "PYTHONIOENCODING": "utf-8",
        "PROMPTADAPT_EXPECTED": json.dumps(expected), "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    run = subprocess.run(
        [str(python), "-m", "pytest", *options, f"--junit-xml={report}", str(CHECKS)],
        cwd=base, env=environment, capture_output=True, text=True, check=False,
        encoding="utf-8", errors="replace", timeout=RUN_SECONDS,
    )  # fmt: skip
    assert report.is_file(), run.stdout[-4000:] + run.stderr[-4000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "").split("[")[0]
        wrong = [part for part in case if part.tag in ("failure", "error", "skipped")]
        found.setdefault(name, []).extend(f"{p.tag}: {p.text}" for p in wrong)
    assert found, run.stdout[-4000:]
    return found


@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize("gradio", sorted(FOLDERS))
def test_the_script(outcomes: Any, gradio: str, check: str) -> None:
    found = outcomes(gradio)
    assert check in found
    skipped = [text for text in found[check] if text.startswith("skipped")]
    assert [text for text in found[check] if text not in skipped] == []
    if skipped:
        pytest.skip(skipped[0])
