"""What an evaluation knows already, on disk: a killed one goes on where it was.

A first line says what the rest is worth something for; then one line for each call, written whole
and flushed. A last line that was cut off is dropped, so a call's results are all there or none.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .. import runs
from ..settings import SettingsError


class KeptFile:
    """A JSONL file of objects. entries: those after the first line, in the order they came."""

    def __init__(self, folder: Path, kind: str, header: dict[str, Any]):
        """The file of this kind and header in the folder: another header has another file.
        SettingsError("out", ...) where it cannot be read or written."""
        text = json.dumps({"kind": kind, **header}, sort_keys=True)
        header = json.loads(text)  # as it is read again: lists for tuples
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = folder / f"{kind}-{key}.jsonl"
        self.entries: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.decode("utf-8").split("\n")[:-1]]
            if lines and lines[0] != header:
                raise SettingsError("out", f"{self.path} is another evaluation's; remove it")
            self.entries = lines[1:]
            if not lines or len(whole) < len(content):
                runs.write_text(self.path, whole.decode("utf-8") or json.dumps(header) + "\n")
        except OSError as error:
            raise _unusable(self.path, error) from None
        except ValueError as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError("out", f"{self.path} is broken; remove it") from None

    def add(self, entry: dict[str, Any]) -> None:
        """On disk when this returns."""
        line = json.dumps(entry, allow_nan=False) + "\n"
        try:
            with open(self.path, "ab") as file:
                file.write(line.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unusable(self.path, error) from None
        self.entries.append(entry)


def _unusable(path: Path, error: OSError) -> SettingsError:
    return SettingsError("out", f"{path} cannot be used ({error.strerror or error})")
