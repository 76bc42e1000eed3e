"""`python -m promptadapt_core.data build` and `lexicon`; see the package's docstring.

Exit code 0, or 2 with one sentence on stderr for bad input.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..settings import DataSettings, SettingsError, add_flags, given


class Parser(argparse.ArgumentParser):
    """Bad usage is one sentence and exit code 2, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # Windows pipes default to a code page
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["lexicon"]:
        return _lexicon(arguments[1:])
    parser = Parser(prog="python -m promptadapt_core.data", description="Makes training pairs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build_command = commands.add_parser("build", help="engineered prompts to training pairs")
    add_flags(build_command, DataSettings)
    commands.add_parser("lexicon", help="learn which words are modifiers", add_help=False)
    options = parser.parse_args(arguments)
    return _build(options, parser.prog)


def _lexicon(arguments: list[str]) -> int:
    from . import lexicon

    try:
        return lexicon.main(arguments)
    except (SettingsError, OSError, EOFError, KeyError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"python -m promptadapt_core.data lexicon: {message}", file=sys.stderr)
        return 2


def _build(options: argparse.Namespace, program: str) -> int:
    from . import report
    from .build import build

    try:
        summary = build(DataSettings(**given(DataSettings, options)))
    except SettingsError as error:
        flag = "--" + error.name.replace("_", "-")
        print(f"{program}: {flag}: {error.reason}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f'{program}: {error}; install it with pip install "promptadapt[run]"', file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    print(report.readable(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
