"""Pipelines of diffusers' own classes at tiny width: from a folder, from one file, with what is
put on top."""

from __future__ import annotations

import errno
import functools
import json
import shutil
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines as tiny  # noqa: E402

from promptadapt_core import pipeline_loading  # noqa: E402
from promptadapt_core.images import DiffusersGenerator  # noqa: E402
from promptadapt_core.pipeline_loading import (  # noqa: E402
    SAFETY_NOTICE,
    check_draws_from_text,
    check_precision,
)
from promptadapt_core.pipeline_settings import PipelineOptions  # noqa: E402
from promptadapt_core.quiet_libraries import quiet_libraries  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402
from promptadapt_core.single_files import GUESS_NOTICE  # noqa: E402

PROMPTS = ["a red cat", "a blue boat by the sea", "a green tree"]
KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux", "pixart")
ONE_FILE = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind, and one file of three."""
    place = tmp_path_factory.mktemp("pipelines")
    with quiet_libraries():
        for kind in KINDS:
            tiny.write_pipeline(kind, place / kind)
        for kind in ONE_FILE:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(place / kind)
            tiny.save_single_file(pipeline, place / f"{kind}.safetensors", kind)
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_draws_the_same_in_any_batch(
    place: Path,
    kind: str,
    untouched_generators: Callable[[], AbstractContextManager[None]],
) -> None:
    generator = load(place / kind, batch_size=3)
    with untouched_generators():
        together = draw(generator, 3)
    assert together.shape == (3, 16, 16, 3)
    for batch_size in (1, 2):
        generator.batch_size = batch_size
        assert distance(together, draw(generator, 3)) <= 1
    assert distance(together[0], together[1]) > 1
    other = generator.generate(PROMPTS[1:2], [0])[0]
    assert distance(together[0], other) > 0  # the text counts


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_one_file_draws_what_its_folder_draws(place: Path, kind: str, no_network: None) -> None:
    folder, file = load(place / kind), load(place / f"{kind}.safetensors")
    assert type(folder.pipeline) is type(file.pipeline)
    assert type(folder.pipeline.scheduler) is type(file.pipeline.scheduler)
    assert distance(draw(folder, 2), draw(file, 2)) == 0
    assert folder.identity != file.identity


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("sampler", ["dpm++", "lcm"])
def test_a_named_scheduler_forgets_the_old_ones_habits(
    place: Path, kind: str, sampler: str
) -> None:
    """`save_pretrained` writes down all defaults of the old scheduler, artists' files do not."""
    folder = load(place / kind, sampler=sampler, num_steps=3)
    file = load(place / f"{kind}.safetensors", sampler=sampler, num_steps=3)
    assert distance(draw(folder), draw(file)) == 0


def test_configs_of_ones_own_serve_one_file(place: Path, no_network: None) -> None:
    configs = place / "sd1"
    with_own = load(place / "sd1.safetensors", renderer_config=str(configs))
    assert distance(draw(with_own), draw(load(place / "sd1.safetensors"))) == 0
    assert " config " in with_own.identity


def test_a_file_of_another_kind_takes_the_rest_from_its_configs(
    place: Path, tmp_path: Path, no_network: None
) -> None:
    weights = load_file(place / "sd3" / "transformer" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "sd3.safetensors"
    save_file(weights, path)
    with pytest.raises(SettingsError, match="neither Stable Diffusion 1, 2 nor XL: --renderer-con"):
        load(path)
    generator = load(path, renderer_config=str(place / "sd3"))
    assert distance(draw(generator), draw(load(place / "sd3"))) == 0


def test_prediction_of_one_file_can_be_told(place: Path) -> None:
    usual = load(place / "sd1.safetensors")
    told = load(place / "sd1.safetensors", prediction="v_prediction")
    assert told.pipeline.scheduler.config.prediction_type == "v_prediction"
    assert told.identity != usual.identity
    assert distance(draw(told), draw(usual)) > 1


def test_the_safety_checker_is_off_and_said_to_be(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "checked"))
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["requires_safety_checker"] = True
    path.write_text(json.dumps(index), encoding="utf-8")
    generator = load(folder)  # there is not even a folder of it
    assert generator.pipeline.safety_checker is None
    assert SAFETY_NOTICE in generator.notices
    assert SAFETY_NOTICE not in load(place / "sd1").notices
    assert distance(draw(generator), draw(load(place / "sd1"))) == 0


def test_no_watermark_of_a_package_that_may_be_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = diffusers.StableDiffusionXLPipeline
    made = kind.__init__

    def with_watermark(self: Any, *parts: Any, **named: Any) -> None:
        made(self, *parts, **named)
        self.watermark = object()

    plain = draw(load(place / "sdxl"))
    monkeypatch.setattr(kind, "__init__", functools.wraps(made)(with_watermark))
    assert distance(draw(load(place / "sdxl")), plain) == 0


def test_a_pipeline_that_changes_pictures_becomes_its_sibling(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "img2img"))
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    path.write_text(json.dumps(index), encoding="utf-8")
    generator = load(folder)
    assert type(generator.pipeline).__name__ == "StableDiffusionPipeline"
    assert distance(draw(generator), draw(load(place / "sd1"))) == 0


def test_a_unet_for_painting_into_pictures_is_refused(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "inpainting"))
    with quiet_libraries(), tiny.seeded(0):
        tiny.unet(in_channels=9, cross_attention_dim=64, attention_head_dim=8).save_pretrained(
            folder / "unet"
        )
    with pytest.raises(SettingsError, match="its U-Net reads 9 channels"):
        load(folder)


def test_usual_steps_and_guidance_are_the_pipelines(place: Path) -> None:
    for kind, steps, guidance in (("flux", 28, 3.5), ("pixart", 20, 4.5), ("sd1", 20, 7.5)):
        settings = load(place / kind, num_steps=None).settings
        assert (settings.num_steps, settings.guidance_scale) == (steps, guidance)


def test_flux_refuses_what_would_have_no_effect(place: Path) -> None:
    with pytest.raises(SettingsError, match="negative_prompt: has no effect on a FluxPipeline"):
        load(place / "flux", negative_prompt="a dog")
    with pytest.raises(SettingsError, match="size: expected a multiple of"):
        load(place / "flux", size=20)


def test_hub_names_are_fetched_only_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        if options["local_files_only"]:
            raise OSError("not in the cache")
        return str(place / "sd1")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    with pytest.raises(SettingsError, match="folder or file artist/model; .* --download fetches"):
        load(Path("artist/model"))
    assert [one["local_files_only"] for one in asked] == [True]
    assert asked[0]["use_safetensors"]
    generator = DiffusersGenerator.load(
        "artist/model", device="cpu", num_steps=1, size=16, options=PipelineOptions(download=True)
    )
    assert generator.identity.split()[0] == load(place / "sd1").identity.split()[0]
    assert asked[-1]["name"] == "artist/model"
    with pytest.raises(SettingsError, match="there is no folder nowhere"):
        load(Path("nowhere"))


def test_configs_of_foreign_libraries_are_not_imported(place: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["antigravity", "Own"]}
    (tmp_path / "configs" / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(SettingsError, match="unet is of antigravity, which is not loaded"):
        load(place / "sd1.safetensors", renderer_config=str(tmp_path / "configs"))


def test_a_file_without_a_part_is_named(place: Path, tmp_path: Path) -> None:
    weights = load_file(place / "sd1.safetensors")
    for gone, told in (
        ("first_stage_model.", "holds no autoencoder"),
        ("cond_stage_model.", "without its text encoder"),
        ("model.diffusion_model.middle_block.0.in_layers.0.weight", "does not hold"),
    ):
        path = tmp_path / "part.safetensors"
        save_file({n: t for n, t in weights.items() if not n.startswith(gone)}, path)
        with pytest.raises(SettingsError, match=told) as caught:
            load(path)
        assert caught.value.name == "folder"
        assert str(path) in caught.value.reason


def rewritten(path: Path, **changes: Any) -> None:
    """A JSON file with other entries."""
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**told, **changes}), encoding="utf-8")


def without_one(path: Path) -> str:
    """Rewrites weights without the one in the middle, whose name it returns."""
    weights = load_file(path)
    gone = sorted(weights)[len(weights) // 2]
    save_file({n: t for n, t in weights.items() if n != gone}, path, metadata={"format": "pt"})
    return gone


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_part_that_lacks_a_weight_is_named(place: Path, tmp_path: Path, part: str) -> None:
    """transformers draws random numbers for it, diffusers leaves it without any."""
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "sd1"))
    gone = without_one(next((folder / part).glob("*.safetensors")))
    with pytest.raises(SettingsError, match="does not hold a whole .*: it lacks ") as caught:
        load(folder)
    assert str(folder / part) in caught.value.reason
    assert gone.split(".")[-2] in caught.value.reason


def test_a_text_encoder_of_other_names_is_refused(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "pixart", tmp_path / "pixart"))
    path = folder / "text_encoder" / "model.safetensors"
    save_file({f"of.{name}": t for name, t in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(SettingsError, match="does not hold a whole T5EncoderModel"):
        load(folder)


def test_an_old_autoencoders_attention_is_read(place: Path, tmp_path: Path) -> None:
    """Under the names that Stable Diffusion 1.5 was published with."""
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "old"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new in old:
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old[new]}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, path, metadata={"format": "pt"})
    assert distance(draw(load(folder)), draw(load(place / "sd1"))) == 0


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (("tokenizer_config.json",), "tokenizer_config.json is missing"),
        (("tokenizer.json", "vocab.json", "merges.txt"), "vocab.json is missing"),
        (("tokenizer.json", "merges.txt"), "merges.txt is missing"),
        (("tokenizer.json",), ""),
    ],
)
def test_a_tokenizer_without_words_is_named(
    place: Path, tmp_path: Path, gone: tuple[str, ...], told: str
) -> None:
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "sd1"))
    for name in gone:
        (folder / "tokenizer" / name).unlink()
    if told:
        with pytest.raises(SettingsError, match=told):
            load(folder)
        return
    (folder / "tokenizer" / "merges.txt").write_bytes(b"")
    with pytest.raises(SettingsError, match="merges.txt is empty"):
        load(folder)


def test_parts_of_foreign_libraries_are_not_imported(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "sd1", tmp_path / "sd1"))
    rewritten(folder / "model_index.json", scheduler=["antigravity", "Own"])
    with pytest.raises(SettingsError, match="scheduler is of antigravity, which is not loaded"):
        load(folder)


class Film:
    """Stands in for pipelines that draw something else."""

    components: dict[str, Any] = {}  # noqa: RUF012

    def __call__(self, prompt: str, num_frames: int = 9) -> None:
        pass


class Steered(Film):
    components: dict[str, Any] = {"controlnet": None}  # noqa: RUF012

    def __call__(self, prompt: str, image: Any = None) -> None:
        pass


@pytest.mark.parametrize(
    ("pipeline", "told"), [(Film(), "draws no single pictures"), (Steered(), "changes pictures")]
)
def test_pipelines_that_draw_no_picture_of_a_text_are_refused(pipeline: Any, told: str) -> None:
    with pytest.raises(
        SettingsError, match=f"model holds a {type(pipeline).__name__}, which {told}"
    ):
        check_draws_from_text(pipeline, Path("model"))


@pytest.mark.parametrize(
    "gone",
    [
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "first_stage_model.decoder.up.0.block.0.conv1.weight",
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.input_blocks.1.0.out_layers.3.weight",
    ],
)
def test_a_weight_that_the_configs_follow_from_is_named(
    place: Path, tmp_path: Path, gone: str
) -> None:
    path = tmp_path / "part.safetensors"
    weights = load_file(place / "sd1.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, path)
    with pytest.raises(
        SettingsError, match="is no whole StableDiffusionPipeline: it lacks"
    ) as told:
        load(path)
    assert gone in told.value.reason
    assert str(path) in told.value.reason


def test_a_unet_of_another_build_is_refused(place: Path, tmp_path: Path) -> None:
    """With one more block than its family's: it would be left out, and nothing would say so."""
    path = tmp_path / "deeper.safetensors"
    weights = load_file(place / "sd1.safetensors")
    block = "middle_block.1.transformer_blocks."
    more = {n.replace(f"{block}0", f"{block}1"): t.clone() for n, t in weights.items()
            if f"{block}0" in n}  # fmt: skip
    save_file({**weights, **more}, path)
    with pytest.raises(SettingsError, match="a U-Net of another build .* --renderer-config"):
        load(path)


def test_what_one_file_does_not_say_is_told(place: Path) -> None:
    assert GUESS_NOTICE in load(place / "sd2.safetensors").notices
    assert GUESS_NOTICE not in load(place / "sd2.safetensors", prediction="epsilon").notices
    own = load(place / "sd2.safetensors", renderer_config=str(place / "sd2"))
    assert GUESS_NOTICE not in own.notices
    assert GUESS_NOTICE not in load(place / "sd1.safetensors").notices


def test_a_full_disk_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline_loading, "write_configs", fail)
    with pytest.raises(SettingsError, match="configs of .*sd1.safetensors cannot .* No space left"):
        load(place / "sd1.safetensors")


def test_memory_that_runs_out_in_the_decoder_leaves_it_as_it_was(place: Path) -> None:
    """SDXL decodes in float32, for which diffusers turns its decoder over and back."""
    generator = load(place / "sdxl", precision="float16", batch_size=4)
    whole, decode = draw(generator, 3), generator.pipeline.vae.decode

    def hungry(latents: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(latents) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(latents, *rest, **named)

    generator.pipeline.vae.decode = hungry
    assert distance(draw(generator, 3), whole) <= 1
    assert generator.batch_size == 1
    assert generator.pipeline.vae.dtype == torch.float16


def test_half_precision_on_a_processor_is_quiet(place: Path, capfd: pytest.CaptureFixture) -> None:
    load(place / "sd1", precision="float16")
    assert capfd.readouterr() == ("", "")


def test_a_precision_that_a_device_lacks_is_named() -> None:
    cpu, kept = torch.device("cpu"), RuntimeError("a bug")
    check_precision(kept, cpu)
    for told in (
        "\"slow_conv2d_cpu\" not implemented for 'Half'",
        "BFloat16 is not supported on MPS",
    ):
        with pytest.raises(SettingsError, match="precision: cpu does not compute in it"):
            check_precision(RuntimeError(told), cpu)


def test_a_half_downloaded_file_is_named(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    content = (place / "sd1.safetensors").read_bytes()
    for size in (0, 5, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(SettingsError, match=r"half\.safetensors (is broken or cut|has \d+ of)"):
            load(path)
