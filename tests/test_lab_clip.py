"""The lab's CLIP: what it is shown, what it may leave out, and that open_clip loads it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

open_clip = pytest.importorskip("open_clip")

from promptadapt_core.lab.aesthetic import load_embedder  # noqa: E402
from promptadapt_core.lab.captions import describe  # noqa: E402
from promptadapt_core.lab.clip import (  # noqa: E402
    MODEL_NAME,
    NO_COLOURS,
    NO_MODIFIERS,
    NO_PLACE,
    WEIGHTS_NAME,
    ClipStage,
    augment,
    build_clip,
    rank_correlation,
    retrieval,
    shift,
    tokenize,
    user_side,
)
from promptadapt_core.lab.drawing import draw  # noqa: E402
from promptadapt_core.lab.scenes import Scene, Thing, sample_scene  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

World = tuple[np.ndarray, list[Scene], np.ndarray]


@pytest.fixture(scope="module")
def world() -> World:
    """48 pictures, their scenes and made-up ratings."""
    generator = random.Random(3)
    scenes = [sample_scene(generator) for _ in range(48)]
    pictures = np.stack([draw(scene, generator).pixels for scene in scenes])
    return pictures, scenes, 1.0 + 9.0 * np.array([generator.random() for _ in scenes])


def stage(world: World, num_steps: int = 4, **more: object) -> ClipStage:
    return ClipStage(*world, num_steps=num_steps, batch_size=8, num_valid=8, **more)  # type: ignore[arg-type]


def test_tokens_without_a_use_mean_nothing_and_stay_so(world: World) -> None:
    trained = stage(world, lr=0.01)
    before = trained.model.clip.token_embedding.weight.detach().clone()
    for step in range(2):
        trained.step(step)
    after = trained.model.clip.token_embedding.weight.detach()
    known = before.abs().sum(dim=1) > 0
    assert 100 < int(known.sum()) < 400
    unknown = tokenize(["zebra quantum"])[0, 1:3]
    assert not after[unknown].any()
    assert not after[~known].any()
    assert not torch.equal(after, before)


def test_every_caption_has_its_words_and_fits(world: World) -> None:
    generator = random.Random(0)
    captions = [describe(sample_scene(generator), generator) for _ in range(2000)]
    tokens = tokenize(captions)
    assert int((tokens == 49407).sum(dim=1).min()) == 1
    assert (tokens[:, -1] == 0).all(), "a caption was cut off"
    known = build_clip(0).token_embedding.weight.abs().sum(dim=1) > 0
    assert known[tokens[tokens > 0]].all()


def test_the_seed_makes_the_first_weights(
    untouched_generators: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    with untouched_generators():
        one, same, other = (build_clip(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["text_projection"], other["text_projection"])


def test_a_resumed_training_ends_with_the_same_weights(
    world: World,
    untouched_generators: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    straight, first, second = (stage(world) for _ in range(3))
    with untouched_generators():
        for step in range(4):
            straight.step(step)
        for step in range(2):
            first.step(step)
        second.load_state(first.state())
        for step in range(2, 4):
            values = second.step(step)
    assert set(values) <= set(ClipStage.metrics)
    assert {"valid/retrieval", "valid/rating_correlation"} <= set(values)
    expected, found = straight.ema.weights, second.ema.weights
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_open_clip_loads_what_was_saved(world: World, tmp_path: Path) -> None:
    trained = stage(world)
    trained.step(0)
    trained.save(tmp_path)
    assert (tmp_path / WEIGHTS_NAME).stat().st_size < 8_000_000
    open_clip.add_model_config(tmp_path / f"{MODEL_NAME}.json")
    model, _, preprocess = open_clip.create_model_and_transforms(
        MODEL_NAME, pretrained=str(tmp_path / WEIGHTS_NAME)
    )
    assert model.visual.image_size in (64, (64, 64))
    with trained.ema.applied(trained.model), torch.no_grad():
        trained.model.eval()
        pixels = torch.from_numpy(world[0][:3])
        images = trained.model.clip.encode_image(trained.preprocess(pixels), True)
        texts = trained.model.clip.encode_text(tokenize(["a red cat", "fog"]), True)
    scorer = load_embedder(tmp_path)
    assert torch.allclose(scorer.embed_images(world[0][:3]), images, atol=0.01)
    assert torch.allclose(scorer.embed_texts(["a red cat", "fog"]), texts, atol=0.01)


def test_it_learns_pictures_and_ratings_by_heart(world: World) -> None:
    trained = stage(world, num_steps=24, lr=3e-3)
    rows = [trained.step(step) for step in range(24)]
    for name in ("train/contrastive", "train/rating"):
        begin, end = ([row[name] for row in part] for part in (rows[:4], rows[-4:]))
        assert sum(end) < 0.8 * sum(begin)


def test_without_ratings_only_pairs_are_learned(world: World) -> None:
    values = stage((*world[:2], None), num_steps=1).step(0)  # type: ignore[arg-type]
    assert "train/rating" not in values
    assert "valid/rating_correlation" not in values
    assert values["train/loss"] == values["train/contrastive"]


def test_a_caption_leaves_out_and_adds_nothing() -> None:
    words = random.Random(1)
    whole = [sample_scene(words) for _ in range(4000)]
    said = [user_side(scene, words) for scene in whole]
    for before, after in zip(whole, said, strict=True):
        assert [thing.subject for thing in after.things] == [t.subject for t in before.things]
        assert after.relation == before.relation
        assert after.place in (before.place, None)
        left = iter(before.modifiers)
        assert all(name in left for name in after.modifiers)
        for thing, drawn in zip(after.things, before.things, strict=True):
            assert thing.colour in (drawn.colour, None)
            assert thing.size in (drawn.size, None)

    def share(lost: Callable[[Scene, Scene], bool], some: Callable[[Scene], bool]) -> float:
        pairs = [pair for pair in zip(whole, said, strict=True) if some(pair[0])]
        return sum(lost(*pair) for pair in pairs) / len(pairs)

    five = lambda scene: len(scene.modifiers) == 4  # noqa: E731
    assert share(lambda a, b: not b.modifiers, five) == pytest.approx(NO_MODIFIERS, abs=0.08)
    assert share(lambda a, b: not b.place, lambda s: bool(s.place)) == pytest.approx(
        NO_PLACE, abs=0.03
    )
    assert share(lambda a, b: not b.things[0].colour, lambda s: True) == pytest.approx(
        NO_COLOURS, abs=0.03
    )


def test_a_scene_of_which_nothing_can_be_left_out_stays() -> None:
    scene = Scene((Thing("cat"),))
    assert user_side(scene, random.Random(0)) == scene


def test_shifting_moves_and_repeats_the_edge() -> None:
    picture = torch.arange(36, dtype=torch.uint8).view(1, 6, 6, 1).repeat(30, 1, 1, 3)
    moved = shift(picture, torch.Generator().manual_seed(0), most=1)
    padded = np.pad(picture[0].numpy(), ((1, 1), (1, 1), (0, 0)), mode="edge")
    options = {padded[y : y + 6, x : x + 6].tobytes() for y in range(3) for x in range(3)}
    found = {one.numpy().tobytes() for one in moved}
    assert found <= options
    assert len(found) > 5
    assert torch.equal(shift(picture, torch.Generator(), most=0), picture)


def test_augmented_pictures_are_the_same_ones_a_little_changed() -> None:
    coarse = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    images = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    given = images.clone()
    one, same = (augment(images, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(images, given), "the input was changed"
    correlation = [float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
                   for a, b in zip(one, images, strict=True)]  # fmt: skip
    assert min(correlation) > 0.9
    flat = torch.ones(64, 3, 8, 8)
    changed = augment(flat, torch.Generator().manual_seed(3)).mean(dim=(1, 2, 3))
    assert float(changed.min()) > 0.75
    assert float(changed.max()) < 1.25
    assert float(changed.std()) > 0.01


def test_retrieval_counts_captions_that_find_their_picture() -> None:
    units = torch.eye(6)
    assert retrieval(units, units, among=3) == 1.0
    assert retrieval(units, units.flip(0), among=6) == 0.0
    swapped = units[[1, 0, 2, 3, 4, 5]]
    assert retrieval(units, swapped, among=3) == pytest.approx(4 / 6)
    assert retrieval(units[:5], units[:5], among=4) == 1.0
    assert retrieval(units, swapped) == pytest.approx(4 / 6)


def test_rank_correlation_by_hand() -> None:
    one = torch.tensor([1.0, 2.0, 3.0])
    assert rank_correlation(one, one.exp()) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, torch.tensor([5.0, 9.0, 8.0])) == pytest.approx(0.5)


def test_the_averaged_weights_are_what_is_measured(world: World) -> None:
    trained = stage(world)
    trained.step(0)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    first = trained.validate()
    assert first == trained.validate()
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trained.model.training


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda p, s, r: (p[:, :32], s, r), "pictures"),
        (lambda p, s, r: (p.astype(np.float32), s, r), "pictures"),
        (lambda p, s, r: (p, s[:-1], r), "scenes"),
        (lambda p, s, r: (p, s, r[:, None]), "ratings"),
        (lambda p, s, r: (p[:9], s[:9], r[:9]), "pictures"),
    ],
)
def test_what_does_not_fit_is_named(world: World, change: Callable, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        stage(change(*world))
    assert caught.value.name == name


def test_scenes_stay_as_they_are(world: World) -> None:
    before = [dataclasses.asdict(scene) for scene in world[1]]
    stage(world).step(0)
    assert [dataclasses.asdict(scene) for scene in world[1]] == before
