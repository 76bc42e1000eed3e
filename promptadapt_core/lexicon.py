"""Reads the learned lexicon (package data, built by promptadapt_core.data.lexicon). Text only."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

PATH = os.path.join(os.path.dirname(__file__), "lexicon.json.gz")


class Lexicon(NamedTuple):
    """Learned counts and weights; keys are lower case."""

    artists: dict[str, int]  # name -> how often it was met as an artist
    weights: dict[str, int]  # feature of a segment -> 10 * its part in the log odds of modifier


@functools.cache
def lexicon() -> Lexicon:
    """The lexicon, read once; empty where there is none yet, while the first is being learned."""
    import gzip  # these two late: a host that only imports this should not wait for them
    import json

    if not os.path.exists(PATH):
        return Lexicon({}, {})
    with gzip.open(PATH, "rt", encoding="utf-8") as file:
        return Lexicon(**json.load(file))
