"""The command line: `python -m promptadapt_core adapt "a cat on a roof"`.

Exit code 0, or 2 with one sentence on stderr for bad input.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from . import __version__
from .settings import AdaptSettings, SettingsError, add_flags, given


class Parser(argparse.ArgumentParser):
    """Bad usage is one sentence and exit code 2, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # Windows pipes default to a code page
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except SettingsError as error:
        print(f"{parser.prog}: {_named(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f'{parser.prog}: {error}; install it with pip install "promptadapt[run]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="promptadapt", description="A plain prompt in, the prompt an image model wants out."
    )
    parser.add_argument("--version", action="version", version=f"promptadapt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adapt = commands.add_parser("adapt", help="adapt user inputs")
    adapt.add_argument("text", nargs="*", metavar="TEXT", help="user inputs")
    adapt.add_argument("--file", metavar="FILE", help="user inputs, one a line, UTF-8")
    adapt.add_argument(
        "--policy",
        default="",
        metavar="NAME|FOLDER",
        help="a policy listed by `policies`, or a folder [default: the bundled one]",
    )
    adapt.add_argument(
        "--download",
        action="store_true",
        help="let --policy be fetched from the hub when it is not here",
    )
    adapt.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps [default: cpu]")
    adapt.add_argument("--json", action="store_true", help="one JSON object per input line")
    _add_models_folder(adapt)
    add_flags(adapt, AdaptSettings)
    adapt.set_defaults(run=_adapt)
    policies = commands.add_parser("policies", help="list what is found where")
    policies.add_argument("--json", action="store_true", help="one JSON object per policy")
    _add_models_folder(policies)
    policies.set_defaults(run=_policies)
    return parser


def _add_models_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-folder", metavar="FOLDER", help="more policies, one per folder")


def _named(error: SettingsError) -> str:
    """The sentence of an error, with the setting as the user typed it."""
    typed = "TEXT" if error.name == "user_input" else f"--{error.name.replace('_', '-')}"
    return f"{typed}: {error.reason}"


def _adapt(options: argparse.Namespace) -> None:
    settings = given(AdaptSettings, options)
    AdaptSettings(**settings)  # a bad value is reported before the slow imports
    user_inputs = [*options.text, *(_lines(options.file) if options.file else [])]
    if not user_inputs:
        raise SettingsError("user_input", "expected at least one text to adapt, or --file")
    from . import prompts

    for user_input in user_inputs:
        prompts.parse(user_input, settings.get("keep", ()))
    from .adapter import PromptAdapter

    adapter = PromptAdapter.load(
        options.policy,
        models_folder=options.models_folder,
        device=options.device,
        download=options.download,
    )
    for batch in _batches(user_inputs, 64):
        for adaptation in adapter.adapt_all(batch, **settings):
            _print(adaptation, options.json)


def _print(adaptation, as_json: bool) -> None:
    if as_json:
        print(json.dumps(adaptation.as_json(), ensure_ascii=False), flush=True)
        return
    for candidate in adaptation.candidates:
        print(candidate.adapted_prompt, flush=True)
    if adaptation.gate != "adapted":
        print(adaptation.gate, file=sys.stderr)


def _policies(options: argparse.Namespace) -> None:
    from .policies import find_policies

    for found in find_policies(options.models_folder):
        if options.json:
            print(json.dumps(found.as_json(), ensure_ascii=False))
        else:
            print(
                f"{found.name:24} {found.size_bytes / 1e6:8.1f} MB  {found.folder}\n"
                f"{'':24} {found.description}"
            )


def _lines(file: str) -> list[str]:
    """The non-empty lines of a UTF-8 file."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError("file", f"{file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError("file", f"{file} is not UTF-8 text") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise SettingsError("file", f"{file} holds no text")
    return lines


def _batches(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


if __name__ == "__main__":
    sys.exit(main())
