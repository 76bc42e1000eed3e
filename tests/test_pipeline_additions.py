"""What is put on top of a pipeline: each changes what it should, and its identity with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines as tiny  # noqa: E402

from promptadapt_core.images import DiffusersGenerator  # noqa: E402
from promptadapt_core.pipeline_additions import check_offload, read_loras  # noqa: E402
from promptadapt_core.pipeline_settings import PipelineOptions  # noqa: E402
from promptadapt_core.quiet_libraries import quiet_libraries  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

PROMPTS = ["a red cat", "a blue boat by the sea", "a green tree"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipelines")
    with quiet_libraries():
        for kind in ("sd1", "sdxl", "sd3"):
            tiny.write_pipeline(kind, place / kind)
        unet = diffusers.UNet2DConditionModel.from_pretrained(place / "sd1" / "unet")
        tiny.save_lora(unet, place / "lora.safetensors")
        tiny.save_lora(unet, place / "second.safetensors", seed=1)
        decoder = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        with tiny.seeded(3):
            diffusers.AutoencoderTiny(**decoder).save_pretrained(place / "taesd")
            sixteen = diffusers.AutoencoderTiny(**decoder, latent_channels=16)
            sixteen.save_pretrained(place / "taesd3")
    return place


def load(source: Path, **changes: Any) -> DiffusersGenerator:
    wanted: dict[str, Any] = {"device": "cpu", "num_steps": 2, "size": 16}
    options = {name: changes.pop(name) for name in list(changes) if hasattr(DEFAULTS, name)}
    return DiffusersGenerator.load(
        source, options=PipelineOptions(**options), **{**wanted, **changes}
    )


DEFAULTS = PipelineOptions()


def draw(generator: DiffusersGenerator, number: int = 1) -> np.ndarray:
    return generator.generate(PROMPTS[:number], list(range(number)))


def distance(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


def test_loras_count_by_their_weights(place: Path) -> None:
    plain = load(place / "sd1")
    lora, second = place / "lora.safetensors", place / "second.safetensors"
    found = {
        texts: load(place / "sd1", render_lora=texts)
        for texts in [
            (f"{lora}",), (f"{lora}=0",), (f"{lora}=-0.5",), (f"{lora}", f"{second}=0.5")
        ]
    }  # fmt: skip
    pictures = {texts: draw(generator) for texts, generator in found.items()}
    assert distance(pictures[(f"{lora}=0",)], draw(plain)) <= 1
    rest = [pictures[texts] for texts in found if texts != (f"{lora}=0",)]
    for number, picture in enumerate(rest):
        assert distance(picture, draw(plain)) > 1
        assert all(distance(picture, other) > 1 for other in rest[:number])
    assert len({generator.identity for generator in found.values()} | {plain.identity}) == 5
    copied = place / "copied.safetensors"
    shutil.copy(lora, copied)
    again = load(place / "sd1", render_lora=(f"{copied}=1.0",))
    assert again.identity == found[(f"{lora}",)].identity


def test_a_lora_is_what_its_matrices_say(place: Path) -> None:
    """Merged: weight + scale * B @ A, with alpha equal to the rank."""
    lora = load_file(place / "lora.safetensors")
    name = next(key for key in lora if key.endswith("lora_A.weight"))
    module = name.removeprefix("unet.").removesuffix(".lora_A.weight")
    before = load(place / "sd1").pipeline.unet.get_submodule(module).weight
    changed = load(place / "sd1", render_lora=(f"{place / 'lora.safetensors'}=0.5",))
    after = changed.pipeline.unet.get_submodule(module).weight
    expected = before + 0.5 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    assert torch.allclose(after, expected, atol=1e-5)


def test_a_lora_of_artists_changes_unet_and_text_encoder(place: Path, tmp_path: Path) -> None:
    plain = load(place / "sd1")
    path = tiny.save_artists_lora(plain.pipeline, tmp_path / "style.safetensors")
    lora = load_file(path)
    changed = load(place / "sd1", render_lora=(f"{path}=0.5",))
    found = set()
    for kind, part in (("unet", "unet"), ("te", "text_encoder")):
        for name, module in getattr(plain.pipeline, part).named_modules():
            key = tiny.artists_name(kind, name)
            if f"{key}.alpha" in lora:
                up, down = lora[f"{key}.lora_up.weight"], lora[f"{key}.lora_down.weight"]
                expected = module.weight + 0.5 * (2.0 / 4) * up @ down
                weight = getattr(changed.pipeline, part).get_submodule(name).weight
                assert torch.allclose(weight, expected, atol=1e-4)
                found.add(key)
    assert len(found) == len(lora) / 3


def test_a_tiny_decoder_takes_the_decoders_place(place: Path) -> None:
    usual, quick = load(place / "sd1"), load(place / "sd1", tiny_decoder=str(place / "taesd"))
    assert type(quick.pipeline.vae).__name__ == "AutoencoderTiny"
    assert quick.identity != usual.identity
    assert draw(quick).shape[1] == quick.pipeline.vae.config.scaling_factor * 64
    with pytest.raises(SettingsError, match="decodes 16 channels, this renderer draws 4"):
        load(place / "sd1", tiny_decoder=str(place / "taesd3"))
    with pytest.raises(SettingsError, match="holds no AutoencoderTiny, but AutoencoderKL"):
        load(place / "sd1", tiny_decoder=str(place / "sd1" / "vae"))


def test_a_tiny_decoder_that_lacks_a_weight_is_named(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "taesd", tmp_path / "taesd"))
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    gone = sorted(weights)[0]
    save_file({n: t for n, t in weights.items() if n != gone}, path, metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=f"tiny_decoder: .*taesd lacks {gone}"):
        load(place / "sd1", tiny_decoder=str(folder))


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_saving_memory_changes_no_picture(place: Path, kind: str) -> None:
    usual = load(place / kind, batch_size=3)
    spared = load(place / kind, batch_size=3, attention_slicing=True, decoder_slicing=True)
    assert spared.identity == usual.identity
    assert distance(draw(usual, 3), draw(spared, 3)) <= 1


def test_tiles_are_part_of_the_identity(place: Path) -> None:
    tiled = load(place / "sd1", decoder_tiling=True)
    assert tiled.pipeline.vae.use_tiling
    assert tiled.identity != load(place / "sd1").identity


@pytest.mark.parametrize(
    ("options", "name", "told"),
    [
        ({"render_lora": ("nowhere.safetensors",)}, "render_lora", "there is no .safetensors file"),
        ({"render_lora": ("a.ckpt=0.5",)}, "render_lora", "there is no .safetensors file a.ckpt"),
        ({"render_lora": ("a=much",)}, "render_lora", "expected FILE or FILE=WEIGHT, got 'a=much'"),
        ({"render_lora": ("a=inf",)}, "render_lora", "expected FILE or FILE=WEIGHT"),
        ({"tiny_decoder": "nowhere"}, "tiny_decoder", "config.json is missing"),
        ({"render_offload": "model"}, "render_offload", "needs a CUDA GPU, and the renderer is on"),
        ({"renderer_config": "nowhere"}, "renderer_config", "there is no folder nowhere"),
        ({"sampler": "plms"}, "sampler", "expected one of auto, ddim"),
        ({"sampler": "lcm"}, "sampler", "takes euler, dpm"),
    ],
)
def test_options_that_cannot_be_had_are_named(
    place: Path, options: dict[str, Any], name: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        load(place / "sd3", **options)
    assert caught.value.name == name


def test_a_lora_of_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.safetensors"
    save_file({"gain": torch.zeros(2)}, nothing)
    half = tmp_path / "half.safetensors"
    half.write_bytes((place / "lora.safetensors").read_bytes()[:-9])
    for kind, path, told in (
        ("sd3", place / "lora.safetensors", "is no LoRA of this StableDiffusion3Pipeline"),
        ("sdxl", place / "lora.safetensors", "is no LoRA of this StableDiffusionXLPipeline"),
        ("sd1", nothing, "is no LoRA of this StableDiffusionPipeline"),
        ("sd1", half, "half.safetensors has .* of .* bytes"),
    ):
        with pytest.raises(SettingsError, match=told) as caught:
            load(place / kind, render_lora=(str(path),))
        assert caught.value.name == "render_lora"


def test_a_path_with_an_equals_sign_is_a_path(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "a=1.safetensors"
    shutil.copy(place / "lora.safetensors", path)
    assert read_loras((str(path), f"{path}=0.25")) == [(path, 1.0), (path, 0.25)]


def test_a_lora_of_which_a_part_fits_is_told_of(place: Path, tmp_path: Path) -> None:
    whole = load_file(place / "lora.safetensors")
    gone = sorted({name.partition(".lora_")[0] for name in whole})[:3]
    kept = {
        name.replace("unet.", "unet.of_another.") if name.startswith(tuple(gone)) else name: some
        for name, some in whole.items()
    }
    path = tmp_path / "part.safetensors"
    save_file(kept, path)
    number = len(whole) // 2
    told = f"only a part of the LoRA {path} counts: 3 of its {number} layers do not fit"
    assert any(told in notice for notice in load(place / "sd1", render_lora=(f"{path}",)).notices)
    fitting = load(place / "sd1", render_lora=(f"{place / 'lora.safetensors'}",))
    assert not any("LoRA" in notice for notice in fitting.notices)


def test_offloading_is_for_gpus() -> None:
    check_offload("none", torch.device("cpu"))
    check_offload("sequential", torch.device("cuda"))
    with pytest.raises(SettingsError, match="render_offload: sequential needs a CUDA GPU"):
        check_offload("sequential", torch.device("mps"))
