from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from promptadapt_core.clip_tokens import clean_for_clip
from promptadapt_core.decoding import Stopped
from promptadapt_core.images import DiffusersGenerator, ImageSettings
from promptadapt_core.lab.folders import PARTS, WEIGHTS, renderer_folder
from promptadapt_core.lab.plain_renderer import PlainRenderer, PlainTransformer, noise_levels
from promptadapt_core.lab.text_encoder import MAX_LENGTH, NUM_POSITIONS, TextFeatures
from promptadapt_core.settings import MAX_SEED, SettingsError

LONG = ", ".join(["a blue cat under a tree at night"] * 12)  # over 75 tokens
TEXTS = ["a red house by the sea, golden hour", "", "zxqv Ünïcödé 日本 & a cat?", LONG]
SEEDS = [0, 1, 2, MAX_SEED]

pytestmark = pytest.mark.skipif(
    not all((WEIGHTS / part).is_dir() for part in PARTS), reason="no weights are bundled"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    folder = renderer_folder(cache=tmp_path_factory.mktemp("cache"))
    return DiffusersGenerator.load(folder, device="cpu").pipeline


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Weights to break."""
    for part in PARTS:
        shutil.copytree(WEIGHTS / part, tmp_path / part)
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": 32, "num_steps": 3, "even_sigmas": False},
        {"size": 128, "num_steps": 1, "guidance_scale": 1.0},
        {"num_steps": 2, "negative_prompt": "a red cat", "guidance_scale": 7.5},
    ],
)
def test_it_draws_what_the_pipeline_draws(pipeline: Any, settings: dict[str, Any]) -> None:
    plain = PlainRenderer(WEIGHTS, **settings)
    ours = plain.generate(TEXTS, SEEDS)
    theirs = DiffusersGenerator(pipeline, plain.settings).generate(TEXTS, SEEDS)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    off = np.abs(ours.astype(int) - theirs)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01
    assert ours.std() > 20, "a picture that is nearly constant would show nothing"


@pytest.mark.parametrize(
    ("text", "plainer"),
    [
        ("a red house &amp; a tree", clean_for_clip("a red house &amp; a tree")),
        ("a cat’s house by the sea", clean_for_clip("a cat’s house by the sea")),
        ("ａ ＣＡＴ in a ﬁeld\x00", clean_for_clip("ａ ＣＡＴ in a ﬁeld\x00")),
        ("a red cat <|endoftext|> by the sea", "a red cat <| endoftext |> by the sea"),
    ],
)
def test_texts_that_the_pipeline_reads_otherwise(pipeline: Any, text: str, plainer: str) -> None:
    plain = PlainRenderer(WEIGHTS, num_steps=2)
    theirs = DiffusersGenerator(pipeline, plain.settings).generate([plainer], [3])
    assert plainer != text
    assert np.abs(plain.generate([text], [3]).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("width", [NUM_POSITIONS, 40, MAX_LENGTH - 1])
def test_padding_read_once_counts_for_all_of_it(width: int) -> None:
    """The velocity is that of all 77 tokens; the padding left out or counted once, it is not."""
    transformer = PlainTransformer(WEIGHTS / "transformer", torch.device("cpu"))
    ids = [list(range(320, 320 + width - 2)), []]
    features = TextFeatures()
    whole, pooled = features.embed(ids)
    latents = torch.randn((2, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = transformer(latents, whole, pooled, 0.7)
    few = features.embed(ids, width + 1)[0]
    number = MAX_LENGTH - width
    found = transformer(latents, few, pooled, 0.7, number)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    if number > 1:
        for context, counted in ((few, 1), (whole[:, :width], 1)):
            off = transformer(latents, context, pooled, 0.7, counted) - expected
            assert off.abs().max() > 1e-3


def test_pictures_do_not_depend_on_the_batch() -> None:
    renderer = PlainRenderer(WEIGHTS, batch_size=2, num_steps=2)
    # The third is long: it has less padding, and its batch with it.
    texts, seeds = ["a cat", "a red tree at night", LONG, "", "a dog"], [0, 1, 2, 3, 4]
    together = renderer.generate(texts, seeds)
    renderer.batch_size = 5
    turned = renderer.generate(texts[::-1], seeds[::-1])[::-1]
    for other in (renderer.generate(texts, seeds), turned):
        assert np.abs(together.astype(int) - other).max() <= 1


def test_it_stops_between_steps() -> None:
    renderer, asked = PlainRenderer(WEIGHTS, batch_size=1, num_steps=3), []

    def fifth() -> bool:
        asked.append(None)
        return len(asked) == 5

    with pytest.raises(Stopped):
        renderer.generate(["a cat"] * 9, list(range(9)), should_stop=fifth)
    assert len(asked) == 5


def test_the_identity_is_of_what_pictures_depend_on(copied: Path) -> None:
    renderer = PlainRenderer(WEIGHTS, num_steps=2)
    assert PlainRenderer(copied, num_steps=2, batch_size=3).identity == renderer.identity
    fewer = copy.copy(renderer)
    fewer.settings = dataclasses.replace(renderer.settings, num_steps=1)
    assert fewer.identity != renderer.identity
    assert np.array_equal(
        fewer.generate(["a cat"], [0]),
        PlainRenderer(WEIGHTS, num_steps=1).generate(["a cat"], [0]),
    )
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["decoder.layers.0.bias"] += 1.0
    safetensors.torch.save_file(weights, path)
    assert PlainRenderer(copied, num_steps=2).identity != renderer.identity
    elsewhere = copy.copy(renderer)
    elsewhere.device = torch.device("cuda")
    assert elsewhere.identity != renderer.identity


def test_no_texts_are_no_pictures() -> None:
    pictures = PlainRenderer(WEIGHTS, size=32).generate([], [])
    assert pictures.shape == (0, 32, 32, 3)
    assert pictures.dtype == np.uint8


def test_memory_that_runs_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = PlainRenderer(WEIGHTS)

    def no_memory(*given: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PlainTransformer, "__call__", no_memory)
    with pytest.raises(SettingsError, match="size: .* for one picture"):
        renderer.generate(["a cat"] * 2, [0, 1])
    with pytest.raises(SettingsError, match="size: .* for one picture"):
        PlainRenderer(WEIGHTS)


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = PlainRenderer(WEIGHTS, num_steps=1)
    texts, seeds = ["a cat", "a dog", "a red house", "a tree", "a cup"], [3, 4, 5, 6, 7]
    whole, call, sizes = renderer.generate(texts, seeds), PlainTransformer.__call__, []

    def hungry(self: Any, latents: torch.Tensor, *given: Any) -> torch.Tensor:
        sizes.append(len(latents) // 2)  # guidance draws each twice
        if len(latents) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(self, latents, *given)

    monkeypatch.setattr(PlainTransformer, "__call__", hungry)
    assert np.abs(renderer.generate(texts, seeds).astype(int) - whole).max() <= 1
    assert sizes == [5, 2, 2, 1]
    assert renderer.batch_size == 2


def test_what_has_no_effect_is_told() -> None:
    usual, odd = (
        PlainRenderer(WEIGHTS),
        PlainRenderer(WEIGHTS, negative_prompt="a dog", guidance_scale=1.0),
    )
    assert [line.split(";")[0] for line in usual.notices] == [
        "the renderer reads 75 tokens of an adapted prompt"
    ]
    assert odd.notices[1:] == usual.notices
    assert "the negative prompt has no effect" in odd.notices[0]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_batch_size_that_is_none(batch_size: Any) -> None:
    with pytest.raises(SettingsError, match="batch_size: expected 1 or more"):
        PlainRenderer(WEIGHTS, batch_size=batch_size)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copied: Path, number: float) -> None:
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["decoder.layers.0.bias"][3] = number
    safetensors.torch.save_file(weights, path)
    with pytest.raises(SettingsError, match=r"layers\.0\.bias has numbers that are not") as caught:
        PlainRenderer(copied)
    assert caught.value.name == "weights"


def test_pictures_that_are_no_numbers_are_refused() -> None:
    renderer = PlainRenderer(WEIGHTS, num_steps=1)
    renderer.decoder.weights["0.bias"][3] = float("nan")
    with pytest.raises(SettingsError, match="pictures: 2 of 2"):
        renderer.generate(["a cat", "a dog"], [0, 1])


def test_size_0_is_the_renderers_own(copied: Path) -> None:
    assert PlainRenderer(WEIGHTS, size=0).settings.size == 64
    (copied / "renderer.json").write_text('{"num_steps": 5}', encoding="utf-8")
    assert PlainRenderer(copied).settings.size == 64  # and not the 0 of ImageSettings


def test_the_recommended_settings_are_those_of_the_folder(copied: Path) -> None:
    assert PlainRenderer(copied).settings == ImageSettings(8, 3.0, 64, even_sigmas=True)
    (copied / "renderer.json").write_text('{"num_steps": 5, "size": 32}', encoding="utf-8")
    assert PlainRenderer(copied, size=64, num_steps=None).settings == ImageSettings(5, size=64)
    (copied / "renderer.json").write_text('{"colour": 5}', encoding="utf-8")
    with pytest.raises(SettingsError, match="renderer.json") as caught:
        PlainRenderer(copied)
    assert caught.value.name == "weights"


def test_noise_levels_by_hand() -> None:
    even = noise_levels(ImageSettings(2, even_sigmas=True))
    assert even.tolist() == pytest.approx([1.0, 0.75, 0.0])  # 3 * 0.5 / (1 + 2 * 0.5)
    # diffusers' own end at the last of 1000 timesteps, shifted twice
    low = 0.003 / 1.002
    assert noise_levels(ImageSettings(2)).tolist() == pytest.approx(
        [1.0, 3 * low / (1 + 2 * low), 0.0]
    )


@pytest.mark.parametrize("size", [4, 12, 136])
def test_a_size_that_the_model_has_no_places_for(size: int) -> None:
    with pytest.raises(SettingsError, match="expected a multiple of 8 up to 128") as caught:
        PlainRenderer(WEIGHTS, size=size)
    assert caught.value.name == "size"


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("transformer", {"qk_norm": "rms_norm"}, "qk_norm is rms_norm"),
        ("transformer", {"dual_attention_layers": [0]}, "dual_attention_layers"),
        ("transformer", {"num_attention_heads": 5}, "is no renderer"),
        ("transformer", {"num_layers": 4}, "is no renderer: .*transformer_blocks.3"),
        ("transformer", {"num_layers": "many"}, "is no renderer"),
        ("vae", {"act_fn": "gelu"}, "act_fn is gelu"),
        ("vae", {"decoder_block_out_channels": None}, "is no renderer"),
        ("vae", {"scaling_factor": None}, "is no renderer"),
    ],
)
def test_weights_of_another_shape_are_refused(
    copied: Path, part: str, change: dict[str, Any], words: str
) -> None:
    path = copied / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), encoding="utf-8")
    with pytest.raises(SettingsError, match=words) as caught:
        PlainRenderer(copied)
    assert caught.value.name == "weights"


def test_weights_that_do_not_fit_are_refused(copied: Path) -> None:
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    whole = safetensors.torch.load_file(path)
    for name in ("decoder.layers.0.weight", "decoder.layers.0.bias"):
        safetensors.torch.save_file({**whole, name: torch.zeros(3)}, path)
        with pytest.raises(SettingsError, match="is no renderer") as caught:
            PlainRenderer(copied)
        assert caught.value.name == "weights"
    safetensors.torch.save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(SettingsError, match="is no renderer"):
        PlainRenderer(copied)


def test_a_picture_is_its_seeds_own(untouched_generators: Any) -> None:
    with untouched_generators():
        first = PlainRenderer(WEIGHTS, num_steps=1)
        pictures = first.generate(["a cat", "a cat"], [5, 6])
    assert np.abs(first.generate(["a cat"], [5]).astype(int) - pictures[:1]).max() <= 1
    assert not np.array_equal(pictures[0], pictures[1])
