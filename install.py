"""Says what a host lacks to adapt prompts, and how to get it. Installs nothing.

Automatic1111 and Forge run this at every start, ComfyUI-Manager once: the standard library only,
silent when all is there, always exit code 0. `--skip-install`, given here or in the host's
COMMANDLINE_ARGS, leaves the check out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys

MINIMUM_PYTHON = (3, 10)
# Package, module that it brings, oldest version that works: `run` in pyproject.toml.
REQUIREMENTS = (
    ("torch", "torch", "2.1"),
    ("transformers", "transformers", "4.30.2"),
    ("tokenizers", "tokenizers", "0.13.3"),
    ("safetensors", "safetensors", "0.4"),
    ("numpy", "numpy", ""),
    ("pillow", "PIL", ""),
)


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: "2.1.2+cu121" -> (2, 1, 2). Ending zeros do not count."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def installed_version(package: str) -> str | None:
    """The version in the package's metadata, or None. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def complaint(package: str, module: str, minimum: str) -> str | None:
    """What is wrong with one requirement, or None."""
    if importlib.util.find_spec(module) is None:
        return f"{package} is missing"
    version = installed_version(package)
    if minimum and version and version_numbers(version) < version_numbers(minimum):
        return f"{package} {version} is older than {minimum}"
    return None


def complaints() -> list[str]:
    """What is wrong with this Python, one line each; empty when all is there."""
    found = [complaint(*requirement) for requirement in REQUIREMENTS]
    if sys.version_info < MINIMUM_PYTHON:
        found.insert(0, f"Python {sys.version.split()[0]} is older than 3.10")
    return [line for line in found if line]


def skipped(arguments: list[str]) -> bool:
    return "--skip-install" in arguments + os.environ.get("COMMANDLINE_ARGS", "").split()


def main(arguments: list[str]) -> int:
    found = [] if skipped(arguments) else complaints()
    if found:
        packages = [
            f"{package}>={minimum}" if minimum else package
            for package, module, minimum in REQUIREMENTS
            if complaint(package, module, minimum)
        ]
        print("promptadapt cannot adapt prompts in this Python yet:")
        print("".join(f"  - {line}\n" for line in found), end="")
        print("Nothing was installed: the host decides on these versions. Update the host,")
        if packages:
            quoted = " ".join(f'"{package}"' for package in packages)
            print(f'or, if you manage it yourself: "{sys.executable}" -m pip install {quoted}')
        else:
            print("or start it with a newer Python.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
