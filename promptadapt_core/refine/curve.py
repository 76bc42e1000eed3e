"""How the reward went from round to round, as one picture. Pillow only: hosts bring no plotting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..contact_sheet import text_font
from .outcome import Refinement

WIDTH, HEIGHT = 720, 420  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 52, 48
PAPER, INK, GRID = (250, 250, 250), (25, 25, 25), (218, 218, 218)
BLUE, GREEN, ORANGE = (0, 114, 178), (24, 122, 62), (190, 90, 0)
NUM_TICKS = 5


def reward_curve(found: Refinement) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: a dot for every prompt of a round, a line for their mean, one for
    the best so far and one for the user input."""
    rounds = found.rounds
    rewards = [reward for one in rounds for reward in one.rewards]
    low, high, step = _scale([*rewards, found.plain.reward, found.best.reward])
    paper = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(paper)

    def y_of(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def x_of(number: int) -> float:
        return LEFT + (number - 0.5) / max(len(rounds), 1) * (WIDTH - LEFT - RIGHT)

    _grid(draw, low, high, step, y_of)
    every = math.ceil(len(rounds) / 16)
    for one in rounds[:: max(every, 1)]:
        _text(draw, (x_of(one.number), HEIGHT - BOTTOM + 10), f"round {one.number}", INK, "mt")
    level = y_of(found.plain.reward)
    draw.line(((LEFT, level), (WIDTH - RIGHT, level)), ORANGE, 2)
    for one in rounds:
        for reward in one.rewards:
            x, y = x_of(one.number), y_of(reward)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=BLUE)
    means = [(x_of(r.number), y_of(sum(r.rewards) / len(r.rewards))) for r in rounds if r.rewards]
    _line(draw, means, BLUE)
    _line(draw, [(x_of(one.number), y_of(one.best_reward)) for one in rounds], GREEN)
    _legend(draw, (("mean of the round", BLUE), ("best so far", GREEN), ("your text", ORANGE)))
    return np.asarray(paper).copy()


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, high, step) of an axis that holds all values, in round numbers."""
    low, high = min(values), max(values)
    spread = max(high - low, 0.1)
    power = 10.0 ** math.floor(math.log10(spread / NUM_TICKS))
    step = next(power * n for n in (1, 2, 5, 10) if power * n * NUM_TICKS >= spread)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high, step) if high > low else (low - step, high + step, step)


def _grid(draw: ImageDraw.ImageDraw, low: float, high: float, step: float, y_of: object) -> None:
    decimals = max(0, -math.floor(math.log10(step)))
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = y_of(value)  # type: ignore[operator]
        draw.line(((LEFT, y), (WIDTH - RIGHT, y)), GRID, 1)
        _text(draw, (LEFT - 8, y), f"{value:.{decimals}f}", INK, "rm")


def _line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple) -> None:
    if len(points) > 1:
        draw.line(points, colour, 3)
    for x, y in points:
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), colour)


def _legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, tuple]]) -> None:
    x = LEFT
    _text(draw, (8, TOP / 2), "reward", INK, "lm")
    for name, colour in entries:
        draw.rectangle((x, TOP / 2 - 2, x + 24, TOP / 2 + 2), colour)
        _text(draw, (x + 32, TOP / 2), name, INK, "lm")
        x += 48 + round(draw.textlength(name, text_font()))


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ink: tuple, anchor: str
) -> None:
    """anchor: as Pillow's; the plain font of old versions knows none, so it is worked out here."""
    font = text_font()
    width = draw.textlength(text, font)
    x = place[0] - {"l": 0.0, "m": width / 2, "r": width}[anchor[0]]
    y = place[1] - {"t": 0.0, "m": 7.0}[anchor[1]]
    draw.text((x, y), text, ink, font)
