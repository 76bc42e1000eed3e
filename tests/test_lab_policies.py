"""The bundled policies of the lab: small, whole, and those that their card tells of."""

from __future__ import annotations

import hashlib

import pytest

from promptadapt_core.policies import LAB_FOLDERS
from promptadapt_core.policy import Policy

PLACE = next(iter(LAB_FOLDERS.values())).parent

pytestmark = pytest.mark.skipif(
    not all(folder.is_dir() for folder in LAB_FOLDERS.values()), reason="they are not bundled"
)


def test_both_are_bundled_and_small() -> None:
    assert {*LAB_FOLDERS} == {"lab", "lab-sft"}
    assert len({folder.name for folder in LAB_FOLDERS.values()}) == 2
    files = [path for path in PLACE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000


@pytest.mark.parametrize("name", LAB_FOLDERS)
def test_the_card_tells_of_these_weights(name: str) -> None:
    """By their SHA-256, or a figure in it may be that of another training."""
    weights = (LAB_FOLDERS[name] / "model.safetensors").read_bytes()
    card = (PLACE / "README.md").read_text("utf-8")
    assert hashlib.sha256(weights).hexdigest()[:12] in card
    for promised in ("## Commands", "## What they are worth", "## Limits", "Apache-2.0"):
        assert promised in card


def test_reinforcement_learning_changed_the_weights_and_nothing_else() -> None:
    """Not the tokenizer, the template or the size of the policy that it began with."""
    first, second = (Policy.load(LAB_FOLDERS[name]) for name in ("lab-sft", "lab"))
    own, other = first.weights, second.weights
    assert {name: one.shape for name, one in own.items()} == {
        name: one.shape for name, one in other.items()
    }
    assert any((own[name] != other[name]).any() for name in own)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        texts = [(LAB_FOLDERS[name] / file).read_text("utf-8") for name in LAB_FOLDERS]
        assert texts[0] == texts[1]
    assert first.manifest.template == second.manifest.template
