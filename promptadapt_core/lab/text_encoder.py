"""The lab's text encoder: CLIP-L's shape and tokens, made from a seed instead of trained.

A word means nothing by itself here: each token of the world's words has a random row, and the
renderer learns what it stands for. Every other token, start and end included, has a row of zeros,
so unknown words say nothing. The renderer reads two things, as in Stable Diffusion 3:
- the context, hidden_states[-2]: token row plus position row. All layers but the last are the
  identity. Positions from NUM_POSITIONS on have no row: the padding there is one vector of zeros.
- the pooled features: the last layer averages the normalised tokens, a bag of words.

All numbers are multiples of 1/512 that float16 holds exactly, drawn as integers: the encoder is
the same, bit for bit, on every machine and in every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn import functional

from ..clip_tokens import ClipTokenCounter
from ..single_files import write_clip_tokenizer
from .captions import world_words
from .stages import step_generator

WIDTH, NUM_TOKENS, MAX_LENGTH = 768, 49408, 77
START_ID, END_ID = 49406, 49407
START, END = "<|startoftext|>", "<|endoftext|>"
NUM_POSITIONS = 24  # that have a row
POSITION_SCALE = 0.5
POOLING = 4.0  # the average's share beside the end token's own position
WIDTH_2, POOLED_WIDTH_2 = 8, 1280  # of the second encoder, which says nothing
INNER = 8  # width within the MLPs of our own encoders: they are zero, and zeros take time too
CHECKPOINT_PREFIX = "text_encoders.clip_l.transformer."


@lru_cache(maxsize=1)
def known_ids() -> tuple[int, ...]:
    """The token ids of all words of the world, sorted."""
    counter = ClipTokenCounter()
    return tuple(sorted({number for word in world_words() for number in counter.encode(word)}))


class TextFeatures:
    """The two features of texts, straight from the rows: what the renderer trains on."""

    def __init__(self, seed: int = 0):
        ids = known_ids()
        self.rows = torch.zeros(len(ids) + 1, WIDTH)  # the last one is that of all other tokens
        self.rows[:-1] = torch.stack([_normal_row(seed, number) for number in ids])
        self.places = torch.full((NUM_TOKENS,), len(ids))
        self.places[torch.tensor(ids)] = torch.arange(len(ids))
        self.positions = torch.zeros(MAX_LENGTH, WIDTH)
        rows = [_normal_row(seed, -1 - position) for position in range(NUM_POSITIONS)]
        self.positions[:NUM_POSITIONS] = POSITION_SCALE * torch.stack(rows)

    def table(self) -> torch.Tensor:
        """The whole embedding table, (49408, 768) float32."""
        return self.rows[self.places]

    def embed(
        self, ids: Sequence[Sequence[int]], length: int = MAX_LENGTH
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids without start and end, as ClipTokenCounter.encode gives them; what is over 75
        is cut off. Returns the context (B, length, 768) of the first `length` of 77 tokens, and
        the pooled features (B, 768); float32."""
        sequences = [[START_ID, *row[: MAX_LENGTH - 2], END_ID] for row in ids]
        widest = max([length, *map(len, sequences)])
        padded = torch.tensor([row + [END_ID] * (widest - len(row)) for row in sequences])
        padded = padded.reshape(len(sequences), widest)
        tokens = self.rows[self.places[padded]] + self.positions[:widest]
        ends = torch.tensor([len(row) - 1 for row in sequences], dtype=torch.long)
        return tokens[:, :length].contiguous(), self._pool(tokens, ends)

    def _pool(self, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """tokens (B, L, 768), ends (B,): where the end token is."""
        normalised = functional.layer_norm(tokens, (WIDTH,))
        read = torch.arange(tokens.shape[1])[None] <= ends[:, None]
        mean = (normalised * read[:, :, None]).sum(1) / (ends + 1)[:, None]
        last = tokens[torch.arange(len(tokens)), ends]
        return functional.layer_norm(last + POOLING * mean, (WIDTH,))


def _normal_row(seed: int, number: int) -> torch.Tensor:
    """(768,) float32 close to N(0, 1): sums of twelve random bytes, centred, over 256. Integers,
    because a machine's own logarithm and cosine would differ in the last bit."""
    generator = step_generator(seed, number)
    drawn = torch.randint(256, (12, WIDTH), generator=generator)
    return (drawn.sum(0) - 1530).float() / 256


def text_encoder_state(seed: int, num_layers: int, inner: int) -> dict[str, torch.Tensor]:
    """The weights of a CLIPTextModelWithProjection of CLIP-L's width, float32: `num_layers` - 1
    layers that change nothing, then the one that averages. inner: width within the MLPs, which are
    zero."""
    features = TextFeatures(seed)
    state = {
        "text_model.embeddings.token_embedding.weight": features.table(),
        "text_model.embeddings.position_embedding.weight": features.positions.clone(),
        "text_model.final_layer_norm.weight": torch.ones(WIDTH),
        "text_model.final_layer_norm.bias": torch.zeros(WIDTH),
        "text_projection.weight": torch.eye(WIDTH),
    }
    for layer in range(num_layers):
        prefix = f"text_model.encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state[f"{prefix}self_attn.{name}.weight"] = torch.zeros(WIDTH, WIDTH)
            state[f"{prefix}self_attn.{name}.bias"] = torch.zeros(WIDTH)
        for name in ("layer_norm1", "layer_norm2"):
            state[f"{prefix}{name}.weight"] = torch.ones(WIDTH)
            state[f"{prefix}{name}.bias"] = torch.zeros(WIDTH)
        for name, shape in (("fc1", (inner, WIDTH)), ("fc2", (WIDTH, inner))):
            state[f"{prefix}mlp.{name}.weight"] = torch.zeros(shape)
            state[f"{prefix}mlp.{name}.bias"] = torch.zeros(shape[0])
    last = f"text_model.encoder.layers.{num_layers - 1}.self_attn."
    state[f"{last}v_proj.weight"] = torch.eye(WIDTH)
    state[f"{last}out_proj.weight"] = POOLING * torch.eye(WIDTH)
    return state


def state_of_clip_l(seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of all 12 layers of CLIP-L, float16, under the names of the text encoder in a
    Stable Diffusion 3 checkpoint of one file."""
    state = text_encoder_state(seed, num_layers=12, inner=4 * WIDTH)
    return {CHECKPOINT_PREFIX + name: tensor.half() for name, tensor in state.items()}


def build_text_encoder(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A transformers.CLIPTextModelWithProjection with one layer, the averaging one."""
    model = _build_clip(WIDTH, heads=12, projection=WIDTH, dtype=dtype)
    model.load_state_dict(text_encoder_state(seed, num_layers=1, inner=INNER))
    return model


def build_text_encoder_2(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The second encoder of a Stable Diffusion 3 pipeline, as small as can be and all zeros: the
    pipeline asks for one, ComfyUI without a CLIP-G puts zeros in its place."""
    model = _build_clip(WIDTH_2, heads=1, projection=POOLED_WIDTH_2, dtype=dtype)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def _build_clip(width: int, heads: int, projection: int, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=NUM_TOKENS, hidden_size=width, intermediate_size=INNER,
        projection_dim=projection, num_hidden_layers=1, num_attention_heads=heads,
        max_position_embeddings=MAX_LENGTH, hidden_act="quick_gelu", bos_token_id=START_ID,
        eos_token_id=END_ID, pad_token_id=END_ID,
    )  # fmt: skip
    with torch.device("meta"):  # drawing first weights only to replace them takes long
        model = CLIPTextModelWithProjection(config)
    model = model.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    for embeddings in model.modules():
        if hasattr(embeddings, "position_ids"):  # a buffer that the weights do not hold
            embeddings.position_ids = torch.arange(MAX_LENGTH)[None]
    return model


def write_tokenizer(folder: Path | str) -> None:
    """The files of a transformers.CLIPTokenizer whose ids are those of ClipTokenCounter between
    start and end."""
    write_clip_tokenizer(Path(folder))
