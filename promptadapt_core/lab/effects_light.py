"""Light, weather and camera effects: those that need to know the things from the background.

Pictures are (64, 64, 3) float32, 0 to 1. A function of BEFORE changes the two layers of the
`Layers` it is given; a function of OVER takes the picture put together from them and returns the
changed picture. What has a pattern repeats every 8, 16 or 32 pixels on a fixed grid, so that an
autoencoder of 8-pixel patches can learn it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

SIDE = 64
_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass
class Layers:
    """What `drawing` draws.

    background: (64, 64, 3) float32, 0 to 1.
    things: (64, 64, 4) float32, 0 to 1, RGB and alpha, not multiplied by it.
    horizon: the share of the height, from the top, at which the ground begins.
    drift: the rows and columns by which stars, flakes, drops and fireflies are moved; set by
        `finish`.
    """

    background: np.ndarray
    things: np.ndarray
    indoors: bool
    horizon: float
    drift: tuple[int, int] = (0, 0)

    def copy(self) -> Layers:
        return dataclasses.replace(
            self, background=self.background.copy(), things=self.things.copy()
        )

    @property
    def alpha(self) -> np.ndarray:
        """(64, 64, 1)"""
        return self.things[..., 3:]

    def sky(self) -> np.ndarray:
        """(64, 64, 1): 1 above the horizon, 0 below."""
        return np.clip((self.horizon * SIDE - _Y) / 3 + 0.5, 0, 1)[..., None]

    def drifted(self, mask: np.ndarray) -> np.ndarray:
        return np.roll(mask, self.drift, axis=(0, 1))

    def tint(self, colour: np.ndarray, share: np.ndarray | float, things: float = 1.0) -> None:
        """Mix `share` of `colour` into the background, and `things` times that into the things."""
        self.background += (colour - self.background) * share
        self.things[..., :3] += (colour - self.things[..., :3]) * (share * things)

    def dim(self, factor: np.ndarray, things: np.ndarray | None = None) -> None:
        self.background *= factor
        self.things[..., :3] *= factor if things is None else things

    def composite(self) -> np.ndarray:
        return self.background + (self.things[..., :3] - self.background) * self.alpha


def rgb(*values: int) -> np.ndarray:
    return np.array(values, np.float32) / 255


def luminance(picture: np.ndarray) -> np.ndarray:
    """(64, 64, 1)"""
    return (picture @ _LUMINANCE)[..., None]


def saturate(picture: np.ndarray, factor: float) -> np.ndarray:
    grey = luminance(picture)
    return grey + (picture - grey) * factor


def screen(picture: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Add light without running over 1."""
    return 1 - (1 - picture) * (1 - light)


@functools.lru_cache(maxsize=16)
def _blurring(sigma: float) -> np.ndarray:
    """(64, 64): a Gaussian over the rows; at the edges the last row is repeated."""
    kernel = np.zeros((SIDE, SIDE), np.float64)
    reach = int(3 * sigma + 1)
    for row in range(SIDE):
        for step in range(-reach, reach + 1):
            column = min(max(row + step, 0), SIDE - 1)
            kernel[row, column] += np.exp(-0.5 * (step / sigma) ** 2)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """(64, 64, channels), any number of channels."""
    kernel = _blurring(sigma)
    rows = (kernel @ picture.reshape(SIDE, -1)).reshape(picture.shape)
    return np.matmul(kernel, rows)


def disc(x: float, y: float, radius: float, softness: float = 1.0) -> np.ndarray:
    """(64, 64, 1): 1 within the circle, 0 outside."""
    distance = np.hypot(_X - x, _Y - y)
    return np.clip((radius - distance) / softness + 0.5, 0, 1)[..., None]


def glow(x: float, y: float, reach: float) -> np.ndarray:
    """(64, 64, 1): 1 at the point, falling off as a Gaussian."""
    return np.exp(-0.5 * ((_X - x) ** 2 + (_Y - y) ** 2) / reach**2)[..., None].astype(np.float32)


def _spots(period: int, places: tuple[tuple[float, float], ...], radius: float) -> np.ndarray:
    """(64, 64, 1): discs at (x, y) within each tile of `period` pixels."""
    mask = np.zeros((SIDE, SIDE, 1), np.float32)
    for top in range(0, SIDE, period):
        for left in range(0, SIDE, period):
            for x, y in places:
                mask = np.maximum(mask, disc(left + x, top + y, radius))
    return mask


# --- before the layers are put together ---

_DUSK = rgb(250, 130, 70) + (rgb(255, 226, 150) - rgb(250, 130, 70)) * (_Y / SIDE)[..., None]


def _bright_behind(layers: Layers) -> None:
    layers.background = layers.background * 0.35 + _DUSK * 0.65


_NIGHT = rgb(44, 66, 150)
_NIGHT_SKY = rgb(8, 14, 58)


def _night(layers: Layers) -> None:
    layers.dim(_NIGHT, _NIGHT * 0.5 + 0.42)
    layers.tint(_NIGHT_SKY, 0.25, things=0.3)


_SPACE = rgb(14, 12, 56)
_STARS = np.maximum(
    _spots(16, ((4, 4), (12, 12)), 1.5), _spots(32, ((20, 28), (28, 4), (12, 20)), 1.1)
)


def _starry_sky(layers: Layers) -> None:
    sky = layers.sky()
    layers.background += (_SPACE - layers.background) * sky * 0.9
    layers.background += (rgb(255, 250, 214) - layers.background) * (layers.drifted(_STARS) * sky)


_ARC = np.hypot(_X - 32, _Y - 58)
_RAINBOW_COLOURS = np.array(
    [(150, 70, 220), (50, 110, 250), (40, 200, 80), (252, 232, 40), (252, 140, 30), (240, 36, 36)],
    np.float32,
) / np.float32(255)
_RAINBOW_SHARE = np.clip(6.5 - np.abs(_ARC - 43) + 0.5, 0, 1)[..., None] * np.float32(0.85)
_RAINBOW = _RAINBOW_COLOURS[np.clip((_ARC - 36.5) / 13 * 6, 0, 5).astype(int)]


def _rainbow(layers: Layers) -> None:
    layers.background += (_RAINBOW - layers.background) * _RAINBOW_SHARE


_LOW_SUN = glow(2, 34, 15)
_SUN = disc(2, 34, 8, 2)


def _golden_hour(layers: Layers) -> None:
    layers.dim(rgb(255, 190, 104), rgb(255, 216, 170))
    layers.tint(rgb(255, 150, 30), 0.28, things=0.5)
    layers.tint(rgb(255, 214, 110), _LOW_SUN * 0.9, things=0.45)
    layers.tint(rgb(255, 252, 214), _SUN, things=0.2)


_FOG = rgb(206, 214, 220)
_FOG_SHARE = (0.72 + 0.14 * np.cos(_Y / SIDE * 2 * np.pi * 2))[..., None].astype(np.float32)


def _foggy(layers: Layers) -> None:
    layers.tint(_FOG, _FOG_SHARE, things=0.62)


_FLAME_LIGHT = glow(32, 62, 22)


def _candlelight(layers: Layers) -> None:
    light = rgb(70, 34, 16) + rgb(210, 130, 50) * _FLAME_LIGHT
    layers.dim(light, light * 0.75 + 0.2)
    layers.tint(rgb(255, 140, 30), _FLAME_LIGHT * 0.35, things=0.5)


_SPLIT = np.clip((_X + 0.6 * _Y - 50) / 10 + 0.5, 0, 1)[..., None]


def _dramatic_lighting(layers: Layers) -> None:
    shade = 1.15 - 1.03 * _SPLIT
    layers.dim(shade, 1.15 - 0.75 * _SPLIT)
    layers.tint(rgb(255, 240, 200), (1 - _SPLIT) * 0.12)


_SOFT = glow(32, 32, 17)


def _soft_light(layers: Layers) -> None:
    layers.background = layers.background * 0.45 + blur(layers.background, 4.0) * 0.55
    layers.dim(0.7 + 0.3 * _SOFT)
    layers.tint(rgb(255, 238, 212), 0.12 + 0.68 * _SOFT, things=0.45)


_BOKEH = np.maximum(
    _spots(32, ((8, 8), (24, 24)), 5.5) * np.float32(0.6),
    _spots(32, ((24, 8), (8, 24)), 3.5) * np.float32(0.4),
)
_BOKEH_COLOURS = np.where(
    ((_X // 16 + _Y // 32) % 2 < 1)[..., None], rgb(255, 224, 150), rgb(220, 240, 255)
)


def _bokeh(layers: Layers) -> None:
    layers.background = blur(layers.background, 4.0) * 0.78
    layers.background += (_BOKEH_COLOURS - layers.background) * _BOKEH


def _backlit(layers: Layers) -> None:
    alpha = layers.alpha
    halo = np.clip(2.2 * blur(alpha, 2.5), 0, 1)
    rim = np.clip(alpha - blur(alpha, 1.5), 0, 1) * 2.2
    layers.background *= 0.75
    layers.background += (rgb(255, 250, 224) - layers.background) * halo
    layers.things[..., :3] *= 0.55
    layers.things[..., :3] += (rgb(255, 244, 200) - layers.things[..., :3]) * np.clip(rim, 0, 1)


BEFORE: dict[str, Callable[[Layers], None]] = {
    "silhouette": _bright_behind,
    "at night": _night,
    "starry sky": _starry_sky,
    "rainbow": _rainbow,
    "golden hour": _golden_hour,
    "foggy": _foggy,
    "candlelight": _candlelight,
    "dramatic lighting": _dramatic_lighting,
    "soft light": _soft_light,
    "bokeh": _bokeh,
    "backlit": _backlit,
}

# --- on the picture ---

Effect = Callable[[np.ndarray, Layers], np.ndarray]


def _silhouette(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture + (rgb(10, 8, 14) - picture) * layers.alpha


_MOON = disc(54, 10, 6)
_MOON_GLOW = glow(54, 10, 8) * np.float32(0.45)


def _moon(picture: np.ndarray, layers: Layers) -> np.ndarray:
    behind = 1 - 0.7 * layers.alpha
    picture = picture + (rgb(150, 176, 250) - picture) * _MOON_GLOW * behind
    return picture + (rgb(250, 248, 226) - picture) * _MOON * behind


_FLAME = np.exp(-0.5 * (((_X - 32) / 2.6) ** 2 + ((_Y - 57) / 5) ** 2))[..., None]


def _flame(picture: np.ndarray, layers: Layers) -> np.ndarray:
    return picture + (rgb(255, 240, 150) - picture) * np.clip(_FLAME * 1.5, 0, 1)


_ANGLE = np.arctan2(_Y + 10, 72 - _X)
_BEAMS = np.clip(1.4 * np.cos(_ANGLE * 22) + 0.1, 0, 1)[..., None]
_BEAMS = (_BEAMS * (0.75 - 0.35 * _Y / SIDE)[..., None]).astype(np.float32)


def _god_rays(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = picture * 0.8
    return picture + (rgb(255, 246, 196) - picture) * _BEAMS * (1 - 0.45 * layers.alpha)


def _streaks() -> np.ndarray:
    """(64, 64, 1): slanted drops, 8 pixels long, two in each tile of 16 by 16."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    for left, top in ((3, 1), (11, 9)):
        across = (_X - left + 0.35 * ((_Y - top) % 16) + 8) % 16 - 8
        along = (_Y - top) % 16
        mask = np.maximum(mask, np.clip(1.3 - np.abs(across), 0, 1) * (along < 9))
    return mask[..., None]


_RAIN = _streaks()


def _rain(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = saturate(picture, 0.75) * rgb(176, 190, 214)
    return picture + (rgb(206, 226, 255) - picture) * layers.drifted(_RAIN) * 0.8


_FLAKES = np.maximum(_spots(16, ((4, 3), (12, 11)), 2.0), _spots(32, ((20, 5), (5, 21)), 1.4))


def _snowfall(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = picture * rgb(196, 204, 222)
    return picture + (1 - picture) * layers.drifted(_FLAKES)


_FIREFLIES = _spots(32, ((6, 12), (20, 6), (27, 22), (12, 27)), 1.6)
_FIREFLY_GLOW = np.clip(blur(_FIREFLIES, 2.5) * 3.0, 0, 1)


def _fireflies(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = picture * rgb(120, 134, 130)
    picture = picture + (rgb(176, 240, 40) - picture) * layers.drifted(_FIREFLY_GLOW)
    return picture + (rgb(250, 255, 170) - picture) * layers.drifted(_FIREFLIES)


def _double_exposure(picture: np.ndarray, layers: Layers) -> np.ndarray:
    ghost = np.zeros_like(layers.things)
    ghost[:-8, 16:] = layers.things[8:, :-16]
    picture = picture * 0.9 + 0.1
    return picture + (ghost[..., :3] * 0.9 + 0.1 - picture) * ghost[..., 3:] * 0.55


OVER: dict[str, Effect] = {
    "silhouette": _silhouette,
    "at night": _moon,
    "candlelight": _flame,
    "god rays": _god_rays,
    "rain": _rain,
    "snowfall": _snowfall,
    "fireflies": _fireflies,
    "double exposure": _double_exposure,
}

_BAND = np.clip(1 - (np.abs(_Y - 34) - 9) / 8, 0, 1)[..., None]


def _tilt_shift(picture: np.ndarray, layers: Layers) -> np.ndarray:
    outside = blur(picture, 4.0) * 0.8 + 0.2
    return outside + (saturate(picture, 1.35) - outside) * _BAND


_TRAIL = np.zeros((SIDE, SIDE), np.float32)
for _row in range(SIDE):
    for _step in range(-6, 7):
        _TRAIL[_row, min(max(_row + _step, 0), SIDE - 1)] += 1 / 13
_SPEED = (np.clip(1.2 - np.abs(_Y % 8 - 4), 0, 1) * (0.55 + 0.45 * np.cos(_X / 32 * 2 * np.pi)))[
    ..., None
].astype(np.float32)


def _motion_blur(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = np.matmul(_TRAIL, picture)
    return picture + (1 - picture) * _SPEED * 0.4


_FLARE = glow(12, 10, 6) + 0.3 * glow(12, 10, 16)
_GHOSTS = (
    (disc(27, 25, 4, 1.5), rgb(120, 255, 150), 0.65),
    (disc(38, 36, 2.5, 1.5), rgb(255, 190, 70), 0.8),
    (disc(52, 50, 7.5, 1.5) - 0.6 * disc(52, 50, 5.5, 1.5), rgb(150, 140, 255), 0.8),
)


def _lens_flare(picture: np.ndarray, layers: Layers) -> np.ndarray:
    picture = picture * 0.85
    for ring, colour, share in _GHOSTS:
        picture = picture + (colour - picture) * ring * share
    return picture + (rgb(255, 252, 236) - picture) * np.clip(_FLARE, 0, 1)


CAMERA: dict[str, Effect] = {
    "tilt shift": _tilt_shift,
    "motion blur": _motion_blur,
    "lens flare": _lens_flare,
}
