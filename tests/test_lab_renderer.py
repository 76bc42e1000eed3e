"""The renderer in training: merged padding, captions, resuming, what is saved."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from promptadapt_core.clip_tokens import ClipTokenCounter  # noqa: E402
from promptadapt_core.lab import renderer  # noqa: E402
from promptadapt_core.lab.dataset import read_scenes  # noqa: E402
from promptadapt_core.lab.renderer import (  # noqa: E402
    MergedPadding,
    RendererStage,
    build_transformer,
    widened,
)
from promptadapt_core.lab.text_encoder import NUM_POSITIONS, TextFeatures  # noqa: E402


def random_transformer(seed: int = 0) -> torch.nn.Module:
    """None of its weights zero, as after training."""
    model = build_transformer(seed, num_layers=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator)
    return model.eval()


def stage(num_steps: int = 6, **settings: object) -> RendererStage:
    generator = torch.Generator().manual_seed(1)
    number = 40
    latents = torch.randn(number, 16, 16, 16, generator=generator).half()
    labels = (np.arange(number * 64).reshape(number, 8, 8) % 5).astype(np.uint8)
    defaults = {
        "batch_size": 4, "num_layers": 2, "num_valid": 8, "validate_every": 3, "seed": 5,
        "precision": "float32",
    }  # fmt: skip
    return RendererStage(
        latents, labels, read_scenes(2, number), num_steps=num_steps, **{**defaults, **settings}
    )


@torch.no_grad()
def test_merged_padding_gives_the_outputs_of_all_tokens() -> None:
    model = random_transformer()
    features, counter = TextFeatures(), ClipTokenCounter()
    ids = [counter.encode(text) for text in ("a red cat by the sea, foggy", "")]
    latents = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    timestep = torch.tensor([500.0, 900.0])

    def velocity(length: int) -> torch.Tensor:
        context, pooled = features.embed(ids, length)
        return model(latents, context, pooled, timestep, return_dict=False)[0]

    whole = velocity(77)
    padding = MergedPadding(merged=77 - NUM_POSITIONS)
    model.set_attn_processor(padding)
    merged = velocity(NUM_POSITIONS + 1)
    assert whole.std() > 0.05
    assert torch.allclose(merged, whole, atol=1e-5)
    padding.merged = 1  # what is wrong about the number shows
    assert not torch.allclose(velocity(NUM_POSITIONS + 1), whole, atol=1e-4)


@torch.no_grad()
def test_a_widened_model_reads_padded_texts_alike() -> None:
    model = random_transformer()
    generator = torch.Generator().manual_seed(3)
    context, pooled, latents = (
        torch.randn(shape, generator=generator)
        for shape in ((1, 9, 768), (1, 768), (1, 16, 16, 16))
    )
    timestep = torch.tensor([300.0])
    narrow = model(latents, context, pooled, timestep, return_dict=False)[0]
    context = torch.nn.functional.pad(context, (0, 4096 - 768))
    pooled = torch.nn.functional.pad(pooled, (0, 2048 - 768))
    wide = widened(model).eval()(latents, context, pooled, timestep, return_dict=False)[0]
    assert torch.allclose(wide, narrow, atol=1e-5)


def test_an_untrained_model_says_nothing() -> None:
    model = build_transformer(0, num_layers=2)
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        velocity = model(
            latents, torch.ones(1, 9, 768), torch.ones(1, 768), torch.tensor([5.0])
        ).sample
    assert float(velocity.abs().max()) == 0


def test_captions_that_are_long_come_together() -> None:
    training = stage()
    for step in (0, renderer.LONG_EVERY - 1):
        rows, texts = training._batch(random.Random(4), step)
        long = [len(ids) + 2 > NUM_POSITIONS for ids in texts]
        assert len(rows) == len(texts) == training.batch_size
        assert all(long) if step else not any(long)
        assert max(rows) < training.num_train


def test_pictures_of_several_things_come_more_often() -> None:
    training = stage(batch_size=2000)
    singles = [len(scene.things) == 1 for scene in training.scenes[: training.num_train]]
    drawn = sum(singles) / len(singles)
    assert 0.2 < drawn < 0.8
    taken, _ = training._batch(random.Random(4), 0)
    share = sum(singles[row] for row in taken) / len(taken)
    kept = renderer.SINGLE * drawn
    # Step 0 takes short captions, and those of one thing are shorter: hence the tolerance.
    assert share == pytest.approx(kept / (kept + 1 - drawn), abs=0.06)


def test_learning_lowers_the_loss() -> None:
    training = stage(num_steps=40, lr=3e-3)
    rows = [training.step(step) for step in range(40)]
    first = sum(row["train/labels"] for row in rows[:5]) / 5
    last = sum(row["train/labels"] for row in rows[-5:]) / 5
    assert last < first - 0.3
    assert 0 <= rows[-1]["valid/subjects"] <= 1
    assert rows[-1]["valid/flow"] > 0
    assert all(set(row) <= set(training.metrics) for row in rows)


def test_a_resumed_training_ends_the_same(tmp_path: Path) -> None:
    whole, first, second = stage(), stage(), stage()
    for step in range(6):
        whole.step(step)
    for step in range(3):
        first.step(step)
    torch.save(first.state(), tmp_path / "state.pt")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        second.step(step)
    for name, value in whole.ema.weights.items():
        assert torch.equal(value, second.ema.weights[name]), name


def test_what_is_saved_is_the_average_in_sd3_shape(tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    training = stage(num_steps=2)
    training.step(0)
    training.save(tmp_path)
    saved = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert saved.config.joint_attention_dim == 4096
    assert saved.config.pooled_projection_dim == 2048
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(saved.state_dict()[name], training.ema.weights[name])


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [renderer.rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99:700] == [1.0] * 601
    assert 0 < rates[-1] < 0.01
    assert rates[850] == pytest.approx(0.5)


def test_global_generators_are_untouched(
    tmp_path: Path, untouched_generators: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with untouched_generators():
        training = stage(num_steps=1)
        training.step(0)
        training.save(tmp_path)
