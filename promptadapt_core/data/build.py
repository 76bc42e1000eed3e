"""The flow from engineered prompts to pairs: read, clean, split, drop near copies, pair, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..modifiers import clean, normal
from ..moving import move
from ..prompts import content_words
from ..settings import SettingsError
from . import report, vocabulary
from .duplicates import Clusters, near_pairs
from .pairs import Pair, make_pairs, parse_kinds
from .reading import SPLITS, Row, read_rows
from .settings import DataSettings
from .stock import rows_to_keep
from .targets import Target, finished, make_target


@dataclass
class Example:
    """A row that makes pairs."""

    row: Row
    target: Target
    split: str
    cluster: str


def build(settings: DataSettings) -> dict[str, Any]:
    """Write the pairs and the report; returns the report (see report.summarise)."""
    kinds = parse_kinds(settings.kinds)
    out = checked_out(settings)
    counts: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {"used": Counter(), "left out": Counter()}
    examples = split_examples(read_targets(settings, counts, sources), settings)
    examples = finish(examples, settings, counts)
    examples = drop_straddling(examples, counts)
    examples = thin_out(examples, settings, counts)
    if not examples:
        reasons = ", ".join(f"{name} {count}" for name, count in counts.most_common() if count)
        raise SettingsError("prompts", f"no row of {settings.prompts} makes a pair ({reasons})")
    phrasings = instructed(examples, kinds, settings)
    rows_out = list(pair_rows(examples, kinds, settings, phrasings, counts))
    write_atomically(out, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_out))
    summary = report.summarise(settings, counts, sources, rows_out, [e.target for e in examples])
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    write_atomically(report_path(out), [text, "\n"])
    return summary


def checked_out(settings: DataSettings) -> Path:
    """The path of the pairs, before any work is done for nothing."""
    out = Path(settings.out)
    try:
        if not settings.out or (out.exists() and not out.is_file()):  # a folder or a device
            raise SettingsError("out", f"expected a file name, got {settings.out!r}")
        if not out.parent.is_dir():
            raise SettingsError("out", f"the folder {out.parent} does not exist")
    except OSError as error:
        raise SettingsError("out", f"no file can have this name ({error.strerror})") from None
    if settings.prompts and out.resolve() == Path(settings.prompts).resolve():
        raise SettingsError("out", "the pairs would overwrite the prompts")
    if settings.valid_share + settings.test_share >= 1.0:
        raise SettingsError("valid_share", "with test_share it leaves nothing to train on")
    return out


def read_targets(
    settings: DataSettings, counts: Counter[str], sources: dict[str, Counter[str]]
) -> list[tuple[Row, Target]]:
    """The rows with a usable main content. Fills `counts` (reasons) and `sources`."""
    found = []
    seen: set[str] = set()
    for row in read_rows(settings.prompts, settings.limit):
        counts["read"] += 1
        if row.comes_only_from(settings.exclude_source):
            sources["left out"].update(row.sources)
            counts["source left out"] += 1
            continue
        sources["used"].update(row.sources or ("not named",))
        target = make_target(row, artists=settings.artists)
        if isinstance(target, str):
            counts[target] += 1
            continue
        key = target.text().lower()
        if key in seen:
            counts["same as an earlier row"] += 1
            continue
        seen.add(key)
        found.append((row, target))
    return found


def split_examples(found: list[tuple[Row, Target]], settings: DataSettings) -> list[Example]:
    """Give every row a split and a cluster.

    Rows keep what they carry. The others are clustered with their near copies; a cluster with a
    row that carries a split follows it, else a seeded hash of the cluster's name decides.
    """
    rows, targets = [row for row, _ in found], [target for _, target in found]
    clusters = Clusters(len(rows))
    if any(row.split is None or row.cluster is None for row in rows):
        first_of: dict[str, int] = {}
        for index, row in enumerate(rows):
            keys = [f"main {main_key(targets[index])}"]
            if row.cluster:
                keys.append(f"cluster {row.cluster}")
            for key in keys:
                clusters.join(first_of.setdefault(key, index), index)
        for first, second in near_pairs([word_set(target) for target in targets]):
            clusters.join(first, second)
    carried: dict[int, str] = {}
    names: dict[int, str] = {}
    for index, row in enumerate(rows):
        root = clusters.find(index)
        names[root] = min(row.id, names.get(root, row.id))
        if row.split is not None:
            carried[root] = max(row.split, carried.get(root, ""), key=rank)
    examples = []
    for index, row in enumerate(rows):
        root = clusters.find(index)
        split = row.split or carried.get(root) or hashed_split(names[root], settings)
        examples.append(Example(row, targets[index], split, row.cluster or names[root]))
    return examples


def finish(examples: list[Example], settings: DataSettings, counts: Counter[str]) -> list[Example]:
    """Keep the modifiers worth learning, by what is usual in the training split, and the rows
    with enough of them."""
    training = [example for example in examples if example.split == "train"]
    known = vocabulary.learn(
        [example.target for example in training],
        [example.cluster for example in training],
        () if settings.artists else (clean(e.row.engineered_prompt) for e in training),
    )
    kept = []
    for example in examples:
        target = known.filtered(example.target) if known else example.target
        if known and normal(target.main) in known.spellings:
            counts["main content is a modifier"] += 1
            continue
        done = finished(target, settings.min_modifiers)
        if isinstance(done, str):
            counts[done] += 1
        else:
            kept.append(dataclasses.replace(example, target=done))
    return kept


def rank(split: str) -> int:
    """Of two near copies, the one of the higher rank is kept."""
    return SPLITS.index(split) if split else -1


def hashed_split(name: str, settings: DataSettings) -> str:
    """The split of a cluster, by its name and the seed alone."""
    digest = hashlib.sha256(f"{settings.seed}/{name}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < settings.test_share:
        return "test"
    return "valid" if point < settings.test_share + settings.valid_share else "train"


def word_set(target: Target) -> frozenset[str]:
    return frozenset(content_words(target.text()))


def main_key(target: Target) -> str:
    """Two main contents with this in common are the same to a reader."""
    return normal(target.main)


def drop_straddling(examples: list[Example], counts: Counter[str]) -> list[Example]:
    """Drop rows that are near copies of, or share their main content with, a row of a later split
    (train before valid before test)."""
    word_sets = [word_set(example.target) for example in examples]
    own: dict[frozenset[str], int] = {}
    for words, example in zip(word_sets, examples, strict=True):
        own[words] = max(own.get(words, 0), rank(example.split))
    beside = dict(own)  # the highest split among a set's near copies
    for first, second in near_pairs(word_sets):
        one, other = word_sets[first], word_sets[second]
        beside[one] = max(beside[one], own[other])
        beside[other] = max(beside[other], own[one])
    highest: dict[str, int] = {}
    for example in examples:
        key = main_key(example.target)
        highest[key] = max(highest.get(key, 0), rank(example.split))
    kept = []
    for words, example in zip(word_sets, examples, strict=True):
        if rank(example.split) < beside[words]:
            counts["near copy in a held-out split"] += 1
        elif rank(example.split) < highest[main_key(example.target)]:
            counts["main content in a held-out split"] += 1
        else:
            kept.append(example)
    return kept


def thin_out(
    examples: list[Example], settings: DataSettings, counts: Counter[str]
) -> list[Example]:
    """Drop training rows that repeat stock phrases, where a limit is set."""
    training = [example for example in examples if example.split == "train"]
    if not settings.stock_limit:
        return examples
    ids = [example.row.id for example in training]
    lists = [example.target.modifiers for example in training]
    kept = rows_to_keep(ids, lists, settings.stock_limit, settings.seed)
    dropped = {id(training[row]) for row in range(len(training)) if row not in kept}
    counts["stock phrase"] += len(dropped)
    return [example for example in examples if id(example) not in dropped]


def instructed(
    examples: list[Example], kinds: tuple[str, ...], settings: DataSettings
) -> dict[str, list[str]]:
    """Rephrasings by the local instruction model, by main content; empty without one."""
    if not settings.rephraser or "rephrased" not in kinds:
        return {}
    from .instruction import Rephraser

    mains = list(dict.fromkeys(example.target.main for example in examples))
    return Rephraser(settings.rephraser).rephrase_all(mains, settings.seed)


def pair_rows(
    examples: list[Example],
    kinds: tuple[str, ...],
    settings: DataSettings,
    phrasings: dict[str, list[str]],
    counts: Counter[str],
) -> Iterable[dict[str, str]]:
    """The rows of the pairs file; no user input of a held-out split is in an earlier one."""
    made: list[tuple[Example, Pair]] = []
    highest: dict[str, int] = {}
    for example in examples:
        main = example.target.main
        for pair in make_pairs(
            example.row.id, example.target, kinds, settings.seed, phrasings.get(main, ())
        ):
            made.append((example, pair))
            key = normal(pair.user_input)
            highest[key] = max(highest.get(key, 0), rank(example.split))
    seen: set[tuple[str, str]] = set()
    for example, pair in made:
        if rank(example.split) < highest[normal(pair.user_input)]:
            counts["pairs: user input in a held-out split"] += 1
        elif (pair.user_input, pair.target) in seen:
            counts["pairs: made twice"] += 1
        else:
            seen.add((pair.user_input, pair.target))
            yield {
                "user_input": pair.user_input,
                "target": pair.target,
                "main": example.target.main,
                "kind": pair.kind,
                "split": example.split,
                "id": example.row.id,
                "cluster": example.cluster,
            }


def report_path(out: Path) -> Path:
    return out.with_name(out.name + ".report.json")


def write_atomically(path: Path, parts: Iterable[str]) -> None:
    """Write beside `path`, then rename: there is never half a file under that name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(parts)
        move(beside, path)
    except OSError as error:
        raise SettingsError("out", f"{path} cannot be written ({error.strerror})") from None
    finally:
        beside.unlink(missing_ok=True)
