"""The settings of an export, once: default, range, help."""

from __future__ import annotations

import dataclasses
import re

from ..policies import HUB_NAME
from ..settings import Settings, SettingsError, setting

NO_LICENCE = "none"
BEST, LAST = "best", "last"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+_-]*", re.ASCII)
TAG = re.compile(r"[\w][\w .+:-]*")


@dataclasses.dataclass(frozen=True)
class ExportSettings(Settings):
    """What of a run goes where, and what its card says beside what the run knows."""

    out: str = setting(
        "",
        "new folder, whose name is the policy's: models/promptadapt/NAME of a host lists it",
        metavar="FOLDER",
    )
    checkpoint: str = setting(
        BEST,
        "best: the weights with the highest reward, or the lowest validation loss; last: the "
        "newest",
        choices=(BEST, LAST),
    )
    lora: bool = setting(
        False,
        "write the LoRA matrices alone, a small file beside the policy that they belong to; of "
        "runs with --lora-rank",
    )
    licence: str = setting(
        "",
        "yours to choose, by its identifier: apache-2.0, mit, cc-by-4.0, openrail, other; none for "
        "a policy that nobody else gets",
        metavar="NAME",
    )
    language: tuple[str, ...] = setting(
        (), "code of a language that it writes, en if left out; may be repeated", metavar="CODE"
    )
    base_model: str = setting(
        "",
        "name on the hub of the model that it was trained from, for the card",
        metavar="OWNER/NAME",
    )
    tag: tuple[str, ...] = setting((), "one more tag of the card; may be repeated", metavar="TEXT")
    summary: str = setting("", "a sentence that the card begins with", metavar="TEXT")
    evaluation: str = setting(
        "", "report.json of an evaluation that has this run as a row, for the card", metavar="FILE"
    )
    samples: int = setting(
        0,
        "user inputs with what became of them to show in the card; they are text of your file",
        low=0,
        high=100,
    )
    push: str = setting(
        "",
        "send the folder to the hub, as a private repository of this name, with your own token; "
        "left out, nothing is sent",
        metavar="OWNER/NAME",
    )
    public: bool = setting(False, "let everybody read the repository of --push")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.licence != NO_LICENCE and not LICENCE.fullmatch(self.licence or NO_LICENCE):
            raise SettingsError(
                "licence", f"expected an identifier such as apache-2.0, got {self.licence!r:.80}"
            )
        for name in ("tag", "language"):
            for text in getattr(self, name):
                if not TAG.fullmatch(text):
                    raise SettingsError(name, f"expected a word, got {text!r:.80}")
        if self.base_model and not HUB_NAME.fullmatch(self.base_model):
            raise SettingsError("base_model", f"expected OWNER/NAME, got {self.base_model!r:.80}")
        if self.public and not self.push:
            raise SettingsError("public", "is about --push, which was not asked for")
