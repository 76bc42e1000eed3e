"""What a run folder says of its run: config, metrics, alarms. Nothing is changed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import runs
from ..settings import SettingsError
from ..train.batches import file_sha256
from ..train.planning import SETTINGS

ALARMS_NAME = "alarms.jsonl"
# What is counted with here; others are only shown.
NUMBERS = {"num_episodes": 1, "rollout_size": 1, "group_size": 1, "num_rounds": 1, "lora_rank": 0}
LEVEL_ROWS = 5  # of metrics, at most, that the first and the last level are means of


@dataclasses.dataclass(frozen=True)
class Data:
    """A file that the run learned from. number: of its lines that count, 0 where that is not
    known any more."""

    what: str
    name: str
    sha256: str
    number: int


@dataclasses.dataclass(frozen=True)
class Run:
    """trainer: one of SETTINGS. rows: of metrics.jsonl. alarms: how many of each name."""

    path: Path
    trainer: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    alarms: dict[str, int]

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["settings"]

    @property
    def method(self) -> str:
        """ "ppo", "grpo", "rloo", "rejection", "dpo" or "sft"."""
        return self.settings.get("algorithm", self.trainer)

    @property
    def start(self) -> str:
        """The policy or the base that it began with, as it was named."""
        return str(self.settings.get("base" if self.trainer == "sft" else "policy", ""))

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def how_far(self) -> str:
        """ "47 of 47 iterations", "3 of 4 rounds", "3,600 steps"."""
        settings, step = self.settings, self.step
        if self.trainer == "ppo":
            number = math.ceil(settings["num_episodes"] / settings["rollout_size"])
            return f"{step:,} of {number:,} iterations"
        if self.trainer == "sft":
            return f"{step:,} steps"
        number = 1 if settings.get("votes") else int(settings["num_rounds"])
        return f"{min(step, number):,} of {number:,} rounds"

    def data(self) -> list[Data]:
        """The files that it learned from."""
        found = []
        for what, setting, key in (
            ("pairs", "pairs", "sha256"),
            ("user inputs", "user_inputs", "user_inputs"),
            ("votes", "votes", "votes"),
        ):
            sha256 = self.config["data"].get(key)
            if isinstance(sha256, str) and sha256:
                path = str(self.settings.get(setting, ""))
                number = _num_lines(path, sha256)
                if what == "user inputs" and not number:
                    number = self._num_inputs()
                found.append(Data(what, last_part(path), sha256, number))
        return found

    def levels(self, metric: str) -> tuple[float, float]:
        """Means of the first and of the last few rows that know the metric; nan of none."""
        values = [row[metric] for row in self.rows if isinstance(row.get(metric), int | float)]
        if not values:
            return math.nan, math.nan
        number = max(1, min(LEVEL_ROWS, len(values) // 2))
        return math.fsum(values[:number]) / number, math.fsum(values[-number:]) / number

    def last(self, metric: str) -> float:
        """The newest value; nan of none."""
        values = (row.get(metric) for row in reversed(self.rows))
        return next((float(v) for v in values if isinstance(v, int | float)), math.nan)

    def samples(self, number: int) -> list[tuple[str, str]]:
        """(user input, adapted prompt) of the newest ones that were written down."""
        files = sorted(self.path.glob("samples/*.jsonl"), reverse=True)
        files += sorted(self.path.glob("rounds/*/pairs.jsonl"), reverse=True)
        found: dict[str, str] = {}
        for row in (row for file in files for row in _json_lines(file)):
            text = row.get("adapted_prompt", row.get("target", row.get("chosen")))
            user_input = row.get("user_input")
            if isinstance(text, str) and isinstance(user_input, str) and len(found) < number:
                found.setdefault(user_input, text)
        return list(found.items())

    def _num_inputs(self) -> int:
        """Of PPO: by how often they have come."""
        passes = self.last("train/passes")
        if self.trainer != "ppo" or not passes > 0:
            return 0
        each = self.settings["rollout_size"] / self.settings["group_size"]
        return round(self.step * each / passes)


def read_run(folder: str | Path) -> Run:
    """SettingsError("run", ...) for what is no run folder, or one that saved nothing yet."""
    path = Path(folder)
    if not path.is_dir():
        raise SettingsError("run", f"there is no folder {folder}")
    try:
        config = json.loads((path / runs.CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError("run", f"{folder} is not a run: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError("run", f"{path / runs.CONFIG_NAME} cannot be read: {error}") from None
    known = isinstance(config, dict) and config.get("trainer") in [*SETTINGS]
    if not known or not all(isinstance(config.get(part), dict) for part in ("settings", "data")):
        raise SettingsError("run", f"{folder} is not a run of promptadapt_core.train")
    config = {**config, "settings": _with_defaults(config, path)}
    rows = [row for row in _json_lines(path / runs.METRICS_NAME) if type(row.get("step")) is int]
    alarms = Counter(str(row.get("name")) for row in _json_lines(path / ALARMS_NAME))
    return Run(path, config["trainer"], config, rows, dict(alarms))


def _with_defaults(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run; what it did not know yet has its default. SettingsError("run", ...)
    for a number that is none."""
    fields = dataclasses.fields(SETTINGS[config["trainer"]])
    settings = {**{field.name: field.default for field in fields}, **config["settings"]}
    for name, least in NUMBERS.items():
        value = settings.get(name, least)
        if type(value) is not int or value < least:
            reason = f"{name} is {value!r:.80} in {path / runs.CONFIG_NAME}, expected a number"
            raise SettingsError("run", reason)
    return settings


def checkpoint_of(run: Run, name: str) -> Path:
    """The folder best/ or last/ of the run; SettingsError("checkpoint", ...) where it is not."""
    folder = run.path / name
    if (folder / "config.json").is_file():
        return folder
    if folder.with_name(f"{name}.old").exists() or folder.with_name(f"{name}.new").exists():
        reason = f"{folder} was being replaced when the run was killed; go on with it by --resume"
        raise SettingsError("checkpoint", reason)
    raise SettingsError("checkpoint", f"{run.path} has no {name}/ yet")


def last_part(path: str) -> str:
    """The name of a file or folder without where it lies, which is nobody's business; best and
    last keep the name of their run."""
    parts = [part for part in re.split(r"[\\/]", path) if part not in ("", ".")]
    number = 2 if parts[-1:] in (["best"], ["last"]) else 1
    return "/".join(parts[-number:])


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; lines that are cut off are passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _num_lines(path: str, sha256: str) -> int:
    """Different lines with text, where the file is still the one that was learned from; else 0."""
    try:
        if file_sha256(path) != sha256:
            return 0
        lines = Path(path).read_bytes().split(b"\n")
    except (OSError, ValueError):
        return 0
    return len({line.strip() for line in lines if line.strip()})
