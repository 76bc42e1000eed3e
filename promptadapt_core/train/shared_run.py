"""The run folder of a group of processes: the main one reads and writes it, all know the same.

The others may have no such folder, as on another machine; what it says comes to them by the group.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import runs
from ..process_group import ALONE, ProcessGroup


class SharedRun(runs.RunFolder):
    """Each method has to be called by all processes of the group, but those that only save."""

    def __init__(self, out: str, resume: bool, group: ProcessGroup = ALONE):
        """See RunFolder."""
        self.group, self.path = group, Path(out)
        group.on_main(lambda: runs.RunFolder.__init__(self, out, resume))

    def finish_replacing(self, *names: str) -> None:
        self.group.on_main(lambda: runs.RunFolder.finish_replacing(self, *names))

    def config(self, trainer: str) -> dict[str, Any] | None:
        return self.group.from_main(lambda: runs.RunFolder.config(self, trainer))

    def load_state(self) -> dict[str, Any] | None:
        return self.group.from_main(lambda: runs.RunFolder.load_state(self))

    def _saving(self, name: str, write: Callable[[], None]) -> None:
        if self.group.is_main:
            runs.RunFolder._saving(self, name, write)
