"""Engineered prompts in: rows of a .jsonl, .jsonl.gz or .txt file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..settings import SettingsError

SPLITS = ("train", "valid", "test")


class Row(NamedTuple):
    """One engineered prompt as it was read."""

    id: str
    engineered_prompt: str
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    split: str | None = None
    cluster: str | None = None

    def comes_only_from(self, prefixes: tuple[str, ...]) -> bool:
        """Whether every source of the row begins with one of `prefixes`."""
        return bool(prefixes and self.sources) and all(
            source.startswith(prefixes) for source in self.sources
        )


def read_rows(file: str, limit: int = 0) -> Iterator[Row]:
    """The rows of `file` in their order, at most `limit` of them unless it is 0.

    A JSON row needs `prompt`; it may carry `id`, `source` (text or list), `flags`, `split`
    (train, valid or test) and `cluster`. A row without an id is named after its text.
    Raises SettingsError("prompts", ...) for a file that cannot be read to its end.
    """
    path = Path(file)
    if not file:
        raise SettingsError("prompts", "expected a file of engineered prompts")
    if not is_file(path):
        raise SettingsError("prompts", f"{file} is not a file")
    as_text = path.name.removesuffix(".gz").endswith(".txt")
    num_rows = 0
    try:
        with _open_text(path) as stream:
            for line_number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                num_rows += 1
                yield _text_row(line) if as_text else _json_row(line, f"{file} line {line_number}")
                if num_rows == limit:
                    return
    except EOFError:
        raise SettingsError("prompts", f"{file} ends too early, it is truncated") from None
    except (gzip.BadGzipFile, zlib.error):
        raise SettingsError("prompts", f"{file} is not a sound gzip file") from None
    except UnicodeDecodeError:
        raise SettingsError("prompts", f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError("prompts", f"{file} cannot be read ({error.strerror})") from None
    if num_rows == 0:
        raise SettingsError("prompts", f"{file} holds no prompts")


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that the system does not take."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _open_text(path: Path) -> io.TextIOBase:
    """The file as text; gzip is known by its first bytes, not by its name."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.open(path, "rt", encoding="utf-8-sig")  # type: ignore[return-value]
    return path.open(encoding="utf-8-sig")


def _text_row(line: str) -> Row:
    return Row(text_id(line.strip()), line.strip())


def _json_row(line: str, place: str) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise SettingsError("prompts", f"{place} is not valid JSON") from None
    if not isinstance(fields, dict):
        raise SettingsError("prompts", f"{place} is not a JSON object")
    text = fields.get("prompt")
    if not isinstance(text, str):
        raise SettingsError("prompts", f"{place} has no text in the field `prompt`")
    split = fields.get("split")
    if split is not None and split not in SPLITS:
        raise SettingsError("prompts", f"{place} has split {split!r}, expected train, valid, test")
    row = Row(
        id=str(fields.get("id") or text_id(text)),
        engineered_prompt=text,
        sources=_strings(fields.get("source"), "source", place),
        flags=_strings(fields.get("flags"), "flags", place),
        split=split,
        cluster=str(fields["cluster"]) if fields.get("cluster") else None,
    )
    try:
        "".join((row.id, text, row.cluster or "", *row.sources)).encode()
    except UnicodeEncodeError:
        raise SettingsError("prompts", f"{place} holds half a character (a surrogate)") from None
    return row


def _strings(value: Any, name: str, place: str) -> tuple[str, ...]:
    """A text or a list of texts as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise SettingsError("prompts", f"{place} has a `{name}` that is no text or list of texts")


def text_id(text: str) -> str:
    """A short stable name for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
