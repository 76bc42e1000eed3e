"""The sheets of the lab's report: pictures that a person can look at."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .captions import describe
from .drawing import draw
from .grids import Cell, folded, sheet
from .scenes import Scene, Thing, sample_scene
from .vocabulary import COLOURS, EFFECTIVE, PLACES, RELATIONS, SUBJECTS

if TYPE_CHECKING:
    from PIL import Image

Render = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # texts, seeds -> (N, 64, 64, 3)
COLOURS_SHOWN = ("red", "yellow", "blue", "white", "black")
SEEDED = (
    "a red house by the sea, golden hour",
    "a black cat beside a yellow umbrella in a room",
    "a white lighthouse in the snow, at night",
    "a green boat above a pink fish, watercolor",
)
PLAIN_SCENES = (
    Scene((Thing("house", "red"),), place="by the sea"),
    Scene((Thing("cat", "orange"),), place="in a room"),
    Scene((Thing("tree", "green"),), place="in a meadow"),
    Scene((Thing("car", "blue"),), place="in a city"),
    Scene((Thing("castle", "purple"),), place="in the mountains"),
)


@dataclasses.dataclass(frozen=True)
class Gallery:
    """name: of the picture file. text: what it shows."""

    name: str
    text: str
    picture: Image.Image


def galleries(render: Render, decoded: Callable[[np.ndarray], np.ndarray]) -> list[Gallery]:
    """All sheets. render: pictures of texts. decoded: pictures after the autoencoder."""
    return [
        drawn_and_rendered(render),
        modifiers_on_and_off(render),
        subjects_and_colours(render),
        places_and_relations(render),
        same_caption_other_seeds(render),
        autoencoded(decoded),
    ]


def drawn_and_rendered(render: Render, number: int = 24, columns: int = 8) -> Gallery:
    """The same scenes drawn by the world and rendered from their captions."""
    generator = random.Random("drawn and rendered")
    scenes = [sample_scene(generator) for _ in range(number)]
    captions = [describe(scene, generator) for scene in scenes]
    drawn = [Cell(_drawn(scene, row)) for row, scene in enumerate(scenes)]
    rendered = render(captions, range(number))
    cells = [Cell(*pair) for pair in zip(rendered, captions, strict=True)]
    rows, names = [], []
    for above, below in zip(folded(drawn, columns), folded(cells, columns), strict=True):
        rows += [above, below]
        names += ["drawn", "rendered"]
    text = "The same scenes drawn by the world (what the renderer learned from) and rendered."
    return Gallery("drawn_and_rendered", text, sheet(rows, names=names, scale=2))


def modifiers_on_and_off(render: Render, blocks: int = 3) -> Gallery:
    """Every modifier that changes pictures, drawn and rendered, without and with it."""
    plain = [PLAIN_SCENES[number % len(PLAIN_SCENES)] for number in range(len(EFFECTIVE))]
    changed = [
        dataclasses.replace(scene, modifiers=(modifier.name,))
        for scene, modifier in zip(plain, EFFECTIVE, strict=True)
    ]
    seeds = range(len(EFFECTIVE))
    off = render([plain_caption(scene) for scene in plain], seeds)
    on = render([plain_caption(scene) for scene in changed], seeds)
    cells = [
        [
            Cell(_drawn(plain[number], number), "drawn"),
            Cell(_drawn(changed[number], number), f"drawn, {modifier.name}"),
            Cell(off[number], "rendered"),
            Cell(on[number], f"rendered, {modifier.name}"),
        ]
        for number, modifier in enumerate(EFFECTIVE)
    ]
    text = "Every modifier that changes pictures: the same scene and seed without and with it."
    return Gallery("modifiers", text, _in_blocks(cells, blocks))


def subjects_and_colours(render: Render, blocks: int = 2) -> Gallery:
    """Every subject, drawn in red and rendered in some colours."""
    scenes = [
        [Scene((Thing(subject.name, colour),)) for colour in COLOURS_SHOWN] for subject in SUBJECTS
    ]
    captions = [plain_caption(scene) for row in scenes for scene in row]
    seeds = [number for number, row in enumerate(scenes) for _ in row]
    rendered = zip(render(captions, seeds), captions, strict=True)
    rows = [
        [
            Cell(_drawn(row[0], number), f"drawn {subject.name}"),
            *(Cell(*next(rendered)) for _ in row),
        ]
        for number, (subject, row) in enumerate(zip(SUBJECTS, scenes, strict=True))
    ]
    text = "Every subject: drawn once, then rendered in five of the ten colours."
    return Gallery("subjects", text, _in_blocks(rows, blocks))


def places_and_relations(render: Render) -> Gallery:
    """Every place and every relation, drawn and rendered, and every colour rendered."""
    things = (Thing("house", "white"), Thing("dog", "brown"), Thing("umbrella", "red"))
    places = [Scene((things[0],), place=place) for place in (*PLACES, None)]
    related = [Scene(things[1:], relation, "in a meadow") for relation in RELATIONS]
    sized = [Scene((Thing("tree", "green", size),)) for size in ("small", None, "large")]
    coloured = [Scene((Thing("car", colour),), place="in a city") for colour in COLOURS]
    rows, names = [], []
    for number, scenes in enumerate((places, [*related, *sized], coloured)):
        captions = [plain_caption(scene) for scene in scenes]
        rows.append([Cell(_drawn(scene, number)) for scene in scenes])
        pictures = render(captions, [number] * len(scenes))
        rows.append([Cell(*pair) for pair in zip(pictures, captions, strict=True)])
        names += ["drawn", "rendered"]
    text = "Places, relations and sizes, and colours: drawn above, rendered below."
    return Gallery("places", text, sheet(rows, names=names, scale=2))


def same_caption_other_seeds(render: Render, number: int = 8) -> Gallery:
    """What only the seed changes."""
    rows = []
    for caption in SEEDED:
        pictures = render([caption] * number, range(number))
        cells = [Cell(picture, f"seed {seed}") for seed, picture in enumerate(pictures)]
        rows.append([Cell(cells[0].pixels, caption), *cells[1:]])
    return Gallery("seeds", "The same caption over eight seeds.", sheet(rows, scale=2))


def autoencoded(decoded: Callable[[np.ndarray], np.ndarray], number: int = 10) -> Gallery:
    """Drawn pictures before and after the autoencoder: the sharpest that can be rendered."""
    generator = random.Random("autoencoded")
    drawn = np.stack([_drawn(sample_scene(generator), row) for row in range(number)])
    rows = [[Cell(picture) for picture in pictures] for pictures in (drawn, decoded(drawn))]
    text = "Drawn pictures, and after the autoencoder: no render can be sharper than this."
    return Gallery("autoencoder", text, sheet(rows, names=["drawn", "autoencoded"], scale=2))


def _in_blocks(rows: Sequence[Sequence[Cell]], blocks: int) -> Image.Image:
    """Rows of equal length, `blocks` of them side by side."""
    starts = range(0, len(rows), blocks)
    joined = [[cell for row in rows[start : start + blocks] for cell in row] for start in starts]
    return sheet(joined, scale=2, block=len(rows[0]))


def _drawn(scene: Scene, seed: int) -> np.ndarray:
    """The scene as the world draws it; the same seed places things alike."""
    return draw(scene, random.Random(f"gallery {seed}")).pixels


def plain_caption(scene: Scene) -> str:
    """ "a red house by the sea, golden hour": always the same words for the same scene."""
    content = dataclasses.replace(scene, modifiers=())
    caption = describe(content, random.Random("plain"), "plain")
    return ", ".join((caption, *scene.modifiers))
