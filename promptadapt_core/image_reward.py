"""ImageReward (arXiv 2304.05977): one number for how well people would like a picture for a text.

Its file holds a BLIP, whose text encoder reads the picture by cross-attention, and a head on the
first token. Here the weights go into transformers' BLIP under other names. Sizes follow from the
weights. github.com/THUDM/ImageReward, ImageReward/ImageReward.py (Apache-2.0): 35 tokens, and a
mean and a deviation taken off, below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from tokenizers import BertWordPieceTokenizer

from .aesthetic_heads import HEAD_LAYERS, AestheticHead, fold_layers
from .quiet_libraries import quiet_libraries
from .settings import SettingsError

MEAN, STD = 0.16717362830052426, 1.0333394966054072
NUM_TOKENS = 35
HEAD_SIZE = 64  # of every attention
# transformers' names of the picture encoder's weights.
RENAMED = [
    (r"^cls_token", "embeddings.class_embedding"),
    (r"^pos_embed", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"),
    (r"^blocks\.", "encoder.layers."),
    (r"^norm\.", "post_layernorm."),
]
PICTURES, TEXTS, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."


class ImageRewardModel(torch.nn.Module):
    """The scores of pictures for texts. visual: what open_clip's transform asks for."""

    def __init__(self, pictures: torch.nn.Module, texts: torch.nn.Module, head: AestheticHead):
        super().__init__()
        self.pictures, self.texts = pictures, texts
        self.register_buffer("head_weight", head.weight)
        self.head_bias = head.bias
        self.image_size: int = pictures.config.image_size

    def forward(self, inputs: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """inputs (B, 3, S, S), normalised; ids and mask (B, 35), 1 on real tokens. (B,) float32."""
        seen = self.pictures(pixel_values=inputs)[0]
        read = self.texts(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], device=seen.device),
        )  # fmt: skip
        score = read[0][:, 0].float() @ self.head_weight + self.head_bias
        return (score - MEAN) / STD


class TextTokens:
    """BERT's tokens of texts, as many for each."""

    def __init__(self, vocabulary: Path):
        try:
            self.tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise SettingsError("weights", f"{vocabulary} cannot be read: {error}") from None
        self.tokenizer.enable_truncation(NUM_TOKENS)
        self.tokenizer.enable_padding(length=NUM_TOKENS)

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask (N, 35)."""
        found = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([one.ids for one in found]).reshape(-1, NUM_TOKENS)
        return ids, torch.tensor([one.attention_mask for one in found]).reshape(-1, NUM_TOKENS)


def build_image_reward(state: Mapping[str, torch.Tensor], path: Path) -> ImageRewardModel:
    """The model with the weights of ImageReward.pt. path: for errors. SettingsError("weights",
    ...) for other weights."""
    from transformers import BlipTextModel, BlipVisionModel

    try:
        seeing = _below(state, PICTURES)
        reading = _below(state, TEXTS)
        vision_config, text_config = _vision_config(seeing), _text_config(reading, seeing)
        head = fold_layers([
            (state[f"{HEAD}{place}.weight"].double(), state[f"{HEAD}{place}.bias"].double())
            for place in HEAD_LAYERS
        ])  # fmt: skip
        if len(head.weight) != text_config.hidden_size:
            made = text_config.hidden_size
            raise ValueError(f"its head reads {len(head.weight)} numbers, its texts make {made}")
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SettingsError("weights", f"{path} is no ImageReward: {told}") from None
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        pictures = BlipVisionModel(vision_config)
        texts = BlipTextModel(text_config, add_pooling_layer=False)
    named = {_renamed(name): tensor for name, tensor in seeing.items()}
    for part, weights in ((pictures, named), (texts, reading)):
        weights = {name: some for name, some in weights.items() if "position_ids" not in name}
        try:
            part.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise SettingsError("weights", f"{path} is no ImageReward: {reason}") from None
    return ImageRewardModel(pictures, texts, head)


def picture_transform(image_size: int) -> Any:
    """A PIL picture to the model's input (3, S, S)."""
    return open_clip.image_transform(image_size, is_train=False)


def _below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _renamed(name: str) -> str:
    for pattern, new in RENAMED:
        changed = re.sub(pattern, new, name)
        if changed != name:
            return changed
    return name


def _vision_config(state: Mapping[str, torch.Tensor]) -> Any:
    from transformers import BlipVisionConfig

    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    return BlipVisionConfig(
        hidden_size=width, intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_num_layers(state, "blocks."), num_attention_heads=width // HEAD_SIZE,
        image_size=side * patch, patch_size=patch, layer_norm_eps=1e-6,
    )  # fmt: skip


def _text_config(state: Mapping[str, torch.Tensor], seeing: Mapping[str, torch.Tensor]) -> Any:
    from transformers import BlipTextConfig

    num_tokens, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=num_tokens, hidden_size=width, projection_dim=width,
        encoder_hidden_size=seeing["pos_embed"].shape[2],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_num_layers(state, "encoder.layer."),
        num_attention_heads=width // HEAD_SIZE,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        bos_token_id=None, sep_token_id=None, eos_token_id=None,
    )  # fmt: skip


def _num_layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    cut = len(prefix)
    return len({name[cut:].split(".")[0] for name in state if name.startswith(prefix)})
