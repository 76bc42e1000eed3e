"""The lab's renderer in training: an MMDiT of Stable Diffusion 3's kind on 16 x 16 latents.

Flow matching (Esser et al. 2024, arXiv 2403.03206): the model reads (1 - s) * latent + s * noise
and the caption, and learns noise - latent. Departures, all to learn shapes from few samples:
- Latents stand for 4 x 4 pixels instead of 8 x 8, so that a picture of 64 pixels has 64 tokens at
  SD3's patch size, 2.
- The matrices of the blocks are trained by Muon (Jordan et al. 2024) where torch has it, the rest
  by AdamW; modulations and the output start at zero, as in DiT (arXiv 2212.09748).
- A linear reader of a middle layer's tokens learns which subject covers each patch: the drawer
  knows, and the layer learns what REPA (arXiv 2410.06940) would learn from a vision model.
- The text encoder's padding after NUM_POSITIONS tokens is one and the same vector, so these tokens
  stay alike through all layers. They are merged into one whose attention key has the logarithm of
  their number added: exactly the same outputs from a quarter fewer tokens.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from torch.nn import functional

from ..clip_tokens import ClipTokenCounter
from .captions import describe
from .scenes import Scene
from .stages import build_seeded, can_fuse, step_generator
from .text_encoder import MAX_LENGTH, NUM_POSITIONS, WIDTH, TextFeatures
from .training import COMMON_METRICS, Training
from .vocabulary import SUBJECTS

CONTEXT_WIDTH, POOLED_WIDTH = 4096, 2048  # what SD3's pipeline pads the text to
NUM_LAYERS = 3
HEAD_DIM = 64
LARGEST_PIXELS = 128

CONFIG: dict[str, Any] = {
    "patch_size": 2, "sample_size": 16, "pos_embed_max_size": LARGEST_PIXELS // 8,
    "in_channels": 16, "out_channels": 16, "attention_head_dim": HEAD_DIM,
}  # fmt: skip
LABEL_LAYER = 1  # the block after which the patches' subjects are read
LABEL_WEIGHT = 0.3
# The logit of s is normal (section 3.1 of the paper): where s is high, shapes are decided.
S_MEAN, S_SPREAD = 0.8, 1.1
NO_CAPTION = 0.1  # share of training captions left empty, for guidance
NO_COLOUR = 0.08  # share of captions that leave the colours out
SINGLE = 0.35  # share of the pictures of one thing that are taken: several are harder to render
EXTRA_PADDING = 256  # zero tokens that diffusers adds for the absent T5, in a fifth of the batches
LONG_EVERY = 8  # every so many steps a batch of captions over NUM_POSITIONS tokens
DECAY_SHARE = 0.3  # of the steps, at the end: the learning rate falls to zero


def build_transformer(seed: int, num_layers: int = NUM_LAYERS) -> SD3Transformer2DModel:
    """An untrained MMDiT, 64 * num_layers wide, that reads texts 768 wide."""
    width = HEAD_DIM * num_layers
    model = build_seeded(
        lambda: SD3Transformer2DModel(
            **CONFIG, num_layers=num_layers, num_attention_heads=num_layers,
            caption_projection_dim=width, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
        ),
        seed,
    )  # fmt: skip
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")):
                module.weight.zero_()
                module.bias.zero_()
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
        # Texts fill 768 of the 4096 inputs that SD3 has: the usual start would be too faint.
        torch.nn.init.normal_(
            model.context_embedder.weight, std=WIDTH**-0.5, generator=step_generator(seed, -2)
        )
    return model


def widened(model: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The same model for texts that are padded with zeros to SD3's widths."""
    config = dict(model.config)
    config.update(joint_attention_dim=CONTEXT_WIDTH, pooled_projection_dim=POOLED_WIDTH)
    wide = build_seeded(lambda: SD3Transformer2DModel.from_config(config), 0)
    state = model.state_dict()
    for name, size in (
        ("context_embedder.weight", CONTEXT_WIDTH),
        ("time_text_embed.text_embedder.linear_1.weight", POOLED_WIDTH),
    ):
        state[name] = functional.pad(state[name], (0, size - state[name].shape[1]))
    wide.load_state_dict(state)
    return wide


class MergedPadding:
    """Attention of image and text tokens in which the last token stands for `merged` alike ones."""

    def __init__(self, merged: int = 1):
        self.merged = merged

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states: (B, I, D) of the image; encoder_hidden_states: (B, L, D) of the text."""

        def heads(*parts: torch.Tensor) -> torch.Tensor:
            joined = torch.cat(parts, dim=1)
            return joined.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        text = encoder_hidden_states
        query = heads(attn.to_q(hidden_states), attn.add_q_proj(text))
        key = heads(attn.to_k(hidden_states), attn.add_k_proj(text))
        value = heads(attn.to_v(hidden_states), attn.add_v_proj(text))
        bias = torch.zeros(key.shape[2], device=key.device, dtype=key.dtype)
        bias[-1] = math.log(self.merged)
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + bias
        mixed = (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed.split((hidden_states.shape[1], text.shape[1]), dim=1)
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[0](image), text


class RendererStage(Training):
    """Trains the MMDiT on latents (N, 16, 16, 16) float16 of the pictures of `scenes`; labels:
    (N, 8, 8) uint8 of the drawer. The last num_valid are held out."""

    name = "renderer"
    metrics = {
        **COMMON_METRICS,
        "train/loss": "mean squared error of the velocity, plus the label loss by its weight",
        "train/flow": "mean squared error of the velocity, latents of deviations up to 1",
        "train/labels": "cross entropy of the subject that covers each patch, nats",
        "valid/flow": "train/flow on held-out pictures, averaged weights, fixed noise",
        "valid/subjects": "share of the covered patches whose subject is read right at s = 0.9",
    }

    def __init__(
        self,
        latents: torch.Tensor,
        labels: np.ndarray,
        scenes: Sequence[Scene],
        *,
        num_steps: int,
        batch_size: int = 128,
        seed: int = 0,
        lr: float = 1.5e-3,
        num_layers: int = NUM_LAYERS,
        num_valid: int = 256,
        validate_every: int = 500,
        ema_decay: float = 0.999,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        self.latents, self.labels, self.scenes = latents, labels, scenes
        self.num_train = len(scenes) - num_valid
        self.batch_size = batch_size
        self.counter, self.features = ClipTokenCounter(), TextFeatures()
        self.padding = MergedPadding()
        model = build_transformer(seed, num_layers)
        model.set_attn_processor(self.padding)
        model.transformer_blocks[LABEL_LAYER].register_forward_hook(self._keep_tokens)
        self.tokens: torch.Tensor | None = None
        self.reader = build_seeded(
            lambda: torch.nn.Linear(model.inner_dim, len(SUBJECTS) + 1), seed
        )
        self.prepare(
            model, [self.reader], num_steps=num_steps, seed=seed, lr=lr, ema_decay=ema_decay,
            validate_every=validate_every, device=device, precision=precision,
        )  # fmt: skip

    def losses(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows, texts = self._batch(random.Random(f"{self.seed} {step}"), step)
        extra = EXTRA_PADDING if float(torch.rand((), generator=generator)) < 0.2 else 0
        s = torch.sigmoid(S_MEAN + S_SPREAD * torch.randn(len(rows), generator=generator))
        flow, read, labels = self._losses(rows, texts, s, generator, extra)
        subjects = functional.cross_entropy(read.flatten(0, 1), labels.flatten())
        return {"loss": flow + LABEL_WEIGHT * subjects, "flow": flow, "labels": subjects}

    def rate(self, step: int) -> float:
        return self.lr * rate(step, self.num_steps)

    def make_optimizers(self, weight_decay: float) -> list[torch.optim.Optimizer]:
        return make_optimizers(self.model, self.reader, self.lr)

    def _losses(
        self,
        rows: Sequence[int],
        texts: Sequence[list[int]],
        s: torch.Tensor,
        generator: torch.Generator,
        extra: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(flow loss, logits of the patches' subjects (B, 64, S), labels (B, 64))."""
        clean = self.latents[torch.as_tensor(rows)].float()
        noise = torch.randn(clean.shape, generator=generator)
        at = s[:, None, None, None]
        noisy, target = (1 - at) * clean + at * noise, noise - clean
        length = max(NUM_POSITIONS, max(map(len, texts)) + 2)
        context, pooled = self.features.embed(texts, length + 1)
        self.padding.merged = MAX_LENGTH - length + extra
        with self.arithmetic():
            velocity = self.model(
                hidden_states=noisy.to(self.device),
                encoder_hidden_states=context.to(self.device),
                pooled_projections=pooled.to(self.device),
                timestep=(s * 1000).to(self.device),
                return_dict=False,
            )[0]
            read = self.reader(self.tokens).float()
        self.tokens = None
        flow = (velocity.float() - target.to(self.device)).square().mean()
        labels = torch.as_tensor(np.asarray(self.labels[np.asarray(rows)], dtype=np.int64))
        return flow, read, labels.flatten(1).to(self.device)

    def _batch(self, generator: random.Random, step: int) -> tuple[list[int], list[list[int]]]:
        """Rows and the token ids of a fresh caption of each. Long captions come together, pictures
        of one thing less often than the others, see SINGLE."""
        long = step % LONG_EVERY == LONG_EVERY - 1
        rows: list[int] = []
        texts: list[list[int]] = []
        while len(rows) < self.batch_size:
            row = generator.randrange(self.num_train)
            if len(self.scenes[row].things) == 1 and generator.random() >= SINGLE:
                continue
            ids = self._caption(row, generator)
            if generator.random() < NO_CAPTION:
                ids = []
            if (len(ids) + 2 > NUM_POSITIONS) == long:
                rows.append(row)
                texts.append(ids)
        return rows, texts

    def _caption(self, row: int, generator: random.Random) -> list[int]:
        scene = self.scenes[row]
        if generator.random() < NO_COLOUR:
            things = tuple(dataclasses.replace(thing, colour=None) for thing in scene.things)
            scene = dataclasses.replace(scene, things=things)
        ids = self.counter.encode(describe(scene, generator))
        return ids[: MAX_LENGTH - 3]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        flows, right, covered = [], 0, 0
        rows = list(range(self.num_train, len(self.scenes)))
        texts = [self._caption(row, random.Random(row)) for row in rows]
        with self.ema.applied(self.model):
            for start in range(0, len(rows), 64):
                part, words = rows[start : start + 64], texts[start : start + 64]
                s = torch.linspace(0.05, 0.95, len(part))
                generator = step_generator(self.seed, -3 - start)
                flows.append(float(self._losses(part, words, s, generator, 0)[0]))
                s = torch.full_like(s, 0.9)
                _, read, labels = self._losses(part, words, s, generator, 0)
                there = labels > 0
                right += int((read.argmax(2) == labels)[there].sum())
                covered += int(there.sum())
        return {
            "valid/flow": sum(flows) / len(flows),
            "valid/subjects": right / max(covered, 1),
        }

    def save(self, folder: Path) -> None:
        """The averaged weights, widened for SD3's pipeline, float32."""
        model = build_transformer(self.seed, self.model.config.num_layers)
        model.load_state_dict(self.ema.weights)
        widened(model).save_pretrained(folder)

    def _keep_tokens(self, module: Any, inputs: Any, outputs: tuple) -> None:
        self.tokens = outputs[1]


def rate(step: int, num_steps: int) -> float:
    """Share of the learning rate: a short warm-up, a plateau, a straight fall to zero."""
    warm_up = min(1.0, (step + 1) / min(200, max(num_steps // 10, 1)))
    return min(warm_up, (num_steps - step) / (num_steps * DECAY_SHARE))


def make_optimizers(
    model: SD3Transformer2DModel, reader: torch.nn.Module, lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of attention and feed-forward, AdamW for everything else."""
    hidden, rest = [], list(reader.parameters())
    for name, parameter in model.named_parameters():
        is_hidden = "transformer_blocks" in name and ".linear." not in name
        (hidden if is_hidden and parameter.dim() == 2 else rest).append(parameter)
    adamw: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0}
    adamw["fused"] = can_fuse(rest[0].device)
    if not hasattr(torch.optim, "Muon"):
        return [torch.optim.AdamW([*hidden, *rest], **adamw)]
    muon = torch.optim.Muon(
        hidden, lr=lr, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, **adamw)]
