"""Where the demo writes, checked before anything slow begins. Text only: imports no torch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import prompts
from ..settings import SettingsError
from .settings import MAX_TEXT_CHARACTERS, MAX_TEXTS

PAGE_NAME, PICTURE_NAME = "demo.html", "demo.png"
TRAINING_PAGE_NAME = "training.html"
RUN_NAME = "run"


def check_texts(texts: Sequence[str]) -> None:
    """SettingsError("user_input", ...) for texts that cannot be shown."""
    if len(texts) > MAX_TEXTS:
        raise SettingsError("user_input", f"expected at most {MAX_TEXTS}, got {len(texts)}")
    for text in texts:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise SettingsError(
                "user_input",
                f"expected at most {MAX_TEXT_CHARACTERS:,} characters, got {len(text):,}; the lab "
                "reads the first 75 tokens",
            )
        prompts.parse(text)


def prepare_folder(out: str) -> Path:
    """The folder, made and tried; SettingsError("out", ...) where nothing can be written."""
    folder = Path(out).expanduser()
    with writing(folder):
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise SettingsError("out", f"{out:.200} is a file, expected a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses is SettingsError("out", ...)."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError("out", f"{str(path):.200} cannot be written ({reason})") from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, SettingsError):
            raise
        raise SettingsError("out", f"no folder can have this name ({error})") from None
