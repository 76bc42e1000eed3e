"""Where a CLIP's weights are looked for, and what is not opened."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip")

from promptadapt_core.open_clip_weights import (  # noqa: E402
    cached_weights,
    check_no_code,
    check_texts_are_here,
    find_weights,
)
from promptadapt_core.settings import SettingsError  # noqa: E402


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without anything fetched."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def write_program(path: Path) -> Path:
    """An archive as TorchScript writes it: its code lies beside its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", "raise SystemExit('it ran')")
        archive.writestr("model/data.pkl", b"")
    return path


def test_what_was_fetched_before_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def cached(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return str(tmp_path / name) if name.endswith(".bin") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    found = cached_weights("ViT-B-32", "laion2b_s34b_b79k")
    assert found is not None
    assert found.parent == tmp_path
    assert [name.rpartition(".")[2] for _, name in asked] == ["safetensors", "bin"]
    assert {repository for repository, _ in asked} == {"laion/CLIP-ViT-B-32-laion2B-s34B-b79K"}
    assert cached_weights("ViT-B-32", "no such tag") is None


def test_openais_programs_are_not_taken_for_weights(empty_cache: Path) -> None:
    """Other packages keep them where open_clip keeps its weights."""
    url = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai").get("url")
    if not url:
        pytest.skip("this open_clip has them from the hub only")
    path = empty_cache / ".cache" / "clip" / url.rpartition("/")[2]
    write_program(path)
    assert cached_weights("ViT-B-32-quickgelu", "openai") is None
    torch.save({"weight": torch.zeros(1)}, path)
    assert cached_weights("ViT-B-32-quickgelu", "openai") == path


def test_a_program_is_refused(tmp_path: Path) -> None:
    path = write_program(tmp_path / "ViT-B-32.pt")
    with pytest.raises(SettingsError, match="weights: .*ViT-B-32.pt is a program of TorchScript"):
        find_weights("ViT-B-32-quickgelu", str(path), download=False)


class Unwelcome:
    """What a pickle must not be able to bring in."""


@pytest.mark.parametrize("content", ["object", "half", "nothing"])
def test_an_older_open_clip_opens_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """It would unpickle whatever a file holds, with a torch of before 2.6."""

    def load_state_dict(checkpoint_path: str, map_location: str = "cpu") -> Any:
        raise AssertionError("not asked for")

    monkeypatch.setattr(open_clip.factory, "load_state_dict", load_state_dict)
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, good)
    check_no_code(good)
    if content == "object":
        torch.save({"state_dict": {}, "other": Unwelcome()}, bad)
    else:
        bad.write_bytes(good.read_bytes()[: 100 if content == "half" else 0])
    with pytest.raises(SettingsError, match="weights: .*bad.pt is truncated, broken or not just"):
        check_no_code(bad)
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    check_no_code(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("download", [False, True])
def test_weights_of_another_activation_are_refused(empty_cache: Path, download: bool) -> None:
    """OpenAI's in a model without QuickGELU score worse, and nothing says so."""
    if "quick_gelu" not in open_clip.get_pretrained_cfg("ViT-L-14", "openai"):
        pytest.skip("this open_clip does not tell")
    with pytest.raises(SettingsError, match="model: the weights openai are of ViT-L-14-quickgelu"):
        find_weights("ViT-L-14", "openai", download)
    assert find_weights("ViT-L-14-quickgelu", "openai", download=True) == ("openai", {})


def test_tokenizers_of_the_hub_are_not_asked_for_unasked(
    empty_cache: Path, no_network: None
) -> None:
    config = {"embed_dim": 4, "text_cfg": {"hf_tokenizer_name": "artist/words"}}
    told = "model: clip reads texts by tokenizer_config.json of artist/words, .* --download"
    with pytest.raises(SettingsError, match=told):
        check_texts_are_here("clip", config, download=False)
    check_texts_are_here("clip", config, download=True)
    check_texts_are_here("clip", {"embed_dim": 4, "text_cfg": {"layers": 1}}, download=False)
