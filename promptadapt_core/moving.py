"""Moves files and folders to where others may have them open."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

MOVE_SECONDS, IS_WINDOWS = 3.0, sys.platform == "win32"


def move(source: Path, target: Path) -> None:
    """Put a file or folder in the place of a file, or of nothing. On Windows a virus scanner or an
    indexer may have it open for a moment: it is tried again for MOVE_SECONDS. OSError as
    os.replace raises it."""
    end = time.monotonic() + (MOVE_SECONDS if IS_WINDOWS else 0.0)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
