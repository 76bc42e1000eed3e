"""The settings of a job: a host renders one user input as several pictures, and asks once.

`JobSettings` is the one table behind the controls of a web page, their order in a request, and
what a picture remembers. Text only: imports no torch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from .model_folders import LAB_SCORER
from .policies import DEFAULT_POLICY
from .reward_settings import RewardSettings
from .settings import MAX_SEED, AdaptSettings, Settings, SettingsError, setting

AUTO = "auto"  # a mode that is left to the policy
IMAGE_SEED = -1  # a seed that is the picture's
SAME, DIFFERENT = "same", "different"
KEEP_OFF, KEEP_ALL, KEEP_BEST = "off", "all", "best"
MOST_CANDIDATES = 64


def _taken(cls: type[Settings], name: str, told: str = "") -> Any:
    """A field of another table, with its default, its range and, without told, its help."""
    found = {field.name: field for field in dataclasses.fields(cls)}[name]  # type: ignore[arg-type]
    metadata = {**found.metadata, "help": told or found.metadata["help"]}
    return dataclasses.field(default=found.default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class JobSettings(Settings):
    """Requests give the values by place, so this order stays as it is; new fields go last."""

    policy: str = setting(
        DEFAULT_POLICY, "a policy of this extension, or a folder in models/promptadapt"
    )
    mode: str = setting(
        AUTO,
        "auto: as the policy was trained to write; beam: the likeliest; diverse: groups of beams "
        "that differ; sample: drawn with the seed",
        choices=(AUTO, "beam", "diverse", "sample"),
    )
    num_candidates: int = _taken(AdaptSettings, "num_candidates")
    seed: int = setting(
        IMAGE_SEED, "-1: the seed of the first image", low=IMAGE_SEED, high=MAX_SEED
    )
    token_budget: int = _taken(AdaptSettings, "token_budget")
    keep: tuple[str, ...] = setting((), "spans that must come back verbatim, one a line")
    ban: tuple[str, ...] = setting((), "words or phrases that must not be added, one a line")
    gate: bool = _taken(AdaptSettings, "gate")
    rank: int = setting(1, "which candidate to use; 1 is the best", low=1, high=MOST_CANDIDATES)
    images: str = setting(
        SAME,
        "same: one adapted prompt for all images; different: another candidate for each image",
        choices=(SAME, DIFFERENT),
    )
    keep_best: str = setting(
        KEEP_OFF,
        "render the plain input and every candidate and score them. all: return them sorted; "
        "best: return the best for each seed, which may be the plain input",
        choices=(KEEP_OFF, KEEP_ALL, KEEP_BEST),
    )
    scorer: str = setting(LAB_SCORER, "what judges the pictures; lab judges the lab's only")
    aesthetic_weight: float = _taken(
        RewardSettings, "aesthetic_weight", "of the pictures' aesthetic score"
    )
    relevance_weight: float = _taken(RewardSettings, "relevance_weight")

    def candidates_wanted(self, num_images: int) -> int:
        """How many candidates a job of so many pictures needs."""
        if self.images == DIFFERENT and self.keep_best == KEEP_OFF:
            return max(self.num_candidates, min(num_images, MOST_CANDIDATES))
        return max(self.num_candidates, self.rank if self.keep_best == KEEP_OFF else 1)

    def for_adapter(self, image_seed: int, num_images: int = 1) -> dict[str, Any]:
        """The settings that an adapter takes, as a command line would give them."""
        given = {
            "num_candidates": self.candidates_wanted(num_images),
            "seed": image_seed % (MAX_SEED + 1) if self.seed == IMAGE_SEED else self.seed,
            "token_budget": self.token_budget,
            "keep": self.keep,
            "ban": self.ban,
            "gate": self.gate,
        }
        return given if self.mode == AUTO else {**given, "mode": self.mode}


NAMES = tuple(field.name for field in dataclasses.fields(JobSettings))
ADAPTING_NAMES = NAMES[: NAMES.index("keep_best")]  # what a host takes that renders by itself


def job_settings(values: Mapping[str, Any]) -> JobSettings:
    """Settings of values by name, as controls and requests give them: None stands for the default,
    lists may come as text with one item a line, whole numbers as 3.0. SettingsError otherwise."""
    kinds = typing.get_type_hints(JobSettings)
    unknown = [name for name in values if name not in kinds]
    if unknown:
        raise SettingsError(str(unknown[0]), f"no such setting; there are {', '.join(NAMES)}")
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, str) and typing.get_origin(kinds[name]) is tuple:
            given[name] = tuple(line for line in map(str.strip, value.split("\n")) if line)
        elif kinds[name] is int and type(value) is float and value.is_integer():
            given[name] = int(value)
    return JobSettings(**given)


def from_arguments(values: Sequence[Any], names: Sequence[str] = NAMES) -> JobSettings:
    """Settings of values by place; those that are missing at the end are the defaults."""
    if len(values) > len(names):
        reason = f"expected at most {len(names)} values ({', '.join(names)}), got {len(values)}"
        raise SettingsError("script_args", reason)
    return job_settings(dict(zip(names, values, strict=False)))


def sent_arguments(values: Sequence[Any], num_expected: int, num_missing: int) -> list[Any]:
    """The values that a request really gave. values: what reached the script; num_missing: by how
    many the arguments of all scripts together are too few (too many, if negative).

    A host cuts the arguments of all scripts out of one list by place. Where a request gave fewer
    than a script expects, those of the next script move up and would be taken for its own.
    """
    if num_missing < 0:
        reason = f"expected at most {num_expected} values, got {num_expected - num_missing}"
        raise SettingsError("script_args", reason)
    return list(values[: max(num_expected - num_missing, 0)])


def switched(
    values: Sequence[Any], names: Sequence[str], axes: Mapping[str, Any]
) -> tuple[bool, JobSettings]:
    """(whether to adapt, how) of values that begin with the switch. axes: settings of this job
    alone, which go before the values and switch on."""
    enabled = values[0] if values else False
    if enabled not in (True, False, None):
        raise SettingsError("enabled", f"expected true or false, got {enabled!r:.80}")
    if not (enabled or axes):
        return False, JobSettings()
    given = dict(zip(names, values[1:], strict=False))
    return True, job_settings({**given, **axes})
