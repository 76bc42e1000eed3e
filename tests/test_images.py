from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptadapt_core.decoding import Stopped
from promptadapt_core.devices import is_out_of_memory
from promptadapt_core.images import (
    DiffusersGenerator,
    ImageSettings,
    check_batch,
    check_size,
    to_pixels,
)
from promptadapt_core.lab.folders import renderer_folder
from promptadapt_core.lab.text_encoder import write_tokenizer
from promptadapt_core.pipeline_settings import PipelineOptions
from promptadapt_core.quiet_libraries import quiet_libraries
from promptadapt_core.settings import MAX_SEED, SettingsError

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PROMPTS = ["a red cat", "a blue boat by the sea", "a green tree"]


def write_sd3(folder: Path) -> Path:
    transformer = diffusers.SD3Transformer2DModel(
        patch_size=1, sample_size=8, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32,
        joint_attention_dim=4096, pooled_projection_dim=2048, pos_embed_max_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16
    )
    torch.nn.init.constant_(vae.decoder.layers[-1].bias, 0.5)  # else some are all black
    transformer.save_pretrained(folder / "parts" / "transformer")
    vae.save_pretrained(folder / "parts" / "vae")
    return renderer_folder(folder / "parts", folder)


def write_sd1(folder: Path) -> Path:
    """Stable Diffusion 1 in small: a U-Net, a KL autoencoder, one CLIP."""
    write_tokenizer(folder / "tokenizer")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=transformers.CLIPTextModel(config),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["sd3", "sd1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write = {"sd3": write_sd3, "sd1": write_sd1}[request.param]
    with quiet_libraries():
        return write(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet_libraries():
        return write_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def broken(sd3: Path, tmp_path: Path) -> Path:
    """A copy to break; of links, as it is large: what is changed is written anew."""
    return Path(shutil.copytree(sd3, tmp_path / "broken", copy_function=os.link))


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def load(folder: Path, **settings: Any) -> DiffusersGenerator:
    return DiffusersGenerator.load(folder, device="cpu", **{"num_steps": 2, **settings})


def distance(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


def test_a_picture_depends_on_its_text_and_seed_alone(folder: Path) -> None:
    generator = load(folder, batch_size=3)
    together = generator.generate(PROMPTS, [5, 6, MAX_SEED])
    assert together.dtype == np.uint8
    assert together.shape[0] == 3
    assert together.shape[3] == 3
    generator.batch_size = 2
    alone = [
        generator.generate([p], [s])[0] for p, s in zip(PROMPTS, (5, 6, MAX_SEED), strict=True)
    ]
    turned = generator.generate(PROMPTS[::-1], [MAX_SEED, 6, 5])[::-1]
    assert distance(together, np.stack(alone)) <= 1
    assert distance(together, turned) <= 1
    assert distance(together[0], generator.generate(PROMPTS[:1], [7])[0]) > 1
    assert distance(together[0], generator.generate(PROMPTS[1:2], [5])[0]) > 0


def test_pictures_are_those_of_the_pipeline(sd3: Path) -> None:
    with quiet_libraries():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            sd3, text_encoder_3=None, tokenizer_3=None, local_files_only=True
        )
        expected = pipeline(
            PROMPTS[:1], generator=[torch.Generator().manual_seed(4)], num_inference_steps=3,
            guidance_scale=2.0, output_type="np", max_sequence_length=0,
        ).images  # fmt: skip
    generator = load(sd3, num_steps=3, guidance_scale=2.0, even_sigmas=False)
    pictures = generator.generate(PROMPTS[:1], [4])
    assert np.array_equal(pictures, np.rint(expected * 255).astype(np.uint8))


def test_stable_diffusion_3_without_t5_reads_77_tokens(sd3: Path) -> None:
    generator, seen = load(sd3), []

    def note(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append((kwargs["encoder_hidden_states"].shape[1], kwargs["timestep"][0].item()))

    generator.pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    generator.generate(PROMPTS[:1], [0])
    assert [tokens for tokens, _ in seen] == [77, 77]
    # half of the noise is left after an even first step; a shift of 3 makes it 1.5 / 2
    assert [time for _, time in seen] == pytest.approx([1000.0, 750.0])


def test_recommended_settings_are_the_folders(sd3: Path, broken: Path) -> None:
    assert DiffusersGenerator.load(sd3).settings == ImageSettings(
        num_steps=8, guidance_scale=3.0, size=64, even_sigmas=True
    )
    (broken / "renderer.json").unlink()
    found = DiffusersGenerator.load(broken, guidance_scale=2, size=None).settings
    assert found == ImageSettings(guidance_scale=2.0)


def test_identity_tells_pictures_apart(sd3: Path, broken: Path) -> None:
    first, settings = load(sd3), ImageSettings(num_steps=3)
    same = load(broken, batch_size=1)
    assert same.identity == first.identity
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    rewrite(path, bytes(content))
    assert load(broken).identity != first.identity
    identities = {
        DiffusersGenerator(first.pipeline, chosen, weights).identity
        for chosen in (settings, ImageSettings(negative_prompt="a dog"))
        for weights in ("one", "two")
    }
    assert len(identities) == 4


def test_identity_tells_devices_precisions_and_releases_apart(
    sd3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, release = load(sd3).identity, ".".join(diffusers.__version__.split(".")[:2])
    assert f" float32 cpu diffusers {release} {{" in first
    assert load(sd3, precision="bfloat16").identity != first
    monkeypatch.setattr(diffusers, "__version__", "0.99.1")
    assert load(sd3).identity == first.replace(release, "0.99")


def test_what_a_pipeline_does_not_take_is_refused() -> None:
    class Old(Hungry):
        """Stable Diffusion 3 of a diffusers that knew no sigmas."""

        scheduler = type("FlowMatchEulerDiscreteScheduler", (), {})()

    pipeline = Old(8, MemoryError())
    for name, value in (("even_sigmas", True), ("negative_prompt", "a dog")):
        with pytest.raises(SettingsError, match="the Old of this diffusers takes no ") as caught:
            DiffusersGenerator(pipeline, ImageSettings(**{name: value}))
        assert caught.value.name == name


def test_size_and_negative_prompt_are_passed_on(folder: Path) -> None:
    small = load(folder, size=32)
    pictures = small.generate(PROMPTS[:1], [0])
    assert pictures.shape == (1, 32, 32, 3)
    other = load(folder, size=32, negative_prompt="a red cat by the sea", guidance_scale=9.0)
    assert distance(pictures, other.generate(PROMPTS[:1], [0])) > 0
    assert small.generate([], []).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_stopping_between_steps(sd3: Path, after: int) -> None:
    generator, asked = load(sd3, num_steps=3), []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > after

    with pytest.raises(Stopped):
        generator.generate(PROMPTS, [0, 1, 2], should_stop=should_stop)
    assert len(asked) == after + 1
    assert len(generator.generate(PROMPTS[:1], [0], should_stop=lambda: False)) == 1


def test_nothing_of_the_process_changes(
    sd3: Path, capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    library = diffusers.utils.logging
    before = (library.get_verbosity(), library.is_progress_bar_enabled(), torch.get_rng_state())
    load(sd3).generate(["a cat " * 90], [0])
    assert library.get_verbosity() == before[0]
    assert library.is_progress_bar_enabled() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


class Hungry:
    """Stands in for a pipeline on a device with memory for `most` pictures."""

    vae_scale_factor, transformer, scheduler = 8, None, None

    def __init__(self, most: int, error: Exception):
        self.most, self.error, self.batches = most, error, []

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, prompt: list[str], generator: list, **arguments: Any) -> Any:
        self.batches.append(len(prompt))
        if len(prompt) > self.most:
            raise self.error
        output = type("Output", (), {})()
        output.images = np.stack([np.full((8, 8, 3), int(text) / 255) for text in prompt])
        return output


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out_halves_the_batch(error: Exception) -> None:
    assert is_out_of_memory(error)
    pipeline = Hungry(3, error)
    generator = DiffusersGenerator(pipeline, ImageSettings(size=8), batch_size=8)
    pictures = generator.generate([str(n) for n in range(9)], list(range(9)))
    assert pictures[:, 0, 0, 0].tolist() == list(range(9))
    assert pipeline.batches == [8, 4, 2, 2, 2, 2, 1]
    pipeline.most = 0
    with pytest.raises(SettingsError, match="size: memory does not suffice"):
        generator.generate(["1", "2"], [1, 2])


def test_another_error_goes_through() -> None:
    generator = DiffusersGenerator(Hungry(0, RuntimeError("a bug")), ImageSettings())
    with pytest.raises(RuntimeError, match="a bug"):
        generator.generate(["1"], [1])


@pytest.mark.parametrize(
    ("adapted_prompts", "seeds", "name"),
    [
        ("a cat", [1], "adapted_prompts"),
        (["a cat", 5], [1, 2], "adapted_prompts"),
        (["a cat"], [1, 2], "seeds"),
        (["a cat"], [-1], "seeds"),
        (["a cat"], [MAX_SEED + 1], "seeds"),
        (["a cat"], [0.5], "seeds"),
    ],
)
def test_bad_texts_and_seeds_are_refused(adapted_prompts: Any, seeds: Any, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_batch(adapted_prompts, seeds)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"size": 60}, "size"),
        ({"size": 136}, "size"),  # the model has positions for 128
        ({"size": -8}, "size"),
        ({"num_steps": 0}, "num_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"colour": 1}, "colour"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_bad_settings_are_refused(sd3: Path, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(sd3, **settings)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("parts", "size", "unit"),
    [
        ({}, 24, 0),
        ({}, 20, 8),
        ({"patch_size": 2}, 24, 16),
        ({"patch_size": (1, 2, 2)}, 24, 0),
        ({"patch_size": 1, "packs": True}, 24, 16),  # Flux
        ({"patch_size": 1, "packs": True}, 32, 0),
    ],
)
def test_sizes_are_multiples_of_what_the_model_draws_in(
    parts: dict[str, Any], size: int, unit: int
) -> None:
    class Model:
        vae_scale_factor = 8
        transformer = type("Part", (), {"config": parts})() if parts else None

    if parts.get("packs"):
        Model._pack_latents = staticmethod(lambda latents: latents)
    if not unit:
        assert check_size(Model(), size) is None
        return
    with pytest.raises(SettingsError, match=f"size: expected a multiple of {unit}, got {size}"):
        check_size(Model(), size)


def test_few_step_schedulers_outweigh_what_the_folder_recommends(sd3: Path) -> None:
    found = DiffusersGenerator.load(sd3, device="cpu", options=PipelineOptions(sampler="euler"))
    assert found.settings.num_steps == 8  # renderer.json's
    assert "sampler euler" in found.identity


def test_even_sigmas_are_for_flow_matching(tmp_path: Path) -> None:
    with quiet_libraries():
        folder = write_sd1(tmp_path)
    with pytest.raises(SettingsError, match="DDIMScheduler"):
        load(folder, even_sigmas=True)


def test_any_text_can_be_drawn(folder: Path) -> None:
    texts = ["", " ", "a cat " * 300, "\ud800", "a\x00b"]
    assert len(load(folder).generate(texts, range(5))) == 5


def test_what_has_no_effect_is_told(folder: Path) -> None:
    told = " ".join(load(folder, guidance_scale=1.0, negative_prompt="a dog").notices)
    assert "the negative prompt has no effect: guidance is 1, and only above 1" in told
    assert "reads 75 tokens of an adapted prompt; what comes after them is not drawn" in told
    told = " ".join(load(folder, guidance_scale=1.5, negative_prompt="a dog").notices)
    assert "no effect" not in told


def test_what_is_beyond_the_text_encoder_changes_no_picture(folder: Path) -> None:
    """What the notice says."""
    generator, whole = load(folder), " ".join(["red"] * 75)
    texts = [whole, f"{whole} house by the sea", " ".join(["red"] * 74)]
    drawn = generator.generate(texts, [0, 0, 0])
    assert distance(drawn[0], drawn[1]) <= 1
    assert distance(drawn[0], drawn[2]) >= 1


def test_pixels_are_rounded_and_clipped() -> None:
    values = np.array([-0.2, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 3.0], dtype=np.float32)
    assert to_pixels(values.reshape(1, 1, 2, 3)).ravel().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pictures_that_are_no_numbers_are_refused(value: float) -> None:
    pictures = np.zeros((3, 2, 2, 3), dtype=np.float32)
    pictures[1, 0, 1] = value
    with pytest.raises(SettingsError, match="pictures: 1 of 3 have .* try bfloat16 or float32"):
        to_pixels(pictures)


def test_a_model_that_overflows_draws_no_black_pictures(sd3: Path) -> None:
    generator = load(sd3)
    with torch.no_grad():
        generator.pipeline.transformer.proj_out.bias[0] = float("nan")
    with pytest.raises(SettingsError, match="pictures: 2 of 2"):
        generator.generate(PROMPTS[:2], [0, 1])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: Path) -> None:
    rewrite(path, path.read_bytes()[:-10])


def overwrite(path: Path) -> None:
    rewrite(path, b"nothing of the kind")


@pytest.mark.parametrize(
    ("part", "damage", "named"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", cut, None),
        ("vae/diffusion_pytorch_model.safetensors", overwrite, None),
        ("text_encoder/model.safetensors", remove, "text_encoder"),
        ("tokenizer", remove, None),
        ("model_index.json", remove, None),
        ("model_index.json", overwrite, None),
        ("renderer.json", overwrite, None),
        ("transformer/config.json", overwrite, "broken"),
    ],
)
def test_a_broken_folder_is_refused_by_name(
    broken: Path, part: str, damage: Any, named: str | None
) -> None:
    damage(broken / part)
    with pytest.raises(SettingsError) as caught:
        load(broken)
    assert caught.value.name == "folder"
    assert str(Path(named or part)) in caught.value.reason


def test_what_is_no_pipeline_is_refused(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no folder"):
        load(tmp_path / "nowhere")
    index = json.loads((broken / "model_index.json").read_text())
    index["_class_name"] = "NoSuchPipeline"
    rewrite(broken / "model_index.json", json.dumps(index).encode())
    with pytest.raises(SettingsError, match="is no pipeline"):
        load(broken)


def test_a_gpu_that_is_not_there_is_named(sd3: Path) -> None:
    with pytest.raises(SettingsError, match="device: 'cuda:99' cannot be used here"):
        DiffusersGenerator.load(sd3, device="cuda:99")


def test_a_language_model_draws_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(SettingsError, match="is no image model: it has no model_index.json"):
        load(tmp_path)


def test_code_in_the_folder_never_runs(broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "Own"]
    rewrite(broken / "model_index.json", json.dumps(index).encode())
    (broken / "pipeline.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(SettingsError, match="is no pipeline"):
        load(broken)


def test_code_of_a_part_never_runs(broken: Path, capfd: pytest.CaptureFixture) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    index["scheduler"] = ["own", "Own"]
    rewrite(broken / "model_index.json", json.dumps(index).encode())
    (broken / "scheduler" / "own.py").write_text("print('it ran')\n")
    with pytest.raises(SettingsError, match="its code is not run"):
        load(broken)
    assert "it ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_of_weights_is_named(broken: Path, content: str) -> None:
    path = broken / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"safetensors\.index\.json"):
        load(broken)


def test_half_precision_weights_under_their_own_name(broken: Path) -> None:
    for path in list(broken.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert load(broken).generate(PROMPTS[:1], [0]).shape == (1, 64, 64, 3)
