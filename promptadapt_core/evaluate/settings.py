"""The settings of an evaluation, once: default, range, help; and which rows were asked for."""

from __future__ import annotations

import csv
import dataclasses
import re

from ..pipeline_settings import PipelineRendering
from ..settings import MAX_SEED, SettingsError, setting

LAB = "lab"
EVALUATION_SEED = 90_001  # trainings use seeds below 1000
PLAIN, SUFFIX, BEST_OF_N, PEOPLE, ORACLE = "user_input", "suffix", "best_of_n", "people", "oracle"
POLICY = "policy"  # the kind of every row NAME=FOLDER
BUILT_IN = (PLAIN, SUFFIX, BEST_OF_N, PEOPLE, ORACLE)
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
MAX_LAB_INPUTS = 2000  # of one domain: the lab has a few thousand that no training saw


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """A row that was asked for. kind: POLICY or its own name. folders: of the policies; several
    are training seeds of one method."""

    name: str
    kind: str
    folders: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(PipelineRendering):
    """What is compared, on what, and how far the searches for suffix and oracle go."""

    renderer: str = setting(
        LAB,
        "what draws: lab, the folder of a diffusers pipeline, a checkpoint of one .safetensors "
        "file, or with --download a name of the hub",
        metavar="lab|FOLDER|FILE|NAME",
    )
    scorer: str = setting(LAB, "lab, or a folder with scorer.json", metavar="lab|FOLDER")
    judge: str = setting(
        "auto",
        "a held-out judge: none, lab, a folder, or auto: the lab's where the lab draws",
        metavar="auto|none|lab|FOLDER",
    )
    user_inputs: str = setting(
        "",
        "one a line (.txt), or .jsonl with user_input and, where known, domain and target (what a "
        "person wrote of it); without it the lab makes its own",
        metavar="FILE",
    )
    exclude: tuple[str, ...] = setting(
        (), "leave out user inputs that this file has, .txt or .jsonl; may be repeated",
        metavar="FILE",
    )  # fmt: skip
    rows: str = setting(
        "user_input,suffix,best_of_n",
        "what to compare, separated by commas: user_input, suffix, best_of_n, people, oracle (lab "
        'only), and policies as NAME=FOLDER, "NAME=FOLDER" where the folder has a comma; a NAME '
        "given several times is one method with several training seeds; those called sft and rl "
        "are held against what must show",
        metavar="ROW,ROW,...",
    )
    out: str = setting("", "folder for the report; the same command goes on", metavar="FOLDER")
    num_inputs: int = setting(
        0, "user inputs of each domain; 0 is 200 of the lab's, and all of a file", low=0
    )
    suffix: str = setting("", "the constant suffix; the lab can tune one by itself", metavar="TEXT")
    decoding: str = setting(
        "own",
        "own: each policy as it is shipped, one candidate; greedy: its likeliest text, without "
        "gate and least number of modifiers",
        choices=("own", "greedy"),
    )
    seed: int = setting(
        EVALUATION_SEED, "of the lab's user inputs and of the bootstrap", low=0, high=MAX_SEED - 2
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")
    num_suffix_inputs: int = setting(
        48, "user inputs that the suffix is tuned on", low=1, high=2000
    )
    num_suffix_renders: int = setting(
        120, "suffixes tried, each on up to 16 of those user inputs", low=1
    )
    num_oracle_inputs: int = setting(
        60, "user inputs of each domain that the oracle searches; 0 is all", low=0
    )
    num_oracle_renders: int = setting(
        100, "sets of modifiers tried for each of them; the lab has 51 modifiers", low=1
    )
    num_oracle_images: int = setting(
        1, "pictures of each set in the search; the best are confirmed on four others", low=1,
        high=64,
    )  # fmt: skip
    num_shown: int = setting(
        8, "user inputs of each domain whose pictures the page shows", low=0, high=1000
    )
    num_draws: int = setting(1000, "resamplings behind each interval", low=100, high=20_000)


def planned_rows(settings: EvaluateSettings) -> list[RowPlan]:
    """The rows in their order; user_input, which costs nothing more, is always the first.

    SettingsError("rows" or "suffix", ...) for what is unknown or cannot be had here.
    """
    folders: dict[str, list[str]] = {PLAIN: []}
    for part in _parts(settings.rows):
        name, equals, folder = (text.strip() for text in part.partition("="))
        if not name:
            raise SettingsError("rows", "expected rows separated by commas, got an empty one")
        if not equals and name not in BUILT_IN:
            told = ", ".join(BUILT_IN)
            raise SettingsError("rows", f"expected {told} or NAME=FOLDER, got {name[:80]!r}")
        if equals and (name in BUILT_IN or not ROW_NAME.fullmatch(name)):
            raise SettingsError("rows", f"a policy cannot be called {name[:80]!r}")
        if equals and not folder:
            raise SettingsError("rows", f"expected the folder of a policy after {name}=")
        known = folders.setdefault(name, [])
        if equals and folder in known:
            raise SettingsError("rows", f"{name}={folder} is there twice")
        known += [folder] if equals else []
    plans = [
        RowPlan(name, POLICY if found else name, tuple(found)) for name, found in folders.items()
    ]
    if settings.renderer != LAB:
        if ORACLE in folders:
            raise SettingsError("rows", "the oracle knows the lab's modifiers only")
        if SUFFIX in folders and not settings.suffix.strip(" ,"):
            raise SettingsError(
                "suffix", "only the lab tunes one by itself; expected the text, or rows without it"
            )
    return plans


def _parts(rows: str) -> list[str]:
    try:
        return next(csv.reader([rows], skipinitialspace=True, strict=True)) or [""]
    except csv.Error as error:
        raise SettingsError("rows", f"expected rows separated by commas: {error}") from None
