"""`--plan`: what a run would cost, from a probe of half a minute, without making the run.

The trainer's own preparation and probe are used, in a temporary folder that is removed. With
--resume the plan is of what is still to come. Scores of plain pictures that are kept already cost
nothing; they are read, and nothing is added to them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import runs
from ..baselines import SUFFIX
from ..process_group import refuse_several
from ..reward_settings import RewardSettings
from ..settings import SettingsError, given
from .costs import Plan
from .dpo_settings import DpoSettings
from .mining_settings import MiningSettings
from .ppo_settings import PpoSettings
from .probing import PLAN_SECONDS
from .rejection_settings import RejectionSettings
from .sft_settings import SftSettings

COUNTED = ("iteration", "round", "step")  # what a state counts, by trainer
FORMATS = ("text", "json")
SETTINGS = {
    "sft": SftSettings, "ppo": PpoSettings, "rejection": RejectionSettings, "dpo": DpoSettings
}  # fmt: skip


def plan_of(
    trainer: str,
    options: argparse.Namespace,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
    seconds: float = PLAN_SECONDS,
) -> Plan:
    """The plan of `train TRAINER` with these options. report: gets what the run would say of its
    inputs. SettingsError for what the run would refuse; decoding.Stopped."""
    refuse_several("--plan")
    settings: Any = SETTINGS[trainer](**given(SETTINGS[trainer], options))
    with tempfile.TemporaryDirectory(prefix="promptadapt-plan-", ignore_cleanup_errors=True) as at:
        out = str(Path(at) / "run")  # whatever its name will be: ".." would be outside
        elsewhere = dataclasses.replace(settings, out=out, resume=False, tensorboard=False)
        if trainer == "sft":
            from .sft_plan import plan_sft

            return plan_sft(elsewhere, num_done(settings), report, should_stop, seconds)
        kept = settings.baselines or Path(settings.out or at) / "baselines"
        elsewhere = dataclasses.replace(elsewhere, baselines=str(Path(at) / "baselines"))
        _copy_baselines(Path(kept), Path(elsewhere.baselines))
        rewarded = RewardSettings(**given(RewardSettings, options))
        work = _ppo if trainer == "ppo" else _rounds
        return work(elsewhere, rewarded, num_done(settings), report, should_stop, seconds)


def _copy_baselines(kept: Path, place: Path) -> None:
    """What a cache reads (baselines.py), and nothing else that may lie in the folder."""
    for file in kept.glob(f"*/*{SUFFIX}"):
        (place / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / file.parent.name / file.name)


def num_done(settings: Any) -> int:
    """Iterations, rounds or steps that the run to go on with would not do again: those of its
    state, which is older than its metrics where it was killed. 0 of a new one."""
    if not settings.resume:
        return 0
    path = Path(settings.out) / runs.STATE_NAME
    if not settings.out or not (path.parent / runs.CONFIG_NAME).is_file():
        raise SettingsError("resume", f"there is no run in {settings.out}")
    if not path.is_file():
        return 0
    import torch

    try:  # tensors stay on the disk: the memory that is measured is not theirs
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        progress = state["progress"]
        return int(next(progress[name] for name in COUNTED if name in progress))
    except Exception as error:  # whatever a foreign or broken file can raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError("resume", f"{path} is broken: {reason}") from None


def _ppo(
    settings: PpoSettings,
    rewarded: RewardSettings,
    done: int,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
    seconds: float,
) -> Plan:
    from .ppo_plan import make_plan
    from .ppo_preparing import prepare
    from .rendered_reward import load_parts

    reward, judge = load_parts(settings, rewarded)
    prepared = prepare(settings, reward, report, judge)
    _say_pictures(reward, report)
    return make_plan(prepared, reward, done, should_stop, judge=judge, seconds=seconds)


def _rounds(
    settings: MiningSettings,
    rewarded: RewardSettings,
    done: int,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
    seconds: float,
) -> Plan:
    from ..adapter import PromptAdapter
    from . import mining_plan, rounds_preparing
    from .dpo import Dpo
    from .rejection import Rejection
    from .rendered_reward import load_parts

    votes = getattr(settings, "votes", "")
    trainer = "dpo" if isinstance(settings, DpoSettings) else "rejection"
    reward, judge = (None, None) if votes else load_parts(settings, rewarded)  # type: ignore[arg-type]
    prepared = rounds_preparing.prepare(settings, trainer, reward, judge, report)
    policy = rounds_preparing.load_policy(prepared.folder, prepared.manifest, prepared.device)
    adapter = PromptAdapter(policy)
    if reward is None:
        return _votes(settings, prepared, adapter, report, should_stop)
    is_dpo = isinstance(settings, DpoSettings)
    method: Any = Dpo(settings, prepared, report) if is_dpo else Rejection(settings)  # type: ignore[arg-type]
    _say_pictures(reward, report)
    plan = mining_plan.make_plan(
        prepared, adapter, reward, done, method.texts_per_input, should_stop,
        judge=judge, seconds=seconds,
    )  # fmt: skip
    return dataclasses.replace(plan, trainer=trainer)


def _votes(
    settings: Any,
    prepared: Any,
    adapter: Any,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
) -> Plan:
    from ..rollouts import readable
    from .mining_plan import make_votes_plan
    from .votes import read_votes, vote_rows

    votes, _ = read_votes(settings.votes)
    rows = vote_rows(votes, adapter, prepared.asked, report)
    works, _ = readable(adapter, list(dict.fromkeys(v.user_input for v in votes)), prepared.asked)
    num_texts = 2.0 * len(rows) * settings.num_epochs
    plan = make_votes_plan(prepared, adapter, works, num_texts, should_stop)
    return dataclasses.replace(plan, trainer="dpo")


def _say_pictures(reward: Any, report: runs.Reporter) -> None:
    for sentence in reward.sentences():
        report.say(sentence)


def told(plan: Plan, form: str) -> str:
    """The plan as a person or a program reads it."""
    if form == "json":
        return json.dumps(plan.as_json(), indent=2)
    return "\n".join(plan.lines())
