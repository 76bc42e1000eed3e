"""How each subject looks: plain, large shapes that can be told apart at 64 pixels.

Every function draws into the unit box of its pen; what stands stands on y = 1.
"""

from __future__ import annotations

from collections.abc import Callable

from .pen import Pen

INK = (34, 30, 36)
WHITE = (250, 250, 246)
WOOD = (122, 82, 48)
LEAF = (58, 132, 62)
GLASS = (176, 222, 240)
GOLD = (248, 206, 70)


def _eye(pen: Pen, x: float, y: float, size: float = 0.035) -> None:
    pen.ellipse(x, y, size * 1.5, size * 1.5, WHITE)
    pen.ellipse(x, y, size, size, INK)


def cat(pen: Pen) -> None:
    """Sitting, tail up at the side."""
    pen.line([(0.7, 0.92), (0.92, 0.8), (0.93, 0.5), (0.84, 0.4)], 0.09, pen.body)
    pen.ellipse(0.5, 0.76, 0.29, 0.25, pen.body)
    pen.polygon([(0.2, 0.06), (0.46, 0.2), (0.2, 0.42)], pen.body)
    pen.polygon([(0.8, 0.06), (0.54, 0.2), (0.8, 0.42)], pen.body)
    pen.ellipse(0.5, 0.37, 0.31, 0.25, pen.body)
    pen.ellipse(0.5, 0.84, 0.14, 0.15, pen.light)
    _eye(pen, 0.37, 0.34, 0.045)
    _eye(pen, 0.63, 0.34, 0.045)
    pen.polygon([(0.45, 0.44), (0.55, 0.44), (0.5, 0.5)], (232, 120, 140))


def dog(pen: Pen) -> None:
    """From the side, with a hanging ear."""
    pen.line([(0.12, 0.52), (0.02, 0.3)], 0.08, pen.body)
    pen.rectangle(0.14, 0.6, 0.25, 1.0, pen.body)
    pen.rectangle(0.5, 0.6, 0.61, 1.0, pen.body)
    pen.rectangle(0.1, 0.46, 0.64, 0.74, pen.body)
    pen.ellipse(0.68, 0.34, 0.2, 0.18, pen.body)
    pen.rectangle(0.72, 0.34, 0.98, 0.5, pen.body)
    pen.ellipse(0.53, 0.36, 0.09, 0.2, pen.dark)
    pen.ellipse(0.96, 0.38, 0.05, 0.05, INK)
    _eye(pen, 0.74, 0.28, 0.04)


def rabbit(pen: Pen) -> None:
    for x in (0.36, 0.64):
        pen.ellipse(x, 0.2, 0.1, 0.22, pen.body)
        pen.ellipse(x, 0.22, 0.045, 0.15, (240, 170, 186))
    pen.ellipse(0.5, 0.8, 0.3, 0.2, pen.body)
    pen.ellipse(0.5, 0.5, 0.25, 0.2, pen.body)
    pen.ellipse(0.5, 0.85, 0.15, 0.12, pen.light)
    _eye(pen, 0.4, 0.47, 0.04)
    _eye(pen, 0.6, 0.47, 0.04)
    pen.rectangle(0.46, 0.59, 0.54, 0.67, WHITE)


def fish(pen: Pen) -> None:
    pen.polygon([(0.3, 0.5), (0.02, 0.24), (0.02, 0.76)], pen.dark)
    pen.polygon([(0.42, 0.3), (0.62, 0.1), (0.7, 0.34)], pen.dark)
    pen.ellipse(0.58, 0.5, 0.38, 0.25, pen.body)
    pen.slice(0.6, 0.56, 0.26, 0.17, 20, 160, pen.light)
    _eye(pen, 0.8, 0.44, 0.045)


def bird(pen: Pen) -> None:
    """Flying, wings up."""
    pen.polygon([(0.06, 0.48), (0.3, 0.5), (0.2, 0.72)], pen.dark)
    pen.ellipse(0.5, 0.58, 0.28, 0.17, pen.body)
    pen.polygon([(0.36, 0.55), (0.22, 0.06), (0.64, 0.52)], pen.dark)
    pen.ellipse(0.76, 0.46, 0.14, 0.14, pen.body)
    pen.polygon([(0.87, 0.41), (1.0, 0.48), (0.87, 0.54)], (250, 170, 40))
    _eye(pen, 0.78, 0.43, 0.035)


def whale(pen: Pen) -> None:
    pen.polygon([(0.18, 0.6), (0.0, 0.22), (0.14, 0.3), (0.26, 0.2)], pen.body)
    pen.slice(0.56, 0.56, 0.43, 0.34, 0, 180, pen.body)
    pen.slice(0.62, 0.57, 0.37, 0.32, 180, 360, pen.body)
    pen.slice(0.62, 0.6, 0.34, 0.26, 20, 160, pen.light)
    pen.line([(0.66, 0.24), (0.66, 0.1), (0.56, 0.02)], 0.045, (120, 196, 240))
    pen.line([(0.66, 0.12), (0.78, 0.02)], 0.045, (120, 196, 240))
    _eye(pen, 0.82, 0.5, 0.035)


def butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.ellipse(0.5 + side * 0.25, 0.34, 0.23, 0.26, pen.body)
        pen.ellipse(0.5 + side * 0.2, 0.72, 0.17, 0.2, pen.dark)
        pen.ellipse(0.5 + side * 0.28, 0.32, 0.1, 0.12, pen.light)
        pen.line([(0.5, 0.24), (0.5 + side * 0.12, 0.02)], 0.03, INK)
    pen.ellipse(0.5, 0.52, 0.055, 0.34, INK)


def tree(pen: Pen) -> None:
    pen.rectangle(0.42, 0.55, 0.58, 1.0, WOOD)
    for x, y, r in ((0.3, 0.42, 0.24), (0.7, 0.42, 0.24), (0.5, 0.24, 0.25), (0.5, 0.48, 0.24)):
        pen.ellipse(x, y, r, r, pen.body)
    for x, y in ((0.34, 0.36), (0.62, 0.26), (0.6, 0.5)):
        pen.ellipse(x, y, 0.07, 0.06, pen.light)


def flower(pen: Pen) -> None:
    pen.line([(0.5, 0.4), (0.5, 1.0)], 0.07, LEAF)
    pen.ellipse(0.32, 0.8, 0.17, 0.08, LEAF)
    pen.ellipse(0.68, 0.72, 0.17, 0.08, LEAF)
    for x, y in ((0.5, 0.13), (0.72, 0.28), (0.64, 0.53), (0.36, 0.53), (0.28, 0.28)):
        pen.ellipse(x, y, 0.17, 0.17, pen.body)
    pen.ellipse(0.5, 0.35, 0.14, 0.14, GOLD)


def mushroom(pen: Pen) -> None:
    pen.rectangle(0.36, 0.46, 0.64, 0.94, (240, 226, 200))
    pen.ellipse(0.5, 0.94, 0.14, 0.06, (240, 226, 200))
    pen.slice(0.5, 0.52, 0.47, 0.46, 180, 360, pen.body)
    for x, y, r in ((0.5, 0.22, 0.09), (0.26, 0.38, 0.075), (0.74, 0.38, 0.075)):
        pen.ellipse(x, y, r, r, WHITE)


def cactus(pen: Pen) -> None:
    pen.line([(0.14, 0.34), (0.14, 0.58), (0.5, 0.58)], 0.14, pen.body)
    pen.line([(0.86, 0.24), (0.86, 0.48), (0.5, 0.48)], 0.14, pen.body)
    for x, y in ((0.14, 0.34), (0.86, 0.24), (0.14, 0.58), (0.86, 0.48)):
        pen.ellipse(x, y, 0.07, 0.07, pen.body)
    pen.rectangle(0.37, 0.16, 0.63, 1.0, pen.body)
    pen.ellipse(0.5, 0.17, 0.13, 0.14, pen.body)
    for x in (0.45, 0.55):
        pen.line([(x, 0.16), (x, 0.98)], 0.025, pen.dark)


def house(pen: Pen) -> None:
    pen.rectangle(0.12, 0.44, 0.88, 1.0, pen.body)
    pen.rectangle(0.68, 0.1, 0.8, 0.4, (150, 100, 84))
    pen.polygon([(0.0, 0.47), (0.5, 0.06), (1.0, 0.47)], pen.dark)
    pen.rectangle(0.42, 0.66, 0.6, 1.0, WOOD)
    for x in (0.19, 0.67):
        pen.rectangle(x, 0.56, x + 0.15, 0.74, (250, 232, 150))


def lighthouse(pen: Pen) -> None:
    pen.polygon([(0.32, 0.28), (0.68, 0.28), (0.8, 1.0), (0.2, 1.0)], WHITE)
    for top, bottom in ((0.34, 0.5), (0.66, 0.82)):
        inset_top, inset_bottom = 0.32 - (top - 0.28) / 6, 0.32 - (bottom - 0.28) / 6
        pen.polygon(
            [(inset_top, top), (1 - inset_top, top), (1 - inset_bottom, bottom),
             (inset_bottom, bottom)],
            pen.body,
        )  # fmt: skip
    pen.rectangle(0.26, 0.26, 0.74, 0.31, pen.dark)
    pen.rectangle(0.37, 0.13, 0.63, 0.26, GOLD)
    pen.polygon([(0.3, 0.14), (0.5, 0.0), (0.7, 0.14)], pen.body)


def castle(pen: Pen) -> None:
    pen.rectangle(0.16, 0.5, 0.84, 1.0, pen.body)
    for x in (0.02, 0.72):
        pen.rectangle(x, 0.32, x + 0.26, 1.0, pen.body)
        for notch in (0.0, 0.1, 0.2):
            pen.rectangle(x + notch, 0.23, x + notch + 0.06, 0.34, pen.body)
        pen.rectangle(x + 0.1, 0.46, x + 0.16, 0.6, INK)
    pen.rectangle(0.38, 0.3, 0.62, 0.6, pen.dark)
    pen.polygon([(0.34, 0.31), (0.5, 0.04), (0.66, 0.31)], pen.dark)
    pen.rectangle(0.4, 0.78, 0.6, 1.0, INK)
    pen.slice(0.5, 0.79, 0.1, 0.1, 180, 360, INK)


def tent(pen: Pen) -> None:
    pen.polygon([(0.5, 0.14), (1.0, 1.0), (0.0, 1.0)], pen.body)
    pen.polygon([(0.5, 0.14), (0.78, 1.0), (0.22, 1.0)], pen.light)
    pen.polygon([(0.5, 0.4), (0.62, 1.0), (0.38, 1.0)], INK)


def windmill(pen: Pen) -> None:
    pen.polygon([(0.36, 0.4), (0.64, 0.4), (0.76, 1.0), (0.24, 1.0)], pen.body)
    pen.slice(0.5, 0.42, 0.16, 0.16, 180, 360, pen.dark)
    pen.rectangle(0.43, 0.78, 0.57, 1.0, WOOD)
    for x, y in ((0.1, 0.02), (0.9, 0.02), (0.1, 0.8), (0.9, 0.8)):
        pen.line([(0.5, 0.41), (x, y)], 0.1, (236, 224, 196))
        pen.line([(0.5, 0.41), (x, y)], 0.03, WOOD)
    pen.ellipse(0.5, 0.41, 0.05, 0.05, INK)


def car(pen: Pen) -> None:
    pen.polygon([(0.22, 0.58), (0.34, 0.34), (0.7, 0.34), (0.84, 0.58)], pen.body)
    pen.polygon([(0.3, 0.56), (0.38, 0.4), (0.5, 0.4), (0.5, 0.56)], GLASS)
    pen.polygon([(0.55, 0.56), (0.55, 0.4), (0.67, 0.4), (0.76, 0.56)], GLASS)
    pen.rectangle(0.02, 0.56, 0.98, 0.84, pen.body)
    pen.rectangle(0.9, 0.6, 0.98, 0.68, GOLD)
    for x in (0.24, 0.76):
        pen.ellipse(x, 0.85, 0.14, 0.14, INK)
        pen.ellipse(x, 0.85, 0.06, 0.06, (190, 190, 196))


def boat(pen: Pen) -> None:
    pen.polygon([(0.02, 0.74), (0.98, 0.74), (0.8, 1.0), (0.2, 1.0)], pen.body)
    pen.rectangle(0.46, 0.04, 0.51, 0.76, WOOD)
    pen.polygon([(0.54, 0.06), (0.54, 0.68), (0.92, 0.68)], WHITE)
    pen.polygon([(0.43, 0.18), (0.43, 0.68), (0.14, 0.68)], pen.light)


def rocket(pen: Pen) -> None:
    pen.polygon([(0.38, 0.82), (0.62, 0.82), (0.5, 1.0)], (250, 150, 40))
    pen.polygon([(0.34, 0.5), (0.14, 0.84), (0.36, 0.78)], pen.dark)
    pen.polygon([(0.66, 0.5), (0.86, 0.84), (0.64, 0.78)], pen.dark)
    pen.rectangle(0.33, 0.32, 0.67, 0.82, pen.body)
    pen.polygon([(0.33, 0.33), (0.5, 0.0), (0.67, 0.33)], pen.dark)
    pen.ellipse(0.5, 0.46, 0.1, 0.1, WHITE)
    pen.ellipse(0.5, 0.46, 0.065, 0.065, GLASS)


def balloon(pen: Pen) -> None:
    """A hot-air balloon."""
    pen.line([(0.24, 0.5), (0.4, 0.84)], 0.03, INK)
    pen.line([(0.76, 0.5), (0.6, 0.84)], 0.03, INK)
    pen.ellipse(0.5, 0.34, 0.38, 0.34, pen.body)
    pen.polygon([(0.2, 0.54), (0.8, 0.54), (0.6, 0.74), (0.4, 0.74)], pen.body)
    pen.ellipse(0.5, 0.34, 0.14, 0.34, pen.light)
    pen.rectangle(0.38, 0.82, 0.62, 1.0, WOOD)


def umbrella(pen: Pen) -> None:
    pen.line([(0.5, 0.1), (0.5, 0.9), (0.56, 0.97), (0.66, 0.92)], 0.06, WOOD)
    pen.slice(0.5, 0.52, 0.48, 0.44, 180, 360, pen.body)
    pen.slice(0.5, 0.52, 0.16, 0.44, 180, 360, pen.light)
    pen.rectangle(0.48, 0.02, 0.52, 0.1, INK)


def cup(pen: Pen) -> None:
    pen.ellipse(0.78, 0.66, 0.18, 0.18, pen.body)
    pen.ellipse(0.78, 0.66, 0.09, 0.09, pen.light)
    pen.polygon([(0.1, 0.42), (0.78, 0.42), (0.68, 1.0), (0.2, 1.0)], pen.body)
    pen.ellipse(0.44, 0.42, 0.34, 0.09, (104, 66, 40))
    for x in (0.32, 0.54):
        pen.line([(x, 0.28), (x + 0.06, 0.2), (x - 0.03, 0.12), (x + 0.03, 0.02)], 0.045, WHITE)


def lamp(pen: Pen) -> None:
    pen.rectangle(0.46, 0.4, 0.54, 0.96, INK)
    pen.ellipse(0.5, 0.95, 0.24, 0.05, INK)
    pen.ellipse(0.5, 0.5, 0.14, 0.09, (255, 240, 160))
    pen.polygon([(0.3, 0.06), (0.7, 0.06), (0.92, 0.5), (0.08, 0.5)], pen.body)
    pen.polygon([(0.42, 0.06), (0.56, 0.06), (0.6, 0.5), (0.36, 0.5)], pen.light)


def chair(pen: Pen) -> None:
    for x in (0.18, 0.72):
        pen.rectangle(x, 0.6, x + 0.09, 1.0, pen.dark)
    pen.rectangle(0.14, 0.02, 0.28, 0.62, pen.body)
    pen.rectangle(0.14, 0.02, 0.44, 0.12, pen.body)
    pen.rectangle(0.14, 0.5, 0.88, 0.66, pen.body)
    pen.rectangle(0.18, 0.08, 0.24, 0.5, pen.light)


def robot(pen: Pen) -> None:
    pen.line([(0.5, 0.0), (0.5, 0.14)], 0.04, INK)
    pen.ellipse(0.5, 0.04, 0.05, 0.04, (230, 60, 60))
    pen.rectangle(0.28, 0.12, 0.72, 0.42, pen.body)
    pen.rectangle(0.46, 0.4, 0.54, 0.5, INK)
    pen.rectangle(0.22, 0.48, 0.78, 0.82, pen.body)
    pen.rectangle(0.04, 0.5, 0.16, 0.78, pen.dark)
    pen.rectangle(0.84, 0.5, 0.96, 0.78, pen.dark)
    pen.rectangle(0.28, 0.82, 0.42, 1.0, pen.dark)
    pen.rectangle(0.58, 0.82, 0.72, 1.0, pen.dark)
    for x in (0.39, 0.61):
        pen.ellipse(x, 0.25, 0.07, 0.06, (120, 240, 240))
    pen.rectangle(0.36, 0.56, 0.64, 0.72, pen.light)


def clock(pen: Pen) -> None:
    pen.polygon([(0.22, 0.84), (0.34, 0.84), (0.24, 1.0), (0.12, 1.0)], pen.dark)
    pen.polygon([(0.66, 0.84), (0.78, 0.84), (0.88, 1.0), (0.76, 1.0)], pen.dark)
    for x in (0.24, 0.76):
        pen.ellipse(x, 0.14, 0.14, 0.12, pen.dark)
    pen.ellipse(0.5, 0.54, 0.43, 0.42, pen.body)
    pen.ellipse(0.5, 0.54, 0.31, 0.3, WHITE)
    pen.line([(0.5, 0.54), (0.5, 0.32)], 0.06, INK)
    pen.line([(0.5, 0.54), (0.66, 0.6)], 0.06, INK)


def apple(pen: Pen) -> None:
    pen.line([(0.5, 0.32), (0.54, 0.06)], 0.07, WOOD)
    pen.ellipse(0.7, 0.14, 0.17, 0.08, LEAF)
    pen.ellipse(0.36, 0.58, 0.28, 0.33, pen.body)
    pen.ellipse(0.64, 0.58, 0.28, 0.33, pen.body)
    pen.ellipse(0.5, 0.76, 0.26, 0.23, pen.body)
    pen.ellipse(0.27, 0.5, 0.07, 0.11, pen.light)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    drawing.__name__: drawing
    for drawing in (
        cat, dog, rabbit, fish, bird, whale, butterfly, tree, flower, mushroom, cactus, house,
        lighthouse, castle, tent, windmill, car, boat, rocket, balloon, umbrella, cup, lamp, chair,
        robot, clock, apple,
    )
}  # fmt: skip
