"""A scene becomes a picture: place, things, modifiers."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .effects import Layers, finish
from .pen import Colour, Pen, shade, tint
from .places import draw_place
from .scenes import Scene, Thing
from .subjects import DRAWINGS
from .vocabulary import COLOURS, INDOORS, SIZES, SUBJECT_BY_NAME, SUBJECTS

SIZE = 64  # pixels of a picture's side
PATCHES = 8  # patches of a side, one per latent
OVERSAMPLING = 3
COVERED = 0.35  # share of a patch that a thing covers to give it its label

_HEIGHTS = {1: 0.62, 2: 0.46, 3: 0.38}  # of a thing, as a share of the picture, by number of things
_DISTANCES = {"close-up": 1.4, "wide shot": 0.55}
_NUMBERS = {subject.name: number + 1 for number, subject in enumerate(SUBJECTS)}


@dataclasses.dataclass(frozen=True)
class Picture:
    """pixels: (64, 64, 3) uint8. labels: (8, 8) uint8, for each 8 x 8 patch the number of the
    subject that covers it (its place in SUBJECTS, from 1), or 0."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spot:
    """Where a thing goes: middle, foot and height, as shares of the picture."""

    x: float
    foot: float
    height: float


def draw(scene: Scene, generator: random.Random) -> Picture:
    """The picture of a scene. What the scene leaves open (positions, unsaid colours) comes
    from the generator."""
    size = SIZE * OVERSAMPLING
    background, horizon = draw_place(scene.place, size, generator)
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    labels = np.zeros((PATCHES, PATCHES), dtype=np.uint8)
    spots = arrange(scene, generator)
    far_to_near = sorted(range(len(spots)), key=lambda number: spots[number].foot)
    for number in far_to_near:
        thing = scene.things[number]
        drawn = _draw_thing(thing, spots[number], size, generator)
        layer.alpha_composite(drawn)
        alpha = np.asarray(drawn.getchannel("A").reduce(size // PATCHES), dtype=np.float32) / 255
        labels[alpha > COVERED] = _NUMBERS[thing.subject]
    layers = Layers(
        background=_pixels(background.reduce(OVERSAMPLING)),
        things=_pixels(_reduce_straight(layer)),
        indoors=scene.place in INDOORS,
        horizon=horizon,
    )
    finished = finish(layers, scene.modifiers, generator)
    pixels = np.rint(finished * 255).astype(np.uint8)
    return Picture(pixels, labels)


def arrange(scene: Scene, generator: random.Random) -> list[Spot]:
    """A spot for each thing: `scene.relation` says how the first stands to the second."""
    number = len(scene.things)
    middles = _middles(scene, generator)
    spots = []
    for thing, (x, foot, scale) in zip(scene.things, middles, strict=True):
        height = _HEIGHTS[number] * scale * SIZES.get(thing.size or "", 1.0)
        for modifier, distance in _DISTANCES.items():
            if modifier in scene.modifiers:
                height *= distance
        height = min(height, 0.94)
        floats = SUBJECT_BY_NAME[thing.subject].floats and scene.relation not in ("above", "behind")
        if floats:
            foot = 0.45 + height / 2
        foot = min(foot, 0.97)
        x += generator.uniform(-0.04, 0.04)
        foot += generator.uniform(-0.02, 0.02)
        spots.append(Spot(min(max(x, height / 2 - 0.06), 1.06 - height / 2), foot, height))
    return spots


def _middles(scene: Scene, generator: random.Random) -> list[tuple[float, float, float]]:
    """(x, foot, scale) of each thing."""
    number, relation = len(scene.things), scene.relation
    if number <= 1:
        return [(0.5, 0.9, 1.0)][:number]
    if relation == "above":
        x = 0.5 if number == 2 else 0.3
        pair = [(x, 0.47, 0.92), (x, 0.95, 0.92)]
    elif relation == "behind":
        x = 0.5 if number == 2 else 0.36
        pair = [(x - 0.12, 0.74, 1.05), (x + 0.12, 0.94, 1.0)]
    else:
        left, right = (0.26, 0.74) if number == 2 else (0.2, 0.52)
        a_left = relation == "left of" or (relation != "right of" and generator.random() < 0.5)
        pair = [(left if a_left else right, 0.88, 1.0), (right if a_left else left, 0.88, 1.0)]
    return [*pair, (0.82, 0.88, 0.9)][:number]


def _draw_thing(thing: Thing, spot: Spot, size: int, generator: random.Random) -> Image.Image:
    """The thing on a clear layer, with an outline that sets it off."""
    body = COLOURS[thing.colour or generator.choice(list(COLOURS))]
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    side = spot.height * size
    box = (spot.x * size - side / 2, spot.foot * size - side, side, side)
    pen = Pen(ImageDraw.Draw(layer), box, body)
    DRAWINGS[thing.subject](pen)
    outline = Image.new("RGBA", (size, size), (*_outline_colour(body), 255))
    grown = layer.getchannel("A").filter(ImageFilter.MaxFilter(2 * OVERSAMPLING - 1))
    outline.putalpha(grown)
    outline.alpha_composite(layer)
    return outline


def _outline_colour(body: Colour) -> Colour:
    return tint(body, 0.6) if sum(body) < 150 else shade(body, 0.38)


def _reduce_straight(layer: Image.Image) -> Image.Image:
    """Reduced with the colours weighted by their alpha: no dark fringe from what is clear."""
    return layer.convert("RGBa").reduce(OVERSAMPLING).convert("RGBA")


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255
