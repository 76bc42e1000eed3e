"""Everything that is checked and made before the first iteration of PPO."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__, runs
from ..adapter import PromptAdapter, Work
from ..checkpoints import file_identity
from ..decoding import context_length
from ..devices import pick_device
from ..judging import Judge
from ..policies import resolve_policy, weight_files
from ..policy import Policy
from ..process_group import ALONE, ProcessGroup
from ..rollouts import RewardFunction, needs_whole_logits, readable, sample_rollout, token_batch
from ..settings import AdaptSettings, SettingsError, flag
from .batches import file_sha256
from .mining_settings import MiningSettings
from .ppo_settings import PICTURE_SETTINGS, PpoSettings
from .ppo_update import Learner, make_optimizer
from .seeds import generator_of
from .sft import fused_works
from .shared_run import SharedRun
from .user_inputs import read_user_inputs
from .value import ValueNetwork

# A resumed run may change these: they do not touch the weights,
FREE_SETTINGS = {"resume", "out", "tensorboard", "checkpoint_every", "samples_every", "num_samples",
                 "judge", "group_timeout_minutes"}  # fmt: skip
# (of these, processes of a group need the same, for they meet where samples and states are due)
SHARED_SETTINGS = ("checkpoint_every", "samples_every", "num_samples")
# or only end it later,
LENGTH = "num_episodes"
# or are compared by what they stand for, like PICTURE_SETTINGS in the identity of the reward.
FILE_SETTINGS = {"policy", "user_inputs", "renderer", "scorer"}


@dataclasses.dataclass
class Prepared:
    """What the trainer needs. adapter: holds the policy whose model learns. ref_model: its frozen
    copy. asked: how completions become adapted prompts."""

    settings: PpoSettings
    run_folder: SharedRun
    adapter: PromptAdapter
    asked: AdaptSettings
    works: list[Work]
    learner: Learner
    ref_model: Any

    @property
    def group(self) -> ProcessGroup:
        return self.learner.group


def prepare(
    settings: PpoSettings,
    reward: RewardFunction,
    report: runs.Reporter,
    judge: Judge | None = None,
    group: ProcessGroup = ALONE,
) -> Prepared:
    """Read and check all inputs, make or open the run folder, build the networks.

    SettingsError for bad input, before anything is written, and for a run to resume that was begun
    with other settings, user inputs, policy or reward; and where processes of a group differ in
    those.
    """
    device = pick_device(group.own_device(settings.device))
    user_inputs, num_double = read_user_inputs(settings.user_inputs)
    if not settings.policy:
        raise SettingsError("policy", "expected the folder or the name of an SFT policy")
    folder = resolve_policy(settings.policy)
    run_folder = SharedRun(settings.out, settings.resume, group)
    config = _config(settings, folder, reward, judge, device)
    if group.num_processes > 1:
        config["machine"]["num_processes"] = group.num_processes
        shared = {name: getattr(settings, name) for name in SHARED_SETTINGS}
        _check_alike({**config, "shared": {**shared, "judge": config["judge"]}}, group)
    begun = run_folder.config("ppo")
    if begun is not None:
        _check_same(begun, config, report)
    policy = Policy.load(folder)
    policy.manifest = dataclasses.replace(policy.manifest, name=run_folder.path.name)
    learner, ref_model = _networks(policy, settings, device)
    learner.group = group
    adapter = PromptAdapter(policy)
    asked = asked_of(adapter, settings)
    works = works_of(adapter, user_inputs, asked, num_double, report)
    learner.whole_logits = _needs_whole_logits(adapter, works, asked, device)
    if begun is None:
        run_folder.write_config(config)
        run_folder.save_folder("last", lambda place: policy.save(place, torch.float32))
    return Prepared(settings, run_folder, adapter, asked, works, learner, ref_model)


def _networks(policy: Policy, settings: PpoSettings, device: torch.device) -> tuple[Learner, Any]:
    """The policy's model in place, its frozen copy and the value network, all float32.

    float32 throughout: PPO learns from ratios of probabilities, which bf16 rounds away.
    """
    model = policy.model
    for parameter in model.parameters():
        parameter.data = parameter.data.float().clone()  # not a view of the file
    model.tie_weights()
    model.requires_grad_(True)
    model.to(device).eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # the same kernel with and without gradient
    ref_model = copy.deepcopy(model).requires_grad_(False)
    value_network = ValueNetwork(model) if settings.algorithm == "ppo" else None
    optimizer = make_optimizer(model, value_network, settings, fused_works(device))
    return Learner(model, value_network, optimizer, settings, device, False), ref_model


def note_length(run_folder: runs.RunFolder, num_episodes: int) -> None:
    """Into config.json, where a run goes on as a longer or a shorter one."""
    config = run_folder.config("ppo")
    if config is not None and config["settings"].get(LENGTH) != num_episodes:
        config["settings"][LENGTH] = num_episodes
        run_folder.write_config(config)


def weights_hash(model: Any) -> str:
    """SHA-256 over the names, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def asked_of(adapter: PromptAdapter, settings: PpoSettings | MiningSettings) -> AdaptSettings:
    """How completions are sampled and become adapted prompts: on-policy, no rule but the adapter's
    promises."""
    return adapter.settings(
        mode="sample",
        temperature=settings.temperature,
        top_p=1.0,
        gate=False,
        min_modifiers=0,
        token_budget=settings.token_budget,
        max_new_tokens=settings.max_length_limit,
        num_candidates=settings.group_size,
    )


def works_of(
    adapter: PromptAdapter,
    user_inputs: Sequence[str],
    asked: AdaptSettings,
    num_double: int,
    report: runs.Reporter,
) -> list[Work]:
    """The user inputs that the policy can read, with room for the longest completion."""
    works, left_alone = readable(adapter, user_inputs, asked)
    context = context_length(adapter.policy.model)
    if context is not None:
        roomy = [work for work in works if work.num_fed + asked.max_new_tokens <= context]
        for work in works:
            if work.num_fed + asked.max_new_tokens > context:
                left_alone[work.typed.user_input] = (
                    f"it is too long for the policy, which reads {work.num_fed} tokens and would "
                    f"write {asked.max_new_tokens} within {context}"
                )
        works = roomy
    if num_double:
        report.say(f"left out {num_double:,} user inputs that are there twice")
    if left_alone:
        first, reason = next(iter(left_alone.items()))
        report.say(f"left out {len(left_alone):,} user inputs; the first, {first[:60]!r}: {reason}")
    if not works:
        raise SettingsError("user_inputs", f"none can be used; the first: {reason}")
    return works


def _needs_whole_logits(
    adapter: PromptAdapter, works: list[Work], asked: AdaptSettings, device: torch.device
) -> bool:
    alone = dataclasses.replace(asked, num_candidates=1)
    generator = generator_of(0, "probe", 0)
    rollout = sample_rollout(
        adapter, works[:1], alone, max_new_tokens=4, image_seeds=[[]], generator=generator
    )
    return needs_whole_logits(adapter.policy.model, token_batch(rollout, [0], device))


def reward_config(reward: RewardFunction) -> dict[str, dict[str, Any]]:
    """What a reward function tells of itself: settings by parts, {} where it tells nothing."""
    return dict(getattr(reward, "config", {}))


def policy_files(folder: Path) -> list[Path]:
    """The weights, and what makes texts of them: tokenizer, template, configuration."""
    others = sorted(path for kind in ("*.json", "*.txt") for path in folder.glob(kind))
    weights = weight_files(folder)
    return [*weights, *(path for path in others if path not in weights)]


def _config(
    settings: PpoSettings,
    folder: Path,
    reward: RewardFunction,
    judge: Judge | None,
    device: torch.device,
) -> dict[str, Any]:
    """What config.json says of a run: settings, data, reward, judge, machine, versions."""
    import transformers

    kept = dataclasses.asdict(settings)
    return {
        "trainer": "ppo",
        "settings": {name: kept[name] for name in kept if name not in FREE_SETTINGS},
        "data": {
            "policy": file_identity(policy_files(folder)),
            "user_inputs": file_sha256(settings.user_inputs),
            "reward": reward.identity,
        },
        "reward": reward_config(reward),
        "judge": judge.identity if judge else "",
        "machine": {"device": str(device), "threads": torch.get_num_threads()},
        "versions": {
            "promptadapt": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _check_alike(config: dict[str, Any], group: ProcessGroup) -> None:
    """SettingsError where this process would train another run than the main one does."""
    parts = ("settings", "data", "shared")
    mains = group.from_main(lambda: {part: config[part] for part in parts})
    differing = [
        name
        for part in mains
        for name, value in config[part].items()
        if not (part == "settings" and name in FILE_SETTINGS.union(PICTURE_SETTINGS))
        and mains[part].get(name) != value
    ]
    if differing:
        name = "renderer" if differing[0] == "reward" else differing[0]
        raise SettingsError(name, f"is not that of the main process: {', '.join(differing)}")


def _check_same(old: dict[str, Any], new: dict[str, Any], report: runs.Reporter) -> None:
    """SettingsError("resume", ...) where a run would go on as another."""
    before = {**dataclasses.asdict(PpoSettings()), **old["settings"]}
    changes = [
        f"{flag(name)} was {before.get(name)!r} and is now {value!r}"
        for name, value in new["settings"].items()
        if name not in FILE_SETTINGS.union(PICTURE_SETTINGS, {LENGTH}) and before.get(name) != value
    ]
    for part, values in new["reward"].items():
        was = old.get("reward", {}).get(part, {})
        changes += [
            f"{flag(name)} was {was[name]!r} and is now {value!r}"
            for name, value in values.items()
            if name in was and was[name] != value
        ]
    if changes:
        raise SettingsError("resume", f"the run began with other settings: {'; '.join(changes)}")
    for name, content in new["data"].items():
        if old["data"].get(name) != content:
            told = flag(name) if name in FILE_SETTINGS else "the reward (renderer, scorer, terms)"
            raise SettingsError("resume", f"{told} is not what the run began with")
    if old.get("judge") != new["judge"] and old.get("judge") and new["judge"]:
        report.say("the judge is not the one that the run began with: its metrics do not compare")
    if old.get("machine") != new["machine"] or old.get("versions") != new["versions"]:
        report.say(
            "the machine or the versions differ from the start of the run (config.json): it goes "
            "on, but its weights will not equal an uninterrupted run's bit for bit"
        )
