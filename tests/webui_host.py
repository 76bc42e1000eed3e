"""Environments with the gradio and the transformers of Automatic1111 and of Forge. Not a test.

Each is a virtual environment of its own on the Python of the tests, into which pip installs what
the host pins; torch and the like it sees in the environment of the tests, by a .pth file, so that
nothing of gigabytes is fetched twice. Two environment variables name ready ones:
    PROMPTADAPT_GRADIO_3_PYTHON, PROMPTADAPT_GRADIO_4_PYTHON
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_SECONDS = 600.0
EXTENSION = (
    "__init__.py", "install.py", "localizations", "metadata.ini", "nodes", "preload.py",
    "promptadapt_core", "scripts",
)  # fmt: skip
# requirements_versions.txt of Automatic1111 1.10.1 and of Forge, as far as we meet it.
PINS = {
    "3.41.2": (
        "gradio==3.41.2", "fastapi==0.94.0", "pydantic<2", "numpy<2", "pandas<2.3",
        "huggingface_hub<1", "httpx==0.24.1", "httpcore==0.15", "transformers==4.30.2",
        "tokenizers==0.13.3", "safetensors==0.4.2", "pillow<10", "setuptools<70",
    ),
    "4.40.0": (
        "gradio==4.40.0", "fastapi==0.104.1", "pydantic==2.8.2", "numpy<2", "pandas<2.3",
        "huggingface_hub<1", "httpx==0.24.1", "transformers==4.46.1", "safetensors==0.4.2",
        "pillow<10.1", "setuptools<70",
    ),
}  # fmt: skip
NEWEST_PYTHON = (3, 11)  # for which tokenizers 0.13.3 and pillow 9 come ready to install


class Unavailable(Exception):
    """Why there is no such environment here."""


def find_python(gradio: str, cache: Path) -> Path:
    """The Python of the environment with this gradio. Raises Unavailable with one sentence."""
    given = os.environ.get(f"PROMPTADAPT_GRADIO_{gradio[0]}_PYTHON")
    if given:
        return Path(given)
    if sys.version_info[:2] > NEWEST_PYTHON:
        raise Unavailable(f"gradio {gradio} and what goes with it are not made for this Python")
    folder = cache / f"gradio-{gradio}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    whole = folder / "whole"  # says which environment it builds on, and what is in it
    wanted = "\n".join([sys.prefix, *PINS[gradio]])
    if whole.is_file() and whole.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=PIP_SECONDS)
    _install(python, PINS[gradio])
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    ours = {part for part in sys.path if Path(part).name in ("site-packages", "dist-packages")}
    path = Path(own.stdout.strip()) / "of_the_tests.pth"
    path.write_text("\n".join(sorted(ours)) + "\n", "utf-8")
    whole.write_text(wanted, "utf-8")
    return python


def copy_extension(folder: Path) -> Path:
    """The extension in a folder of that name, as a user has it."""
    folder.mkdir(parents=True)
    for name in EXTENSION:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def _install(python: Path, packages: tuple[str, ...]) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "30"]
    try:
        run = subprocess.run(
            [str(python), "-m", "pip", "install", *options, *packages],
            capture_output=True, text=True, check=False, timeout=PIP_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip install takes over {PIP_SECONDS:.0f} s") from None
    if run.returncode:
        raise Unavailable(f"pip install failed: {run.stderr.strip()[-200:]}")
