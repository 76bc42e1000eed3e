"""The settings of the data's command line, once: default, range, help."""

from __future__ import annotations

import dataclasses

from ..settings import MAX_SEED, Settings, setting


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """How engineered prompts become training pairs."""

    prompts: str = setting(
        "",
        "engineered prompts: .jsonl or .jsonl.gz with a field `prompt`, or .txt with one a line",
        metavar="FILE",
    )
    out: str = setting("pairs.jsonl", "where the pairs go; the report goes beside", metavar="FILE")
    exclude_source: tuple[str, ...] = setting(
        (), "leave out rows all of whose sources begin with this; may be repeated", metavar="PREFIX"
    )
    artists: bool = setting(False, "keep the names of artists in the targets")
    kinds: str = setting(
        "main,subset,rephrased,steps", "which kinds of pairs to build, separated by commas"
    )
    rephraser: str = setting(
        "", "folder of a local instruction model that rephrases main content too", metavar="FOLDER"
    )
    min_modifiers: int = setting(
        2, "fewest modifiers of an engineered prompt that becomes a target", low=1, high=50
    )
    stock_limit: int = setting(
        0,
        "at most this many training rows in which the same two modifiers stand together; "
        "0 sets no limit",
        low=0,
    )
    valid_share: float = setting(
        0.03, "share of clusters for validation where rows carry no split", low=0.0, high=0.5
    )
    test_share: float = setting(
        0.03, "share of clusters for the test where rows carry no split", low=0.0, high=0.5
    )
    seed: int = setting(0, "of the random subsets and phrasings", low=0, high=MAX_SEED)
    limit: int = setting(0, "read at most this many prompts; 0 reads all", low=0)
