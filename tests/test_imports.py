"""What importing may load, and how long it may take. Each import has a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "huggingface_hub"}
LIMIT_SECONDS = 0.030
MOST_RUNS = 15  # the least of several: a busy machine only ever adds time
# The processor's time leaves out what other processes take; Windows counts it in steps of 16 ms.
CLOCK = "perf_counter" if sys.platform == "win32" else "process_time"
# As on a user's machine, where the second start finds the compiled modules of the first.
ENVIRONMENT = dict(os.environ)
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)

PROBE = """
import json, sys
from time import {clock} as clock
started = clock()
{statement}
seconds = clock() - started
print(json.dumps([seconds, sorted(name.split(".")[0] for name in sys.modules)]))
"""


def probe(statement: str) -> tuple[float, set[str]]:
    """Seconds that the statement takes in a fresh process, and what is loaded afterwards."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE.format(clock=CLOCK, statement=statement)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seconds, loaded = json.loads(run.stdout)
    return seconds, set(loaded)


@pytest.mark.parametrize(
    "statement",
    [
        "import promptadapt_core",
        "from promptadapt_core import settings, prompts, modifiers, gate",
    ],
)
def test_an_import_is_light_and_fast(statement: str) -> None:
    least = float("inf")
    for _ in range(MOST_RUNS):
        seconds, loaded = probe(statement)
        assert not loaded & HEAVY
        least = min(least, seconds)
        if least < LIMIT_SECONDS:
            return
    pytest.fail(f"`{statement}` takes {least * 1000:.0f} ms")


def test_the_package_itself_imports_nothing() -> None:
    _, before = probe("pass")
    _, after = probe("import promptadapt_core")
    assert after - before == {"promptadapt_core"}


def test_the_command_line_helps_without_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "promptadapt_core", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "adapt" in run.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & HEAVY
