"""The command line of exports: `python -m promptadapt_core.export RUN --out FOLDER --licence NAME`.

Exit code 0 when the folder is written, 2 with one sentence on stderr for bad input.
"""

from __future__ import annotations

import argparse
import sys

from ..command_line import Parser, run, write_utf8
from ..settings import add_flags, given
from .settings import ExportSettings


def main(arguments: list[str] | None = None) -> int:
    """Export one run; returns the exit code."""
    write_utf8()
    parser = Parser(
        prog="promptadapt_core.export",
        description="Make a run of promptadapt_core.train a folder that ComfyUI, Automatic1111 and "
        "Forge list, with a model card. Nothing is sent anywhere but by --push.",
    )
    parser.add_argument(
        "run_folder", metavar="RUN", help="run folder; with --push an export that is to be sent"
    )
    add_flags(parser, ExportSettings)
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: _export(options), extra="train")


def _export(options: argparse.Namespace) -> int:
    settings = ExportSettings(**given(ExportSettings, options))
    from .exporting import export

    done = export(options.run_folder, settings)
    print(f"wrote {done.folder}, {done.num_bytes / 1e6:.1f} MB")
    if done.address:
        kind = "public" if settings.public else "private"
        print(f"sent to {done.address} ({kind})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
