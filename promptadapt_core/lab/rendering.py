"""Pictures of a text, written to files: the command `render`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .. import runs
from ..clip_tokens import ClipTokenCounter, count_clip_tokens
from ..settings import MAX_INPUT_CHARACTERS, MAX_SEED, SettingsError
from .drawing import SIZE
from .folders import WEIGHTS
from .grids import enlarged
from .plain_renderer import PlainRenderer
from .settings import RenderSettings
from .text_encoder import MAX_LENGTH, known_ids

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
BATCH_SIZE = 8  # pictures at once, written before the next are begun
MOST_SHOWN, LONGEST_SHOWN = 8, 30  # unknown words in a remark, and characters of each


def render_files(
    user_input: str, settings: RenderSettings, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Render the text and write the pictures; returns the files, in the order of the seeds.

    say: gets lines on what the user may want to know. Raises SettingsError for bad input, missing
    or broken weights and files that cannot be written.
    """
    if len(user_input) > MAX_INPUT_CHARACTERS:
        raise SettingsError("user_input", f"expected at most {MAX_INPUT_CHARACTERS:,} characters")
    # A console may pass on halves of characters, which no tokenizer takes.
    user_input = user_input.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    paths = output_paths(settings.out, settings.num_images)
    renderer = PlainRenderer(
        Path(settings.weights) if settings.weights else WEIGHTS, settings.device,
        num_steps=settings.num_steps, guidance_scale=settings.guidance_scale, size=settings.size,
    )  # fmt: skip
    for line in remarks(user_input, renderer.settings.size):
        say(line)
    seeds = [(settings.seed + number) % (MAX_SEED + 1) for number in range(len(paths))]
    for start in range(0, len(paths), BATCH_SIZE):
        batch = seeds[start : start + BATCH_SIZE]
        pictures = renderer.generate([user_input] * len(batch), batch)
        for path, pixels in zip(paths[start : start + BATCH_SIZE], pictures, strict=True):
            _write(path, pixels, settings.scale)
    return paths


def output_paths(out: str, number: int) -> list[Path]:
    """x.png, x-2.png, x-3.png, ...; SettingsError("out", ...) where they cannot be written."""
    first = Path(out)
    if first.suffix.lower() not in FORMATS:
        raise SettingsError("out", f"expected a file that ends in {', '.join(FORMATS)}, got {out}")
    paths = [first, *(first.with_stem(f"{first.stem}-{n}") for n in range(2, number + 1))]
    try:
        if not first.parent.is_dir():
            raise SettingsError("out", f"the folder {first.parent} does not exist")
        for path in paths:
            if path.is_dir():
                raise SettingsError("out", f"{path} is a folder, expected a file")
    except OSError as error:  # such as a name that is too long
        raise SettingsError("out", f"{first} cannot be written ({error.strerror})") from None
    return paths


def remarks(user_input: str, size: int) -> list[str]:
    """What the user may not expect of this text and size."""
    lines = []
    if not user_input.strip():
        lines.append("the text is empty: the picture shows anything")
    unknown = unknown_words(user_input)
    if unknown:
        shown = [word[:LONGEST_SHOWN] for word in unknown[:MOST_SHOWN]]
        more = f" and {len(unknown) - MOST_SHOWN} more" if len(unknown) > MOST_SHOWN else ""
        lines.append(f"words that mean nothing in the lab: {', '.join(shown)}{more}")
    num_read = MAX_LENGTH - 2
    if (number := count_clip_tokens(user_input)) > num_read:
        lines.append(f"the text has {number} tokens, of which the first {num_read} are read")
    if size != SIZE:
        lines.append(f"the renderer has learned {SIZE} pixels only, not {size}")
    return lines


def unknown_words(user_input: str) -> list[str]:
    """The words none of whose tokens occurs in the lab's world, each once."""
    counter, known = ClipTokenCounter(), set(known_ids())
    words = dict.fromkeys(word.strip(".,;:!?()[]{}\"'") for word in user_input.split())
    return [word for word in words if word and known.isdisjoint(counter.encode(word))]


def _write(path: Path, pixels: np.ndarray, scale: int) -> None:
    picture: Image.Image = enlarged(pixels, scale)
    try:
        runs.replace_file(path, lambda partial: _save(picture, partial, path.suffix.lower()))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError("out", f"{path} cannot be written ({reason})") from None


def _save(picture: Image.Image, path: Path, suffix: str) -> None:
    with open(path, "wb") as file:
        picture.save(file, FORMATS[suffix], **({} if suffix == ".png" else {"quality": 95}))
