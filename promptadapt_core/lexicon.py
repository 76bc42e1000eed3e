"""Reads the learned lexicon (package data, built by promptadapt_core.data.lexicon). Text only."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_name("lexicon.json.gz")


class Lexicon(NamedTuple):
    """Learned counts and weights; keys are lower case."""

    artists: dict[str, int]  # name -> how often it was met as an artist
    weights: dict[str, int]  # feature of a segment -> 10 * its part in the log odds of modifier


@functools.cache
def lexicon() -> Lexicon:
    """The lexicon, read once."""
    if not PATH.exists():
        return Lexicon({}, {})
    return Lexicon(**json.loads(gzip.decompress(PATH.read_bytes())))
