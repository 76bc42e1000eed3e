"""nodes/memory.py and nodes/tensors.py without ComfyUI: stand-ins write down what is called."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from loaded_pack import load_pack

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

PACK = "custom_nodes/prompt adapt-memory"


@pytest.fixture(scope="module")
def pack() -> str:
    return load_pack(PACK)


@pytest.fixture
def memory(pack: str) -> ModuleType:
    return importlib.import_module(f"{pack}.nodes.memory")


@pytest.fixture
def tensors(pack: str) -> ModuleType:
    return importlib.import_module(f"{pack}.nodes.tensors")


class Patcher:
    """ComfyUI's ModelPatcher from December 2024 on: it has `detach`."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device  # as ComfyUI does, on any model
        self.calls: list[str] = []

    def note(self, call: str) -> None:
        assert not torch.is_inference_mode_enabled(), f"{call} moves weights"
        self.calls.append(call)

    def detach(self) -> None:
        self.note("detach")


class OldPatcher(Patcher):
    """Before: an attribute that is there no more must not be asked for."""

    detach = property()  # raises AttributeError

    def unpatch_model(self, device: Any) -> None:
        self.note(f"unpatch_model to {device}")


def put_comfy(monkeypatch: pytest.MonkeyPatch, patcher: type, full: bool = False) -> None:
    comfy, management = ModuleType("comfy"), ModuleType("comfy.model_management")
    module = ModuleType("comfy.model_patcher")
    comfy.model_management, comfy.model_patcher, module.ModelPatcher = management, module, patcher

    def load_models_gpu(patchers: list[Patcher]) -> None:
        for one in patchers:
            one.note("load")
        if full:
            raise RuntimeError("out of memory")

    management.load_models_gpu = load_models_gpu
    management.unload_model_clones = lambda one: one.note("off the list")
    management.text_encoder_device = lambda: torch.device("cpu")
    management.text_encoder_offload_device = lambda: torch.device("cpu")
    for one in (comfy, management, module):
        monkeypatch.setitem(sys.modules, one.__name__, one)


@pytest.mark.parametrize(
    ("patcher", "rest"),
    [(Patcher, ["detach"]), (OldPatcher, ["off the list", "unpatch_model to cpu"])],
)
def test_a_model_rests_after_use_in_old_and_new_comfyui(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch, patcher: type, rest: list[str]
) -> None:
    put_comfy(monkeypatch, patcher)
    managed = memory.ManagedModel(torch.nn.Linear(2, 2), "default")
    calls = managed._patcher.calls
    with torch.inference_mode():
        for _ in range(2):
            with managed.loaded():
                assert calls[-1] == "load"
                assert torch.is_inference_mode_enabled()
    assert calls == ["load", *rest] * 2


def test_a_model_that_fails_or_does_not_fit_rests_too(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_comfy(monkeypatch, Patcher)
    managed = memory.ManagedModel(torch.nn.Linear(2, 2), "default")
    with pytest.raises(KeyError), managed.loaded():
        raise KeyError
    assert managed._patcher.calls == ["load", "detach"]
    put_comfy(monkeypatch, Patcher, full=True)
    with pytest.raises(RuntimeError, match="out of memory"), managed.loaded():
        pass
    assert managed._patcher.calls == ["load", "detach"] * 2


def image(height: int, width: int, *colour: float) -> torch.Tensor:
    return torch.tensor(colour).expand(1, height, width, len(colour)).clone()


def test_one_picture_becomes_a_batch_of_one(tensors: ModuleType) -> None:
    picture = torch.arange(24, dtype=torch.uint8).view(2, 4, 3).numpy()
    made = tensors.image_of(picture)
    assert made.shape == (1, 2, 4, 3)
    assert made[0, 1, 3, 2] == pytest.approx(23 / 255)


def test_pictures_go_on_as_they_came(tensors: ModuleType) -> None:
    batch = torch.rand(2, 3, 4, 4) * 2.0 - 0.5  # alpha, and values beyond 0..1
    frames = tensors.frames_of([batch[:1], batch[1:]])
    assert torch.equal(tensors.batch_of(frames), batch)
    assert torch.equal(tensors.batch_of(frames[::-1]), batch.flip(0))


def test_pictures_of_other_sizes_and_colours_are_fitted_to_the_first(tensors: ModuleType) -> None:
    wide = torch.zeros(1, 4, 12, 3)
    wide[:, :, 4:8] = 0.5  # the middle is what a square shows
    frames = tensors.frames_of([image(8, 8, 1.0, 0.0, 0.0), wide, image(1, 1, 0.25)])
    made = tensors.batch_of(frames)
    assert made.shape == (3, 8, 8, 3)
    assert torch.equal(made[:1], image(8, 8, 1.0, 0.0, 0.0))
    assert made[1, :, 2:6].allclose(torch.tensor(0.5))
    assert made[2].allclose(torch.tensor(0.25))
    mixed = tensors.batch_of(tensors.frames_of([image(2, 2, 0.1, 0.2, 0.3, 0.4), frames[0][None]]))
    assert mixed.shape == (2, 2, 2, 3)
