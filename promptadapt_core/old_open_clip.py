"""open_clip as Automatic1111 and Forge pin it (2.20).

It reads no safetensors, its models know no init_logit_scale, which weights replace anyhow, its
tokenizer does not know how much a model reads, and it does not tell a model's transform.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch

FIRST_LOGIT_SCALE = "init_logit_scale"
CONTEXT_LENGTH = 77  # of a CLIP that does not say


def is_old() -> bool:
    """Whether the installed open_clip is such a one."""
    return FIRST_LOGIT_SCALE not in inspect.signature(open_clip.CLIP.__init__).parameters


def create(model: str, weights: str | Path) -> tuple[torch.nn.Module, Callable[[Any], Any]]:
    """(the model with the weights of a safetensors file, the transform of one picture)."""
    open_clip.factory._MODEL_CONFIGS.get(model, {}).pop(FIRST_LOGIT_SCALE, None)
    made, _, preprocess = open_clip.create_model_and_transforms(model)
    made.load_state_dict(safetensors.torch.load_file(weights))
    return made, preprocess


def get_tokenizer(model: str) -> Callable[[list[str]], torch.Tensor]:
    """Texts to as many tokens as the model reads, (N, context length)."""
    length = open_clip.get_model_config(model).get("text_cfg", {}).get("context_length")
    return functools.partial(
        open_clip.get_tokenizer(model), context_length=length or CONTEXT_LENGTH
    )


def get_transform(model: torch.nn.Module) -> dict[str, Any]:
    """What an open_clip of any age tells of the transform of a model."""
    tell = getattr(open_clip, "get_model_preprocess_cfg", None)
    return tell(model) if tell else {}
