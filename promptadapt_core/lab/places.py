"""How each place looks behind the things: sky or wall, and the ground they stand on."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .pen import Colour, Pen

BACKDROP_HORIZON = 0.72


def _sky(canvas: Image.Image, top: Colour, bottom: Colour, horizon: float) -> None:
    """A gradient down to the horizon."""
    width, height = canvas.size
    rows = np.linspace(0, 1, max(2, round(height * horizon)))[:, None]
    ramp = np.asarray(top) * (1 - rows) + np.asarray(bottom) * rows
    strip = np.repeat(ramp[:, None, :], width, axis=1).astype(np.uint8)
    canvas.paste(Image.fromarray(strip), (0, 0))


def _ground(pen: Pen, horizon: float, colour: Colour) -> None:
    pen.rectangle(0, horizon, 1, 1.01, colour)


def sea(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = generator.uniform(0.46, 0.54)
    _sky(canvas, (120, 190, 240), (214, 238, 250), horizon)
    _ground(pen, horizon, (38, 116, 186))
    for row in (0.08, 0.17):
        for x in (0.1, 0.45, 0.8):
            x += generator.uniform(-0.06, 0.06)
            pen.line([(x - 0.1, horizon + row), (x + 0.1, horizon + row)], 0.018, (150, 206, 236))
    pen.rectangle(0, 0.78, 1, 1.01, (238, 214, 160))
    return horizon


def forest(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = 0.7
    _sky(canvas, (150, 190, 150), (196, 220, 180), horizon)
    for row, colour in ((0.0, (64, 112, 76)), (0.06, (30, 82, 50))):
        for number in range(6):
            x = number / 5 + generator.uniform(-0.04, 0.04) - row
            top = generator.uniform(0.06, 0.2) + row * 2
            pen.polygon([(x - 0.13, horizon), (x, top), (x + 0.13, horizon)], colour)
    _ground(pen, horizon, (86, 96, 48))
    return horizon


def desert(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = generator.uniform(0.54, 0.6)
    _sky(canvas, (120, 196, 236), (250, 232, 190), horizon)
    x = generator.uniform(0.15, 0.35)
    pen.polygon([(x - 0.22, horizon), (x, horizon - 0.24), (x + 0.22, horizon)], (206, 160, 92))
    pen.polygon([(x, horizon - 0.24), (x + 0.22, horizon), (x + 0.04, horizon)], (170, 126, 70))
    _ground(pen, horizon, (232, 186, 106))
    pen.ellipse(0.86, horizon + 0.2, 0.5, 0.16, (220, 168, 88))
    pen.rectangle(0, horizon + 0.24, 1, 1.01, (240, 198, 122))
    return horizon


def snow(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = generator.uniform(0.58, 0.64)
    _sky(canvas, (150, 178, 206), (212, 224, 236), horizon)
    for x in (0.1, 0.34, 0.7, 0.92):
        x, height = x + generator.uniform(-0.05, 0.05), generator.uniform(0.24, 0.34)
        foot = horizon + 0.02
        pen.polygon([(x - 0.09, foot), (x, foot - height), (x + 0.09, foot)], (66, 100, 106))
        pen.polygon(
            [(x - 0.05, foot - height * 0.5), (x, foot - height), (x + 0.05, foot - height * 0.5)],
            (246, 250, 255),
        )
    _ground(pen, horizon, (240, 246, 252))
    pen.ellipse(0.3, horizon + 0.02, 0.5, 0.05, (240, 246, 252))
    pen.rectangle(0, 0.84, 1, 1.01, (220, 232, 244))
    return horizon


def city(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = 0.74
    _sky(canvas, (158, 180, 204), (224, 222, 216), horizon)
    for number in range(6):
        left = number / 6 + generator.uniform(-0.02, 0.02)
        top = generator.uniform(0.1, 0.4)
        grey = (104, 112, 130) if number % 2 else (132, 128, 136)
        pen.rectangle(left, top, left + 0.155, horizon, grey)
        for row in range(int((horizon - top) / 0.12)):
            for x in (0.03, 0.09):
                y = top + 0.04 + row * 0.12
                pen.rectangle(left + x, y, left + x + 0.035, y + 0.055, (236, 222, 150))
    _ground(pen, horizon, (92, 92, 98))
    for x in (0.1, 0.45, 0.8):
        pen.rectangle(x, 0.91, x + 0.16, 0.94, (230, 226, 210))
    return horizon


def meadow(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = generator.uniform(0.54, 0.6)
    _sky(canvas, (92, 170, 238), (206, 234, 250), horizon + 0.05)
    x, y = generator.uniform(0.15, 0.85), generator.uniform(0.12, 0.22)
    for dx, r in ((-0.09, 0.06), (0.0, 0.09), (0.1, 0.06)):
        pen.ellipse(x + dx, y, r * 1.3, r * 0.75, (252, 252, 252))
    pen.ellipse(0.2, horizon + 0.06, 0.5, 0.14, (112, 186, 84))
    _ground(pen, horizon + 0.03, (96, 176, 70))
    for number in range(8):
        x, y = (number + generator.uniform(0.2, 0.8)) / 8, generator.uniform(horizon + 0.12, 0.97)
        pen.ellipse(x, y, 0.02, 0.02, ((252, 240, 120), (252, 252, 252))[number % 2])
    return horizon


def room(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = 0.72
    _sky(canvas, (226, 206, 176), (234, 216, 190), horizon)
    x = generator.choice((0.08, 0.66))
    pen.rectangle(x, 0.12, x + 0.27, 0.42, (140, 98, 62))
    pen.rectangle(x + 0.03, 0.15, x + 0.24, 0.39, (170, 214, 240))
    pen.rectangle(x + 0.12, 0.15, x + 0.15, 0.39, (140, 98, 62))
    _ground(pen, horizon, (158, 108, 66))
    pen.rectangle(0, horizon - 0.03, 1, horizon + 0.01, (250, 244, 232))
    for x in (0.0, 0.34, 0.68, 1.02):
        pen.line([(x, horizon + 0.01), (x * 1.4 - 0.2, 1.0)], 0.012, (126, 82, 48))
    return horizon


def mountains(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    horizon = 0.68
    _sky(canvas, (140, 180, 226), (226, 234, 244), horizon)
    for x, top, half in ((0.2, 0.2, 0.36), (0.82, 0.26, 0.36), (0.5, 0.1, 0.34)):
        x, top = x + generator.uniform(-0.05, 0.05), top + generator.uniform(-0.03, 0.03)
        pen.polygon([(x - half, horizon), (x, top), (x + half, horizon)], (112, 110, 140))
        cut = (horizon - top) * 0.3
        edge = half * 0.3
        pen.polygon(
            [(x - edge, top + cut), (x, top), (x + edge, top + cut), (x, top + cut * 0.7)],
            (250, 250, 255),
        )
    _ground(pen, horizon, (124, 146, 104))
    return horizon


def backdrop(canvas: Image.Image, pen: Pen, generator: random.Random) -> float:
    """Where no place was said: pale grey, as in a studio."""
    _sky(canvas, (206, 206, 210), (228, 228, 230), BACKDROP_HORIZON)
    _ground(pen, BACKDROP_HORIZON, (190, 190, 194))
    return BACKDROP_HORIZON


PLACE_DRAWINGS: dict[str | None, Callable[[Image.Image, Pen, random.Random], float]] = {
    "by the sea": sea,
    "in a forest": forest,
    "in a desert": desert,
    "in the snow": snow,
    "in a city": city,
    "in a meadow": meadow,
    "in a room": room,
    "in the mountains": mountains,
    None: backdrop,
}


def draw_place(place: str | None, size: int, generator: random.Random) -> tuple[Image.Image, float]:
    """(RGB picture of size x size, height of the horizon as a share from the top)."""
    canvas = Image.new("RGB", (size, size))
    pen = Pen(ImageDraw.Draw(canvas), (0, 0, size, size))
    return canvas, PLACE_DRAWINGS[place](canvas, pen, generator)
