"""Regular expressions that are compiled when they are first used. Text only.

A host imports this package at its start, and most starts adapt no prompt: compiling what reads
prompts would take a third of that import.
"""

from __future__ import annotations

import functools
import re
from typing import Any


class Pattern:
    """Has the methods and attributes of the `re.Pattern` of the same source and flags.

    A source that is no regular expression raises re.error at the first use.
    """

    def __init__(self, source: str, flags: int = 0):
        self._source, self._flags = source, flags

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._source, self._flags)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy asks for these before there is a source
            raise AttributeError(name)
        return getattr(self._compiled, name)
