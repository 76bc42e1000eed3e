"""One export: a run's checkpoint becomes a folder that all hosts list."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .. import runs
from ..lora import LoraBase
from ..model_folders import policy_names
from ..policies import LAB_FOLDERS, find_policies
from ..policy import Policy
from ..refine.saving import check_name
from ..settings import SettingsError
from . import hub
from .card import CARD_NAME, CURVES_NAME, Card, description
from .curves import curves_png
from .evaluation_table import Report
from .finished import Run, checkpoint_of, read_run
from .settings import NO_LICENCE, ExportSettings
from .weights import write_lora, write_whole


@dataclasses.dataclass(frozen=True)
class Exported:
    """folder: what was written, or was there already. address: on the hub, "" of one that was not
    sent."""

    folder: Path
    num_bytes: int
    address: str = ""


def export(source: str | Path, settings: ExportSettings) -> Exported:
    """Write settings.out from the run in `source`, and send it where that is asked for.

    Where `source` is an export already and no settings.out is given, it is only sent.
    SettingsError for bad input; the folder is whole or not there, and the run stays as it was.
    """
    if settings.push:
        hub.check_repository(settings.push)
    if not settings.out and is_export(Path(source)):
        if not settings.push:
            raise SettingsError("out", "expected the folder to write")
        folder = Path(source)
    else:
        folder = _write(read_run(source), settings)
    sizes = runs.file_sizes(folder)
    address = hub.push(folder, settings.push, settings.public) if settings.push else ""
    return Exported(folder, sum(sizes.values()), address)


def is_export(folder: Path) -> bool:
    """Whether it is a policy with a card, and no run."""
    folder = Path(os.path.abspath(folder))
    here = {info.folder.name for info in find_policies(folder.parent)}
    return folder.name in here and (folder / CARD_NAME).is_file()


def _write(run: Run, settings: ExportSettings) -> Path:
    _check_licence(settings)
    folder = _new_folder(settings.out)
    checkpoint = checkpoint_of(run, settings.checkpoint)
    if settings.lora and run.trainer == "sft" and checkpoint.name != "best":
        raise SettingsError("lora", "the matrices are kept of best only")
    report = Report(settings.evaluation) if settings.evaluation else None
    table = report.markdown(report.row_of(run, checkpoint.name)) if report else ""
    if settings.samples and not run.samples(1):
        raise SettingsError("samples", "the run has written none")
    policy = Policy.load(checkpoint)
    licence = "" if settings.licence == NO_LICENCE else settings.licence
    manifest = dataclasses.replace(
        policy.manifest, name=folder.name, description=description(run), licence=licence
    )

    def write(place: Path) -> None:
        base: LoraBase | None = None
        if settings.lora:
            base = write_lora(run, policy, place, manifest)
        else:
            write_whole(policy, place, manifest)
        curves = curves_png(run)
        if curves is not None:
            (place / CURVES_NAME).write_bytes(curves)
        num_parameters = sum(p.numel() for p in policy.model.parameters())
        card = Card(
            run, settings, manifest, checkpoint.name, num_parameters, curves is not None, table,
            base,
        )  # fmt: skip
        (place / CARD_NAME).write_text(card.text(), encoding="utf-8", newline="\n")

    _fill(folder, write)
    assert folder.name in policy_names([folder.parent]), "what is exported is listed"
    return folder


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    """A new folder, whole or not at all. It is written beside under a name of this process: what
    lies there, NAME.old too, is somebody's own. SettingsError("out", ...)."""
    beside = folder.with_name(f".exporting-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        runs.replace_folder(beside, write)
        try:
            os.rename(beside, folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError("out", f"{folder} cannot be written ({reason})") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("safetensors", "safetensors_rust"):
            raise
        raise SettingsError("out", f"{folder} cannot be written ({error})") from None


def _check_licence(settings: ExportSettings) -> None:
    if not settings.licence:
        raise SettingsError(
            "licence",
            "expected the licence that you give the policy, such as apache-2.0, mit or cc-by-4.0; "
            f"{NO_LICENCE} for one that nobody else gets",
        )


def _new_folder(out: str) -> Path:
    """SettingsError("out", ...) for a name that no host could list, or that is taken."""
    if not out:
        raise SettingsError("out", "expected the folder to write")
    folder = Path(out)
    try:
        if check_name(folder.name) != folder.name:
            reason = f"expected the name of a folder, got {folder.name!r:.80}"
            raise SettingsError("out", reason)
    except SettingsError as error:
        raise SettingsError("out", error.reason) from None
    bundled = {info.name.casefold() for info in find_policies()}
    if folder.name.casefold() in bundled | set(LAB_FOLDERS):
        raise SettingsError("out", f"{folder.name} is the name of a policy that promptadapt brings")
    if folder.exists():
        raise SettingsError("out", f"{folder} is there already; choose another")
    return folder
