"""open_clip of the hosts' age, replayed on the one that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

import safetensors.torch  # noqa: E402

from promptadapt_core import old_open_clip  # noqa: E402

WEIGHTS = Path(old_open_clip.__file__).parent / "lab" / "weights" / "scorer"


@pytest.fixture
def lab_clip() -> Iterator[str]:
    open_clip.add_model_config(WEIGHTS / "lab-clip.json")
    yield "lab-clip"
    open_clip.add_model_config(WEIGHTS / "lab-clip.json")  # as it was


def test_age_is_told_by_what_a_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not old_open_clip.is_old()

    class Old:
        def __init__(self, embed_dim: int, vision_cfg: dict, text_cfg: dict) -> None:
            pass

    monkeypatch.setattr(open_clip, "CLIP", Old)
    assert old_open_clip.is_old()


def test_a_model_gets_the_weights_of_its_file(lab_clip: str) -> None:
    file = WEIGHTS / "open_clip_model.safetensors"
    model, preprocess = old_open_clip.create(lab_clip, file)
    weights = safetensors.torch.load_file(file)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert callable(preprocess)
    assert "init_logit_scale" not in open_clip.get_model_config(lab_clip)


def test_texts_are_cut_at_what_the_model_reads(lab_clip: str) -> None:
    tokens = old_open_clip.get_tokenizer(lab_clip)(["a cat", "a dog " * 100])
    assert tokens.shape == (2, 48)
    assert old_open_clip.get_tokenizer("ViT-B-32")(["a cat"]).shape == (1, 77)


def test_a_transform_is_told_or_unknown(
    lab_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    model, _ = old_open_clip.create(lab_clip, WEIGHTS / "open_clip_model.safetensors")
    assert {"size", "mean", "std"} <= set(old_open_clip.get_transform(model))
    monkeypatch.delattr(open_clip, "get_model_preprocess_cfg")
    assert old_open_clip.get_transform(model) == {}
