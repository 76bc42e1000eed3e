"""`python -m promptadapt_core.data build` and `lexicon`; see the package's docstring.

Exit code 0, or 2 with one sentence on stderr for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..command_line import Parser, run, write_utf8
from ..settings import add_flags, given
from .settings import DataSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    write_utf8()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["lexicon"]:
        program = "python -m promptadapt_core.data lexicon"
        return run(program, lambda: _lexicon(arguments[1:], program))
    parser = Parser(prog="python -m promptadapt_core.data", description="Makes training pairs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build_command = commands.add_parser("build", help="engineered prompts to training pairs")
    add_flags(build_command, DataSettings)
    commands.add_parser("lexicon", help="learn which words are modifiers", add_help=False)
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: _build(options))


def _lexicon(arguments: list[str], program: str) -> int:
    from . import lexicon

    return lexicon.main(arguments, Parser(prog=program))


def _build(options: argparse.Namespace) -> None:
    from . import report
    from .build import build

    print(report.readable(build(DataSettings(**given(DataSettings, options)))))


if __name__ == "__main__":
    raise SystemExit(main())
