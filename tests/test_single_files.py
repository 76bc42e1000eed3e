"""Which model one .safetensors file holds, and the configs written for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptadapt_core.pipeline_files import check_safetensors, hash_file
from promptadapt_core.settings import SettingsError
from promptadapt_core.single_files import (
    describe_scheduler,
    describe_unet,
    find_family,
    read_shapes,
    write_clip_tokenizer,
    write_configs,
)

UNET = "model.diffusion_model."
SD1_CLIP = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
SD2_CLIP = "cond_stage_model.model.positional_embedding"
XL_CLIP = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
XL_CLIP_2 = "conditioner.embedders.1.model.positional_embedding"
VAE = "first_stage_model.decoder.conv_in.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"


def saved(path: Path, *names: str, channels: int = 4) -> Path:
    weights = {name: torch.zeros(2, channels, 1, 1) for name in names}
    save_file(weights, path)
    return path


def family_of(path: Path) -> str:
    return find_family(path, read_shapes(path))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ((FIRST, SD1_CLIP, VAE), "sd1"),
        ((FIRST, SD2_CLIP, VAE), "sd2"),
        ((FIRST, XL_CLIP, XL_CLIP_2, VAE), "sdxl"),
        (("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
          "model.diffusion_model.x_embedder.proj.weight"), ""),
        (("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), ""),
    ],
)  # fmt: skip
def test_families_are_told_apart(tmp_path: Path, names: tuple[str, ...], family: str) -> None:
    assert family_of(saved(tmp_path / "model.safetensors", *names)) == family


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("lora_unet_down_blocks_0.lora_down.weight",), "is a LoRA; it goes on top"),
        (("unet.down_blocks.0.to_q.lora_A.weight",), "is a LoRA; it goes on top"),
        (("encoder.conv_in.weight", "decoder.conv_in.weight"), "is an autoencoder"),
        (("first_stage_model.decoder.conv_in.weight",), "is an autoencoder"),
        (("down_blocks.0.resnets.0.conv1.weight", "mid_block.x"), "one part of a pipeline folder"),
        (("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"), "is no image model: it"),
        (("transformer.h.0.attn.c_attn.weight",), "is no image model: it holds transformer.h"),
        (("layers.0.weight", "layers.0.bias"), "is no image model"),
        ((), "is an autoencoder|is no image model"),
        ((FIRST, VAE), "a U-Net without its text encoder"),
        ((FIRST, SD1_CLIP), "holds no autoencoder"),
        ((FIRST, "conditioner.embedders.0.model.positional_embedding", VAE), "is a refiner"),
    ],
)
def test_what_is_no_whole_image_model_is_told(
    tmp_path: Path, names: tuple[str, ...], told: str
) -> None:
    path = saved(tmp_path / "model.safetensors", *names)
    with pytest.raises(SettingsError, match=told) as caught:
        family_of(path)
    assert caught.value.name == "folder"
    assert str(path) in caught.value.reason


def test_a_unet_that_reads_a_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.safetensors", FIRST, SD1_CLIP, VAE, channels=9)
    with pytest.raises(SettingsError, match="reads 9 channels, not 4: it paints into pictures"):
        family_of(path)


def test_only_safetensors_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({FIRST: torch.zeros(1)}, path)
    with pytest.raises(SettingsError, match="others may hold code and are not opened"):
        read_shapes(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"not a file of weights", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"[]"]
)
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for check in (read_shapes, check_safetensors):
        with pytest.raises(SettingsError, match="is broken or cut off"):
            check(path)


def sd15_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of Stable Diffusion 1.5 that its config follows from."""
    shapes = {FIRST: (320, 4, 3, 3), f"{UNET}out.2.weight": (4, 320, 3, 3)}
    for number, width in enumerate(
        (320, 320, None, 640, 640, None, 1280, 1280, None, 1280, 1280), 1
    ):
        place = f"{UNET}input_blocks.{number}"
        if width is None:
            shapes[f"{place}.0.op.weight"] = (1, 1, 3, 3)
            continue
        shapes[f"{place}.0.out_layers.3.weight"] = (width, width, 3, 3)
        if number < 9:
            shapes[f"{place}.1.proj_in.weight"] = (width, width, 1, 1)
            shapes[f"{place}.1.transformer_blocks.0.attn2.to_k.weight"] = (width, 768)
    return shapes


def test_the_config_of_stable_diffusion_1_follows_from_its_shapes() -> None:
    """Against runwayml's unet/config.json."""
    config = describe_unet(sd15_shapes(), "sd1")
    assert config["block_out_channels"] == [320, 640, 1280, 1280]
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert config["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert config["layers_per_block"] == 2
    assert config["cross_attention_dim"] == 768
    assert config["attention_head_dim"] == 8
    assert not config["use_linear_projection"]
    assert config["sample_size"] == 64


def test_schedulers_follow_what_files_say_of_themselves() -> None:
    assert describe_scheduler({}, "sd1")["prediction_type"] == "epsilon"
    assert describe_scheduler({}, "sd2")["prediction_type"] == "v_prediction"
    assert describe_scheduler({}, "sd2", "epsilon")["prediction_type"] == "epsilon"
    told = describe_scheduler({"v_pred": (0,), "ztsnr": (0,)}, "sdxl")
    assert told["prediction_type"] == "v_prediction"
    assert told["rescale_betas_zero_snr"]
    assert told["timestep_spacing"] == "trailing"
    plain = describe_scheduler({}, "sdxl")
    assert plain["timestep_spacing"] == "leading"
    assert "rescale_betas_zero_snr" not in plain


def test_configs_name_every_part(tmp_path: Path) -> None:
    shapes = {
        **sd15_shapes(),
        "first_stage_model.decoder.up.0.block.0.conv1.weight": (128, 128, 3, 3),
        "first_stage_model.encoder.down.0.block.0.conv1.weight": (128, 3, 3, 3),
        "first_stage_model.encoder.down.0.block.1.conv1.weight": (128, 3, 3, 3),
        VAE: (128, 4, 3, 3),
        SD1_CLIP: (77, 768),
        SD1_CLIP.replace("position", "token"): (49408, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    }
    write_configs(tmp_path, "sd1", shapes)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    clip = json.loads((tmp_path / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    assert clip["num_attention_heads"] == 12
    assert clip["intermediate_size"] == 3072
    assert clip["hidden_act"] == "quick_gelu"
    vae = json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8"))
    assert vae["layers_per_block"] == 2
    assert vae["scaling_factor"] == 0.18215
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert list((tmp_path / part).glob("*.json"))


def test_the_tokenizer_pads_as_its_model_was_trained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for padding, number in (("<|endoftext|>", 49407), ("!", 0)):
        write_clip_tokenizer(tmp_path / str(number), padding)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / str(number))
        ids = tokenizer("a cat", padding="max_length", max_length=6).input_ids
        assert ids == [49406, 320, 2368, 49407, number, number]


def test_the_hash_of_a_file_follows_its_bytes_and_not_its_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, value in ((first, 0.0), (second, 0.0)):
        save_file({"weight": torch.full((8,), value)}, path)
    assert hash_file(first) == hash_file(second)
    save_file({"weight": torch.full((8,), 1.0)}, second)
    assert hash_file(first) != hash_file(second)
    assert len(hash_file(first)) == 16
