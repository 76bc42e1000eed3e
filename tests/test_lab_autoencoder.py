from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from promptadapt_core.lab import autoencoder_training  # noqa: E402
from promptadapt_core.lab.autoencoder import (  # noqa: E402
    LATENT_CHANNELS,
    REDUCTION,
    build_autoencoder,
    build_trainee,
    check_pictures,
    decode,
    encode,
    keep_centres,
    load_autoencoder,
    load_trainee,
    psnr,
    save_trainee,
    to_model,
)
from promptadapt_core.lab.autoencoder_training import (  # noqa: E402
    AutoencoderStage,
    EncoderStage,
    latent_penalty,
    reconstruction_terms,
)
from promptadapt_core.lab.stages import Stage, run_stage  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

SIDE = 32


def rectangles(number: int) -> np.ndarray:
    """Pictures of plain rectangles, (N, SIDE, SIDE, 3) uint8."""
    generator = np.random.default_rng(0)
    pictures = np.empty((number, SIDE, SIDE, 3), dtype=np.uint8)
    for picture in pictures:
        picture[:] = generator.integers(0, 256, 3)
        for _ in range(3):
            left, right = sorted(generator.integers(0, SIDE, 2))
            top, bottom = sorted(generator.integers(0, SIDE, 2))
            picture[top : bottom + 1, left : right + 1] = generator.integers(0, 256, 3)
    return pictures


PICTURES = rectangles(40)
SMALL: dict[str, Any] = {"batch_size": 2, "num_valid": 4, "validate_every": 3}


@pytest.fixture(scope="module")
def trainee(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """A patch encoder and a decoder after some steps."""
    folder = tmp_path_factory.mktemp("vae")
    run_stage(AutoencoderStage(PICTURES, num_steps=25, precision="float32", **SMALL), folder)
    return load_trainee(folder / "weights")


def make_stage(kind: str, trainee: torch.nn.Module, num_steps: int = 6) -> Stage:
    if kind == "encoder":
        return EncoderStage(PICTURES, trainee, num_steps=num_steps, **SMALL)
    start = trainee if kind == "decoder" else None
    return AutoencoderStage(
        PICTURES, num_steps=num_steps, start=start, decoder_only=kind == "decoder", **SMALL
    )


@pytest.mark.parametrize("kind", ["both", "decoder", "encoder"])
def test_a_resumed_training_has_the_same_weights(
    kind: str, trainee: torch.nn.Module, tmp_path: Path
) -> None:
    run_stage(make_stage(kind, trainee), tmp_path / "whole")
    asked = []

    def after_two() -> bool:
        asked.append(1)
        return len(asked) == 2

    assert (
        run_stage(make_stage(kind, trainee), tmp_path / "cut", should_stop=after_two) == "stopped"
    )
    shutil.copy(tmp_path / "cut" / "state.pt", tmp_path / "old.pt")
    run_stage(make_stage(kind, trainee), tmp_path / "cut", should_stop=lambda: True)
    shutil.copy(tmp_path / "old.pt", tmp_path / "cut" / "state.pt")
    assert run_stage(make_stage(kind, trainee), tmp_path / "cut") == "done"
    (left, right) = (
        next((tmp_path / name / "weights").glob("*.safetensors")) for name in ("whole", "cut")
    )
    assert left.read_bytes() == right.read_bytes()


def test_training_brings_the_loss_down() -> None:
    stage = AutoencoderStage(PICTURES, num_steps=40, precision="float32", ema_decay=0.5, **SMALL)
    rows = [stage.step(step) for step in range(40)]
    first, last = (sum(row["train/loss"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first
    assert rows[-1]["valid/psnr"] > rows[2]["valid/psnr"]


@pytest.mark.parametrize("kind", ["both", "decoder", "encoder"])
def test_each_metric_is_defined(kind: str, trainee: torch.nn.Module) -> None:
    stage = make_stage(kind, trainee, num_steps=1)
    assert stage.step(0).keys() == stage.metrics.keys()


def test_the_decoder_alone_leaves_the_latents(trainee: torch.nn.Module, tmp_path: Path) -> None:
    run_stage(make_stage("decoder", trainee), tmp_path)
    tuned = load_trainee(tmp_path / "weights")
    assert torch.equal(encode(tuned, PICTURES[:3]), encode(trainee, PICTURES[:3]))
    latents = encode(trainee, PICTURES[:3])
    assert not np.array_equal(decode(tuned, latents), decode(trainee, latents))


def test_what_is_saved_is_an_autoencoder_tiny(trainee: torch.nn.Module, tmp_path: Path) -> None:
    run_stage(make_stage("encoder", trainee), tmp_path)
    model = load_autoencoder(tmp_path / "weights")
    assert isinstance(model, diffusers.AutoencoderTiny)
    assert (model.config.scaling_factor, model.config.shift_factor) == (1.0, 0.0)
    latents = encode(trainee, PICTURES[:3])
    assert np.array_equal(decode(model, latents), decode(trainee, latents))
    # only the centres of the outermost convolutions: doubling the pixels commutes with them
    for convolution in (model.encoder.layers[0], model.decoder.layers[-1]):
        outer = convolution.weight.clone()
        outer[:, :, 1, 1] = 0
        assert not outer.any()
        assert convolution.weight.any()


def test_latents_and_pictures_keep_their_shapes(trainee: torch.nn.Module) -> None:
    latents = encode(trainee, PICTURES[:5], batch_size=2)
    assert latents.shape == (5, LATENT_CHANNELS, SIDE // REDUCTION, SIDE // REDUCTION)
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents[3:4], encode(trainee, PICTURES[3:4]), rtol=0, atol=2e-3)
    decoded = decode(trainee, latents, batch_size=3)
    assert decoded.shape == (5, SIDE, SIDE, 3)
    assert decoded.dtype == np.uint8
    assert encode(trainee, PICTURES[:0]).shape == (0, *latents.shape[1:])
    assert decode(trainee, latents[:0]).shape == (0, SIDE, SIDE, 3)


def test_pixels_are_read_from_minus_one_to_one() -> None:
    pictures = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    pictures[0, 4, 7] = (255, 0, 51)
    pixels = to_model(pictures, "cpu")
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, 4, 7].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_terms_of_a_shifted_and_of_a_striped_picture() -> None:
    black = torch.zeros(1, 3, 8, 8)
    shifted = reconstruction_terms(black + 0.5, black)
    assert {name: round(float(v), 6) for name, v in shifted.items()} == {
        "l1": 0.5, "squared": 0.25, "edges": 0.0, "pooled_2": 0.25, "pooled_4": 0.25,
    }  # fmt: skip
    stripes = black.clone()
    stripes[..., ::2], stripes[..., 1::2] = 1.0, -1.0
    striped = reconstruction_terms(stripes, black)
    assert {name: round(float(v), 6) for name, v in striped.items()} == {
        "l1": 1.0, "squared": 1.0, "edges": 2.0, "pooled_2": 0.0, "pooled_4": 0.0,
    }  # fmt: skip


def test_latents_of_the_wanted_deviation_cost_nothing() -> None:
    latents = torch.tensor([-1.0, 1.0]).repeat(50)[None, None, None]  # (1, 1, 1, 100)
    wanted = latents.std(dim=3).flatten()
    assert latent_penalty(latents, wanted).item() == pytest.approx(0.0, abs=1e-6)
    assert latent_penalty(latents + 2, wanted).item() == pytest.approx(4.0, rel=1e-5)
    assert latent_penalty(latents * 3, wanted).item() == pytest.approx(4 * wanted**2, rel=1e-4)


def test_psnr_of_a_known_error() -> None:
    pictures = np.full((2, 4, 4, 3), 100, dtype=np.uint8)
    decoded = pictures.copy()
    decoded[1] += 10
    values = psnr(decoded, pictures)
    assert values[1] == pytest.approx(28.13, abs=0.01)  # 20 log10(255 / 10)
    assert values[0] > 70


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    left, right, other = build_autoencoder(1), build_autoencoder(1), build_autoencoder(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (model.decoder.layers[0].weight for model in (left, right, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_centres_are_all_that_stays() -> None:
    model = build_trainee(0)
    weight = model.decoder.layers[-1].weight
    torch.nn.init.ones_(weight)
    centre = weight[:, :, 1, 1].clone()
    keep_centres(model)
    assert torch.equal(weight[:, :, 1, 1], centre)
    assert weight.count_nonzero() == centre.count_nonzero()


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((4, 32, 32, 3), dtype=np.float32),
        np.zeros((4, 3, 32, 32), dtype=np.uint8),
        np.zeros((4, 32, 64, 3), dtype=np.uint8),
        np.zeros((4, 36, 36, 3), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.uint8),
    ],
)
def test_what_are_no_pictures_is_refused(pictures: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="pictures: expected"):
        check_pictures(pictures)


def test_impossible_trainings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected more than the 40 held out"):
        AutoencoderStage(PICTURES, num_steps=1, num_valid=40)
    with pytest.raises(SettingsError, match="needs a trained autoencoder"):
        AutoencoderStage(PICTURES, num_steps=1, num_valid=4, decoder_only=True)
    (tmp_path / "trainee.safetensors").write_bytes(b"broken")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_trainee(tmp_path)


def test_loading_leaves_the_global_generators_alone(
    trainee: torch.nn.Module,
    tmp_path: Path,
    untouched_generators: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    save_trainee(trainee.state_dict(), tmp_path)
    with untouched_generators():
        load_trainee(tmp_path)


def test_the_stages_have_names_of_their_own(trainee: torch.nn.Module) -> None:
    stages = [make_stage(kind, trainee, 1) for kind in ("both", "decoder", "encoder")]
    assert len({stage.name for stage in stages}) == 3
    assert autoencoder_training.AutoencoderStage.name == "vae"
