"""PickScore, HPSv2 and ImageReward at tiny width, each against its own arithmetic."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

from promptadapt_core.image_reward import MEAN, STD  # noqa: E402
from promptadapt_core.judging import PreferenceJudge, ScorerJudge, load_judge  # noqa: E402
from promptadapt_core.preference_scorers import (  # noqa: E402
    ClipPreference,
    ImageRewardScorer,
    read_preference_files,
)
from promptadapt_core.quiet_libraries import quiet_libraries  # noqa: E402
from promptadapt_core.scorer_folders import (  # noqa: E402
    can_score,
    is_scorer_folder,
    load_scorer_folder,
)
from promptadapt_core.scorers import OpenClipScorer  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

SIZE = 32
TEXTS = ["a red cat", "a blue house by the sea", "", "a red cat"]
TINY = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "blue", "house", "by",
         "the", "sea", "##s"]  # fmt: skip


def seeded(seed: int) -> None:
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())


def write_pickscore(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        seeded(1)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                 "num_attention_heads": 2}  # fmt: skip
        model = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**sizes, "vocab_size": 49408, "eos_token_id": 49407,
                             "bos_token_id": 49406, "hidden_act": "gelu"},
                vision_config={**sizes, "image_size": SIZE, "patch_size": 16},
                projection_dim=12,
            )
        ).eval()  # fmt: skip
        model.logit_scale.data.fill_(math.log(90.0))
    model.save_pretrained(folder)


def write_hpsv2(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny-clip.json").write_text(json.dumps(TINY), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        seeded(2)
        model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    told = {"kind": "hpsv2", "model": "tiny-clip"}
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")


def blip_state(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights under the names of ImageReward's file: one layer of width 64 each."""

    def drawn(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    state: dict[str, torch.Tensor] = {
        "cls_token": drawn(1, 1, 64), "pos_embed": drawn(1, 5, 64),
        "patch_embed.proj.weight": drawn(64, 3, 16, 16), "patch_embed.proj.bias": drawn(64),
        "blocks.0.attn.qkv.weight": drawn(192, 64), "blocks.0.attn.qkv.bias": drawn(192),
        "blocks.0.attn.proj.weight": drawn(64, 64), "blocks.0.attn.proj.bias": drawn(64),
        "blocks.0.mlp.fc1.weight": drawn(96, 64), "blocks.0.mlp.fc1.bias": drawn(96),
        "blocks.0.mlp.fc2.weight": drawn(64, 96), "blocks.0.mlp.fc2.bias": drawn(64),
    }  # fmt: skip
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        state |= {f"{name}.weight": 1 + drawn(64), f"{name}.bias": drawn(64)}
    texts = {
        "embeddings.word_embeddings.weight": drawn(len(WORDS) + 2, 64),
        "embeddings.position_embeddings.weight": drawn(40, 64),
        "embeddings.position_ids": torch.arange(40)[None],
    }
    layer = "encoder.layer.0."
    linear = {"intermediate.dense": (96, 64), "output.dense": (64, 96)}
    for part in ("attention", "crossattention"):
        linear |= {f"{part}.self.{one}": (64, 64) for one in ("query", "key", "value")}
        linear[f"{part}.output.dense"] = (64, 64)
        texts |= {f"{layer}{part}.output.LayerNorm.weight": 1 + drawn(64),
                  f"{layer}{part}.output.LayerNorm.bias": drawn(64)}  # fmt: skip
    for name, shape in linear.items():
        texts |= {f"{layer}{name}.weight": drawn(*shape), f"{layer}{name}.bias": drawn(shape[0])}
    for name in (f"{layer}output.LayerNorm", "embeddings.LayerNorm"):
        texts |= {f"{name}.weight": 1 + drawn(64), f"{name}.bias": drawn(64)}
    head = {}
    widths = [64, 16, 8, 4, 4, 1]
    for place, inner, outer in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        head |= {f"{place}.weight": drawn(outer, inner), f"{place}.bias": drawn(outer)}
    return {
        **{f"blip.visual_encoder.{name}": tensor for name, tensor in state.items()},
        **{f"blip.text_encoder.{name}": tensor for name, tensor in texts.items()},
        **{f"mlp.layers.{name}": tensor for name, tensor in head.items()},
        "blip.vision_proj.weight": drawn(4, 64),
    }


def write_image_reward(folder: Path) -> None:
    folder.mkdir()
    torch.save(blip_state(torch.Generator().manual_seed(3)), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scorers")
    with quiet_libraries():
        write_pickscore(place / "pickscore")
    write_hpsv2(place / "hpsv2")
    write_image_reward(place / "imagereward")
    return place


@pytest.fixture(params=["pickscore", "hpsv2", "imagereward"])
def folder(request: pytest.FixtureRequest, place: Path) -> Path:
    return place / request.param


def pictures(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, height, width, 3), np.uint8)


def test_pickscore_is_the_models_own_logit(place: Path) -> None:
    """As its model card computes it: scale * <text, image>, unit length."""
    scorer = load_scorer_folder(place / "pickscore")
    assert isinstance(scorer, ClipPreference)
    seen = pictures(4, 48, 40)
    scores = scorer.score(TEXTS, seen)
    with quiet_libraries():
        model = transformers.CLIPModel.from_pretrained(place / "pickscore").eval()
    transform = open_clip.image_transform(SIZE, is_train=False)
    inputs = torch.stack([transform(Image.fromarray(picture)) for picture in seen])
    ids = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=inputs).logits_per_image.diagonal()
    assert scores.aesthetic.tolist() == pytest.approx(logits.tolist(), abs=1e-4)
    assert scores.relevance.tolist() == pytest.approx((logits / 90).clamp(min=0).tolist(), abs=1e-5)
    assert scorer.relevance_slope == 0.0


def test_hpsv2_is_a_hundred_cosines(place: Path) -> None:
    scorer = load_scorer_folder(place / "hpsv2")
    assert isinstance(scorer, ClipPreference)
    seen = pictures(4)
    open_clip.add_model_config(place / "hpsv2" / "tiny-clip.json")
    stored = torch.load(place / "hpsv2" / "HPS_v2.1_compressed.pt", weights_only=True)
    model = open_clip.CLIP(**json.loads(json.dumps(TINY))).eval()
    model.load_state_dict(stored["state_dict"])
    transform = open_clip.image_transform(SIZE, is_train=False)
    inputs = torch.stack([transform(Image.fromarray(picture)) for picture in seen])
    with torch.no_grad():
        images = model.encode_image(inputs, normalize=True)
        texts = model.encode_text(open_clip.tokenize(TEXTS, context_length=16), normalize=True)
    expected = (100 * images @ texts.T).diagonal().tolist()
    assert scorer.score(TEXTS, seen).aesthetic.tolist() == pytest.approx(expected, abs=1e-4)


def test_hpsv2_sees_the_whole_of_an_oblong_picture(place: Path) -> None:
    """Its authors fit the longer side and fill up; open_clip's own cuts the sides off."""
    scorer = load_scorer_folder(place / "hpsv2")
    assert isinstance(scorer, ClipPreference)
    seen = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    seen[:, :8] = 255  # at the far left
    inputs = scorer.clip.preprocess(Image.fromarray(seen))
    assert inputs.shape == (3, SIZE, SIZE)
    assert inputs.max() > inputs.min() + 2


def attention(inputs: torch.Tensor, keys: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    """One head of 64: softmax(q k / 8) v."""
    q, k, v = (
        some @ state[f"{name}.{one}.weight"].T + state[f"{name}.{one}.bias"]
        for one, some in (("query", inputs), ("key", keys), ("value", keys))
    )
    return torch.softmax(q @ k.T / 8, dim=-1) @ v


def test_image_reward_is_its_own_arithmetic(place: Path) -> None:
    """The same numbers written out, one picture and one text at a time."""
    norm = torch.nn.functional.layer_norm
    gelu = torch.nn.functional.gelu
    stored = torch.load(place / "imagereward" / "ImageReward.pt", weights_only=True)
    seen, texts = pictures(2), ["a red cat", "the blue sea"]
    scorer = load_scorer_folder(place / "imagereward")
    assert isinstance(scorer, ImageRewardScorer)
    transform = open_clip.image_transform(SIZE, is_train=False)
    expected = []
    for picture, text in zip(seen, texts, strict=True):
        eyes = {n[20:]: t for n, t in stored.items() if n.startswith("blip.visual_encoder.")}
        patches = torch.nn.functional.conv2d(
            transform(Image.fromarray(picture))[None], eyes["patch_embed.proj.weight"],
            eyes["patch_embed.proj.bias"], stride=16,
        )[0].flatten(1).T  # fmt: skip
        x = torch.cat([eyes["cls_token"][0], patches]) + eyes["pos_embed"][0]
        for name in ("weight", "bias"):
            for one, part in zip(
                ("query", "key", "value"), eyes[f"blocks.0.attn.qkv.{name}"].chunk(3), strict=True
            ):
                eyes[f"attn.{one}.{name}"] = part

        def normed(x: torch.Tensor, name: str, some: dict, eps: float) -> torch.Tensor:
            return norm(x, (64,), some[f"{name}.weight"], some[f"{name}.bias"], eps)

        def mapped(x: torch.Tensor, name: str, some: dict) -> torch.Tensor:
            return x @ some[f"{name}.weight"].T + some[f"{name}.bias"]

        inner = normed(x, "blocks.0.norm1", eyes, 1e-6)
        x = x + mapped(attention(inner, inner, eyes, "attn"), "blocks.0.attn.proj", eyes)
        inner = normed(x, "blocks.0.norm2", eyes, 1e-6)
        inner = gelu(mapped(inner, "blocks.0.mlp.fc1", eyes))
        x = x + mapped(inner, "blocks.0.mlp.fc2", eyes)
        image = normed(x, "norm", eyes, 1e-6)

        words = {n[18:]: t for n, t in stored.items() if n.startswith("blip.text_encoder.")}
        ids = [WORDS.index(word) for word in ("[CLS]", *text.split(), "[SEP]")]
        y = words["embeddings.word_embeddings.weight"][ids]
        y = y + words["embeddings.position_embeddings.weight"][: len(ids)]
        y = normed(y, "embeddings.LayerNorm", words, 1e-12)
        layer = "encoder.layer.0."
        for part in ("attention", "crossattention"):
            keys = y if part == "attention" else image
            found = attention(y, keys, words, f"{layer}{part}.self")
            found = mapped(found, f"{layer}{part}.output.dense", words)
            y = normed(found + y, f"{layer}{part}.output.LayerNorm", words, 1e-12)
        inner = gelu(mapped(y, f"{layer}intermediate.dense", words))
        y = normed(
            mapped(inner, f"{layer}output.dense", words) + y,
            f"{layer}output.LayerNorm", words, 1e-12,
        )  # fmt: skip
        score = y[0]
        for at in (0, 2, 4, 6, 7):
            score = mapped(score, f"mlp.layers.{at}", stored)
        expected.append((float(score) - MEAN) / STD)
    scores = scorer.score(texts, seen)
    assert scores.aesthetic.tolist() == pytest.approx(expected, abs=1e-5)
    assert scores.relevance.tolist() == [0.0, 0.0]


def test_scores_do_not_depend_on_the_batch(
    folder: Path, untouched_generators: Callable[[], AbstractContextManager[None]]
) -> None:
    with untouched_generators():
        scorer: Any = load_scorer_folder(folder)
        whole = scorer.score(TEXTS, pictures(4)).aesthetic
    (scorer.clip if isinstance(scorer, ClipPreference) else scorer).batch_size = 1
    assert torch.allclose(scorer.score(TEXTS, pictures(4)).aesthetic, whole, atol=1e-4)
    assert scorer.score([], pictures(4)[:0]).aesthetic.shape == (0,)
    assert torch.isfinite(scorer.score(["\ud800", "cat " * 900], pictures(2)).aesthetic).all()


def test_memory_that_runs_out_halves_the_batch(place: Path) -> None:
    scorer = load_scorer_folder(place / "imagereward")
    assert isinstance(scorer, ImageRewardScorer)
    whole = scorer.score(TEXTS, pictures(4)).aesthetic
    sizes: list[int] = []
    model = scorer.model

    def hungry(inputs: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA")
        return model(inputs, ids, mask)

    scorer.model = hungry  # type: ignore[assignment]
    assert torch.allclose(scorer.score(TEXTS, pictures(4)).aesthetic, whole, atol=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_each_can_judge(folder: Path) -> None:
    judge = load_judge(str(folder))
    assert isinstance(judge, PreferenceJudge)
    seen = pictures(2)
    judged = judge.judge_each(["a red cat", "a boat"], ["", ""], [seen, None])
    assert list(judged) == list(judge.metrics) == ["judge/preference"]
    mean = judge.scorer.score(["a red cat"] * 2, seen).aesthetic.double().mean().item()
    assert judged["judge/preference"][0] == pytest.approx(mean, abs=1e-4)
    assert np.isnan(judged["judge/preference"][1])


def test_identities_follow_the_files(folder: Path, tmp_path: Path) -> None:
    own = load_scorer_folder(folder).identity
    assert len(own) == 12
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    assert load_scorer_folder(copied).identity == own
    path = next(path for path in copied.iterdir() if path.suffix in (".pt", ".safetensors"))
    if path.suffix == ".pt":
        stored = torch.load(path, weights_only=True)
        next(iter((stored.get("state_dict") or stored).values())).add_(1)
        torch.save(stored, path)
    else:
        weights = load_file(path)
        save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, path)
    assert load_scorer_folder(copied).identity != own


@pytest.mark.parametrize(
    ("kind", "name", "old", "new"),
    [
        ("pickscore", "config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'),
        ("imagereward", "vocab.txt", "red\ncat", "cat\nred"),
        ("hpsv2", "tiny-clip.json", '"heads": 1', '"heads": 2'),
    ],
)
def test_identities_follow_what_lies_beside_the_weights(
    place: Path, tmp_path: Path, kind: str, name: str, old: str, new: str
) -> None:
    copied = Path(shutil.copytree(place / kind, tmp_path / "copied"))
    text = (copied / name).read_text(encoding="utf-8")
    assert old in text
    (copied / name).write_text(text.replace(old, new), encoding="utf-8")
    try:
        changed = load_scorer_folder(copied)
    finally:
        open_clip.add_model_config(place / "hpsv2" / "tiny-clip.json")
    assert changed.identity != load_scorer_folder(place / kind).identity


def test_files_are_known_by_their_names(place: Path, tmp_path: Path) -> None:
    found = {}
    for kind in ("pickscore", "imagereward"):
        assert not (place / kind / "scorer.json").exists()
        assert is_scorer_folder(place / kind)
        files = read_preference_files(place / kind)
        assert files is not None
        found[kind] = files.kind
    assert found == {"pickscore": "pickscore", "imagereward": "imagereward"}
    old = tmp_path / "HPS_v2_compressed.pt"
    old.write_bytes(b"")
    files = read_preference_files(tmp_path)
    assert files is not None
    assert (files.kind, files.weights, files.model) == ("hpsv2", old, "ViT-H-14")
    new = tmp_path / "HPS_v2.1_compressed.pt"
    new.write_bytes(b"")
    files = read_preference_files(tmp_path)
    assert files is not None
    assert files.weights == new


def test_a_relevance_term_can_be_asked_for(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "pickscore", tmp_path / "mine"))
    told = {"kind": "pickscore", "relevance_knee": 0.2, "relevance_slope": 5}
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")
    scorer = load_scorer_folder(folder)
    assert (scorer.relevance_knee, scorer.relevance_slope) == (0.2, 5.0)
    assert scorer.identity == load_scorer_folder(place / "pickscore").identity


def test_a_clip_with_a_head_is_still_the_usual_scorer(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(place / "hpsv2", folder)
    save_file({"weight": torch.ones(1, 12), "bias": torch.ones(1)}, folder / "head.safetensors")
    told = {"model": "tiny-clip", "weights": "HPS_v2.1_compressed.pt", "head": "head.safetensors",
            "relevance_knee": 0.1, "relevance_slope": 2.0}  # fmt: skip
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")
    scorer = load_scorer_folder(folder)
    assert isinstance(scorer, OpenClipScorer)
    assert can_score(scorer)
    assert isinstance(load_judge(str(folder)), ScorerJudge)
    del told["head"]
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")
    assert not can_score(load_scorer_folder(folder))


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change(path: Path, **changes: torch.Tensor | None) -> None:
    stored = torch.load(path, weights_only=True)
    kept = {**stored, **{name.replace("__", "."): some for name, some in changes.items()}}
    torch.save({name: some for name, some in kept.items() if some is not None}, path)


def describe(folder: Path, **told: Any) -> None:
    (folder / "scorer.json").write_text(json.dumps(told), encoding="utf-8")


def other_words(folder: Path) -> None:
    path = folder / "config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["text_config"]["vocab_size"] = 300
    path.write_text(json.dumps(told), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name] = weights[name][:300].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DEFECTS: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "half of PickScore": (
        "pickscore", lambda p: halve(p / "model.safetensors"), "weights", "model.safetensors has"),
    "PickScore without its file": (
        "pickscore", lambda p: (p / "model.safetensors").unlink(), "scorer",
        "there is no file .*model.safetensors; put there that of yuvalkirstain/PickScore_v1"),
    "PickScore with a part gone": (
        "pickscore", lambda p: save_file(
            {n: t for n, t in load_file(p / "model.safetensors").items() if "text_proj" not in n},
            p / "model.safetensors", {"format": "pt"}),
        "weights", "lacks text_projection.weight"),
    "PickScore of NaN": (
        "pickscore", lambda p: save_file(
            {n: t * math.nan for n, t in load_file(p / "model.safetensors").items()},
            p / "model.safetensors", {"format": "pt"}),
        "weights", "is not finite"),
    "half of HPSv2": (
        "hpsv2", lambda p: halve(p / "HPS_v2.1_compressed.pt"), "weights", "cannot be loaded into"),
    "HPSv2 without its file": (
        "hpsv2", lambda p: (p / "HPS_v2.1_compressed.pt").unlink(), "scorer",
        "there is no file .*HPS_v2.1_compressed.pt; put there that of xswu/HPSv2"),
    "HPSv2 of another size": (
        "hpsv2", lambda p: describe(p, kind="hpsv2", model="ViT-B-32"), "weights",
        "cannot be loaded into ViT-B-32"),
    "half of ImageReward": (
        "imagereward", lambda p: halve(p / "ImageReward.pt"), "weights", "truncated, broken"),
    "half a vocabulary": (
        "imagereward", lambda p: (p / "vocab.txt").write_text(
            "\n".join(WORDS[:9]), encoding="utf-8"),
        "weights", "vocab.txt has 9 words, .*ImageReward.pt knows 16"),
    "the vocabulary of another BERT": (
        "imagereward", lambda p: (p / "vocab.txt").write_text(
            "\n".join([*WORDS, *"uvwxyz"]), encoding="utf-8"),
        "weights", "vocab.txt has 20 words, .*ImageReward.pt knows 16"),
    "PickScore of other words": (
        "pickscore", other_words, "weights", "texts of 300 different tokens, PickScore of 49408"),
    "ImageReward without a vocabulary": (
        "imagereward", lambda p: (p / "vocab.txt").unlink(), "weights",
        "there is no file .*vocab.txt; put there that of google-bert/bert-base-uncased"),
    "other weights for ImageReward": (
        "imagereward", lambda p: torch.save({"a": torch.zeros(1)}, p / "ImageReward.pt"),
        "weights", "is no ImageReward"),
    "ImageReward of another embedding": (
        "imagereward", lambda p: change(
            p / "ImageReward.pt", mlp__layers__0__weight=torch.zeros(16, 65)),
        "weights", "its head reads 65 numbers, its texts make 64"),
    "ImageReward with a part gone": (
        "imagereward", lambda p: change(
            p / "ImageReward.pt", blip__visual_encoder__norm__weight=None),
        "weights", "is no ImageReward"),
    "a list": (
        "imagereward", lambda p: torch.save([torch.zeros(1)], p / "ImageReward.pt"),
        "weights", "table of named weights"),
    "an unknown kind": ("hpsv2", lambda p: describe(p, kind="taste"), "scorer", "kind has to be"),
    "a knee of NaN": (
        "hpsv2", lambda p: describe(p, kind="hpsv2", relevance_knee=math.nan), "scorer",
        "have to be numbers"),
    "weights that are a number": (
        "hpsv2", lambda p: describe(p, kind="hpsv2", weights=3), "scorer", "have to be texts"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named(place: Path, tmp_path: Path, defect: str) -> None:
    kind, damage, name, told = DEFECTS[defect]
    folder = Path(shutil.copytree(place / kind, tmp_path / kind))
    damage(folder)
    with pytest.raises(SettingsError, match=told) as caught:
        load_scorer_folder(folder)
    assert caught.value.name == name
    assert "\n" not in caught.value.reason


def test_a_folder_of_something_else_is_no_scorer(tmp_path: Path) -> None:
    assert not is_scorer_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert not is_scorer_folder(tmp_path)
    with pytest.raises(SettingsError, match=r"there is no .*scorer\.json, which describes"):
        load_scorer_folder(tmp_path)


@pytest.mark.parametrize("seen", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_only_rgb_bytes_are_pictures(folder: Path, seen: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="pixels"):
        load_scorer_folder(folder).score(["a cat"] * len(seen), seen)
    with pytest.raises(SettingsError, match="user_inputs"):
        load_scorer_folder(folder).score(["a cat"], pictures(2))
