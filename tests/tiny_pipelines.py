"""Pipelines of diffusers' own classes at tiny width with random weights, for tests; and the layout
of one file, in which artists share Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from promptadapt_core.single_files import write_clip_tokenizer

WORDS = "a the red blue green cat boat tree house by sea detailed".split()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from a seed; the process's own generator goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield


def clip_tokenizer(folder: Path, padding: str = "<|endoftext|>") -> Any:
    write_clip_tokenizer(folder, padding)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def clip_encoder(kind: type, width: int = 64, **settings: Any) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=max(1, width // 64), bos_token_id=49406, eos_token_id=49407,
        pad_token_id=49407, **settings,
    )  # fmt: skip
    return kind(config).eval()


def word_tokenizer() -> Any:
    """Stands in for T5's: one token a word."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def t5_encoder(width: int = 16) -> Any:
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def kl_autoencoder(channels: int = 4, **settings: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64), latent_channels=channels, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    )  # fmt: skip


def unet(**settings: Any) -> Any:
    wanted: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**{**wanted, **settings})


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd1(folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=unet(cross_attention_dim=64, attention_head_dim=8), vae=kl_autoencoder(),
        text_encoder=clip_encoder(transformers.CLIPTextModel), safety_checker=None,
        tokenizer=clip_tokenizer(folder / "tokenizer"), feature_extractor=None,
        scheduler=diffusers.PNDMScheduler(
            **NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
        ),
        requires_safety_checker=False,
    )  # fmt: skip


def sd2(folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=unet(
            cross_attention_dim=128, attention_head_dim=(1, 1), use_linear_projection=True
        ),
        text_encoder=clip_encoder(transformers.CLIPTextModel, 128, hidden_act="gelu"),
        tokenizer=clip_tokenizer(folder / "tokenizer", "!"), vae=kl_autoencoder(),
        scheduler=diffusers.DDIMScheduler(
            **NOISE, steps_offset=1, set_alpha_to_one=False, clip_sample=False,
            prediction_type="v_prediction",
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder: Path) -> Any:
    network = unet(
        cross_attention_dim=192, attention_head_dim=(1, 1), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=128 + 6 * 256,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        unet=network, vae=kl_autoencoder(scaling_factor=0.13025),
        text_encoder=clip_encoder(transformers.CLIPTextModel),
        text_encoder_2=clip_encoder(
            transformers.CLIPTextModelWithProjection, 128, hidden_act="gelu", projection_dim=128
        ),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2", "!"),
        scheduler=diffusers.EulerDiscreteScheduler(
            **NOISE, steps_offset=1, timestep_spacing="leading"
        ),
        add_watermarker=False,
    )  # fmt: skip


def sd3(folder: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        patch_size=1, sample_size=8, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32,
        joint_attention_dim=4096, pooled_projection_dim=192, pos_embed_max_size=16,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, text_encoder_3=None, tokenizer_3=None,
        vae=kl_autoencoder(16, shift_factor=0.1),
        text_encoder=clip_encoder(kind, projection_dim=64),
        text_encoder_2=clip_encoder(kind, 128, hidden_act="gelu", projection_dim=128),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=64,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=kl_autoencoder(4, shift_factor=0.1),
        text_encoder=clip_encoder(transformers.CLIPTextModel),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=t5_encoder(), tokenizer_2=word_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def pixart(folder: Path) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=16, in_channels=4, cross_attention_dim=24, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        transformer=transformer, vae=kl_autoencoder(), tokenizer=word_tokenizer(),
        text_encoder=t5_encoder(), scheduler=diffusers.DDIMScheduler(),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart": pixart,
}  # fmt: skip


def write_pipeline(kind: str, folder: Path) -> Path:
    """A whole pipeline folder."""
    with seeded(len(kind)):
        pipeline = PIPELINES[kind](folder)
    bias = pipeline.vae.decoder.conv_out.bias
    torch.nn.init.constant_(bias, 0.3)  # else some pictures are all black
    pipeline.save_pretrained(folder)
    return folder


def save_lora(model: Any, path: Path, seed: int = 0, rank: int = 2) -> Path:
    """A LoRA for the cross-attention of a U-Net or the attention of a transformer."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    kind = "unet" if isinstance(model, diffusers.UNet2DConditionModel) else "transformer"
    for name, part in model.named_modules():
        if name.endswith(("to_q", "to_v")) and isinstance(part, torch.nn.Linear):
            for side, shape in (("A", (rank, part.in_features)), ("B", (part.out_features, rank))):
                key = f"{kind}.{name}.lora_{side}.weight"
                weights[key] = torch.randn(shape, generator=generator)
    save_file(weights, path)
    return path


def save_artists_lora(pipeline: Any, path: Path, alpha: float = 2.0, rank: int = 4) -> Path:
    """A LoRA of U-Net and text encoder as most artists share it (sd-scripts' names): names without
    dots, and an alpha that divides by the rank."""
    generator = torch.Generator().manual_seed(5)
    ends = ("to_q", "to_k", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    weights = {}
    for kind, model in (("unet", pipeline.unet), ("te", pipeline.text_encoder)):
        for name, part in model.named_modules():
            if name.endswith(ends) and isinstance(part, torch.nn.Linear):
                key = artists_name(kind, name)
                down, up = (rank, part.in_features), (part.out_features, rank)
                weights[f"{key}.lora_down.weight"] = torch.randn(down, generator=generator)
                weights[f"{key}.lora_up.weight"] = torch.randn(up, generator=generator)
                weights[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(weights, path)
    return path


def artists_name(kind: str, name: str) -> str:
    whole = name if kind == "unet" or name.startswith("text_model.") else f"text_model.{name}"
    return f"lora_{kind}_{whole.replace('.', '_')}"


RESNET = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
]  # fmt: skip
ENDS = [
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
]  # fmt: skip
VAE_ATTENTION = [
    ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")
]  # fmt: skip
OPEN_CLIP = [
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
]  # fmt: skip


def save_single_file(pipeline: Any, path: Path, kind: str) -> Path:
    """The weights of a sd1, sd2 or sdxl pipeline in one file, under their authors' names."""
    state = unet_of_one_file(pipeline.unet) | vae_of_one_file(pipeline.vae)
    if kind == "sd2":
        state |= open_clip_of_one_file(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = {"sd1": "cond_stage_model", "sdxl": "conditioner.embedders.0"}[kind]
        state |= clip_of_one_file(pipeline.text_encoder, f"{prefix}.transformer.text_model.")
    if kind == "sdxl":
        state |= open_clip_of_one_file(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def replaced(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = re.sub(rf"(?<![\w.]){re.escape(old)}(?=\.)|(?<=\.){re.escape(old)}(?=\.)", new, name)
    return name


def unet_of_one_file(model: Any) -> dict[str, torch.Tensor]:
    """input_blocks counts the resnets and downsamplers of all levels on, output_blocks the
    resnets; an upsampler follows the last resnet of its level, after the attention if any."""
    layers = model.config.layers_per_block
    renamed = {}
    for name, tensor in model.state_dict().items():
        if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
            level, part, number = int(found[1]), found[2], int(found[3])
            place = f"input_blocks.{1 + level * (layers + 1) + number}"
        elif found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
            new = f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
            renamed[new] = tensor
            continue
        elif found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
            level, part, number = int(found[1]), found[2], int(found[3])
            place = f"output_blocks.{level * (layers + 1) + number}"
        elif found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", name):
            level = int(found[1])
            has_attention = "CrossAttn" in model.config.up_block_types[level]
            slot = 2 if has_attention else 1
            renamed[f"output_blocks.{level * (layers + 1) + layers}.{slot}.{found[2]}"] = tensor
            continue
        elif found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
            part, number = found[1], int(found[2])
            slot = 1 if part == "attentions" else 2 * number
            rest = replaced(f"{found[3]}", RESNET) if part == "resnets" else found[3]
            renamed[f"middle_block.{slot}.{rest}"] = tensor
            continue
        else:
            renamed[replaced(name, ENDS)] = tensor
            continue
        rest = found[4]
        if part == "resnets":
            renamed[f"{place}.0.{replaced(rest, RESNET)}"] = tensor
        else:
            renamed[f"{place}.1.{rest}"] = tensor
    return {f"model.diffusion_model.{name}": tensor for name, tensor in renamed.items()}


def vae_of_one_file(model: Any) -> dict[str, torch.Tensor]:
    last = len(model.config.block_out_channels) - 1
    renamed = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        for old, new in ((r"resnets", "block"), (r"upsamplers\.0", "upsample")):
            name = re.sub(
                rf"up_blocks\.(\d+)\.{old}", lambda m, new=new: f"up.{last - int(m[1])}.{new}", name
            )
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), VAE_ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[f"first_stage_model.{name}"] = tensor
    return renamed


def clip_of_one_file(model: Any, prefix: str) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {prefix + name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def open_clip_of_one_file(model: Any, prefix: str) -> dict[str, torch.Tensor]:
    ends = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    state = {name.removeprefix("text_model."): t for name, t in model.state_dict().items()}
    renamed = {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            renamed["text_projection"] = tensor.T
        elif name in ends:
            renamed[ends[name]] = tensor
        elif ".self_attn.q_proj." in name:
            parts = [state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            inner = name.replace("encoder.layers", "transformer.resblocks")
            renamed[inner.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            inner = name.replace("encoder.layers", "transformer.resblocks")
            renamed[replaced(inner, OPEN_CLIP)] = tensor
    return {prefix + name: tensor for name, tensor in renamed.items()}
