"""Everything that is checked and made before the first round of mining and learning."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__, runs
from ..adapter import PromptAdapter, Work
from ..checkpoints import file_identity
from ..devices import pick_device
from ..judging import Judge
from ..manifest import Manifest
from ..policies import resolve_policy
from ..policy import Policy
from ..rollouts import RewardFunction
from ..settings import AdaptSettings, SettingsError, flag
from .batches import file_sha256
from .mining_settings import MiningSettings
from .ppo_preparing import asked_of, policy_files, works_of
from .ppo_settings import PICTURE_SETTINGS
from .user_inputs import read_user_inputs

# A resumed run may change these: they do not touch the weights,
FREE_SETTINGS = {"resume", "out", "tensorboard", "judge", "baselines", "log_every"}
# or are compared by what they stand for, like PICTURE_SETTINGS in the identity of the reward.
FILE_SETTINGS = {"policy", "user_inputs", "renderer", "scorer", "votes", "reference"}


@dataclasses.dataclass
class Prepared:
    """What the rounds need. folder: of the policy to start from; manifest: its own, with the name
    of the run. asked: how completions become adapted prompts. works: of the user inputs, none
    where there is no reward."""

    settings: MiningSettings
    run_folder: runs.RunFolder
    folder: Path
    manifest: Manifest
    device: torch.device
    asked: AdaptSettings
    works: list[Work]


def prepare(
    settings: MiningSettings,
    trainer: str,
    reward: RewardFunction | None,
    judge: Judge | None,
    report: runs.Reporter,
) -> Prepared:
    """Read and check all inputs, make or open the run folder.

    reward: None where nothing is mined, and user inputs are not read. SettingsError for bad input,
    before anything is written, and for a run to resume that was begun with other settings.
    """
    device = pick_device(settings.device)
    if not settings.policy:
        raise SettingsError("policy", "expected the folder or the name of an SFT policy")
    user_inputs, num_double = read_user_inputs(settings.user_inputs) if reward else ([], 0)
    folder = resolve_policy(settings.policy)
    run_folder = runs.RunFolder(settings.out, settings.resume)
    config = _config(settings, trainer, folder, reward, judge, device)
    begun = run_folder.config(trainer)
    if begun is not None:
        _check_same(begun, config, type(settings), report)
    policy = Policy.load(folder)
    manifest = dataclasses.replace(policy.manifest, name=run_folder.path.name)
    adapter = PromptAdapter(policy)
    asked = asked_of(adapter, settings)
    works = works_of(adapter, user_inputs, asked, num_double, report) if reward else []
    if begun is None:
        run_folder.write_config(config)
    return Prepared(settings, run_folder, folder, manifest, device, asked, works)


def load_policy(folder: Path, manifest: Manifest, device: torch.device) -> Policy:
    """Ready to sample: float32, no dropout, the kernels that training uses."""
    policy = Policy.load(folder)
    policy.manifest = manifest
    model = policy.model
    model.float().requires_grad_(False).to(device).eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    return policy


def _config(
    settings: MiningSettings,
    trainer: str,
    folder: Path,
    reward: RewardFunction | None,
    judge: Judge | None,
    device: torch.device,
) -> dict[str, Any]:
    """What config.json says of a run: settings, data, reward, judge, machine, versions."""
    import transformers

    kept = dataclasses.asdict(settings)
    data = {"policy": file_identity(policy_files(folder))}
    if reward is not None:
        data |= {"user_inputs": file_sha256(settings.user_inputs), "reward": reward.identity}
    votes, reference = (getattr(settings, name, "") for name in ("votes", "reference"))
    if votes:
        try:
            data["votes"] = file_sha256(votes)
        except OSError as error:
            raise SettingsError("votes", f"{votes} cannot be read ({error.strerror})") from None
    if reference:
        data["reference"] = file_identity(policy_files(find_reference(reference)))
    return {
        "trainer": trainer,
        "settings": {name: kept[name] for name in kept if name not in FREE_SETTINGS},
        "data": data,
        "reward": dict(getattr(reward, "config", {})),
        "judge": judge.identity if judge else "",
        "machine": {"device": str(device), "threads": torch.get_num_threads()},
        "versions": {
            "promptadapt": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def find_reference(name: str) -> Path:
    """The folder of a reference policy; SettingsError("reference", ...) where there is none."""
    try:
        return resolve_policy(name)
    except SettingsError as error:
        raise SettingsError("reference", error.reason) from None


def load_reference(name: str) -> Policy:
    """The reference policy; SettingsError("reference", ...) for one that is missing or broken."""
    try:
        return Policy.load(find_reference(name))
    except SettingsError as error:
        told = {"policy": "reference"}
        raise SettingsError(told.get(error.name, error.name), error.reason) from None


def _check_same(
    old: dict[str, Any], new: dict[str, Any], kind: type[MiningSettings], report: runs.Reporter
) -> None:
    """SettingsError("resume", ...) where a run would go on as another."""
    before = {**dataclasses.asdict(kind()), **old["settings"]}
    before = {name: list(v) if isinstance(v, tuple) else v for name, v in before.items()}
    changes = []
    for name, value in new["settings"].items():
        now = list(value) if isinstance(value, tuple) else value
        if name not in FILE_SETTINGS.union(PICTURE_SETTINGS) and before.get(name) != now:
            changes.append(f"{flag(name)} was {before.get(name)!r} and is now {now!r}")
    for part, values in new["reward"].items():
        was = old.get("reward", {}).get(part, {})
        changes += [
            f"{flag(name)} was {was[name]!r} and is now {value!r}"
            for name, value in values.items()
            if name in was and was[name] != value
        ]
    if changes:
        raise SettingsError("resume", f"the run began with other settings: {'; '.join(changes)}")
    for name in {**old["data"], **new["data"]}:
        if old["data"].get(name) != new["data"].get(name):
            told = flag(name) if name in FILE_SETTINGS else "the reward (renderer, scorer, terms)"
            raise SettingsError("resume", f"{told} is not what the run began with")
    if old.get("judge") != new["judge"] and old.get("judge") and new["judge"]:
        report.say("the judge is not the one that the run began with: its metrics do not compare")
    if old.get("machine") != new["machine"] or old.get("versions") != new["versions"]:
        report.say(
            "the machine or the versions differ from the start of the run (config.json): it goes "
            "on, but its weights will not equal an uninterrupted run's bit for bit"
        )
