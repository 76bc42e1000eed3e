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

Render = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts, seeds -> (N, 64, 64, 3)
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
    """All sheets. render: pictures of prompts. decoded: pictures after the autoencoder."""
    return [
        drawn_and_rendered(render),
        modifiers_on_and_off(render),
        subjects_and_colours(render),
        places_and_relations(render),
        same_prompt_other_seeds(render),
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
    cells: list[list[Cell]] = []
    for number, modifier in enumerate(EFFECTIVE):
        scene = PLAIN_SCENES[number % len(PLAIN_SCENES)]
        changed = dataclasses.replace(scene, modifiers=(modifier.name,))
        plain, with_it = plain_caption(scene), plain_caption(changed)
        off, on = render([plain, with_it], [number, number])
        cells.append(
            [
                Cell(_drawn(scene, number), "drawn"),
                Cell(_drawn(changed, number), f"drawn, {modifier.name}"),
                Cell(off, "rendered"),
                Cell(on, f"rendered, {modifier.name}"),
            ]
        )
    rows = [
        [cell for block in cells[start : start + blocks] for cell in [*block, Cell(None)]][:-1]
        for start in range(0, len(cells), blocks)
    ]
    text = "Every modifier that changes pictures: the same scene and seed without and with it."
    return Gallery("modifiers", text, sheet(rows, scale=2))


def subjects_and_colours(render: Render, blocks: int = 2) -> Gallery:
    """Every subject, drawn in red and rendered in some colours."""
    rows: list[list[Cell]] = []
    for number, subject in enumerate(SUBJECTS):
        scenes = [Scene((Thing(subject.name, colour),)) for colour in COLOURS_SHOWN]
        captions = [plain_caption(scene) for scene in scenes]
        pictures = render(captions, [number] * len(scenes))
        drawn = Cell(_drawn(scenes[0], number), f"drawn {subject.name}")
        found = [Cell(*pair) for pair in zip(pictures, captions, strict=True)]
        rows.append([drawn, *found])
    pairs = [
        [cell for block in rows[start : start + blocks] for cell in [*block, Cell(None)]][:-1]
        for start in range(0, len(rows), blocks)
    ]
    text = "Every subject: drawn once, then rendered in five of the ten colours."
    return Gallery("subjects", text, sheet(pairs, scale=2))


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


def same_prompt_other_seeds(render: Render, number: int = 8) -> Gallery:
    """What only the seed changes."""
    rows = []
    for prompt in SEEDED:
        pictures = render([prompt] * number, range(number))
        cells = [Cell(picture, f"seed {seed}") for seed, picture in enumerate(pictures)]
        rows.append([Cell(cells[0].pixels, prompt), *cells[1:]])
    return Gallery("seeds", "The same prompt over eight seeds.", sheet(rows, scale=2))


def autoencoded(decoded: Callable[[np.ndarray], np.ndarray], number: int = 10) -> Gallery:
    """Drawn pictures before and after the autoencoder: the sharpest that can be rendered."""
    generator = random.Random("autoencoded")
    drawn = np.stack([_drawn(sample_scene(generator), row) for row in range(number)])
    rows = [[Cell(picture) for picture in pictures] for pictures in (drawn, decoded(drawn))]
    text = "Drawn pictures, and after the autoencoder: no render can be sharper than this."
    return Gallery("autoencoder", text, sheet(rows, names=["drawn", "autoencoded"], scale=2))


def _drawn(scene: Scene, seed: int) -> np.ndarray:
    """The scene as the world draws it; the same seed places things alike."""
    return draw(scene, random.Random(f"gallery {seed}")).pixels


def plain_caption(scene: Scene) -> str:
    """ "a red house by the sea, golden hour": always the same words for the same scene."""
    content = dataclasses.replace(scene, modifiers=())
    caption = describe(content, random.Random("plain"), "plain")
    return ", ".join((caption, *scene.modifiers))
