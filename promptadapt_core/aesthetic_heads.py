"""Aesthetic heads: one linear map of unit-length CLIP embeddings to a score of about 1 to 10.

`KNOWN_HEADS` are those of LAION and Simulacra by the names of their files, each with where it is
published and its SHA-256; `fetch_head` brings one here, and only when it is asked to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import math
import os
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from .moving import move
from .settings import SettingsError

# Places of the linear layers in LAION's head; between them is dropout and no activation.
# https://github.com/christophschuhmann/improved-aesthetic-predictor, simple_inference.py
HEAD_LAYERS = (0, 2, 4, 6, 7)
TIMEOUT_SECONDS = 60
MAX_HEAD_BYTES = 16 * 2**20


class KnownHead(NamedTuple):
    """Where a head is published. model: the open_clip model whose embeddings it reads."""

    url: str
    sha256: str
    model: str


IMPROVED = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
LAION = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/"
SIMULACRA = "https://github.com/crowsonkb/simulacra-aesthetic-models/raw/master/models/"
L14, B32 = "ViT-L-14-quickgelu", "ViT-B-32-quickgelu"
KNOWN_HEADS: dict[str, KnownHead] = {
    # the paper's
    "sac+logos+ava1-l14-linearMSE.pth": KnownHead(
        f"{IMPROVED}sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        L14,
    ),
    "sa_0_4_vit_l_14_linear.pth": KnownHead(
        f"{LAION}sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        L14,
    ),
    "sa_0_4_vit_b_32_linear.pth": KnownHead(
        f"{LAION}sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
        B32,
    ),
    "sac_public_2022_06_29_vit_l_14_linear.pth": KnownHead(
        f"{SIMULACRA}sac_public_2022_06_29_vit_l_14_linear.pth",
        "f77d1d0f4bb04b0ff8e60c5747fd0bfff0cc4a85263a6106627522c06eae85c6",
        L14,
    ),
    "sac_public_2022_06_29_vit_b_32_linear.pth": KnownHead(
        f"{SIMULACRA}sac_public_2022_06_29_vit_b_32_linear.pth",
        "64315370e2293a08cc2f4816ae9db715f935791569c1a57d84b943e482ea5e12",
        B32,
    ),
}


@dataclasses.dataclass(frozen=True)
class AestheticHead:
    """One linear map of unit-length embeddings. weight: (D,) float32."""

    weight: torch.Tensor
    bias: float

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, D) unit length -> (N,) scores, float32."""
        return embeddings.float() @ self.weight + self.bias


def read_head(path: str | Path) -> AestheticHead:
    """An aesthetic head from .safetensors, or from .pth by weights_only.

    Known: LAION's improved head (layers.{0,2,4,6,7}, no activations, so it is one linear map),
    LAION's first ones (weight, bias) and Simulacra's (linear.weight, linear.bias, made for unit
    vectors times sqrt(D)). SettingsError("head", ...) for anything else.
    """
    stored = {name: tensor.double() for name, tensor in _read_tensors(Path(path)).items()}
    laion = [f"layers.{place}." for place in HEAD_LAYERS]
    prefixes = [prefix for prefix in ("", "linear.", *laion) if f"{prefix}weight" in stored]
    pairs = [(stored[f"{prefix}weight"], stored.get(f"{prefix}bias")) for prefix in prefixes]
    if prefixes not in ([""], ["linear."], laion) or len(stored) != 2 * len(pairs):
        found = ", ".join(sorted(stored)[:3])
        raise SettingsError("head", f"{path} is not a known aesthetic head: it holds {found}")
    try:
        head = fold_layers(pairs, math.sqrt(pairs[0][0].shape[1]) if prefixes == ["linear."] else 1)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:  # shapes that do not fit
        raise SettingsError("head", f"{path} is no aesthetic head: {first_line(error)}") from None
    if not torch.isfinite(head.weight).all() or not math.isfinite(head.bias):
        raise SettingsError("head", f"{path} holds a number that is not finite (NaN)")
    return head


def fold_layers(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]], scale: float = 1.0
) -> AestheticHead:
    """Linear layers one after another, without activations, as one map. layers: weight (out, in)
    and bias (out,), double, first to last; the last has one output. scale: of the input.
    ValueError or RuntimeError for shapes that do not fit."""
    weight, bias = layers[0]
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight @ weight, next_weight @ bias + next_bias
    if weight.shape[0] != 1 or bias.shape != (1,):
        raise ValueError(f"it ends in {weight.shape[0]} numbers, not in one score")
    return AestheticHead((scale * weight[0]).float(), float(bias))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        known = KNOWN_HEADS.get(path.name)
        where = f"; it is published at {known.url}" if known else ""
        raise SettingsError("head", f"there is no file {path}{where}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        with warnings.catch_warnings():  # about a foreign pickle, which is refused anyway
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file can raise
        reason = f"truncated, broken or not just weights: {first_line(error)}"
        raise SettingsError("head", f"{path} is {reason}") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise SettingsError("head", f"{path} does not hold a table of named weights")
    return loaded


def fetch_head(path: str | Path) -> None:
    """Download a known head to the path, whose name says which. A file that is there stays.
    SettingsError("head", ...) for an unknown name, and for what is not, byte for byte, the file
    that KNOWN_HEADS names."""
    path = Path(path)
    if path.is_file():
        return
    known = KNOWN_HEADS.get(path.name)
    if known is None:
        names = ", ".join(KNOWN_HEADS)
        raise SettingsError("head", f"there is no file {path}; those known by name: {names}")
    try:
        with urllib.request.urlopen(known.url, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(MAX_HEAD_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = f"{known.url} cannot be fetched ({first_line(error)}); put it at {path}"
        raise SettingsError("head", reason) from None
    if hashlib.sha256(content).hexdigest() != known.sha256:
        reason = f"what {known.url} sent is not the file of SHA-256 {known.sha256}"
        raise SettingsError("head", reason)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        move(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise SettingsError("head", f"{path} cannot be written: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error of another library says, for a sentence of ours: without torch's advice to
    unpickle a file after all; with the weights that a model misses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1:
        return f"{lines[1].strip()}"[:300]
    if "weights_only" in str(error) or "Weights only load failed" in lines[0]:
        return lines[0].partition(". ")[0]
    return lines[0][:300]
