import pytest

from promptadapt_core.mediums import clashes, medium


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a bench", "photo"),
        ("shot on a Canon 5D, 85mm", "photo"),
        ("an oil painting of a bench", "drawn"),
        ("concept art", "drawn"),
        ("trending on artstation", "drawn"),
        ("modern art museum", ""),
        ("golden hour, highly detailed", ""),
        ("a painting of a photograph", ""),
        ("photorealistic painting", ""),
        ("", ""),
    ],
)
def test_medium(text, expected):
    assert medium(text) == expected


def test_what_the_user_asks_for_decides():
    assert clashes("digital painting", "photo", [])
    assert clashes("35mm photograph", "drawn", ["watercolor"])
    assert not clashes("bokeh", "photo", [])
    assert not clashes("golden hour", "photo", [])


def test_without_it_the_first_addition_decides():
    assert clashes("35mm photograph", "", ["golden hour", "digital painting"])
    assert clashes("illustration", "", ["bokeh"])
    assert not clashes("illustration", "", ["golden hour"])
