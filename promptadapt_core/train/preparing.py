"""Everything that is checked and made before the first step of a run."""

from __future__ import annotations

import dataclasses
import platform
import random
from pathlib import Path
from typing import Any

import torch

from .. import __version__, runs
from ..checkpoints import file_identity
from ..devices import pick_device
from ..policies import weight_files
from ..settings import SettingsError, flag
from .bases import SCRATCH, Trainee, make_trainee
from .batches import Pair, TokenPair, file_sha256, read_pairs, to_sequences
from .sft_settings import SftSettings

# Settings that a resumed run may change: they do not touch the weights.
FREE_SETTINGS = {"resume", "out", "tensorboard"}


@dataclasses.dataclass
class Prepared:
    """What a trainer needs. precision: "fp32" or "bf16"."""

    settings: SftSettings
    run_folder: runs.RunFolder
    trainee: Trainee
    train: list[TokenPair]
    valid: list[TokenPair]
    device: torch.device
    precision: str


def prepare(settings: SftSettings, report: runs.Reporter) -> Prepared:
    """Read and check all inputs, make or open the run folder, build the model.

    SettingsError for bad input, before anything is written; and for a run to resume that was
    started with other settings, data or base.
    """
    device = pick_device(settings.device)
    precision = choose_precision(settings.precision, device)
    pairs = read_pairs(settings.pairs)
    splits = {
        split: [pair for pair in pairs if pair.split == split] for split in ("train", "valid")
    }
    if not splits["train"]:
        raise SettingsError("pairs", f'{settings.pairs} has no rows with "split": "train"')
    run_folder = runs.RunFolder(settings.out, settings.resume)
    config = _config(settings, device, precision)
    begun = _begun(run_folder, settings, config, report)
    texts = (text for pair in splits["train"] for text in (pair.user_input, pair.target))
    trainee = make_trainee(settings, texts, device, begun)
    train, valid = _sequences(splits, trainee, settings, report)
    if run_folder.config("sft") is None:
        run_folder.write_config(config)
    if begun is None:
        run_folder.save_folder("last", lambda folder: trainee.export(folder, torch.float32))
    num_tokens = sum(len(pair.ids) for pair in train)
    num_completion = sum(len(pair.ids) - pair.num_prompt for pair in train)
    num_weights = sum(parameter.numel() for parameter in trainee.model.parameters())
    num_trained = sum(parameter.numel() for parameter in trainee.trained().values())
    report.say(
        f"training: {len(train):,} pairs, {num_tokens:,} tokens, {num_completion:,} of them to "
        f"learn; validation: {len(valid):,} pairs"
    )
    report.say(
        f"model: {num_weights / 1e6:.2f} million parameters, {num_trained / 1e6:.2f} trained, "
        f"on {device} in {precision}, {torch.get_num_threads()} threads"
    )
    return Prepared(settings, run_folder, trainee, train, valid, device, precision)


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16". auto takes bf16 where the processor multiplies it natively: elsewhere it
    is slower. Weights, gradients and the optimizer are float32 in both."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return "bf16" if native else "fp32"
    return "fp32"


def _config(settings: SftSettings, device: torch.device, precision: str) -> dict[str, Any]:
    """What config.json says of a run: settings, data, machine, versions."""
    import transformers

    data = {"sha256": file_sha256(settings.pairs), "base": _base_identity(settings)}
    versions = {
        "promptadapt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    machine = {"device": str(device), "precision": precision, "threads": torch.get_num_threads()}
    config: dict[str, Any] = {
        "trainer": "sft",
        "settings": dataclasses.asdict(settings),
        "data": data,
        "machine": machine,
        "versions": versions,
    }
    config["settings"] = {k: v for k, v in config["settings"].items() if k not in FREE_SETTINGS}
    return config


def _begun(
    run_folder: runs.RunFolder,
    settings: SftSettings,
    config: dict[str, Any],
    report: runs.Reporter,
) -> Path | None:
    """The checkpoint of a run that goes on, once its config.json is compared with `config`; None
    where no state was saved yet."""
    old = run_folder.config("sft")
    if old is None:
        return None
    data, machine, versions = (config[name] for name in ("data", "machine", "versions"))
    defaults = dataclasses.asdict(SftSettings())  # of settings that are newer than the run
    _refuse_changes({**defaults, **old["settings"]}, config["settings"])
    if old.get("data") != data:
        changed = "pairs" if old["data"].get("sha256") != data["sha256"] else "base"
        name = getattr(settings, changed)
        raise SettingsError("resume", f"--{changed}: {name} is not what the run began with")
    if old.get("machine") != machine or old.get("versions") != versions:
        report.say(
            "the machine or the versions differ from the start of the run (config.json): it goes "
            "on, but its weights will not equal an uninterrupted run's bit for bit"
        )
    runs.finish_replacing(run_folder.path / "last")
    last = run_folder.path / "last"
    # Without a state the run begins again, and last/ may be further than its beginning.
    return last if last.is_dir() and (run_folder.path / runs.STATE_NAME).is_file() else None


def _refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """SettingsError("resume", ...) naming the settings in which a resumed run differs. The files
    may have moved; their contents are compared elsewhere."""
    free = FREE_SETTINGS | {"pairs"} | ({"base"} if Path(new["base"]).is_dir() else set())
    changes = [
        f"{flag(name)} was {old.get(name)!r} and is now {new[name]!r}"
        for name in new
        if name not in free and old.get(name) != new[name]
    ]
    if changes:
        raise SettingsError("resume", f"the run began with other settings: {'; '.join(changes)}")


def _base_identity(settings: SftSettings) -> str:
    """First digits of the SHA-256 of a base folder's weights; "" for other bases."""
    folder = Path(settings.base)
    if settings.base == SCRATCH or not folder.is_dir():
        return ""
    return file_identity(weight_files(folder))


def _sequences(
    splits: dict[str, list[Pair]],
    trainee: Trainee,
    settings: SftSettings,
    report: runs.Reporter,
) -> tuple[list[TokenPair], list[TokenPair]]:
    """The training and the validation pairs in tokens; says how many were too long."""
    made = {}
    num_left_out = 0
    splits = {**splits, "valid": _some(splits["valid"], settings.max_valid_pairs)}
    for split, pairs in splits.items():
        made[split], longer = to_sequences(pairs, trainee.policy, settings.max_length)
        num_left_out += longer
    if num_left_out:
        report.say(f"left out {num_left_out:,} pairs longer than {settings.max_length} tokens")
    if not made["train"]:
        raise SettingsError("max_length", f"every pair is longer than {settings.max_length} tokens")
    if not made["valid"]:
        report.say('no pairs with "split": "valid": best/ will be the latest checkpoint')
    return made["train"], made["valid"]


def _some(pairs: list[Pair], limit: int) -> list[Pair]:
    """At most `limit` of the pairs, always the same ones, from all over the file; 0 takes all."""
    if not limit or len(pairs) <= limit:
        return pairs
    chosen = sorted(random.Random(0).sample(range(len(pairs)), limit))
    return [pairs[index] for index in chosen]
