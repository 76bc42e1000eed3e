"""Weights and configs of causal language models, read without running anything from the file.

Safetensors first; an old .bin only through torch.load(weights_only=True). Every defect of a
folder becomes SettingsError("policy", one sentence).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .moving import move
from .policies import weight_files
from .settings import SettingsError

# Buffers of old GPT-2 files: the causal mask and its fill value. They carry no weights.
OLD_GPT2_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$")
# GPT-2 variants that change the arithmetic; they go through transformers' own loading.
PLAIN_GPT2 = {
    "add_cross_attention": False,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
PLAIN_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
MAX_LAYERS = 1000  # a config that asks for more is broken, and would only fill the memory


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a causal language model as a dict."""
    if not os.path.isdir(folder):
        raise SettingsError("policy", f"there is no folder {folder}")
    path = folder / "config.json"
    if not path.is_file():
        raise SettingsError("policy", f"{folder} is not a policy: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError("policy", f"{path} could not be read: {error}") from None
    if not isinstance(config, dict):
        raise SettingsError("policy", f"{path} does not hold a JSON object")
    if not isinstance(config.get("model_type"), str):
        kind = config.get("_class_name", "no model_type")
        raise SettingsError("policy", f"{folder} is not a language model (config.json: {kind})")
    return config


def is_plain_gpt2(config: dict[str, Any]) -> bool:
    """Whether the config is of GPT-2 as published, which needs no help of transformers."""
    usual = all(config.get(name, value) == value for name, value in PLAIN_GPT2.items())
    activation = config.get("activation_function", "gelu_new")
    return config["model_type"] == "gpt2" and usual and activation in PLAIN_ACTIVATIONS


def gpt2_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every GPT-2 weight; the head is the token embedding and not listed."""
    sizes = {}
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        size = config.get(name)
        if type(size) is not int or size < 1:
            raise SettingsError("policy", f"config.json: {name} has to be 1 or more, got {size!r}")
        sizes[name] = size
    if sizes["n_layer"] > MAX_LAYERS:
        raise SettingsError("policy", f"config.json: n_layer has to be at most {MAX_LAYERS}")
    width = sizes["n_embd"]
    if width % sizes["n_head"]:
        raise SettingsError(
            "policy", f"config.json: n_embd {width} is no multiple of n_head {sizes['n_head']}"
        )
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise SettingsError(
            "policy", f"config.json: layer_norm_epsilon has to be from 0 to 1, got {epsilon!r}"
        )
    inner = config.get("n_inner") or 4 * width
    layer = {
        "ln_1.weight": (width,), "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width), "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, inner), "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    shapes = {
        "transformer.wte.weight": (sizes["vocab_size"], width),
        "transformer.wpe.weight": (sizes["n_positions"], width),
    }
    for index in range(sizes["n_layer"]):
        shapes.update({f"transformer.h.{index}.{name}": shape for name, shape in layer.items()})
    shapes.update({"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)})
    return shapes


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder's weight files, on the CPU, in the dtype of the file."""
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
        weights.update(tensors)
    if not weights:
        raise SettingsError("policy", f"{folder} has no weights: expected model.safetensors")
    return weights


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SettingsError("policy", f"{path} is truncated or broken: {error}") from None


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    """A .bin file by weights_only; hosts may have put a stricter torch.load in place."""
    try:
        with warnings.catch_warnings():  # about a foreign pickle, which is refused anyway
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle can raise, and a host's own refusal
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = reason.partition(". ")[0]  # the rest is torch's advice to unpickle it after all
        raise SettingsError("policy", f"{path} is broken or not just weights: {reason}") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise SettingsError("policy", f"{path} does not hold a table of named weights")
    return loaded


def gpt2_weights(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The checked weights of a plain GPT-2 folder under today's names.

    Old files lack the prefix "transformer." and carry attn.bias, attn.masked_bias and a copy of
    the tied head: those are dropped. Other names that GPT-2 does not know are ignored, as
    transformers does, unless they are layers that the config does not have.
    """
    shapes = gpt2_shapes(config)
    weights = {}
    for name, tensor in read_weights(folder).items():
        if OLD_GPT2_BUFFERS.search(name) or name == "lm_head.weight":
            continue
        if not name.startswith("transformer.") and f"transformer.{name}" in shapes:
            name = f"transformer.{name}"
        if name in shapes:
            weights[name] = tensor
        elif re.match(r"(transformer\.)?h\.\d+\.", name):
            raise SettingsError("policy", f"{folder}: config.json does not know the weight {name}")
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise SettingsError(
            "policy",
            f"{folder} lacks {len(missing)} of {len(shapes)} weights of GPT-2, "
            f"the first is {missing[0]}",
        )
    for name, shape in shapes.items():
        found = tuple(weights[name].shape)
        if found != shape:
            raise SettingsError(
                "policy", f"{folder}: {name} has the shape {found}, config.json says {shape}"
            )
    check_finite(weights, folder)
    return {name: weights[name] for name in shapes}


def check_finite(weights: dict[str, torch.Tensor], folder: Path | str) -> None:
    """SettingsError when a weight is NaN or infinite. A sum shows both, and is fast."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise SettingsError("policy", f"{folder}: the weight {name} is not finite (NaN)")


def new_gpt2_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random float32 weights of a GPT-2 (Radford et al. 2019, section 2.3), from an own generator.

    Matrices normal with deviation 0.02, those that write into the residual stream divided by
    sqrt(2 * number of layers); biases 0, norms 1.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / (2 * config["n_layer"]) ** 0.5
    weights = {}
    for name, shape in gpt2_shapes(config).items():
        tensor = torch.empty(shape, dtype=torch.float32)
        if len(shape) == 2:
            deviation = residual if name.endswith("c_proj.weight") else 0.02
            tensor.normal_(0.0, deviation, generator=generator)
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        weights[name] = tensor
    return weights


def write_weights(weights: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> Path:
    """Write model.safetensors whole or not at all. Shared tensors are stored once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    stored = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        stored[name] = tensor.detach().to("cpu", kind).contiguous()
    check_finite(stored, folder)
    path = folder / "model.safetensors"
    partial = folder / "model.safetensors.partial"
    partial.write_bytes(safetensors.torch.save(stored, metadata={"format": "pt"}))
    move(partial, path)
    return path


def file_identity(paths: list[Path]) -> str:
    """First 12 hex digits of the SHA-256 over the files' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
