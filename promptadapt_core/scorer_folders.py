"""The scorer in a folder, whichever it is."""

from __future__ import annotations

from pathlib import Path

from .preference_scorers import (
    ClipPreference,
    ImageRewardScorer,
    load_preference,
    read_preference_files,
)
from .scorers import DESCRIPTION_NAME, OpenClipScorer

AnyScorer = OpenClipScorer | ClipPreference | ImageRewardScorer


def load_scorer_folder(
    folder: Path | str, device: str = "cpu", *, download: bool = False
) -> AnyScorer:
    """A CLIP with an aesthetic head or one of preference_scorers. download: fetch what scorer.json
    names and is not here. SettingsError says which file is missing or broken."""
    files = read_preference_files(Path(folder))
    if files is not None:
        return load_preference(files, device)
    return OpenClipScorer.load(folder, device, download=download)


def is_scorer_folder(folder: Path | str) -> bool:
    """Whether there is a scorer in the folder, broken or not."""
    folder = Path(folder)
    if (folder / DESCRIPTION_NAME).is_file():
        return True
    return read_preference_files(folder) is not None


def can_score(scorer: AnyScorer) -> bool:
    """False for a CLIP that only embeds, having no aesthetic head."""
    return not isinstance(scorer, OpenClipScorer) or scorer.head is not None
