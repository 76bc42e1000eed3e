"""The lab's renderer as a diffusers pipeline folder, put together from the bundled weights.

Bundled are the trained parts only, in half precision: weights/transformer and weights/vae as
`save_pretrained` writes them. The text encoders come from a seed and the tokenizers from the
bundled merges: 80 MB that no repository has to hold. `renderer_folder()` writes all of it once
into the user's cache, where any tool that reads diffusers finds a complete model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..images import RENDERER_NAME, quiet_libraries, recommended_settings
from ..pipeline_files import INDEX_NAME, check_safetensors, hash_files, read_json, shard_names
from ..runs import file_sizes
from ..settings import SettingsError
from . import text_encoder

WEIGHTS = Path(__file__).parent / "weights"
CACHE_VARIABLE = "PROMPTADAPT_CACHE"
PARTS = ("transformer", "vae")
WEIGHTS_STEM = "diffusion_pytorch_model"
FORMAT = 1  # of the folder below; another one is put together anew
TEXT_SEED = 0
SHIFT = 3.0  # of the noise levels, as in Stable Diffusion 3
MAX_SHARD_SIZE = "12MB"
FOLDER_NAME = re.compile(r"renderer-\d+-\d+-[0-9a-f]{16}(\..+)?")  # with an end: unfinished
UNUSED_SECONDS = 7 * 86400.0  # after which a folder of other weights goes
UNFINISHED_SECONDS = 3600.0  # after which one that a killed process was at goes
WHOLE_NAME = "whole.json"  # written last: every file and its size
RECOMMENDED = {"num_steps": 8, "guidance_scale": 3.0, "size": 64, "even_sigmas": True}


def renderer_folder(weights: Path | str | None = None, cache: Path | str | None = None) -> Path:
    """A pipeline folder for `DiffusersGenerator.load`, put together where it is not yet there.

    diffusers itself reads it by `DiffusionPipeline.from_pretrained(folder, text_encoder_3=None,
    tokenizer_3=None)`, as every Stable Diffusion 3 without its T5, and then wants
    `max_sequence_length=0` at each call.

    weights: a folder with transformer/ and vae/, and renderer.json where it recommends other
    settings; None takes the bundled ones. cache: where to put it; None takes PROMPTADAPT_CACHE or
    the user's cache folder. Several processes may ask at once. When a folder is put there, those
    of other weights that nobody has asked for within a week go: who keeps a path for days asks for
    it again before reading. Raises SettingsError("weights", ...) for missing or broken weights,
    SettingsError("cache", ...) where nothing can be written.
    """
    weights = Path(weights) if weights else WEIGHTS
    check_weights(weights)
    place = Path(cache) if cache else cache_folder()
    folder = place / f"renderer-{FORMAT}-{TEXT_SEED}-{renderer_identity(weights)}"
    if not is_whole(folder):
        try:
            place.mkdir(parents=True, exist_ok=True)
            _put_in_place(folder, lambda new: assemble(weights, new))
        except OSError as error:
            raise SettingsError(
                "cache",
                f"{place} cannot be written ({error.strerror or error}); name another folder in "
                f"the environment variable {CACHE_VARIABLE}",
            ) from None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return folder


def renderer_identity(weights: Path) -> str:
    """16 hexadecimal digits of the renderer's weights and of what they recommend; the other parts
    of the lab in `weights` do not count."""
    path = weights / RENDERER_NAME
    texts = [hash_files(weights / part) for part in PARTS]
    texts.append(path.read_text("utf-8", "replace") if path.is_file() else "")
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where this system keeps what can be made again."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "promptadapt"


def recommended(weights: Path) -> dict[str, Any]:
    """The ImageSettings that suit the weights; SettingsError("weights", ...) for a broken file."""
    if not (weights / RENDERER_NAME).is_file():
        return RECOMMENDED
    try:
        return recommended_settings(weights)
    except SettingsError as error:
        raise SettingsError("weights", error.reason) from None


def check_weights(weights: Path) -> None:
    """SettingsError("weights", ...) names the file that is missing or broken."""
    try:
        for part in PARTS:
            read_json(weights / part / "config.json")
            for path in weight_files(weights / part):
                if not path.is_file():
                    raise SettingsError("weights", f"{path} is missing")
                check_safetensors(path)
    except SettingsError as error:
        raise SettingsError("weights", error.reason) from None
    except OSError as error:  # such as a name that is too long
        raise SettingsError("weights", f"{weights} cannot be read ({error.strerror})") from None


def weight_files(part: Path) -> list[Path]:
    """The weight files that a part needs, one or several; they may be missing."""
    index = part / f"{WEIGHTS_STEM}.safetensors.index.json"
    if not index.is_file():
        return [part / f"{WEIGHTS_STEM}.safetensors"]
    try:
        return [part / name for name in shard_names(index)]
    except SettingsError as error:
        raise SettingsError("weights", error.reason) from None


def assemble(weights: Path, folder: Path) -> None:
    """Write the whole pipeline into an empty folder."""
    import diffusers

    for part in PARTS:
        (folder / part).mkdir(parents=True)
        for path in filter(Path.is_file, (weights / part).iterdir()):
            shutil.copyfile(path, folder / part / path.name)
        _plain_config(folder / part / "config.json")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.save_pretrained(folder / "scheduler")
    first = text_encoder.build_text_encoder(TEXT_SEED, torch.float16)
    for name, model in (
        ("text_encoder", first),
        ("text_encoder_2", text_encoder.build_text_encoder_2(torch.float16)),
    ):
        with quiet_libraries():
            model.save_pretrained(folder / name)
        _read_as_float32(folder / name / "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        text_encoder.write_tokenizer(folder / name)
    _write_json(folder / RENDERER_NAME, recommended(weights))
    _write_json(folder / INDEX_NAME, pipeline_index(diffusers.__version__))
    _write_json(folder / WHOLE_NAME, file_sizes(folder))


def pipeline_index(version: str) -> dict[str, Any]:
    """model_index.json: which library and class each part is of."""
    none = [None, None]
    return {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": version,
        "feature_extractor": none,
        "image_encoder": none,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": none,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": none,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }


def bundle_weights(transformer: Path, vae: Path, out: Path) -> None:
    """Write the trained parts, folders of `save_pretrained`, in half precision into the folder
    `out`, which `renderer_folder` takes as weights; no file over 12 MB."""
    from diffusers import AutoencoderTiny, SD3Transformer2DModel

    kinds = {"transformer": (SD3Transformer2DModel, transformer), "vae": (AutoencoderTiny, vae)}
    for name, (kind, source) in kinds.items():
        with quiet_libraries():
            model = kind.from_pretrained(source, local_files_only=True, torch_dtype=torch.float16)
            model.save_pretrained(out / name, max_shard_size=MAX_SHARD_SIZE)
        _plain_config(out / name / "config.json")


def is_whole(folder: Path) -> bool:
    """Whether all files are there, in their sizes."""
    try:
        sizes = json.loads((folder / WHOLE_NAME).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _put_in_place(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder and move it to `folder`. Another process that was faster is
    fine; a broken folder in the way is moved out of it first, and so are those long unused."""
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for left in filter(_is_unused, folder.parent.iterdir()):
            with contextlib.suppress(OSError):  # Windows does not move what is in use
                os.replace(left, new / left.name)
        write(new / "new")
        if folder.exists() and not is_whole(folder):
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                os.replace(folder, new / "broken")
        try:
            os.replace(new / "new", folder)
        except OSError:
            if not is_whole(folder):
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _is_unused(folder: Path) -> bool:
    """Whether it is one that renderer_folder made, last asked for over a week ago, or begun over an
    hour ago and not finished."""
    name = FOLDER_NAME.fullmatch(folder.name)
    if name is None:
        return False
    try:
        age = time.time() - folder.stat().st_mtime
    except OSError:  # another process has just removed it
        return False
    return age > (UNFINISHED_SECONDS if name[1] else UNUSED_SECONDS)


def _read_as_float32(config: Path) -> None:
    """transformers would otherwise load the half-precision file as such, next to diffusers, which
    loads single precision."""
    found = read_json(config)
    for name in ("dtype", "torch_dtype"):
        if name in found:
            found[name] = "float32"
    _write_json(config, found)


def _plain_config(path: Path) -> None:
    """Without where it came from, and without what AutoencoderTiny adds when it saves and warns of
    when it loads."""
    config = read_json(path)
    for name in ("_name_or_path", "block_out_channels"):
        config.pop(name, None)
    _write_json(path, config)


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes((json.dumps(value, indent=2) + "\n").encode("utf-8"))
