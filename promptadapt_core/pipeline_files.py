"""The files of a diffusers pipeline folder: whether they are whole, and what tells two apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .settings import SettingsError

INDEX_NAME = "model_index.json"
SAFE_LIBRARIES = ("diffusers", "transformers")
# Parts that are never loaded: the safety checker puts black pictures where a reward is expected.
UNUSED_PARTS = ("safety_checker", "image_encoder")
WHOLE_BYTES = 64 * 2**20  # a file up to this size is hashed whole
NUM_SAMPLES, SAMPLE_BYTES = 256, 16 * 2**10  # of a larger one
HASHED_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}
MAX_HEADER_BYTES = 100_000_000  # of safetensors
WHOLE_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.txt")  # each suffices a tokenizer


def check_pipeline_folder(folder: Path) -> None:
    """SettingsError("folder", ...) for a folder that holds no whole pipeline; it names the file."""
    if not folder.is_dir():
        raise SettingsError("folder", f"there is no folder {folder}")
    if not (folder / INDEX_NAME).is_file():
        reason = f"it has no {INDEX_NAME} ({folder / INDEX_NAME} is missing)"
        raise SettingsError("folder", f"{folder} is no image model: {reason}")
    check_no_code(folder)
    parts = pipeline_parts(folder)
    for name in UNUSED_PARTS:
        parts.pop(name, None)
    for name, is_there in parts.items():
        if is_there and not (folder / name).is_dir():
            raise SettingsError("folder", f"{folder / name} is missing")
    for path in sorted(folder.glob("*/*.safetensors.index.json")):
        for shard in shard_names(path):
            if not (path.parent / shard).is_file():
                raise SettingsError("folder", f"{path.parent / shard} is missing")
    for name in parts:
        config = folder / name / "config.json"
        if config.is_file() and not list(config.parent.glob("*.safetensors")):
            raise SettingsError("folder", f"{config.parent} has no .safetensors file")
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name not in UNUSED_PARTS:
            check_safetensors(path)
    for name, is_there in parts.items():
        if is_there and name.startswith("tokenizer"):
            check_tokenizer(folder / name)


def check_tokenizer(folder: Path) -> None:
    """SettingsError("folder", ...) for a tokenizer that lacks a file. transformers would make one
    without words of it, to which all texts are alike."""
    names = ["tokenizer_config.json"]
    if not any(list(folder.glob(name)) for name in WHOLE_VOCABULARIES):
        names += ["vocab.json", "merges.txt"]
    for name in names:
        path = folder / name
        if not path.is_file() or not path.stat().st_size:
            raise SettingsError("folder", f"{path} is {'empty' if path.is_file() else 'missing'}")


def check_no_code(folder: Path) -> None:
    """SettingsError("folder", ...) for a pipeline with classes of its own: diffusers would run the
    folder's Python files, older versions of it without asking."""
    index = read_json(folder / INDEX_NAME)
    own = not isinstance(index.get("_class_name"), str)
    for name, value in index.items():
        if isinstance(value, list) and value and value[0] is not None:
            library = value[0]
            own |= not isinstance(library, str) or (folder / name / f"{library}.py").is_file()
    if own:
        raise SettingsError(
            "folder", f"{folder} is no pipeline of diffusers' own classes, and its code is not run"
        )


def check_libraries(folder: Path) -> None:
    """SettingsError("folder", ...) for a part of another library, which older versions of
    diffusers would import by the name that stands there, whatever it is."""
    import diffusers

    for name, value in read_json(folder / INDEX_NAME).items():
        library = value[0] if isinstance(value, list) and value else None
        own = library in SAFE_LIBRARIES or library is None
        if not own and not hasattr(diffusers.pipelines, str(library)):
            reason = f"{folder}: {name} is of {library}, which is not loaded"
            raise SettingsError("folder", reason)


def shard_names(index: Path) -> list[str]:
    """The weight files that an index names, sorted; SettingsError("folder", ...) for none."""
    shards = read_json(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise SettingsError("folder", f"{index} names no files")
    return sorted(set(names))


def pipeline_parts(folder: Path) -> dict[str, bool]:
    """The parts that model_index.json names, and whether the pipeline has them."""
    index = read_json(folder / INDEX_NAME)
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and value}
    return {name: value[0] is not None for name, value in pairs.items() if name[:1] != "_"}


def left_out_parts(folder: Path) -> list[str]:
    """The parts that a pipeline like this may have, and this one has not."""
    return [name for name, is_there in pipeline_parts(folder).items() if not is_there]


def check_safetensors(path: Path) -> None:
    """SettingsError("folder", ...) where the file is shorter or longer than its header says."""
    read_safetensors_header(path)


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """dtype, shape and data_offsets of every weight; SettingsError("folder", ...) as
    `check_safetensors`."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_size, MAX_HEADER_BYTES)))
        weights = {name: entry for name, entry in header.items() if name[:2] != "__"}
        ends = [entry["data_offsets"][1] for entry in weights.values()]
        expected = 8 + header_size + max(ends, default=0)
    except (
        OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError
    ):  # fmt: skip
        raise SettingsError("folder", f"{path} is broken or cut off") from None
    if size != expected:
        raise SettingsError("folder", f"{path} has {size} of {expected} bytes")
    return weights


def weight_variant(folder: Path) -> str | None:
    """ "fp16" where a part has its weights in that variant only, else None."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    return next(filter(None, map(variant_of_part, parts)), None)


def variant_of_part(part: Path) -> str | None:
    """The same of one part's folder."""
    names = [path.name for path in part.glob("*.safetensors")]
    is_half = names and all(".fp16." in name or ".fp16-" in name for name in names)
    return "fp16" if is_half else None


def hash_files(folder: Path) -> str:
    """16 hexadecimal digits that differ where weights or settings do. Of a large file only its
    size, its ends and samples evenly between them are read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in HASHED_SUFFIXES:
            digest.update(path.relative_to(folder).as_posix().encode())
            _add_file(digest, path)
    return digest.hexdigest()[:16]


def hash_file(path: Path) -> str:
    """The same of one file, whatever its name."""
    digest = hashlib.sha256()
    _add_file(digest, path)
    return digest.hexdigest()[:16]


def _add_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f" {size}\n".encode())
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return
        for sample in range(NUM_SAMPLES):
            file.seek((size - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; SettingsError("folder", ...) names the file that is none."""
    if not path.is_file():
        raise SettingsError("folder", f"{path} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError("folder", f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError("folder", f"{path}: expected a JSON object")
    return found
