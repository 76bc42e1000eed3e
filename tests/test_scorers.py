"""Scores of pictures by a tiny CLIP of open_clip's own classes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip")

from promptadapt_core.clip_tokens import with_quick_words  # noqa: E402
from promptadapt_core.scorers import (  # noqa: E402
    AestheticHead,
    BatchPreprocess,
    OpenClipScorer,
    ScorerFiles,
    read_description,
    write_description,
)
from promptadapt_core.settings import MAX_INPUT_CHARACTERS, SettingsError  # noqa: E402

SIZE, WIDTH = 32, 12
TINY = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole scorer folder."""
    folder = tmp_path_factory.mktemp("scorer")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(5).get_state())
        model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
    save_file(model.state_dict(), folder / "clip.safetensors")
    weight = torch.linspace(-1.0, 1.0, WIDTH)[None]
    save_file({"weight": weight, "bias": torch.tensor([5.0])}, folder / "head.safetensors")
    files = ScorerFiles("tiny-clip", "clip.safetensors", "head.safetensors",
                        relevance_knee=0.4, relevance_slope=7.0)  # fmt: skip
    write_description(folder, files)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> OpenClipScorer:
    return OpenClipScorer.load(folder, batch_size=4)


def pictures(number: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> np.ndarray:
    """Pictures of coarse random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.ascontiguousarray(blocks[:, rows][:, :, columns])


def test_scores_are_those_of_open_clip(folder: Path, scorer: OpenClipScorer) -> None:
    """Against open_clip used as its README shows, picture by picture."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-clip", pretrained=str(folder / "clip.safetensors")
    )
    model.eval()
    texts = ["a red cat", "a blue house by the sea", "", "a red cat", "tree"]
    seen = pictures(5)
    scores = scorer.score(texts, seen)
    for row, (text, picture) in enumerate(zip(texts, seen, strict=True)):
        with torch.no_grad():
            image = model.encode_image(preprocess(Image.fromarray(picture))[None])[0]
            words = model.encode_text(open_clip.tokenize([text], context_length=16))[0]
        cosine = float(torch.cosine_similarity(image, words, dim=0))
        unit = (image / image.norm()).tolist()
        by_hand = 5.0 + sum(x * (-1 + 2 * n / 11) for n, x in enumerate(unit))
        assert float(scores.relevance[row]) == pytest.approx(max(cosine, 0.0), abs=1e-5)
        assert float(scores.aesthetic[row]) == pytest.approx(by_hand, abs=1e-5)
    assert scores.aesthetic.dtype == scores.relevance.dtype == torch.float32


@pytest.mark.parametrize(
    "letters", ["abcdefghijklmnopqrstuvwxyz", "ab", "\u0436\u00e9\u732b", "-=!"]
)
@pytest.mark.parametrize("length", [30, 65, 400])
def test_long_words_have_the_tokens_of_open_clip(letters: str, length: int) -> None:
    draws = random.Random(length)
    texts = ["".join(draws.choices(letters, k=length)) for _ in range(4)]
    texts += [f"a {texts[0]} of {texts[1]} {'<end_of_text>' * 20}"]
    quick, slow = (open_clip.get_tokenizer("ViT-L-14-quickgelu") for _ in range(2))
    with_quick_words(quick)
    assert [quick.encode(text) for text in texts] == [slow.encode(text) for text in texts]
    assert torch.equal(quick(texts), slow(texts))


def test_a_word_of_a_page_is_scored_in_no_time(scorer: OpenClipScorer) -> None:
    """Of as many letters as a user input may have. open_clip alone takes a minute."""
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=MAX_INPUT_CHARACTERS))
    began = time.monotonic()
    assert scorer.embed_texts([word]).isfinite().all()
    assert time.monotonic() - began < 5.0


def test_a_negative_cosine_counts_as_none(scorer: OpenClipScorer) -> None:
    texts = ["cat", "dog", "tree", "a red house", "sea"]
    seen = pictures(20, seed=1)
    cosines = scorer.embed_images(seen) @ scorer.embed_texts(texts).T
    assert (cosines < -0.01).any()
    for column, text in enumerate(texts):
        relevance = scorer.score([text] * len(seen), seen).relevance
        expected = [max(value, 0.0) for value in cosines[:, column].tolist()]
        assert relevance.tolist() == pytest.approx(expected, abs=1e-6)


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(folder: Path) -> None:
    seen, texts = pictures(7), [f"{n} cats" for n in range(7)]
    embedded = []
    for batch_size in (1, 3, 64):
        scorer = OpenClipScorer.load(folder, batch_size=batch_size)
        embedded.append((scorer.embed_images(seen), scorer.embed_texts(texts)))
    for images, words in embedded:
        assert torch.allclose(images.norm(dim=1), torch.ones(7))
        assert torch.allclose(words.norm(dim=1), torch.ones(7))
        assert torch.allclose(images, embedded[0][0], atol=1e-6)
        assert torch.allclose(words, embedded[0][1], atol=1e-6)


def test_one_pass_over_the_pictures_gives_both_scores(folder: Path) -> None:
    scorer = OpenClipScorer.load(folder)
    passed: list[int] = []
    scorer.model.visual.register_forward_hook(lambda *given: passed.append(len(given[2])))
    scorer.score(["a cat"] * 6, pictures(6))
    assert passed == [6]


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (48, 48), (SIZE, 50), (90, 40)])
def test_pictures_of_any_size_take_the_models_own_transform(
    scorer: OpenClipScorer, height: int, width: int
) -> None:
    seen = pictures(3, height, width)
    inputs = torch.stack([scorer.preprocess(Image.fromarray(picture)) for picture in seen])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(scorer.model.encode_image(inputs), dim=-1)
    assert torch.allclose(scorer.embed_images(seen), expected, atol=1e-6)


def test_whole_batches_give_the_numbers_of_the_transform(scorer: OpenClipScorer) -> None:
    whole = BatchPreprocess.of(scorer.model, scorer.preprocess)
    assert whole is not None
    seen = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    singly = torch.stack([scorer.preprocess(Image.fromarray(picture)) for picture in seen])
    assert torch.equal(whole(torch.from_numpy(seen)), singly)
    darker = lambda picture: scorer.preprocess(picture) - 0.5  # noqa: E731
    assert BatchPreprocess.of(scorer.model, darker) is None


def test_nothing_in_gives_nothing_out(scorer: OpenClipScorer) -> None:
    assert scorer.embed_images(pictures(0)).shape == (0, WIDTH)
    assert scorer.embed_texts([]).shape == (0, WIDTH)
    scores = scorer.score([], pictures(0))
    assert scores.aesthetic.shape == scores.relevance.shape == (0,)


@pytest.mark.parametrize("text", ["\ud800", "", "cat " * 200, "a\x00b", "🐈 " * 9])
def test_any_text_has_an_embedding(scorer: OpenClipScorer, text: str) -> None:
    assert torch.isfinite(scorer.embed_texts([text])).all()


class SmallMemory(torch.nn.Module):
    """Embeds three numbers at once and no more; a picture by its corner."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 1
        self.sizes: list[int] = []
        self.error: type[RuntimeError] = torch.cuda.OutOfMemoryError

    def encode_image(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        if len(inputs) > 3:
            raise self.error("tried to allocate 9 GiB")
        return torch.stack([inputs[:, 0, 0, 0], torch.ones(len(inputs))], dim=1)


def small_memory(batch_size: int) -> OpenClipScorer:
    preprocess = lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()  # noqa: E731
    head = AestheticHead(torch.tensor([1.0, 0.0]), 0.0)
    return OpenClipScorer(
        SmallMemory(), preprocess, lambda texts: torch.zeros(len(texts)), 2, head,
        identity="small", batch_size=batch_size,
    )  # fmt: skip


def test_out_of_memory_halves_the_batch_for_good() -> None:
    scorer = small_memory(batch_size=8)
    seen = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    embedded = scorer.embed_images(seen)
    corners = (embedded[:, 0] / embedded[:, 1]).tolist()
    assert corners == pytest.approx(list(range(10)))
    assert scorer.model.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert scorer.batch_size == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    scorer = small_memory(batch_size=8)
    scorer.model.error = RuntimeError
    with pytest.raises(RuntimeError, match="9 GiB"):
        scorer.embed_images(np.zeros((8, 1, 1, 3), dtype=np.uint8))
    assert scorer.model.sizes == [8]


def test_the_identity_follows_the_files(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    own = OpenClipScorer.load(folder).identity
    assert len(own) == 12
    assert OpenClipScorer.load(copied).identity == own
    save_file({"weight": torch.ones(1, WIDTH), "bias": torch.zeros(1)}, copied / "head.safetensors")
    assert OpenClipScorer.load(copied).identity != own


def test_the_description_carries_the_relevance_term(folder: Path) -> None:
    scorer = OpenClipScorer.load(folder)
    assert (scorer.relevance_knee, scorer.relevance_slope) == (0.4, 7.0)
    files = ScorerFiles("tiny-clip", folder / "clip.safetensors", config=folder / "tiny-clip.json")
    plain = OpenClipScorer.load(files)
    assert (plain.relevance_knee, plain.relevance_slope) == (0.28, 20.0)
    with pytest.raises(SettingsError, match="without an aesthetic head"):
        plain.score(["cat"], pictures(1))


def test_loading_and_scoring_leave_the_generators_alone(
    folder: Path, untouched_generators: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with untouched_generators():
        OpenClipScorer.load(folder).score(["cat", "dog"], pictures(2))


def test_loading_leaves_the_root_logger_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip logs to it, for which Python gives it a handler if it has none."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    OpenClipScorer.load(folder)
    assert logging.getLogger().handlers == []
    kept = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [kept])
    OpenClipScorer.load(folder)
    assert logging.getLogger().handlers == [kept]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def halved(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def described(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "scorer.json"
        told = {**json.loads(path.read_text("utf-8")), **changes}
        kept = {name: value for name, value in told.items() if value is not ...}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return change


def wider_head(folder: Path) -> None:
    save_file(
        {"weight": torch.ones(1, WIDTH + 1), "bias": torch.zeros(1)}, folder / "head.safetensors"
    )


def other_weights(folder: Path) -> None:
    save_file({"logit_scale": torch.zeros(())}, folder / "clip.safetensors")


DEFECTS = {
    "no description": (without("scorer.json"), "scorer", "scorer.json"),
    "half a description": (halved("scorer.json"), "scorer", "scorer.json"),
    "no model named": (described(model=...), "scorer", "it lacks 'model'"),
    "a preference scorer": (
        described(model=..., kind="hpsv2"),
        "scorer",
        "only trainings and evaluations",
    ),
    "a model that is a number": (described(model=3), "scorer", "texts"),
    "a knee that is text": (described(relevance_knee="0.28"), "scorer", "relevance_knee"),
    "a slope of NaN": (described(relevance_slope=math.nan), "scorer", "relevance_knee"),
    "no weights": (without("clip.safetensors"), "weights", "clip.safetensors"),
    "half the weights": (halved("clip.safetensors"), "weights", "clip.safetensors"),
    "other weights": (other_weights, "weights", "Missing key(s)"),
    "an unknown tag": (described(weights="openai"), "weights", "openai"),
    "no head": (without("head.safetensors"), "head", "head.safetensors"),
    "half the head": (halved("head.safetensors"), "head", "head.safetensors"),
    "another model's head": (wider_head, "head", "13 numbers"),
    "half the config": (halved("tiny-clip.json"), "config", "tiny-clip.json"),
    "an unknown model": (described(model="no-such-clip"), "model", "no-such-clip"),
    "a model of the hub": (described(model="hf-hub:artist/clip"), "model", "hf-hub:artist/clip"),
    "texts by the hub": (described(model="roberta-ViT-B-32", head=...), "model", "of roberta-base"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_folder_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    damage, name, reason = DEFECTS[defect]
    broken = tmp_path / "scorer"
    shutil.copytree(folder, broken)
    damage(broken)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(SettingsError) as caught:
        OpenClipScorer.load(broken)
    assert caught.value.name == name
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


def test_a_description_reads_back(folder: Path) -> None:
    files = read_description(folder)
    assert files == ScorerFiles(
        "tiny-clip", folder / "clip.safetensors", folder / "head.safetensors",
        folder / "tiny-clip.json", 0.4, 7.0,
    )  # fmt: skip


def test_a_tag_is_fetched_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights of a tag are not in open_clip's cache, it says where they are."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    files = ScorerFiles("ViT-B-32-quickgelu", "openai")
    with pytest.raises(SettingsError, match="weights openai of .* let --download fetch") as told:
        OpenClipScorer.load(files)
    assert told.value.name == "weights"
    assert "vit_base_patch32" in told.value.reason or "http" in told.value.reason


def test_a_known_head_that_is_missing_is_told_with_its_place(folder: Path, tmp_path: Path) -> None:
    files = read_description(folder)._replace(head=tmp_path / "sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(SettingsError, match="there is no file .*l_14_linear.pth; it is published"):
        OpenClipScorer.load(files)


@pytest.mark.parametrize(
    "seen",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)],
)
def test_only_rgb_bytes_are_pictures(scorer: OpenClipScorer, seen: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="pixels"):
        scorer.embed_images(seen)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_a_batch_has_at_least_one(folder: Path, batch_size: object) -> None:
    with pytest.raises(SettingsError, match="batch_size"):
        OpenClipScorer.load(folder, batch_size=batch_size)


def test_each_picture_needs_a_user_input(scorer: OpenClipScorer) -> None:
    with pytest.raises(SettingsError, match="user_inputs"):
        scorer.score(["a cat"], pictures(2))
