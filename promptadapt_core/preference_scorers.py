"""Scorers that learned which of two pictures people prefer for a text: PickScore, HPSv2 and
ImageReward, each as a Scorer for a reward or for a held-out judge.

`Scores.aesthetic` is the preference, in the model's own unit; a gain of 1 is a clear one in all
three. It asks whether the picture shows the text too, so that relevance_slope is 0 unless the
folder says otherwise. The files are those of the authors, in a local folder:

    PickScore    config.json and model.safetensors of yuvalkirstain/PickScore_v1 (arXiv 2305.01569)
    HPSv2        HPS_v2.1_compressed.pt or HPS_v2_compressed.pt of xswu/HPSv2 (arXiv 2306.09341)
    ImageReward  ImageReward.pt of THUDM/ImageReward (arXiv 2304.05977), and vocab.txt of
                 google-bert/bert-base-uncased

A scorer.json there may name them, {"kind": "pickscore", "hpsv2" or "imagereward", "weights": file,
"relevance_knee": number, "relevance_slope": number}; without one they are known by their names.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image

from .aesthetic_heads import first_line
from .clip_tokens import encodable, with_quick_words
from .devices import pick_device
from .image_reward import ImageRewardModel, TextTokens, build_image_reward, picture_transform
from .pipeline_files import check_safetensors, hash_file
from .quiet_libraries import quiet_libraries
from .scorers import (
    DESCRIPTION_NAME,
    OpenClipScorer,
    ScorerFiles,
    Scores,
    unless_out_of_memory,
)
from .settings import SettingsError

PICKSCORE, HPSV2, IMAGE_REWARD = "pickscore", "hpsv2", "imagereward"
KINDS = (PICKSCORE, HPSV2, IMAGE_REWARD)
USUAL_WEIGHTS = {  # the first that is there
    PICKSCORE: ("model.safetensors",),
    HPSV2: ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"),
    IMAGE_REWARD: ("ImageReward.pt",),
}
ORIGINS = {PICKSCORE: "yuvalkirstain/PickScore_v1", HPSV2: "xswu/HPSv2",
           IMAGE_REWARD: "THUDM/ImageReward"}  # fmt: skip
HPSV2_MODEL, HPSV2_SCALE = "ViT-H-14", 100.0
VOCABULARY = "vocab.txt"
# What else scores depend on.
SETTINGS_FILES = {PICKSCORE: ("config.json",), HPSV2: (), IMAGE_REWARD: (VOCABULARY,)}
BATCH_SIZE = 32
CLIP_WORDS = 49408  # tokens that CLIP knows
OWN_WORDS = 2  # of ImageReward, which vocab.txt does not have and texts do not use


class PreferenceFiles(NamedTuple):
    """What a folder holds. model: of open_clip, HPSv2 only."""

    kind: str
    weights: Path
    model: str = HPSV2_MODEL
    relevance_knee: float = 0.0
    relevance_slope: float = 0.0


def read_preference_files(folder: Path) -> PreferenceFiles | None:
    """What scorer.json or the files' names say; None for a folder of another kind of scorer.
    SettingsError("scorer", ...) for what is there and cannot be used."""
    path = folder / DESCRIPTION_NAME
    told: Any = {}
    if path.is_file():
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None  # told of by those who read it next
        if not isinstance(told, dict) or "kind" not in told:
            return None
    kind = told["kind"] if "kind" in told else _kind_by_names(folder)
    if kind is None:
        return None
    if kind not in KINDS:
        raise SettingsError("scorer", f"{path}: kind has to be one of {', '.join(KINDS)}")
    names = (told["weights"],) if "weights" in told else USUAL_WEIGHTS[kind]
    model = told.get("model", HPSV2_MODEL)
    if not all(isinstance(name, str) and name for name in (*names, model)):
        raise SettingsError("scorer", f"{path}: model and weights have to be texts")
    numbers = [told.get(name, 0.0) for name in ("relevance_knee", "relevance_slope")]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise SettingsError("scorer", f"{path}: relevance_knee and _slope have to be numbers")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        reason = f"there is no file {folder / names[0]}; put there that of {ORIGINS[kind]}"
        raise SettingsError("scorer", reason)
    return PreferenceFiles(kind, found, model, float(numbers[0]), float(numbers[1]))


def _kind_by_names(folder: Path) -> str | None:
    for kind in (HPSV2, IMAGE_REWARD):
        if any((folder / name).is_file() for name in USUAL_WEIGHTS[kind]):
            return kind
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return PICKSCORE if config["model_type"] == "clip" else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class ClipPreference:
    """PickScore and HPSv2: the cosine of a CLIP that learned from people's choices, times `scale`.
    relevance is the cosine itself."""

    def __init__(self, clip: OpenClipScorer, scale: float, identity: str, files: PreferenceFiles):
        self.clip, self.scale, self.identity = clip, scale, identity
        self.relevance_knee, self.relevance_slope = files.relevance_knee, files.relevance_slope

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        """See Scorer."""
        check_rows(user_inputs, pixels)
        images = self.clip.embed_images(pixels)
        cosines = (images * self.clip.embed_texts(user_inputs)).sum(dim=1)
        return Scores(self.scale * cosines, cosines.clamp(min=0.0))


class ImageRewardScorer:
    """ImageReward; it has no cosine: relevance is 0. batch_size: halved for good when memory runs
    out."""

    def __init__(
        self,
        model: ImageRewardModel,
        tokens: TextTokens,
        files: PreferenceFiles,
        *,
        identity: str,
        device: torch.device,
        batch_size: int = BATCH_SIZE,
    ):
        self.device, self.tokens, self.identity = device, tokens, identity
        self.model = model.to(device).eval().requires_grad_(False)
        self.transform = picture_transform(model.image_size)
        self.batch_size = batch_size
        self.relevance_knee, self.relevance_slope = files.relevance_knee, files.relevance_slope

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        """See Scorer."""
        check_rows(user_inputs, pixels)
        parts, start = [torch.zeros(0)], 0
        with torch.no_grad():
            while start < len(pixels):
                rows = range(start, min(start + self.batch_size, len(pixels)))
                found = unless_out_of_memory(
                    lambda some: self._score_rows(user_inputs, pixels, some), rows
                )
                if found is None:
                    self.batch_size = len(rows) // 2
                    continue
                parts.append(found)
                start = rows.stop
        scores = torch.cat(parts)
        return Scores(scores, torch.zeros_like(scores))

    def _score_rows(
        self, user_inputs: Sequence[str], pixels: np.ndarray, rows: Sequence[int]
    ) -> torch.Tensor:
        ids, mask = self.tokens([encodable(user_inputs[row]) for row in rows])
        inputs = torch.stack([self.transform(Image.fromarray(pixels[row])) for row in rows])
        given = (part.to(self.device) for part in (inputs, ids, mask))
        return self.model(*given).float().cpu()


class TransformersClip(torch.nn.Module):
    """A CLIPModel of transformers in the words of open_clip, for OpenClipScorer."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.image_size: int = model.config.vision_config.image_size

    def encode_image(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=inputs)[1])

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids)[1])


def load_preference(
    files: PreferenceFiles, device: str, batch_size: int = BATCH_SIZE
) -> ClipPreference | ImageRewardScorer:
    """SettingsError names the file that is missing, broken or of another model."""
    load: Callable[..., Any] = {
        PICKSCORE: _load_pickscore, HPSV2: _load_hpsv2, IMAGE_REWARD: _load_image_reward,
    }[files.kind]  # fmt: skip
    names = (*SETTINGS_FILES[files.kind], f"{files.model}.json")
    beside = [files.weights.parent / name for name in names]
    read = [files.weights, *(path for path in beside if path.is_file())]
    parts = [files.kind, files.model, *(hash_file(path) for path in read)]
    identity = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
    return load(files, identity, pick_device(str(device)), batch_size)


def _load_pickscore(
    files: PreferenceFiles, identity: str, device: torch.device, batch_size: int
) -> ClipPreference:
    from transformers import CLIPModel

    folder = files.weights.parent
    try:
        check_safetensors(files.weights)
        if not (folder / "config.json").is_file():
            raise SettingsError("folder", f"there is no file {folder / 'config.json'}")
    except SettingsError as error:
        raise SettingsError("weights", error.reason) from None
    with quiet_libraries():
        try:
            with torch.random.fork_rng(devices=[]):
                model, told = CLIPModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # transformers raises whatever a file leads to
            reason = f"{folder} is no CLIP of transformers: {first_line(error)}"
            raise SettingsError("weights", reason) from None
    missing = sorted(told["missing_keys"])
    if missing:
        raise SettingsError("weights", f"{files.weights} lacks {missing[0]}")
    _check_finite(model, files.weights)
    if model.config.text_config.vocab_size != CLIP_WORDS:
        found = model.config.text_config.vocab_size
        reason = f"{folder} reads texts of {found} different tokens, PickScore of {CLIP_WORDS}"
        raise SettingsError("weights", reason)
    adapted = TransformersClip(model.float())
    tokenizer = with_quick_words(open_clip.get_tokenizer(HPSV2_MODEL))
    length = model.config.text_config.max_position_embeddings
    clip = OpenClipScorer(
        adapted, open_clip.image_transform(adapted.image_size, is_train=False),
        lambda texts: tokenizer(texts, context_length=length), model.config.projection_dim,
        identity=identity, device=device, batch_size=batch_size,
    )  # fmt: skip
    return ClipPreference(clip, float(model.logit_scale.exp()), identity, files)


def _load_hpsv2(
    files: PreferenceFiles, identity: str, device: torch.device, batch_size: int
) -> ClipPreference:
    config = files.weights.parent / f"{files.model}.json"
    clip = OpenClipScorer.load(
        ScorerFiles(files.model, files.weights, config=config if config.is_file() else None),
        str(device), batch_size, resize_mode="longest",
    )  # fmt: skip
    return ClipPreference(clip, HPSV2_SCALE, identity, files)


def _load_image_reward(
    files: PreferenceFiles, identity: str, device: torch.device, batch_size: int
) -> ImageRewardScorer:
    vocabulary = files.weights.parent / VOCABULARY
    if not vocabulary.is_file():
        reason = f"there is no file {vocabulary}; put there that of google-bert/bert-base-uncased"
        raise SettingsError("weights", reason)
    try:
        with warnings.catch_warnings():  # about a foreign pickle, which is refused anyway
            warnings.simplefilter("ignore")
            state = torch.load(files.weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a broken file can raise
        reason = f"truncated, broken or not just weights: {first_line(error)}"
        raise SettingsError("weights", f"{files.weights} is {reason}") from None
    if not isinstance(state, dict):
        raise SettingsError("weights", f"{files.weights} does not hold a table of named weights")
    model = build_image_reward(state, files.weights)
    _check_finite(model, files.weights)
    tokens, known = TextTokens(vocabulary), model.texts.config.vocab_size
    number = tokens.tokenizer.get_vocab_size()
    if not known - OWN_WORDS <= number <= known:
        reason = f"{vocabulary} has {number} words, {files.weights} knows {known}"
        raise SettingsError("weights", reason)
    return ImageRewardScorer(
        model, tokens, files, identity=identity, device=device,
        batch_size=batch_size,
    )  # fmt: skip


def check_rows(user_inputs: Sequence[str], pixels: np.ndarray) -> None:
    """SettingsError where the pictures are none, or not as many as the user inputs."""
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} of {tuple(pixels.shape)}"
        raise SettingsError("pixels", f"expected uint8 of (N, H, W, 3), got {found}")
    if len(user_inputs) != len(pixels):
        reason = f"expected one for each of {len(pixels)} pictures, got {len(user_inputs)}"
        raise SettingsError("user_inputs", reason)


def _check_finite(model: torch.nn.Module, path: Path) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SettingsError("weights", f"{path}: {name} is not finite (NaN)")
