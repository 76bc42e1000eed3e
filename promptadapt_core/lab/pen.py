"""A pen that draws in a box of its own: (0, 0) is the top left corner, (1, 1) the bottom right."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws filled shapes in unit coordinates onto a PIL picture.

    left, top, width, height: the box, in pixels of the canvas.
    body, dark, light: the colour of the thing and two shades of it.
    """

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        box: tuple[float, float, float, float],
        body: Colour = (0, 0, 0),
    ):
        self._canvas = canvas
        self._left, self._top, self._width, self._height = box
        self.body = body
        self.dark = shade(body, 0.62)
        self.light = tint(body, 0.45)

    def _place(self, point: Point) -> Point:
        return self._left + point[0] * self._width, self._top + point[1] * self._height

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._canvas.polygon([self._place(point) for point in points], fill=colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Centre (x, y) and half axes."""
        self._canvas.ellipse(self._corners(x, y, rx, ry), fill=colour)

    def slice(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, colour: Colour
    ) -> None:
        """Part of an ellipse, degrees clockwise from the right."""
        self._canvas.pieslice(self._corners(x, y, rx, ry), start, end, fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """width: share of the box's width."""
        pixels = max(1, round(width * self._width))
        self._canvas.line(
            [self._place(point) for point in points], fill=colour, width=pixels, joint="curve"
        )

    def _corners(self, x: float, y: float, rx: float, ry: float) -> list[Point]:
        return [self._place((x - rx, y - ry)), self._place((x + rx, y + ry))]


def shade(colour: Colour, share: float) -> Colour:
    """Darker: `share` of the colour is left."""
    return tuple(round(part * share) for part in colour)  # type: ignore[return-value]


def tint(colour: Colour, share: float) -> Colour:
    """Lighter: `share` of the way to white."""
    return tuple(round(part + (255 - part) * share) for part in colour)  # type: ignore[return-value]
