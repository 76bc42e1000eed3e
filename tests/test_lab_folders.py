from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptadapt_core.images import DiffusersGenerator, quiet_libraries
from promptadapt_core.lab import folders
from promptadapt_core.lab.folders import (
    bundle_weights,
    cache_folder,
    check_weights,
    is_whole,
    renderer_folder,
)
from promptadapt_core.settings import SettingsError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def build_transformer() -> Any:
    return diffusers.SD3Transformer2DModel(
        patch_size=1, sample_size=8, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32,
        joint_attention_dim=4096, pooled_projection_dim=2048, pos_embed_max_size=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16
    )
    build_transformer().save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    bundle_weights(folder / "transformer", folder / "vae", folder / "bundled")
    return folder / "bundled"


@pytest.fixture
def copied(weights: Path, tmp_path: Path) -> Path:
    """Weights to break."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


def test_diffusers_reads_the_folder(weights: Path, tmp_path: Path) -> None:
    folder = renderer_folder(weights, tmp_path)
    assert folder.parent == tmp_path
    with quiet_libraries():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
        )
    parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipeline.scheduler.config.shift == 3.0
    assert pipeline.vae_scale_factor == 8
    assert pipeline.tokenizer_max_length == 77
    pictures = DiffusersGenerator.load(folder, device="cpu", num_steps=1).generate(["a cat"], [0])
    assert pictures.shape == (1, 64, 64, 3)


def test_a_whole_folder_is_taken_as_it_is(weights: Path, tmp_path: Path) -> None:
    folder = renderer_folder(weights, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert renderer_folder(weights, tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["whole.json", "tokenizer/vocab.json", "vae/config.json"])
def test_a_broken_folder_is_made_anew(weights: Path, tmp_path: Path, name: str) -> None:
    folder = renderer_folder(weights, tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert not is_whole(folder)
    assert renderer_folder(weights, tmp_path) == folder
    assert is_whole(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_two_at_once(weights: Path, tmp_path: Path) -> None:
    found: list[Path] = []
    verbosity = diffusers.utils.logging.get_verbosity()
    threads = [
        threading.Thread(target=lambda: found.append(renderer_folder(weights, tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert diffusers.utils.logging.get_verbosity() == verbosity
    assert len(set(found)) == 1
    assert is_whole(found[0])
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


def test_what_a_killed_process_left_goes(weights: Path, tmp_path: Path) -> None:
    folder = renderer_folder(weights, tmp_path)
    shutil.rmtree(folder)
    old, new = (tmp_path / f"{folder.name}.{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    os.utime(old, (0, 0))
    renderer_folder(weights, tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may be at it


def test_a_folder_that_a_process_may_still_hold_stays(copied: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = renderer_folder(copied, cache)
    day = 86400.0
    for number, (age, stays) in enumerate([(6.9 * day, True), (7.1 * day, False)]):
        then = time.time() - age
        os.utime(first, (then, then))
        (copied / "renderer.json").write_text(f'{{"num_steps": {number + 1}}}')
        renderer_folder(copied, cache)
        assert first.exists() == stays


def test_folders_of_other_weights_go_when_nobody_asks_for_them(
    copied: Path, tmp_path: Path
) -> None:
    cache, made = tmp_path / "cache", []
    for steps in range(5):  # whatever tells weights apart
        (copied / "renderer.json").write_text(f'{{"num_steps": {steps + 1}}}')
        made.append(renderer_folder(copied, cache))
        if steps == 2:
            for folder in (made[0], made[1], cache / "renderer-mine"):
                folder.mkdir(exist_ok=True)
                os.utime(folder, (0, 0))
            (copied / "renderer.json").write_text('{"num_steps": 2}')
            assert renderer_folder(copied, cache) == made[1]  # asked for: it stays
    assert {path.name for path in cache.iterdir()} == {
        "renderer-mine", *(folder.name for folder in made[1:])
    }  # fmt: skip
    assert all(is_whole(folder) for folder in made[1:])


def test_other_weights_or_settings_have_a_folder_of_their_own(copied: Path, tmp_path: Path) -> None:
    first = renderer_folder(copied, tmp_path / "cache")
    (copied / "judge").mkdir()  # what is no part of the renderer
    (copied / "judge" / "notes.json").write_text("{}")
    assert renderer_folder(copied, tmp_path / "cache") == first
    (copied / "renderer.json").write_text('{"num_steps": 5}')
    second = renderer_folder(copied, tmp_path / "cache")
    assert second != first
    assert json.loads((second / "renderer.json").read_text()) == {"num_steps": 5}
    with quiet_libraries():
        build_transformer().half().save_pretrained(copied / "transformer")
    assert renderer_folder(copied, tmp_path / "cache") not in (first, second)


def test_bundled_files_are_small_and_half_precision(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_SHARD_SIZE", "200KB")
    bundle_weights(weights / "transformer", weights / "vae", tmp_path / "small")
    files = sorted((tmp_path / "small" / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    check_weights(tmp_path / "small")
    from safetensors.torch import load_file

    assert {v.dtype for file in files for v in load_file(file).values()} == {torch.float16}
    folder = renderer_folder(tmp_path / "small", tmp_path / "cache")
    left = DiffusersGenerator.load(folder, device="cpu", num_steps=1)
    right = DiffusersGenerator.load(renderer_folder(weights, tmp_path / "cache"), num_steps=1)
    state = right.pipeline.transformer.state_dict()
    assert all(torch.equal(state[k], v) for k, v in left.pipeline.transformer.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["transformer/config.json", "vae/diffusion_pytorch_model.safetensors"],
)
def test_missing_and_broken_weights_are_named(copied: Path, tmp_path: Path, name: str) -> None:
    path = copied / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(SettingsError, match=path.name) as caught:
        renderer_folder(copied, tmp_path / "cache")
    assert caught.value.name == "weights"
    path.unlink()
    with pytest.raises(SettingsError, match="is missing") as caught:
        renderer_folder(copied, tmp_path / "cache")
    assert str(path) in caught.value.reason
    assert not (tmp_path / "cache").exists()


def test_a_missing_shard_is_named(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(folders, "MAX_SHARD_SIZE", "200KB")
    bundle_weights(weights / "transformer", weights / "vae", tmp_path / "small")
    shard = min((tmp_path / "small" / "transformer").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(SettingsError, match=shard.name):
        renderer_folder(tmp_path / "small", tmp_path / "cache")


def test_a_cache_that_cannot_be_written(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match="PROMPTADAPT_CACHE") as caught:
        renderer_folder(weights, tmp_path / "file")
    assert caught.value.name == "cache"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "{home}/.cache/promptadapt"),
        ("linux", {"XDG_CACHE_HOME": "{home}/xdg"}, "{home}/xdg/promptadapt"),
        ("linux", {"PROMPTADAPT_CACHE": "{home}/own"}, "{home}/own"),
        ("darwin", {}, "{home}/Library/Caches/promptadapt"),
        ("win32", {"LOCALAPPDATA": "{home}/local"}, "{home}/local/promptadapt"),
        ("win32", {}, "{home}/AppData/Local/promptadapt"),
    ],
)
def test_the_cache_is_where_the_system_has_it(
    tmp_path: Path, monkeypatch: Any, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("XDG_CACHE_HOME", "PROMPTADAPT_CACHE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path))
    assert cache_folder() == Path(expected.format(home=tmp_path))
