"""`demo --train`: a short run of PPO in the lab, as `train ppo` would make it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import runs
from ..evaluate.inputs import unseen_inputs
from ..evaluate.settings import EVALUATION_SEED
from ..lab.writers import mixed_user_inputs
from ..reward_settings import RewardSettings
from ..settings import SettingsError
from ..train.ppo import PpoResult, train_ppo
from ..train.ppo_settings import PpoSettings
from ..train.rendered_reward import load_parts
from .outputs import RUN_NAME, writing
from .settings import NUM_TESTED, NUM_USER_INPUTS, REWARD, TRAINING, DemoSettings

USER_INPUTS_NAME = "user_inputs.txt"


def learned_from(seed: int) -> list[str]:
    """The user inputs that the policy learns on: in domain, as the writers' are, and out of
    domain, in turn."""
    return mixed_user_inputs(NUM_USER_INPUTS, seed)


def tested_on(seed: int) -> list[str]:
    """User inputs that no training saw, neither this one nor that of the policy that it starts
    from: in domain and out of domain in turn."""
    half = NUM_TESTED // 2
    learned = learned_from(seed)
    inside = unseen_inputs(half, EVALUATION_SEED + seed, False, learned)
    outside = unseen_inputs(NUM_TESTED - half, EVALUATION_SEED + seed, True, learned)
    pairs = zip(inside, outside, strict=True)
    return [text for pair in pairs for text in pair]


def learn(
    settings: DemoSettings,
    folder: Path,
    report: runs.Reporter,
    should_stop: Callable[[], bool],
) -> PpoResult:
    """Train in `folder`, or go on with the run that is there. Raises SettingsError as train_ppo,
    and SettingsError("out", ...) for a run of other settings."""
    run, inputs = folder / RUN_NAME, folder / USER_INPUTS_NAME
    with writing(inputs):
        runs.write_text(inputs, "\n".join(learned_from(settings.seed)) + "\n")
    chosen = PpoSettings(
        **{
            **TRAINING,
            "policy": settings.policy_name,
            "user_inputs": str(inputs),
            "out": str(run),
            "device": settings.device,
            "seed": settings.seed,
            "num_steps": settings.num_steps or TRAINING.get("num_steps"),
            "num_episodes": settings.num_episodes or TRAINING["num_episodes"],
            "resume": (run / runs.CONFIG_NAME).is_file(),
        }
    )
    try:
        reward, judge = load_parts(chosen, RewardSettings(**REWARD))
        return train_ppo(chosen, reward=reward, judge=judge, report=report, should_stop=should_stop)
    except SettingsError as error:
        if error.name != "resume":
            raise
        reason = f"{run} cannot be gone on with: {error.reason}; choose another folder"
        raise SettingsError("out", reason) from None
