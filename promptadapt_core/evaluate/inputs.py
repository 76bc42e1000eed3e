"""The user inputs of an evaluation: of a file, or of the lab."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..prompts import parse
from ..settings import SettingsError
from .settings import LAB, MAX_LAB_INPUTS, EvaluateSettings

DEFAULT_DOMAIN = "inputs"
LAB_DOMAINS = {"in-domain": False, "out-of-domain": True}  # whether something is held out
NUM_LAB_INPUTS = 200
NUM_TRAINING_INPUTS, TRAINING_SEED = 20_000, 0  # user inputs that a policy of the lab may have seen
NUM_TRAINING_PAIRS, PAIRS_SEED = 30_000, 7  # the pairs of its SFT policy, as its card says
MOST_DRAWN = 40_000
MOST_DOMAINS, MOST_DOMAIN_CHARACTERS = 12, 60


@dataclasses.dataclass(frozen=True)
class EvaluationInput:
    """target: what a person wrote of it, "" where that is not known."""

    user_input: str
    domain: str
    target: str = ""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """rows: different user inputs, those of a domain together. notes: what was left out, for the
    user."""

    rows: list[EvaluationInput]
    notes: list[str]

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(row.domain for row in self.rows))

    def places_of(self, domain: str) -> list[int]:
        """The numbers of the rows of a domain."""
        return [place for place, row in enumerate(self.rows) if row.domain == domain]


def load_inputs(settings: EvaluateSettings) -> Inputs:
    """SettingsError("user_inputs", ...) for a file that is missing, broken or empty."""
    excluded = {
        row.user_input for path in settings.exclude for row in read_rows(path, "exclude")[0]
    }
    if settings.user_inputs:
        rows, num_double = read_rows(settings.user_inputs, "user_inputs")
    elif settings.renderer == LAB:
        number = settings.num_inputs or NUM_LAB_INPUTS
        rows, num_double = lab_inputs(number, settings.seed, excluded), 0
    else:
        raise SettingsError("user_inputs", "expected a file of user inputs")
    notes = [f"left out {num_double:,} user inputs that are there twice"] if num_double else []
    kept = [row for row in rows if row.user_input not in excluded]
    if len(kept) < len(rows):
        notes.append(f"left out {len(rows) - len(kept):,} user inputs that are to be excluded")
    if not kept:
        raise SettingsError("user_inputs", "all of them are to be excluded")
    by_domain: dict[str, list[EvaluationInput]] = {}
    for row in kept:
        by_domain.setdefault(row.domain, []).append(row)
    if len(by_domain) > MOST_DOMAINS:
        reason = f"expected at most {MOST_DOMAINS} domains, got {len(by_domain):,}"
        raise SettingsError("user_inputs", reason)
    number = settings.num_inputs or len(kept)
    return Inputs([row for part in by_domain.values() for row in part[:number]], notes)


def read_rows(path: str | Path, name: str) -> tuple[list[EvaluationInput], int]:
    """The different user inputs of a file in their order, and how many came again.

    .txt: one a line. .jsonl: objects with the text user_input; the texts domain and target may be
    there. SettingsError(name, ...) names the line that is broken.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise SettingsError(name, f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise SettingsError(name, f"{path} is not UTF-8 text") from None
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(name, f"{path} cannot be read ({reason})") from None
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        raise SettingsError(name, f"{path} is expected as .jsonl, one object a line")
    as_json = suffix == ".jsonl"
    found: dict[str, EvaluationInput] = {}
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {line_number} of {path}"
        row = _from_json(line, place, name) if as_json else _plain(line)
        try:
            parse(row.user_input)
        except SettingsError as error:
            raise SettingsError(name, f"{place}: {error.reason}") from None
        number += 1
        found.setdefault(row.user_input, row)
    if not found:
        raise SettingsError(name, f"{path} holds no user inputs")
    return list(found.values()), number - len(found)


def _plain(line: str) -> EvaluationInput:
    return EvaluationInput(line.strip(), DEFAULT_DOMAIN)


def _from_json(line: str, place: str, name: str) -> EvaluationInput:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise SettingsError(name, f"{place} is not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("user_input"), str):
        raise SettingsError(name, f"{place} needs the text user_input")
    domain = " ".join(_text(row, "domain", place, name).split()) or DEFAULT_DOMAIN
    if len(domain) > MOST_DOMAIN_CHARACTERS or not domain.isprintable():
        raise SettingsError(
            name,
            f"{place}: expected a domain of at most {MOST_DOMAIN_CHARACTERS} characters that can "
            "be printed",
        )
    return EvaluationInput(row["user_input"].strip(), domain, _text(row, "target", place, name))


def _text(row: dict[str, Any], field: str, place: str, name: str) -> str:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise SettingsError(name, f"{place}: expected a text as {field}")
    text = (value or "").strip()
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise SettingsError(name, f"{place}: {field} has half a character (a surrogate)")
    return text


def lab_inputs(number: int, seed: int, others: Iterable[str] = ()) -> list[EvaluationInput]:
    """`number` of each of LAB_DOMAINS that no training saw, and none of `others`; those in domain
    have a target, by one of the lab's writers, who never write what is out of domain."""
    rows = []
    for domain, held_out in LAB_DOMAINS.items():
        for user_input in unseen_inputs(number, seed, held_out, others):
            target = "" if held_out else _written(user_input, seed)
            rows.append(EvaluationInput(user_input, domain, target))
    return rows


def unseen_inputs(number: int, seed: int, held_out: bool, others: Iterable[str]) -> list[str]:
    """The lab's user inputs of a seed without those of training and without `others`."""
    from ..lab.writers import user_inputs

    if number > MAX_LAB_INPUTS:
        raise SettingsError("num_inputs", f"the lab has at most {MAX_LAB_INPUTS:,} of a domain")
    seen = training_inputs(held_out).union(others)
    num_drawn = 2 * number
    while True:
        found = [text for text in user_inputs(num_drawn, seed, held_out) if text not in seen]
        if len(found) >= number:
            return found[:number]
        if num_drawn > MOST_DRAWN:
            raise SettingsError("num_inputs", f"the lab found {len(found)} that no training saw")
        num_drawn *= 2


@functools.lru_cache(maxsize=2)  # seconds of work
def training_inputs(held_out: bool) -> frozenset[str]:
    """User inputs of the lab that a policy may have been trained on. What the writers of its pairs
    typed is in domain."""
    from ..lab.writers import user_inputs, write_pairs

    seen = user_inputs(NUM_TRAINING_INPUTS, TRAINING_SEED, held_out)
    pairs = () if held_out else write_pairs(NUM_TRAINING_PAIRS, PAIRS_SEED)
    return frozenset(seen).union(pair.user_input for pair in pairs)


def _written(user_input: str, seed: int) -> str:
    """What a simulated person writes of the scene: its content in plain words, then modifiers."""
    from ..data.pairs import join
    from ..lab.captions import describe, read
    from ..lab.scenes import weighted
    from ..lab.writers import WRITER_SHARES, WRITERS, choose_modifiers

    generator = random.Random(f"evaluation target {seed} {user_input}")
    scene = dataclasses.replace(read(user_input), modifiers=())
    writer = WRITERS[weighted(generator, WRITER_SHARES)]
    return join(describe(scene, generator, "plain"), choose_modifiers(writer, scene, generator))


def described(inputs: Inputs) -> dict[str, int]:
    """How many there are of each domain."""
    return dict(Counter(row.domain for row in inputs.rows))
