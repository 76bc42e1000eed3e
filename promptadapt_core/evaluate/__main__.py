"""The command line of the evaluation: `python -m promptadapt_core.evaluate --help`.

Exit code 0 when the report is written, 2 with one sentence on stderr for bad input, 130 when Ctrl-C
stopped it; the same command then goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..command_line import Parser, interruptible, keep_freed_memory, run, write_utf8
from ..settings import add_flags, given
from .reward import EvaluationReward
from .settings import EvaluateSettings


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    write_utf8()
    parser = Parser(
        prog="promptadapt_core.evaluate",
        description="Compare what prompt adaptation is worth: policies, the plain user input, a "
        "constant suffix, the best of several pictures, people, and in the lab the oracle.",
    )
    for cls in (EvaluateSettings, EvaluationReward):
        add_flags(parser, cls)
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: _evaluate(options), extra="train")


def _evaluate(options: argparse.Namespace) -> int:
    settings = EvaluateSettings(**given(EvaluateSettings, options))
    reward = EvaluationReward(**given(EvaluationReward, options))
    from ..decoding import Stopped
    from ..runs import Progress
    from .evaluation import Evaluation
    from .report import PAGE_NAME

    keep_freed_memory()
    with interruptible() as should_stop:
        try:
            result = Evaluation(settings, reward, reporter=Progress, should_stop=should_stop).run()
        except Stopped:
            print("stopped; the same command goes on where it was", file=sys.stderr)
            return 130
    print(result.table)
    print(f"\nwrote {Path(settings.out) / PAGE_NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
