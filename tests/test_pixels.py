from __future__ import annotations

import numpy as np
import pytest

from promptadapt_core.pixels import floats_of, pixels_of
from promptadapt_core.settings import SettingsError


def image(*values: float) -> np.ndarray:
    """One picture of one pixel."""
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, -1)


def test_values_are_rounded_and_cut_off() -> None:
    assert pixels_of(image(0.0, 0.5, 1.0)).tolist() == [[[[0, 128, 255]]]]
    assert pixels_of(image(-3.0, 0.0019, 7.5)).tolist() == [[[[0, 0, 255]]]]


def test_grey_becomes_three_and_alpha_goes() -> None:
    assert pixels_of(image(0.2)).tolist() == [[[[51, 51, 51]]]]
    assert pixels_of(image(0.2, 0.4, 0.6, 0.1)).tolist() == [[[[51, 102, 153]]]]


def test_every_byte_survives_the_way_there_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 16, 8, 3)
    assert np.array_equal(pixels_of(floats_of(pixels)), pixels)


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 2, 2), (0, 4, 4, 3), (1, 0, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="expected pictures of") as caught:
        pixels_of(np.zeros(shape), "image_b")
    assert caught.value.name == "image_b"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_picture_that_failed_is_named(bad: float) -> None:
    images = np.zeros((3, 2, 2, 3))
    images[1, 0, 1, 2] = bad
    with pytest.raises(SettingsError, match="picture 2 of 3"):
        pixels_of(images)
