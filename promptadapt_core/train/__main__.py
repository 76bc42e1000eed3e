"""The command line of the trainers: `python -m promptadapt_core.train sft --help`.

Exit code 0 when a run is done, 2 with one sentence on stderr for bad input, 130 when Ctrl-C
stopped a run, whose state is then saved.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import signal
import sys
from types import FrameType

from ..command_line import Parser, run, write_utf8
from ..settings import SftSettings, add_flags, given


class Interrupt:
    """Ctrl-C: the first asks the trainer to save and stop, the second breaks off at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; Ctrl-C again breaks off at once", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run one trainer; returns the exit code."""
    write_utf8()
    parser = Parser(prog="promptadapt_core.train", description="Train policies.")
    trainers = parser.add_subparsers(title="trainers", required=True, metavar="TRAINER")
    sft = trainers.add_parser("sft", help="supervised fine-tuning on pairs")
    add_flags(sft, SftSettings)
    sft.set_defaults(run=_sft)
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: options.run(options), extra="train")


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors, where the C library is glibc.

    By default each large tensor is fresh memory that the kernel has to clear, which costs a CPU
    training step up to a fifth of its time. Figures of mallopt's arguments: malloc.h.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return  # another system, another allocator


def _sft(options: argparse.Namespace) -> int:
    settings = SftSettings(**given(SftSettings, options))
    from ..runs import Progress
    from .sft import train_sft

    keep_freed_memory()
    interrupt = Interrupt()
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        result = train_sft(settings, report=Progress(), should_stop=lambda: interrupt.asked)
    finally:
        signal.signal(signal.SIGINT, previous)
    if result.status == "stopped":
        print(
            f"stopped after step {result.step} of {result.num_steps} and saved; the same command "
            "with --resume goes on",
            file=sys.stderr,
        )
        return 130
    why = {"done": "done", "patience": "stopped early, validation no longer gets better"}
    loss = result.best_loss
    found = f"best validation loss {loss:.4f} nats a token" if math.isfinite(loss) else "the latest"
    print(f"{why[result.status]}: {result.step} steps, {found}: {result.best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
