"""Simulated people who write prompts, of differing skill, and what SFT learns from them.

A writer fills the places of a prompt one by one: with a praise word, with a modifier that is worth
something in this scene as far as the writer can tell, with one of the person's own favourites, or
by mistake with one that spoils the picture. Learning from them is good but far from best. They
never write the held-out subjects, places and styles: those are the out-of-domain test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable
from pathlib import Path

from ..data.build import write_atomically
from ..data.pairs import join
from .captions import HELD_OUT_STYLES, STYLES, describe
from .scenes import Scene, sample_scene, weighted
from .taste import NAMES, combination_values, modifier_values
from .vocabulary import EFFECTIVE, HELD_OUT_PLACES, HELD_OUT_SUBJECTS, MODIFIERS


@dataclasses.dataclass(frozen=True)
class Writer:
    """Shares of praise, spoilers and choices by the scene; the rest are favourites of the person.

    blur: how roughly the writer feels what a modifier is worth, points of taste; small is sharp.
    looks_around: whether the modifiers already there count. lengths: (modifiers, weight).
    """

    name: str
    share: float
    praise: float
    spoilers: float
    by_scene: float
    blur: float
    looks_around: bool
    lengths: tuple[tuple[int, float], ...]


WRITERS = (
    Writer(
        name="novice", share=0.35, praise=0.40, spoilers=0.02, by_scene=0.42, blur=0.28,
        looks_around=False, lengths=((1, 3), (2, 4), (3, 4), (4, 2), (5, 1), (6, 0.5), (7, 0.3)),
    ),
    Writer(
        name="hobbyist", share=0.40, praise=0.15, spoilers=0.015, by_scene=0.73, blur=0.23,
        looks_around=False, lengths=((1, 1), (2, 3), (3, 4), (4, 3), (5, 0.7), (6, 0.2)),
    ),
    Writer(
        name="expert", share=0.25, praise=0.06, spoilers=0.01, by_scene=0.87, blur=0.20,
        looks_around=True, lengths=((2, 2), (3, 4), (4, 4), (5, 1)),
    ),
)  # fmt: skip
WRITER_SHARES = tuple((number, writer.share) for number, writer in enumerate(WRITERS))
NUM_FAVOURITES = 4  # of one person
WITH_ONE_MODIFIER = 0.25  # of the user inputs
VALID_SHARE = 0.03  # of the scenes, for validation

WRITTEN_STYLES = tuple(style for style in STYLES if style not in HELD_OUT_STYLES)
STYLE_WEIGHTS = {"label": 3.0, "plain": 3.0, "caption": 2.0, "request": 1.0}

PRAISE = tuple(modifier.name for modifier in MODIFIERS if modifier.effect == "none")
SPOILERS = tuple(modifier.name for modifier in MODIFIERS if modifier.effect == "spoils")
USEFUL = tuple(modifier.name for modifier in EFFECTIVE if modifier.name not in SPOILERS)
_USEFUL_INDEX = [NAMES.index(name) for name in USEFUL]


@dataclasses.dataclass(frozen=True)
class WriterPair:
    """scene: what the target says, modifiers included. main: the target without them."""

    user_input: str
    target: str
    main: str
    writer: str
    style: str
    scene: Scene


def write_pairs(number: int, seed: int) -> list[WriterPair]:
    """The first `number` pairs of the seed: pair i does not depend on how many there are."""
    return [_numbered_pair(seed, i) for i in range(number)]


def _numbered_pair(seed: int, number: int) -> WriterPair:
    return _write_pair(random.Random(f"writers {seed} {number}"))


def _write_pair(generator: random.Random) -> WriterPair:
    writer = WRITERS[weighted(generator, WRITER_SHARES)]
    content = _plain_scene(generator, held_out=False)
    modifiers = choose_modifiers(writer, content, generator)
    main = _main(content, generator)
    style = generator.choices(list(STYLE_WEIGHTS), list(STYLE_WEIGHTS.values()))[0]
    typed = modifiers[:1] if generator.random() < WITH_ONE_MODIFIER else ()
    if style == "plain":  # the target goes on where the person stopped
        user_input = join(main, typed)
    else:
        user_input = describe(dataclasses.replace(content, modifiers=typed), generator, style)
    scene = dataclasses.replace(content, modifiers=modifiers)
    return WriterPair(user_input, join(main, modifiers), main, writer.name, style, scene)


def _main(content: Scene, generator: random.Random) -> str:
    """The content in plain words, things before the place: "a red cat by the sea"."""
    while True:
        main = describe(content, generator, "plain")
        if content.place is None or not main.startswith(content.place):
            return main


def choose_modifiers(writer: Writer, scene: Scene, generator: random.Random) -> tuple[str, ...]:
    """What a person of that skill adds to the scene: 1 to 7 different modifiers."""
    favourites = generator.sample(USEFUL, NUM_FAVOURITES)
    values = dict(zip(NAMES, modifier_values(scene), strict=True))
    chosen: list[str] = []
    for _ in range(weighted(generator, writer.lengths)):
        point = generator.random()
        if point < writer.praise:
            candidates = PRAISE
        elif point < writer.praise + writer.spoilers:
            candidates = SPOILERS
        elif point < writer.praise + writer.spoilers + writer.by_scene:
            chosen.append(_by_scene(writer, values, chosen, generator))
            continue
        else:
            candidates = tuple(favourites)
        left = [name for name in candidates if name not in chosen]
        chosen.append(generator.choice(left or [n for n in PRAISE if n not in chosen]))
    return tuple(chosen)


def _by_scene(
    writer: Writer, values: dict[str, float], chosen: list[str], generator: random.Random
) -> str:
    """One of the useful modifiers, likelier the more it is worth here."""
    pairs = combination_values()
    beside = [NAMES.index(name) for name in chosen] if writer.looks_around else []
    left = [
        (name, values[name] + float(sum(pairs[index, other] for other in beside)))
        for name, index in zip(USEFUL, _USEFUL_INDEX, strict=True)
        if name not in chosen
    ]
    weights = [math.exp(value / writer.blur) for _, value in left]
    return generator.choices([name for name, _ in left], weights)[0]


def _plain_scene(generator: random.Random, held_out: bool) -> Scene:
    """A scene without modifiers. held_out: whether it may have held-out subjects and places."""
    while True:
        scene = dataclasses.replace(sample_scene(generator), modifiers=())
        if held_out or not is_held_out(scene):
            return scene


def is_held_out(scene: Scene) -> bool:
    """Whether a subject or the place is one that the writers never write."""
    subjects = {thing.subject for thing in scene.things}
    return scene.place in HELD_OUT_PLACES or not subjects.isdisjoint(HELD_OUT_SUBJECTS)


def user_inputs(number: int, seed: int, held_out: bool) -> list[str]:
    """`number` different plain user inputs, for RL and evaluation.

    held_out False: in domain, as the writers' scenes and phrasings are. held_out True: each has a
    held-out subject, place or style, and some have two of them.
    """
    generator = random.Random(f"user inputs {seed} {held_out}")
    found: dict[str, None] = {}
    while len(found) < number:
        style = generator.choice(STYLES if held_out else WRITTEN_STYLES)
        scene = _plain_scene(generator, held_out)
        if held_out and style not in HELD_OUT_STYLES and not is_held_out(scene):
            continue
        found[describe(scene, generator, style)] = None
    return list(found)


def mixed_user_inputs(number: int, seed: int) -> list[str]:
    """`number` different user inputs, in domain and out of domain in turn, in domain first."""
    inside = user_inputs(number - number // 2, seed, held_out=False)
    outside = user_inputs(number // 2, seed, held_out=True)
    pairs = itertools.zip_longest(inside, outside)
    return [text for pair in pairs for text in pair if text is not None]


def user_inputs_text(path: str | Path, number: int, seed: int, domain: str = "both") -> int:
    """Write different user inputs, one a line, as `python -m promptadapt_core.train ppo` reads
    them; how many. domain: "in", "out", or "both" (see mixed_user_inputs).

    SettingsError("out", ...) where the file cannot be written.
    """
    if domain == "both":
        found = mixed_user_inputs(number, seed)
    else:
        found = user_inputs(number, seed, held_out=domain == "out")
    write_atomically(Path(path), (f"{text}\n" for text in found))
    return len(found)


def pairs_jsonl(path: str | Path, number: int, seed: int) -> None:
    """Write pairs as `python -m promptadapt_core.train sft --pairs` reads them.

    All pairs of one content are in the same split. SettingsError("out", ...) where the file cannot
    be written.
    """
    write_atomically(Path(path), _lines(_numbered_pair(seed, i) for i in range(number)))


def _lines(pairs: Iterable[WriterPair]) -> Iterable[str]:
    for pair in pairs:
        row = {
            "user_input": pair.user_input,
            "target": pair.target,
            "main": pair.main,
            "kind": pair.writer,
            "split": _split(pair.scene),
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _split(scene: Scene) -> str:
    """By the content alone, the same for every seed."""
    content = repr((scene.things, scene.relation, scene.place))
    digest = hashlib.sha256(content.encode()).digest()
    return "valid" if int.from_bytes(digest[:8], "big") < VALID_SHARE * 2**64 else "train"
