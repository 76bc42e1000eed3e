"""The numbers of the lab's taste. taste.py adds them up; all are points on a scale of 1 to 10."""

from __future__ import annotations

LOWEST, HIGHEST = 1.0, 10.0
NOISE = 0.6  # of a person's rating, standard deviation
RELATION_LOST = -0.8  # the picture does not show the relation that was asked for
NUM_BEFORE_CROWDING = 3.0  # modifiers that change the picture
CROWDING = -0.25  # times the square of the number beyond

# What a scene has before any modifier. "nowhere" is a scene without a place.
PLAIN = {
    "any": 5.0, "by the sea": 0.2, "in the mountains": 0.25, "in a forest": 0.1, "in a city": -0.1,
    "in a room": -0.15, "nowhere": -0.35, "castle": 0.2, "butterfly": 0.15, "lighthouse": 0.2,
    "flower": 0.1, "chair": -0.2, "cup": -0.1, "car": -0.15, "several things": -0.1,
}  # fmt: skip

# What a modifier adds. Keys: "any" scene; places, "outdoors", "nowhere"; "one thing", "several
# things"; kinds, subjects and colours, which count as a mean over the things.
WORTH: dict[str, dict[str, float]] = {
    # medium
    "watercolor": {
        "any": -0.1, "in a meadow": 0.7, "by the sea": 0.6, "plant": 0.4, "animal": 0.2,
        "rabbit": 0.2, "vehicle": -0.3, "boat": 0.4, "robot": -0.5, "in a city": -0.5,
    },
    "oil painting": {
        "any": -0.1, "in the mountains": 0.7, "in a room": 0.5, "building": 0.3, "boat": 0.4,
        "apple": 0.4, "in the snow": -0.3, "robot": -0.4, "rocket": -0.4,
    },
    "pixel art": {
        "any": -0.4, "robot": 1.2, "rocket": 1.1, "car": 0.6, "mushroom": 0.9, "castle": 0.6,
        "in a city": 0.4, "in a desert": 0.2, "by the sea": -0.2,
    },
    "line art": {
        "any": -0.3, "nowhere": 1.0, "chair": 0.5, "clock": 0.4, "cactus": 0.4, "windmill": 0.4,
        "outdoors": -0.2, "white": 0.3,
    },
    "pencil sketch": {
        "any": -0.3, "nowhere": 0.7, "building": 0.3, "animal": 0.3, "dog": 0.2, "in a city": 0.6,
        "brown": 0.2, "black": 0.2,
    },
    "stained glass": {
        "any": -0.5, "castle": 0.9, "building": 0.4, "fish": 0.9, "bird": 0.7, "butterfly": 0.9,
        "flower": 0.5, "in a room": 0.5, "lamp": 0.6, "vehicle": -0.2,
    },
    "paper cutout": {
        "any": -0.3, "in the snow": 0.8, "balloon": 0.6, "rabbit": 0.4, "in a desert": 0.6,
        "whale": 0.4, "house": 0.3, "umbrella": 0.4,
    },
    "woodcut": {
        "any": -0.3, "in the mountains": 0.5, "in a forest": 0.6, "whale": 0.8, "tree": 0.5,
        "windmill": 0.6, "lighthouse": 0.4, "pink": -0.3,
    },
    "comic book": {
        "any": -0.3, "in a city": 0.8, "vehicle": 0.3, "robot": 0.7, "dog": 0.4, "cat": 0.3,
        "plant": -0.3, "red": 0.2, "yellow": 0.2,
    },
    # light
    "golden hour": {
        "any": -0.5, "outdoors": 0.9, "in a meadow": 0.5, "in a desert": 0.5, "by the sea": 0.5,
        "in a room": -1.0, "in the snow": -0.4, "in a forest": -0.3, "in a city": -0.2,
        "blue": -0.2,
    },
    "at night": {
        "any": -0.3, "building": 0.5, "lighthouse": 0.6, "rocket": 0.8, "tent": 0.3,
        "in a city": 0.8, "in a desert": 0.3, "in a meadow": -0.7, "plant": -0.4, "animal": -0.3,
        "in a room": -0.3, "black": -0.3,
    },
    "foggy": {
        "any": -0.2, "in a forest": 1.3, "in the mountains": 1.1, "by the sea": 0.2,
        "in a room": -1.0, "in a desert": -0.5, "in a meadow": -0.2, "white": -0.2,
    },
    "dramatic lighting": {
        "any": -0.2, "nowhere": 0.9, "castle": 0.6, "vehicle": 0.3, "robot": 0.4, "in a room": 0.2,
        "in the mountains": 0.3, "flower": -0.3, "rabbit": -0.4, "butterfly": -0.3,
    },
    "soft light": {
        "any": -0.1, "in the snow": 0.8, "in a room": 0.4, "rabbit": 0.4, "flower": 0.4,
        "cup": 0.5, "cat": 0.3, "vehicle": -0.4, "building": -0.2, "nowhere": 0.3,
    },
    "backlit": {
        "any": -0.3, "tree": 0.7, "bird": 0.7, "cactus": 0.7, "butterfly": 0.5, "mushroom": 0.5,
        "by the sea": 0.4, "in a desert": 0.3, "in a room": -0.2, "umbrella": 0.4,
    },
    "candlelight": {
        "any": -0.7, "in a room": 1.9, "outdoors": -0.4, "cup": 0.4, "clock": 0.3,
        "animal": -0.1, "lamp": -0.4, "white": 0.1,
    },
    # palette
    "black and white": {
        "any": -0.3, "in a city": 0.5, "in the mountains": 0.3, "clock": 0.5, "umbrella": 0.5,
        "chair": 0.5, "white": 0.5, "black": 0.6, "red": -0.3, "yellow": -0.3, "pink": -0.3,
        "flower": -0.5, "by the sea": 0.2,
    },
    "sepia": {
        "any": -0.3, "brown": 0.6, "clock": 0.6, "windmill": 0.7, "car": 0.5, "in a room": 0.4,
        "in a desert": 0.3, "by the sea": -0.3, "house": 0.3, "blue": -0.3, "orange": 0.2,
    },
    "pastel colors": {
        "any": -0.3, "flower": 0.8, "rabbit": 0.8, "butterfly": 0.8, "balloon": 0.6, "cup": 0.4,
        "pink": 0.5, "purple": 0.2, "in a meadow": 0.3, "in the snow": 0.4, "black": -0.4,
        "in a city": -0.3,
    },
    "vibrant colors": {
        "any": -0.3, "fish": 0.8, "bird": 0.5, "balloon": 0.6, "apple": 0.6, "red": 0.3,
        "yellow": 0.4, "orange": 0.4, "by the sea": 0.3, "in a meadow": 0.5, "in the snow": -0.4,
        "brown": -0.4, "white": -0.3, "black": -0.3,
    },
    "neon colors": {
        "any": -0.6, "in a city": 1.2, "robot": 0.8, "car": 0.8, "rocket": 0.7, "lamp": 0.6,
        "mushroom": 0.5, "in a meadow": -0.4, "purple": 0.3, "brown": -0.3, "nowhere": 0.3,
    },
    "blue tones": {
        "any": -0.3, "in the snow": 0.8, "by the sea": 0.5, "whale": 0.5, "umbrella": 0.4,
        "blue": 0.5, "white": 0.2, "orange": -0.4, "red": -0.3, "in a desert": -0.6,
        "in the mountains": 0.3,
    },
    "muted colors": {
        "any": -0.2, "in the mountains": 0.4, "in a forest": 0.7, "in a desert": 0.6, "tent": 0.5,
        "dog": 0.3, "chair": 0.4, "house": 0.4, "green": 0.2, "balloon": -0.4, "fish": -0.4,
        "pink": -0.3,
    },
    # composition
    "close-up": {
        "any": -0.3, "one thing": 0.3, "several things": -0.5, "butterfly": 0.8, "flower": 0.7,
        "apple": 0.8, "cup": 0.6, "mushroom": 0.5, "cat": 0.5, "fish": 0.4, "building": -0.7,
        "in the mountains": -0.4, "in a room": 0.3,
    },
    "wide shot": {
        "any": -0.2, "in the mountains": 0.9, "in a desert": 0.8, "by the sea": 0.3,
        "several things": 0.2, "building": 0.3, "whale": 0.3, "in a room": -0.6, "nowhere": -0.5,
        "object": -0.3, "large": 0.1,
    },
    "vignette": {
        "any": -0.1, "in a room": 0.7, "nowhere": 0.6, "in a forest": 0.2, "object": 0.2,
        "in the snow": -0.3, "in a desert": -0.2,
    },
    "white border": {
        "any": -0.2, "in a city": 0.3, "black": 0.4, "plant": 0.4, "in a meadow": 0.3,
        "in the snow": -0.4, "white": -0.4,
    },
    "silhouette": {
        "any": -0.6, "bird": 0.7, "castle": 0.6, "windmill": 0.7, "tree": 0.6, "boat": 0.4,
        "cat": 0.3, "in a desert": 0.3, "black": 0.3, "fish": -0.3,
    },
    # camera
    "bokeh": {
        "any": -0.2, "in a city": 0.5, "animal": 0.5, "flower": 0.6, "in a forest": 0.4,
        "building": -0.4, "in the mountains": -0.5, "in a meadow": 0.3, "lamp": 0.5,
    },
    "tilt shift": {
        "any": -0.4, "in a city": 0.9, "car": 0.8, "house": 0.8, "tent": 0.5, "boat": 0.6,
        "in the mountains": 0.3, "animal": -0.3, "plant": -0.3, "in a room": -0.2,
    },
    "lens flare": {
        "any": -0.4, "rocket": 0.7, "car": 0.5, "in a desert": 0.6, "by the sea": 0.3,
        "lighthouse": 0.5, "in a room": -0.5, "in a forest": -0.2,
    },
    "motion blur": {
        "any": -0.6, "vehicle": 0.7, "car": 0.6, "rocket": 0.4, "dog": 0.9, "bird": 0.5,
        "whale": 0.3, "building": -0.5, "plant": -0.4, "in a city": 0.2, "in a room": -0.2,
    },
    "double exposure": {
        "any": -0.6, "animal": 0.6, "in a forest": 0.8, "in the mountains": 0.6, "clock": 0.9,
        "several things": -0.4, "nowhere": 0.3, "vehicle": -0.2,
    },
    # weather
    "rain": {
        "any": -0.3, "umbrella": 1.4, "in a city": 0.7, "in a forest": 0.3, "boat": 0.4,
        "lighthouse": 0.4, "house": 0.2, "in a desert": -0.8, "in a room": -1.8,
        "in the snow": -0.4, "butterfly": -0.4, "cat": -0.2,
    },
    "snowfall": {
        "any": -0.3, "in the snow": 1.2, "in the mountains": 0.7, "in a forest": 0.4,
        "house": 0.4, "red": 0.2, "in a room": -1.1, "in a desert": -0.9, "by the sea": -0.4,
        "flower": -0.4, "cactus": -0.4, "white": -0.2,
    },
    "starry sky": {
        "any": -0.4, "in a desert": 0.7, "in the mountains": 0.4, "tent": 0.9, "rocket": 0.6,
        "lighthouse": 0.4, "castle": 0.3, "in a room": -0.9, "in the snow": 0.4, "flower": -0.3,
    },
    "god rays": {
        "any": -0.3, "in a forest": 1.2, "fish": 0.6, "whale": 0.5, "castle": 0.4,
        "in a room": 0.4, "in a desert": -0.2, "in a city": -0.2, "tree": 0.2,
    },
    "fireflies": {
        "any": -0.4, "in a meadow": 1.0, "in a forest": 0.7, "mushroom": 0.6, "tree": 0.4,
        "lamp": 0.3, "in the snow": -0.6, "in a room": -0.6, "in a city": -0.4, "vehicle": -0.2,
    },
    "rainbow": {
        "any": -0.4, "in a meadow": 0.8, "by the sea": 0.7, "balloon": 0.7, "windmill": 0.4,
        "in the mountains": 0.3, "in a room": -0.9, "white": 0.2, "umbrella": 0.4,
    },
    # quality
    "blurry": {"any": -1.1},
    "low quality": {"any": -1.3},
    "overexposed": {"any": -0.9, "in the snow": -0.3},
    "film grain": {"any": -0.6, "in a city": 0.2, "car": 0.2},
}  # fmt: skip

# Two of a family in one picture, unless COMBINATIONS has the two.
FAMILY_CLASH = {"medium": -1.3, "light": -0.8, "palette": -1.0, "weather": -0.4, "camera": -0.5}

# What two modifiers add beside each other.
COMBINATIONS: dict[tuple[str, str], float] = {
    # lights that go together, and what comes with the light
    ("golden hour", "backlit"): 0.1, ("at night", "foggy"): 0.1,
    ("dramatic lighting", "backlit"): 0.1, ("soft light", "foggy"): 0.1,
    ("at night", "starry sky"): 0.8, ("at night", "fireflies"): 0.7,
    ("at night", "neon colors"): 0.5, ("at night", "rainbow"): -1.0,
    ("at night", "god rays"): -0.8, ("at night", "pastel colors"): -0.5,
    ("at night", "lens flare"): -0.3, ("golden hour", "lens flare"): 0.6,
    ("golden hour", "silhouette"): 0.7, ("golden hour", "starry sky"): -0.7,
    ("golden hour", "blue tones"): -0.7, ("golden hour", "black and white"): -0.6,
    ("golden hour", "neon colors"): -0.5, ("golden hour", "snowfall"): -0.3,
    ("golden hour", "rain"): -0.4, ("backlit", "silhouette"): 0.6, ("backlit", "god rays"): 0.3,
    ("foggy", "god rays"): 0.4, ("foggy", "starry sky"): -0.8, ("foggy", "vibrant colors"): -0.5,
    ("foggy", "muted colors"): 0.2, ("foggy", "black and white"): 0.3,
    ("foggy", "lens flare"): -0.5, ("foggy", "rainbow"): -0.5, ("foggy", "wide shot"): 0.1,
    ("candlelight", "vignette"): 0.2, ("candlelight", "sepia"): 0.2,
    ("candlelight", "blue tones"): -0.6, ("candlelight", "rainbow"): -0.5,
    ("soft light", "pastel colors"): 0.3, ("soft light", "neon colors"): -0.5,
    ("dramatic lighting", "pastel colors"): -0.5, ("dramatic lighting", "oil painting"): 0.4,
    # media and what they are made with
    ("watercolor", "pastel colors"): 0.3, ("watercolor", "white border"): 0.5,
    ("watercolor", "film grain"): -1.0, ("watercolor", "lens flare"): -0.5,
    ("watercolor", "neon colors"): -0.4, ("oil painting", "pastel colors"): -0.2,
    ("pixel art", "neon colors"): 0.3, ("pixel art", "bokeh"): -0.5,
    ("pixel art", "film grain"): -0.5, ("pixel art", "soft light"): -0.3,
    ("line art", "bokeh"): -0.5, ("line art", "black and white"): 0.3,
    ("line art", "lens flare"): -0.4, ("pencil sketch", "black and white"): 0.4,
    ("pencil sketch", "vibrant colors"): -0.5, ("pencil sketch", "white border"): 0.3,
    ("stained glass", "vibrant colors"): 0.5, ("stained glass", "black and white"): -0.8,
    ("stained glass", "motion blur"): -0.5, ("paper cutout", "pastel colors"): 0.3,
    ("paper cutout", "motion blur"): -0.4, ("woodcut", "black and white"): 0.5,
    ("woodcut", "bokeh"): -0.5, ("comic book", "vibrant colors"): 0.4,
    ("comic book", "motion blur"): 0.3, ("comic book", "soft light"): -0.3,
    # palettes
    ("black and white", "film grain"): 1.2, ("sepia", "film grain"): 1.0,
    ("black and white", "rainbow"): -1.0, ("sepia", "rainbow"): -0.8,
    ("black and white", "rain"): 0.3, ("sepia", "white border"): 0.5,
    ("sepia", "vignette"): 0.3, ("blue tones", "snowfall"): 0.3, ("blue tones", "rain"): 0.2,
    ("vibrant colors", "rainbow"): 0.2, ("neon colors", "rain"): 0.4,
    ("muted colors", "fireflies"): -0.3, ("pastel colors", "film grain"): -0.4,
    # composition, camera, weather
    ("close-up", "wide shot"): -1.2, ("close-up", "bokeh"): 0.4, ("close-up", "tilt shift"): -0.7,
    ("close-up", "starry sky"): -0.3, ("wide shot", "tilt shift"): 0.4,
    ("wide shot", "bokeh"): -0.5, ("silhouette", "close-up"): -0.3,
    ("silhouette", "vibrant colors"): -0.3, ("vignette", "white border"): -0.5,
    ("rain", "rainbow"): 0.4, ("rain", "starry sky"): -0.7, ("god rays", "starry sky"): -0.6,
    ("rain", "fireflies"): -0.5, ("snowfall", "fireflies"): -0.6,
    ("snowfall", "starry sky"): -0.1, ("starry sky", "fireflies"): 0.2,
    ("motion blur", "film grain"): -0.3,
}  # fmt: skip

# Seen in the pixels: weight * tanh((measure - usual) / spread); see `measures`.
PIXEL_TERMS = {
    "contrast": {"weight": 0.25, "usual": 0.18, "spread": 0.08},
    "colourfulness": {"weight": 0.25, "usual": 0.26, "spread": 0.25},
    "sharpness": {"weight": 0.25, "usual": 0.030, "spread": 0.03},
}
