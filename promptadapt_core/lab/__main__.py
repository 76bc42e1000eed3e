"""The command line of the lab: `python -m promptadapt_core.lab render "a red house" --out x.png`.

    build    draws the pictures and trains every part from nothing, about three hours on 2 cores
    render   writes pictures of a text
    report   measures the lab, with pictures to look at
    pairs    writes what the lab's simulated writers wrote, for supervised fine-tuning
    inputs   writes plain user inputs, for reinforcement learning
    export   writes the renderer as a checkpoint that ComfyUI opens

Exit code 0, 2 with one sentence on stderr for bad input, 130 when Ctrl-C stopped a build, whose
state is then saved.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from ..command_line import Parser, interruptible, keep_freed_memory, run, write_utf8
from ..settings import SettingsError, add_flags, given
from .settings import (
    ExportSettings,
    InputsSettings,
    LabSettings,
    PairsSettings,
    RenderSettings,
    ReportSettings,
)

INNER_NAMES = {"folder", "cache", "scorer", "model", "config", "head", "judge"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    write_utf8()
    parser = Parser(
        prog="promptadapt_core.lab",
        description="A small text-to-image world, trained from nothing.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="train every part from nothing, or go on with it")
    add_flags(build, LabSettings)
    build.set_defaults(run=_build)
    render = commands.add_parser("render", help="write pictures of a text")
    render.add_argument("user_input", metavar="TEXT", help="what the picture shows; may be empty")
    add_flags(render, RenderSettings)
    render.set_defaults(run=_render)
    report = commands.add_parser("report", help="measure the lab, with pictures to look at")
    add_flags(report, ReportSettings)
    report.set_defaults(run=_report)
    pairs = commands.add_parser("pairs", help="write training pairs for supervised fine-tuning")
    add_flags(pairs, PairsSettings)
    pairs.set_defaults(run=_pairs)
    inputs = commands.add_parser("inputs", help="write user inputs for reinforcement learning")
    add_flags(inputs, InputsSettings)
    inputs.set_defaults(run=_inputs)
    export = commands.add_parser("export", help="write a checkpoint that ComfyUI opens")
    add_flags(export, ExportSettings)
    export.set_defaults(run=_export)
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: options.run(options), extra="train")


def _build(options: argparse.Namespace) -> int:
    settings = LabSettings(**given(LabSettings, options))
    from .build import build
    from .progress import BuildProgress

    keep_freed_memory()
    with interruptible() as should_stop:
        stopped_in = build(settings, report=BuildProgress(), should_stop=should_stop)
    if stopped_in is not None:
        print(f"stopped in {stopped_in} and saved; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _render(options: argparse.Namespace) -> None:
    settings = RenderSettings(**given(RenderSettings, options))
    from .rendering import render_files

    with _about_weights():
        written = render_files(options.user_input, settings, _say)
    print("wrote " + ", ".join(map(str, written)))


def _report(options: argparse.Namespace) -> None:
    settings = ReportSettings(**given(ReportSettings, options))
    from ..runs import Progress
    from .report import readable, write_report

    with _about_weights():
        found = write_report(settings, Progress())
    print(readable(found))


def _pairs(options: argparse.Namespace) -> None:
    settings = PairsSettings(**given(PairsSettings, options))
    from .writers import pairs_jsonl

    pairs_jsonl(settings.out, settings.num_pairs, settings.seed)
    print(f"wrote {settings.out}, {settings.num_pairs:,} pairs")


def _inputs(options: argparse.Namespace) -> None:
    settings = InputsSettings(**given(InputsSettings, options))
    from .writers import user_inputs_text

    number = user_inputs_text(settings.out, settings.num_inputs, settings.seed, settings.domain)
    print(f"wrote {settings.out}, {number:,} user inputs")


def _export(options: argparse.Namespace) -> None:
    settings = ExportSettings(**given(ExportSettings, options))
    from pathlib import Path

    from .export import export_checkpoint

    weights = Path(settings.weights) if settings.weights else None
    with _about_weights():
        written = export_checkpoint(weights, Path(settings.out))
    print(f"wrote {written}, {written.stat().st_size / 1e6:.0f} MB")


@contextlib.contextmanager
def _about_weights() -> Iterator[None]:
    """What is wrong with a file of the weights is named by the one flag that chooses them."""
    try:
        yield
    except SettingsError as error:
        if error.name not in INNER_NAMES:
            raise
        raise SettingsError("weights", error.reason) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
