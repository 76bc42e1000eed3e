"""Keeps photographs and painted pictures apart.

People's prompts mix them ("a photo of a bench, digital painting, concept art"), and a policy that
learns from people does too; an image model then shows neither. What the user asks for decides;
where nothing is asked for, what was added first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import prompts

_PHOTO = frozenset(
    "photo photos photograph photographs photography photographic photoreal photorealistic "
    "photorealism photojournalism snapshot selfie polaroid kodak kodachrome ektachrome portra "
    "cinestill fujifilm fuji canon nikon hasselblad leica sony pentax olympus dslr slr telephoto "
    "14mm 16mm 18mm 20mm 24mm 28mm 35mm 40mm 50mm 55mm 70mm 85mm 100mm 105mm 120mm 135mm 200mm "
    "shutter aperture iso bokeh".split()
)
_DRAWN = frozenset(
    "painting paintings painted painterly watercolor watercolour watercolors gouache acrylic "
    "fresco impasto illustration illustrations illustrated illustrator drawing drawings drawn "
    "sketch sketches sketched cartoon comic comics manga anime lineart engraving etching woodcut "
    "woodblock lithograph charcoal crayon pastels artstation deviantart pixiv artstationhd "
    "cgsociety brushstrokes brushstroke brushwork brush canvas".split()
)
_DRAWN_PHRASES = (
    "concept art", "digital art", "line art", "vector art", "pixel art", "ink wash", "cel shaded",
    "cel shading", "fan art", "pop art",
)  # fmt: skip


def medium(text: str) -> str:
    """ "photo", "drawn", or "" where the text names neither or both."""
    words = prompts.content_words(text)
    joined = f" {' '.join(words)} "
    photo = not _PHOTO.isdisjoint(words)
    drawn = not _DRAWN.isdisjoint(words) or any(f" {one} " in joined for one in _DRAWN_PHRASES)
    return "" if photo == drawn else "photo" if photo else "drawn"


def clashes(addition: str, user_text_medium: str, earlier: Sequence[str]) -> bool:
    """Whether an addition names another medium than the user, or than the first addition did."""
    own = medium(addition)
    if not own:
        return False
    asked = user_text_medium or _first(medium(other) for other in earlier)
    return bool(asked) and own != asked


def _first(found: Iterable[str]) -> str:
    return next(filter(None, found), "")
