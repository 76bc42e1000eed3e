"""The weights of an open_clip model: where they lie, that they are of that model's kind, and that
reading them runs no code and downloads nothing that was not asked for."""

from __future__ import annotations

import inspect
import warnings
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch

from .aesthetic_heads import first_line
from .settings import SettingsError

TRANSFORM = ("mean", "std", "interpolation", "resize_mode")
CODE_OF_ARCHIVES = "/code/"  # where a TorchScript archive has its program


def find_weights(model: str, weights: str, download: bool) -> tuple[str, dict[str, Any]]:
    """The file, or the tag that open_clip fetches; and what a tag says of the transform, for a
    file that was fetched before. SettingsError("weights", ...) where there is none and `download`
    does not say to fetch it; SettingsError("model", ...) where the tag's are of another model."""
    if Path(weights).is_file():
        check_no_code(Path(weights))
        return weights, {}
    if weights not in open_clip.list_pretrained_tags_by_model(model):
        known = f" and {model} has no weights of that name" if not Path(weights).suffix else ""
        raise SettingsError("weights", f"there is no file {weights}{known}")
    config = open_clip.get_pretrained_cfg(model, weights)
    check_activation(model, weights, config)
    if download:
        return weights, {}
    found = cached_weights(model, weights)
    if found is not None:
        check_no_code(found)
        return str(found), {f"image_{name}": config[name] for name in TRANSFORM if name in config}
    where = config.get("hf_hub", "").strip("/") or config.get("url", "")
    raise SettingsError(
        "weights",
        f"the weights {weights} of {model} are not on this machine: name a local file in "
        f"scorer.json, or, in a training, let --download fetch them from {where}",
    )


def cached_weights(model: str, tag: str) -> Path | None:
    """The file of a tag that open_clip fetched before, None without one."""
    config = open_clip.get_pretrained_cfg(model, tag)
    repository, _, name = config.get("hf_hub", "").rpartition("/")
    names = [name] if name else [f"open_clip_model{end}" for end in (".safetensors", ".bin")]
    names += [] if name else ["open_clip_pytorch_model.bin"]
    if name.endswith(".bin"):
        names.insert(0, name[: -len(".bin")] + ".safetensors")
    for one in names if repository else []:
        found = huggingface_hub.try_to_load_from_cache(repository, one)
        if isinstance(found, str):
            return Path(found)
    url = config.get("url", "")
    old = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2] if url else None
    return old if old is not None and old.is_file() and not is_program(old) else None


def check_activation(model: str, tag: str, told: dict[str, Any]) -> None:
    """SettingsError("model", ...) where the weights of a tag were trained with another activation
    than the model has: open_clip scores with them all the same, only worse."""
    wanted, found = told.get("quick_gelu"), open_clip.get_model_config(model).get("quick_gelu")
    if wanted is not None and bool(wanted) != bool(found):
        plain = model.removesuffix("-quickgelu")
        better = f"{plain}-quickgelu" if wanted else plain
        raise SettingsError("model", f"the weights {tag} are of {better}, not of {model}")


def check_no_code(path: Path) -> None:
    """SettingsError("weights", ...) for a file whose reading would run what is in it: a program of
    TorchScript, or a pickle that open_clip of before 2.29 would open whatever it holds."""
    if is_program(path):
        reason = "is a program of TorchScript, which is not run; expected .safetensors"
        raise SettingsError("weights", f"{path} {reason}")
    reads_only_weights = "weights_only" in inspect.signature(_reader()).parameters
    if reads_only_weights or path.suffix == ".safetensors":
        return
    try:
        with warnings.catch_warnings():  # about a foreign pickle, which is refused anyway
            warnings.simplefilter("ignore")
            torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file can raise
        reason = f"truncated, broken or not just weights: {first_line(error)}"
        raise SettingsError("weights", f"{path} is {reason}") from None


def _reader() -> Any:
    return open_clip.factory.load_state_dict


def is_program(path: Path) -> bool:
    """Whether the file is an archive of TorchScript, as OpenAI published its CLIPs."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(CODE_OF_ARCHIVES in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def check_texts_are_here(model: str, config: dict[str, Any], download: bool) -> None:
    """SettingsError("model", ...) for a model that reads texts by files of the hub, if they are
    not here and are not to be fetched: open_clip would ask the hub for them unasked."""
    texts = config.get("text_cfg", {})
    for kind, file in (("hf_tokenizer_name", "tokenizer_config.json"),
                       ("hf_model_name", "config.json")):  # fmt: skip
        name = texts.get(kind)
        if not name or download:
            continue
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, file), str):
            raise SettingsError(
                "model",
                f"{model} reads texts by {file} of {name}, which is not on this machine; in a "
                "training, --download fetches it",
            )
