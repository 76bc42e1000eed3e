"""The command line of the trainers: `python -m promptadapt_core.train sft --help`,
`... ppo --help`, `... rejection --help`, `... dpo --help`.

Exit code 0 when a run is done, 2 with one sentence on stderr for bad input, 130 when Ctrl-C
stopped a run, whose state is then saved. `ppo` runs in several processes where accelerate or
torchrun starts them.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from ..alarms import AlarmSettings
from ..command_line import Parser, interruptible, keep_freed_memory, run, write_utf8
from ..reward_settings import RewardSettings
from ..settings import add_flags, given
from .dpo_settings import DpoSettings
from .ppo_settings import PpoSettings
from .rejection_settings import RejectionSettings
from .sft_settings import SftSettings

if TYPE_CHECKING:
    from .rounds import RoundsResult


def main(arguments: list[str] | None = None) -> int:
    """Run one trainer; returns the exit code."""
    write_utf8()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="promptadapt_core.train", description="Train policies.")
    trainers = parser.add_subparsers(title="trainers", required=True, metavar="TRAINER")
    sft = trainers.add_parser("sft", help="supervised fine-tuning on pairs")
    add_flags(sft, SftSettings)
    sft.set_defaults(run=_sft)
    ppo = trainers.add_parser("ppo", help="reinforcement learning from pictures")
    for cls in (PpoSettings, RewardSettings, AlarmSettings):
        add_flags(ppo, cls)
    ppo.set_defaults(run=_ppo)
    rejection = trainers.add_parser(
        "rejection", help="fine-tuning on the best of what the policy writes, by their pictures"
    )
    dpo = trainers.add_parser("dpo", help="preferences, mined from pictures or voted on")
    for parser_of, kind, work in (
        (rejection, RejectionSettings, _rejection), (dpo, DpoSettings, _dpo)
    ):  # fmt: skip
        add_flags(parser_of, kind)
        add_flags(parser_of, RewardSettings)
        parser_of.set_defaults(run=work)
    for trainer, parser_of in trainers.choices.items():
        _add_plan(parser_of, trainer)
    options = parser.parse_args(arguments)
    work = _plan if options.plan else options.run
    return run(parser.prog, lambda: work(options), extra="train")


def _add_plan(parser: argparse.ArgumentParser, trainer: str) -> None:
    parser.set_defaults(trainer=trainer)
    parser.add_argument(
        "--plan",
        nargs="?",
        const="text",
        choices=("text", "json"),
        help="say what the run would cost, from a probe of about half a minute, and do not make it",
    )


def _plan(options: argparse.Namespace) -> int:
    from ..decoding import Stopped
    from ..runs import Progress
    from .planning import plan_of, told

    keep_freed_memory()
    with interruptible() as should_stop:
        try:
            plan = plan_of(options.trainer, options, Progress(), should_stop)
        except Stopped:
            return 130
    print(told(plan, options.plan))
    return 0


def _sft(options: argparse.Namespace) -> int:
    settings = SftSettings(**given(SftSettings, options))
    from ..process_group import refuse_several
    from ..runs import Progress
    from .sft import train_sft

    refuse_several("sft")
    keep_freed_memory()
    with interruptible() as should_stop:
        result = train_sft(settings, report=Progress(), should_stop=should_stop)
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


def _ppo(options: argparse.Namespace) -> int:
    settings = PpoSettings(**given(PpoSettings, options))
    reward_settings = RewardSettings(**given(RewardSettings, options))
    alarms = AlarmSettings(**given(AlarmSettings, options))
    from ..process_group import process_group
    from ..runs import Progress
    from .ppo import train_ppo
    from .rendered_reward import load_parts

    keep_freed_memory()
    with process_group(settings.device, settings.group_timeout_minutes) as group:
        reward, judge = load_parts(settings, reward_settings, group)
        with interruptible(tells=group.is_main) as should_stop:
            result = train_ppo(
                settings,
                reward=reward,
                judge=judge,
                alarms=alarms,
                report=Progress(),
                should_stop=should_stop,
                group=group,
            )
    if not group.is_main:  # the main process has told
        return 130 if result.status == "stopped" else 0
    if result.status == "stopped":
        print(
            f"stopped after iteration {result.iteration} of {result.num_iterations} and saved; "
            "the same command with --resume goes on",
            file=sys.stderr,
        )
        return 130
    found = f"best mean reward {result.best_reward:.4f}: {result.best}"
    if not math.isfinite(result.best_reward):
        found = "but no candidate got a reward, so nothing was learned"
    print(f"done: {result.iteration} iterations, {found}")
    return 0


def _rejection(options: argparse.Namespace) -> int:
    settings = RejectionSettings(**given(RejectionSettings, options))
    reward_settings = RewardSettings(**given(RewardSettings, options))
    from ..process_group import refuse_several
    from ..runs import Progress
    from .rejection import train_rejection
    from .rendered_reward import load_parts

    refuse_several("rejection")
    keep_freed_memory()
    reward, judge = load_parts(settings, reward_settings)
    with interruptible() as should_stop:
        result = train_rejection(
            settings, reward=reward, judge=judge, report=Progress(), should_stop=should_stop
        )
    return _told(result)


def _dpo(options: argparse.Namespace) -> int:
    settings = DpoSettings(**given(DpoSettings, options))
    reward_settings = RewardSettings(**given(RewardSettings, options))
    from ..process_group import refuse_several
    from ..runs import Progress
    from .dpo import train_dpo

    refuse_several("dpo")
    keep_freed_memory()
    reward = judge = None
    if not settings.votes:
        from .rendered_reward import load_parts

        reward, judge = load_parts(settings, reward_settings)
    with interruptible() as should_stop:
        result = train_dpo(
            settings, reward=reward, judge=judge, report=Progress(), should_stop=should_stop
        )
    return _told(result)


def _told(result: RoundsResult) -> int:
    """Say how the rounds ended; the exit code."""
    if result.status == "stopped":
        print(
            f"stopped in round {min(result.round + 1, result.num_rounds)} of {result.num_rounds} "
            "and saved; the same command with --resume goes on",
            file=sys.stderr,
        )
        return 130
    reward = result.best_reward
    found = f"best mean reward {reward:.4f}" if math.isfinite(reward) else "the latest"
    print(f"done: {result.round} rounds, {found}: {result.best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
