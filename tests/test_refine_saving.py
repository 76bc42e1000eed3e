from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptadapt_core import lora
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.images import ImageSettings
from promptadapt_core.manifest import write_manifest
from promptadapt_core.policies import find_policies
from promptadapt_core.policy import Policy
from promptadapt_core.refine.refining import Refiner
from promptadapt_core.refine.saving import check_name, save_lora, save_policy
from promptadapt_core.refine.settings import RefineSettings
from promptadapt_core.rewards import Rewarder
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError

SUBJECTS = ("a cat", "an old house", "two boats")


class Lengths:
    """Draws the length of a text and likes it: a renderer and a scorer."""

    identity, settings = "lengths", ImageSettings()
    relevance_knee, relevance_slope = 0.0, 1.0

    def generate(self, texts: Sequence[str], seeds: Sequence[int], **options: Any) -> np.ndarray:
        rows = [(min(len(text), 250), 1, 1) for text in texts]
        return np.array(rows, dtype=np.uint8).reshape(-1, 1, 1, 3)

    def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Scores:
        red = torch.from_numpy(pixels[:, 0, 0, 0].astype(np.float32))
        return Scores(red / 10, torch.ones(len(pixels)))


@pytest.fixture(scope="module")
def models(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A models folder with the policy `policy`."""
    return policy_for(SUBJECTS)


def searched(models: Path, **settings: Any) -> Refiner:
    chosen = {"num_rounds": 1, "num_candidates": 6, "lr": 1e-2, **settings}
    search = Refiner(
        PromptAdapter.load(models / "policy"), Rewarder(Lengths(), Lengths()), "a cat",
        RefineSettings(**chosen),
    )  # fmt: skip
    search.run()
    return search


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(torch.tensor([[5, 9, 30]])).logits


def test_a_saved_policy_is_the_refined_one(models: Path, tmp_path: Path) -> None:
    search = searched(models)
    folder = save_policy(search, tmp_path, "mine")
    assert folder == tmp_path / "mine"
    loaded = Policy.load(folder)
    assert torch.allclose(logits(loaded), logits(search.refined_policy()), atol=2e-2)  # float16
    assert not torch.allclose(logits(loaded), logits(Policy.load(models / "policy")), atol=2e-2)
    assert [info.name for info in find_policies(tmp_path) if info.source != "bundled"] == ["mine"]
    again = save_policy(search, tmp_path, "mine")
    assert again == tmp_path / "mine-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-2"]


def test_a_lora_is_loaded_with_the_policy_it_belongs_to(
    models: Path, untouched_generators: Callable
) -> None:
    pytest.importorskip("peft")
    with untouched_generators():
        search = searched(models, lora_rank=4)
        folder = save_lora(search, models, "small")
        loaded = Policy.load(folder)
    assert loaded.manifest.name == "small"
    assert torch.allclose(logits(loaded), logits(search.refined_policy()), atol=1e-4)
    base = Policy.load(models / "policy")
    assert not torch.allclose(logits(loaded), logits(base), atol=1e-3)
    (info,) = [info for info in find_policies(models) if info.name == "small"]
    assert info.description == "LoRA of policy"
    assert info.size_bytes < (models / "policy" / "model.safetensors").stat().st_size
    text = PromptAdapter.load("small", models_folder=models).adapt("a cat", seed=1)
    assert text[0].adapted_prompt.startswith("a cat")

    write_manifest(dataclasses.replace(base.manifest, vocab_sha256="0" * 64), folder)
    with pytest.raises(SettingsError, match="its vocabulary is not the one that its weights"):
        Policy.load(folder)
    write_manifest(base.manifest, folder)
    assert Policy.load(folder).manifest == base.manifest
    (folder / "promptadapt.json").unlink()
    path = folder / lora.BASE_NAME
    whole = path.read_text("utf-8")
    lora.write_base(folder, lora.LoraBase("policy", "0" * 12))
    with pytest.raises(SettingsError, match="belongs to another policy than is here"):
        Policy.load(folder)
    lora.write_base(folder, lora.LoraBase("gone", "0" * 12))
    with pytest.raises(SettingsError, match="there is no policy 'gone'"):
        Policy.load(folder)
    path.write_text("{}", "utf-8")
    with pytest.raises(SettingsError, match="does not say of which policy"):
        Policy.load(folder)
    path.write_text(whole, "utf-8")
    (folder / lora.WEIGHTS_NAME).write_bytes(b"half a file")
    with pytest.raises(SettingsError, match="cannot be read as LoRA"):
        Policy.load(folder)


def test_a_lora_that_was_not_trained(models: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no LoRA matrices were trained"):
        save_lora(searched(models), tmp_path, "mine")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half is left behind."""

    def full(self: Policy, folder: Path, dtype: torch.dtype) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    search = searched(models)
    monkeypatch.setattr(Policy, "save", full)
    with pytest.raises(SettingsError, match="save_name: .*cannot be written .No space left"):
        save_policy(search, tmp_path, "mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "a\\b", "c:", "CON", "lpt1.x", "a\n", "x" * 101, "a?", "b."]
)
def test_names_that_are_no_folder_everywhere(name: str) -> None:
    if name == "a\n":
        assert check_name(name) == "a"
        return
    with pytest.raises(SettingsError, match="save_name: expected the name of a folder"):
        check_name(name)


def test_the_names_of_bundled_policies_get_a_number(models: Path, tmp_path: Path) -> None:
    """They would be found before it, or it before them."""
    search = searched(models, method="best_of_n")
    assert save_policy(search, tmp_path, "lab").name == "lab-2"
    assert save_policy(search, tmp_path, "PromptAdapt-SD").name == "PromptAdapt-SD-2"


@pytest.mark.skipif(os.name == "nt", reason="rights are another matter on Windows")
def test_others_may_read_what_is_saved(models: Path, tmp_path: Path) -> None:
    folder = save_policy(searched(models, method="best_of_n"), tmp_path, "mine")
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode


def test_names_that_are() -> None:
    assert check_name(" Mein Stil 2 ") == "Mein Stil 2"
    assert check_name("画风") == "画风"
    assert check_name("console") == "console"
