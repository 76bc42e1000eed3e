"""The words of the lab's world: what a caption can say and the pictures can show."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Subject:
    """kind: "animal", "plant", "building", "vehicle" or "object". Those that `floats` hang in the
    air or swim; the others stand on the ground."""

    name: str
    kind: str
    floats: bool = False

    @property
    def article(self) -> str:
        return "an" if self.name[0] in "aeiou" else "a"


@dataclasses.dataclass(frozen=True)
class Modifier:
    """effect: "plain" changes the picture, "none" changes nothing, "spoils" changes it for the
    worse."""

    name: str
    family: str
    effect: str = "plain"


SUBJECTS = tuple(
    Subject(name, kind, floats)
    for kind, names, floats in (
        ("animal", "cat dog rabbit", False),
        ("animal", "fish bird whale butterfly", True),
        ("plant", "tree flower mushroom cactus", False),
        ("building", "house lighthouse castle tent windmill", False),
        ("vehicle", "car boat", False),
        ("vehicle", "rocket balloon", True),
        ("object", "umbrella cup lamp chair robot clock apple", False),
    )
    for name in names.split()
)

COLOURS = {
    "red": (208, 44, 44), "orange": (240, 138, 36), "yellow": (246, 212, 56),
    "green": (60, 160, 70), "blue": (48, 96, 205), "purple": (132, 66, 176),
    "pink": (244, 146, 186), "brown": (128, 84, 50), "black": (38, 38, 44),
    "white": (242, 242, 238),
}  # fmt: skip

PLACES = (
    "by the sea", "in a forest", "in a desert", "in the snow", "in a city", "in a meadow",
    "in a room", "in the mountains",
)  # fmt: skip
INDOORS = ("in a room",)

SIZES = {"small": 0.68, "large": 1.35}  # times the usual height; most things have no size

# "A RELATION B"; where they stand is in drawing.py.
RELATIONS = ("beside", "left of", "right of", "above", "behind")

_FAMILIES = {
    "medium": "watercolor; oil painting; pixel art; line art; pencil sketch; stained glass; "
    "paper cutout; woodcut; comic book",
    "light": "golden hour; at night; foggy; dramatic lighting; soft light; backlit; candlelight",
    "palette": "black and white; sepia; pastel colors; vibrant colors; neon colors; blue tones; "
    "muted colors",
    "composition": "close-up; wide shot; vignette; white border; silhouette",
    "camera": "bokeh; tilt shift; lens flare; motion blur; double exposure",
    "weather": "rain; snowfall; starry sky; god rays; fireflies; rainbow",
}
_SPOILERS = "blurry; low quality; overexposed; film grain"  # film grain suits black and white
_NOTHING = (
    "trending on artstation; 8k; masterpiece; highly detailed; award winning; best quality; "
    "intricate; unreal engine"
)

MODIFIERS = (
    *(
        Modifier(name, family)
        for family, names in _FAMILIES.items()
        for name in names.split("; ")
    ),
    *(Modifier(name, "quality", "spoils") for name in _SPOILERS.split("; ")),
    *(Modifier(name, "praise", "none") for name in _NOTHING.split("; ")),
)  # fmt: skip

# Never in what the writers write: the out-of-domain test of a policy.
HELD_OUT_SUBJECTS = ("whale", "cactus", "robot", "windmill")
HELD_OUT_PLACES = ("in a desert", "in the mountains")

SUBJECT_BY_NAME = {subject.name: subject for subject in SUBJECTS}
MODIFIER_BY_NAME = {modifier.name: modifier for modifier in MODIFIERS}
EFFECTIVE = tuple(modifier for modifier in MODIFIERS if modifier.effect != "none")
