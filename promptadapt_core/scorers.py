"""What a picture is worth: an aesthetic score, and how well it shows the user input.

`OpenClipScorer` is any CLIP that open_clip builds and an aesthetic head on its image embedding;
one pass over the pictures serves both. The paper's (arXiv 2212.09611) is

    files = ScorerFiles("ViT-L-14-quickgelu", "openai", "sac+logos+ava1-l14-linearMSE.pth")
    scores = OpenClipScorer.load(files, "cuda", download=True).score(user_inputs, pixels)

Another has a folder with a scorer.json: {"model": name of an open_clip model, "weights": file,
"head": file, "relevance_knee": number, "relevance_slope": number}. A model that open_clip does not
bring has its config there too, <model>.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn import functional

from . import old_open_clip
from .aesthetic_heads import HEAD_LAYERS, AestheticHead, fetch_head, first_line, read_head
from .checkpoints import file_identity
from .clip_tokens import encodable, with_quick_words
from .devices import is_out_of_memory, pick_device
from .open_clip_weights import check_texts_are_here, find_weights
from .quiet_libraries import quiet_root
from .runs import write_text
from .settings import SettingsError

__all__ = [  # those of the heads are the scorers' too
    "HEAD_LAYERS", "AestheticHead", "BatchPreprocess", "OpenClipScorer", "Scorer", "ScorerFiles",
    "Scores", "read_description", "read_head", "write_description",
]  # fmt: skip
DESCRIPTION_NAME = "scorer.json"
PAPER_KNEE, PAPER_SLOPE = 0.28, 20.0  # of ViT-L/14: min(20 * cosine - 5.6, 0)


class Scores(NamedTuple):
    """Of N pictures, float32 on the CPU. aesthetic (N,): about 1 to 10. relevance (N,): cosine of
    picture and user input, raw (no logit scale), 0 where it is negative."""

    aesthetic: torch.Tensor
    relevance: torch.Tensor


class Scorer(Protocol):
    """identity: changes with anything that changes the scores. The reward's relevance term is
    relevance_slope * min(relevance - relevance_knee, 0)."""

    identity: str
    relevance_knee: float
    relevance_slope: float

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        """Scores of pictures (N, H, W, 3) uint8, each against the user input of its row."""


class ScorerFiles(NamedTuple):
    """What an OpenClipScorer is made of.

    model: a model of open_clip. weights: a file, or a tag of open_clip; weights of OpenAI need a
    model with "-quickgelu" in its name. head: see `read_head`; None for embeddings only. config:
    <model>.json of a model that open_clip does not bring.
    """

    model: str
    weights: str | Path
    head: str | Path | None = None
    config: str | Path | None = None
    relevance_knee: float = PAPER_KNEE
    relevance_slope: float = PAPER_SLOPE


class OpenClipScorer:
    """See the module; made by `load`. embed_dim: D of the embeddings. batch_size: pictures or
    texts in one pass, halved for good whenever memory runs out."""

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenize: Callable[[list[str]], torch.Tensor],
        embed_dim: int,
        head: AestheticHead | None = None,
        *,
        identity: str,
        relevance_knee: float = PAPER_KNEE,
        relevance_slope: float = PAPER_SLOPE,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ):
        if type(batch_size) is not int or batch_size < 1:
            raise SettingsError("batch_size", f"expected 1 or more, got {batch_size!r}")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.preprocess, self.tokenize = preprocess, tokenize
        self.embed_dim, self.head = embed_dim, head
        self.identity, self.batch_size = identity, batch_size
        self.relevance_knee, self.relevance_slope = relevance_knee, relevance_slope
        self._whole_batch = BatchPreprocess.of(model, preprocess)

    @classmethod
    def load(
        cls,
        source: str | Path | Sequence[Any],
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        download: bool = False,
        resize_mode: str | None = None,
    ) -> OpenClipScorer:
        """source: a folder with scorer.json, or the fields of ScorerFiles. device: as pick_device
        takes. download: fetch a tag's weights and a known head where they are not here.
        resize_mode: of pictures that are no squares, open_clip's "shortest" or "longest"; None is
        the model's own. SettingsError says which file is missing, truncated or of another model."""
        in_folder = isinstance(source, str | Path)
        files = read_description(source) if in_folder else ScorerFiles(*source)
        config = _model_config(files)
        if download and files.head is not None:
            fetch_head(files.head)
        head = None if files.head is None else read_head(files.head)
        if head is not None and len(head.weight) != config["embed_dim"]:
            raise SettingsError(
                "head",
                f"{files.head} reads embeddings of {len(head.weight)} numbers, {files.model} "
                f"makes {config['embed_dim']}",
            )
        check_texts_are_here(files.model, config, download)
        with quiet_root():
            tokenizer = _get_tokenizer(files.model)
            model, preprocess = _create(files, download, resize_mode)
        return cls(
            model, preprocess, with_quick_words(tokenizer),
            config["embed_dim"], head, identity=_identity(files, config),
            device=pick_device(str(device)), batch_size=batch_size,
            relevance_knee=files.relevance_knee, relevance_slope=files.relevance_slope,
        )  # fmt: skip

    def embed_images(self, pixels: np.ndarray) -> torch.Tensor:
        """(N, D) float32 on the CPU, unit length, of pictures (N, H, W, 3) uint8."""
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} of {tuple(pixels.shape)}"
            raise SettingsError("pixels", f"expected uint8 of (N, H, W, 3), got {found}")
        return self._in_batches(pixels, self._embed_pictures)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, D) float32 on the CPU, unit length. What exceeds the model's context length (77
        tokens in ViT-L/14) is cut off."""
        different = list(dict.fromkeys(texts))
        row = {text: number for number, text in enumerate(different)}
        return self._in_batches(different, self._embed_different)[[row[text] for text in texts]]

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        """See Scorer. One pass over the pictures gives both scores."""
        if len(user_inputs) != len(pixels):
            reason = f"expected one for each of {len(pixels)} pictures, got {len(user_inputs)}"
            raise SettingsError("user_inputs", reason)
        if self.head is None:
            raise SettingsError("head", "this scorer was loaded without an aesthetic head")
        images = self.embed_images(pixels)
        cosines = (images * self.embed_texts(user_inputs)).sum(dim=1)
        return Scores(self.head(images), cosines.clamp(min=0.0))

    def _embed_pictures(self, pixels: np.ndarray) -> torch.Tensor:
        whole = self._whole_batch
        if whole is not None and pixels.shape[1:3] == (whole.size, whole.size):
            inputs = whole(torch.from_numpy(np.array(pixels)).to(self.device))
        else:
            inputs = torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pixels])
        return self._unit(self.model.encode_image(inputs.to(self.device)))

    def _embed_different(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenize([encodable(text) for text in texts])
        return self._unit(self.model.encode_text(tokens.to(self.device)))

    def _unit(self, features: torch.Tensor) -> torch.Tensor:
        return functional.normalize(features.float(), dim=-1).cpu()

    @torch.no_grad()
    def _in_batches(self, items: Any, embed: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        parts, start = [torch.zeros(0, self.embed_dim)], 0
        while start < len(items):
            batch = items[start : start + self.batch_size]
            embedded = unless_out_of_memory(embed, batch)
            if embedded is None:
                self.batch_size = len(batch) // 2
                continue
            parts.append(embedded)
            start += len(batch)
        return torch.cat(parts)


class BatchPreprocess:
    """A model's transform for a whole batch of pictures that already have its size."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]):
        self.size = size
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    @classmethod
    def of(
        cls, model: torch.nn.Module, preprocess: Callable[[Image.Image], torch.Tensor]
    ) -> BatchPreprocess | None:
        """None where it would not give the same numbers as `preprocess`, tried on one picture."""
        config = old_open_clip.get_transform(model)
        size = config.get("size")
        if isinstance(size, tuple | list):
            size = size[0]
        if not isinstance(size, int) or "mean" not in config or "std" not in config:
            return None
        whole = cls(size, config["mean"], config["std"])
        picture = (np.arange(size * size * 3) % 256).astype(np.uint8).reshape(size, size, 3)
        same = torch.equal(
            whole(torch.from_numpy(picture)[None])[0], preprocess(Image.fromarray(picture))
        )
        return whole if same else None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, S, S, 3) uint8 to the model's input (N, 3, S, S) float32; in memory it stays
        channels-last."""
        scaled = pixels.permute(0, 3, 1, 2).float().div_(255)
        return scaled.sub_(self.mean.to(pixels.device)).div_(self.std.to(pixels.device))


def unless_out_of_memory(
    embed: Callable[[Any], torch.Tensor], batch: Sequence
) -> torch.Tensor | None:
    """`embed(batch)`, or None when memory ran out and the batch can be halved."""
    try:
        return embed(batch)
    except (RuntimeError, MemoryError) as error:  # the base of all of torch's; Python's own
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # after the handler, whose error holds on to tensors
        torch.cuda.empty_cache()
    return None


def read_description(folder: str | Path) -> ScorerFiles:
    """What scorer.json of a folder says, with the files' places. SettingsError("scorer", ...)."""
    path = Path(folder) / DESCRIPTION_NAME
    if not path.is_file():
        raise SettingsError("scorer", f"there is no {path}, which describes a scorer")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(told, dict) and "model" not in told and "kind" in told:
            reason = f"{path} names a {told['kind']}, which only trainings and evaluations take"
            raise SettingsError("scorer", reason)
        model, weights, head = told["model"], told["weights"], told.get("head")
        numbers = [told["relevance_knee"], told["relevance_slope"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        name = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise SettingsError("scorer", f"{path} cannot be used: {name}") from None
    if not all(isinstance(text, str) and text for text in (model, weights, head or "none")):
        raise SettingsError("scorer", f"{path}: model, weights and head have to be texts")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise SettingsError("scorer", f"{path}: relevance_knee and _slope have to be numbers")
    is_tag = not (Path(folder) / weights).is_file() and not Path(weights).suffix
    config = Path(folder) / f"{model}.json"
    return ScorerFiles(
        model=model,
        weights=weights if is_tag else Path(folder) / weights,
        head=Path(folder) / head if head else None,
        config=config if config.is_file() else None,
        relevance_knee=float(numbers[0]),
        relevance_slope=float(numbers[1]),
    )


def write_description(folder: str | Path, files: ScorerFiles) -> None:
    """scorer.json of a folder that holds the files."""
    told = {
        "model": files.model,
        "weights": Path(files.weights).name,
        **({"head": Path(files.head).name} if files.head is not None else {}),
        "relevance_knee": files.relevance_knee,
        "relevance_slope": files.relevance_slope,
    }
    write_text(Path(folder) / DESCRIPTION_NAME, json.dumps(told, indent=2) + "\n")


def _model_config(files: ScorerFiles) -> dict[str, Any]:
    """The model's config; one of its own is made known to open_clip."""
    if files.config is not None:
        path = Path(files.config)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            whole = {"embed_dim", "vision_cfg", "text_cfg"} <= set(told)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError("config", f"{path} cannot be read: {first_line(error)}") from None
        if not whole or path.name != f"{files.model}.json":
            raise SettingsError(
                "config", f"{path} is no config of the open_clip model {files.model}"
            )
        open_clip.add_model_config(path)
    config = None if ":" in files.model else open_clip.get_model_config(files.model)
    if config is None:  # a name with a colon is of the hub, which would be asked
        raise SettingsError("model", f"open_clip knows no model {files.model!r}")
    return config


def _get_tokenizer(model: str) -> Callable[[list[str]], torch.Tensor]:
    try:
        return (old_open_clip if old_open_clip.is_old() else open_clip).get_tokenizer(model)
    except Exception as error:  # whatever a hub or a missing package raises
        reason = f"the tokenizer of {model} cannot be loaded: {first_line(error)}"
        raise SettingsError("model", reason) from None


def _create(
    files: ScorerFiles, download: bool, resize_mode: str | None
) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
    """The model with its weights, float32 on the CPU, and the transform of one picture."""
    weights, transform = find_weights(files.model, str(files.weights), download)
    if resize_mode is not None:
        transform = {**transform, "image_resize_mode": resize_mode}
    try:
        with torch.random.fork_rng(devices=[]):  # first weights, which the file then replaces
            if old_open_clip.is_old() and weights.endswith(".safetensors"):
                model, preprocess = old_open_clip.create(files.model, weights)
            else:
                model, _, preprocess = open_clip.create_model_and_transforms(
                    files.model, pretrained=weights, **transform
                )
    except Exception as error:  # whatever a broken file, a hub or another model's weights raise
        reason = f"{weights} cannot be loaded into {files.model}: {first_line(error)}"
        raise SettingsError("weights", reason) from None
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SettingsError("weights", f"{weights}: {name} is not finite (NaN)")
    return model, preprocess


def _identity(files: ScorerFiles, config: dict[str, Any]) -> str:
    """12 hex digits of the config, the weights (a tag counts by its name) and the head."""
    is_file = Path(files.weights).is_file()
    parts = [json.dumps(config, sort_keys=True)]
    parts.append(file_identity([Path(files.weights)]) if is_file else str(files.weights))
    if files.head is not None:
        parts.append(file_identity([Path(files.head)]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
