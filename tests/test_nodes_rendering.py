"""nodes/rendering.py, searching.py and the checks of refining.py without ComfyUI: stand-ins write
down what is called. The pictures themselves are looked at in test_nodes_refining.py."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loaded_pack import load_pack

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from promptadapt_core.refine.refining import stays  # noqa: E402

PACK = "custom_nodes/prompt adapt-rendering"


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException: its sampler raises it and sets the flag back."""


class Comfy:
    """What rendering asks of ComfyUI. A picture: mean of its noise, and of what its text is.

    ancestral: its sampler draws from torch's global generator, as those of 2024 do. most: pictures
    that memory holds."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.batches: list[int] = []
        self.freed: list[tuple[float, torch.device]] = []
        self.ancestral, self.most, self.pictures_each = False, 64, 1
        self.cancelled, self.interrupted = False, False

    def prepare_noise(self, latent: torch.Tensor, seed: int, indices: Any = None) -> torch.Tensor:
        generator = torch.manual_seed(seed)
        noise = torch.randn(latent.size(), dtype=torch.float32, generator=generator)
        return noise.to(latent.dtype)

    def fix_empty_latent_channels(
        self, model: Any, latent: torch.Tensor, downscale_ratio_spacial: int | None = None
    ) -> torch.Tensor:
        if downscale_ratio_spacial is not None:
            latent = latent[..., ::2, ::2]
        return latent

    def sample(self, model: Any, noise: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        self.batches.append(len(noise))
        if self.cancelled:
            raise Interrupted
        if len(noise) > self.most:
            raise RuntimeError("CUDA out of memory")
        if self.ancestral:
            noise = noise + torch.randn_like(noise)
        ((embedding, _),) = given[4]
        return noise + 10 * embedding[:, :, None, None]

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        grey = samples.float().mean((1, 2, 3)).sigmoid()[:, None, None, None]
        return grey.expand(-1, 2, 2, 3).repeat(self.pictures_each, 1, 1, 1)

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        self.encoded.append(text)
        return [[torch.full((1, 1), len(text) / 100), {"pooled_output": None, "guidance": 3.5}]]

    def interrupt(self, value: bool = True) -> None:
        self.interrupted = value

    def free_memory(self, number: float, device: torch.device) -> None:
        self.freed.append((number, device))

    @property
    def model(self) -> Any:
        inner = SimpleNamespace(latent_format=None)
        return SimpleNamespace(load_device=torch.device("cpu"), model=inner)


@pytest.fixture(scope="module")
def pack() -> str:
    return load_pack(PACK)


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    stand_in, names = Comfy(), {}
    for name in ("comfy", "comfy.sample", "comfy.model_management", "latent_preview"):
        names[name] = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, names[name])
    names["comfy"].sample = names["comfy.sample"]
    names["comfy"].model_management = names["comfy.model_management"]
    for name in ("sample", "prepare_noise", "fix_empty_latent_channels"):
        setattr(names["comfy.sample"], name, getattr(stand_in, name))
    management = names["comfy.model_management"]
    management.OOM_EXCEPTION = torch.cuda.OutOfMemoryError
    management.soft_empty_cache, management.free_memory = lambda: None, stand_in.free_memory
    management.InterruptProcessingException = Interrupted
    management.interrupt_current_processing = stand_in.interrupt
    names["latent_preview"].get_previewer = lambda device, latent_format: None
    return stand_in


@pytest.fixture
def rendering(pack: str) -> ModuleType:
    return importlib.import_module(f"{pack}.nodes.rendering")


@pytest.fixture
def made(rendering: ModuleType, comfy: Comfy) -> Callable[..., Any]:
    """A ComfyGenerator of the stand-ins; the same MODEL every time."""
    model = comfy.model

    def make(sampler: str = "euler", batch_size: int = 4, latent: Any = None) -> Any:
        sampling = rendering.Sampling(2, 5.0, sampler, "simple", batch_size)
        latent = {"samples": torch.zeros(3, 4, 8, 8)} if latent is None else latent
        return rendering.ComfyGenerator(model, comfy, comfy, None, latent, sampling)

    return make


@contextlib.contextmanager
def the_global_generator_stays() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_a_picture_is_that_of_its_seed(
    made: Callable[..., Any], comfy: Comfy, sampler: str
) -> None:
    """Also where the sampler goes on drawing from the generator that KSampler has seeded."""
    comfy.ancestral = sampler == "euler_ancestral"
    generator = made(sampler)
    with the_global_generator_stays():
        pictures = generator.generate(["a", "a", "bb"], [3, 4, 3])
    torch.rand(5)
    alone = [made(sampler).generate([text], [seed]) for text, seed in (("a", 3), ("bb", 3))]
    assert pictures[0].tolist() == alone[0][0].tolist()
    assert pictures[2].tolist() == alone[1][0].tolist()
    assert pictures[0, 0, 0, 0] != pictures[1, 0, 0, 0]
    assert comfy.batches == ([1] * 5 if comfy.ancestral else [3, 1, 1])


def test_noise_is_in_the_precision_of_the_latent(made: Callable[..., Any], comfy: Comfy) -> None:
    half = made(latent={"samples": torch.zeros(1, 4, 8, 8, dtype=torch.float16)})
    pictures = [one.generate(["a"], [5]).astype(int) for one in (half, made())]
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_a_text_is_encoded_once(made: Callable[..., Any], comfy: Comfy) -> None:
    made().generate(["a", "bb", "a", "a"], [1, 1, 2, 3])
    assert comfy.encoded == ["a", "bb", ""], "and the negative one"


def test_an_interrupt_is_seen_between_texts(
    rendering: ModuleType, made: Callable[..., Any], comfy: Comfy
) -> None:
    with pytest.raises(rendering.Stopped):
        made().generate(["a", "bb", "ccc"], [1] * 3, should_stop=lambda: len(comfy.encoded) == 2)
    assert comfy.encoded == ["a", "bb"]
    assert not comfy.batches


def test_an_interrupt_in_the_sampler_is_no_picture_that_failed(
    rendering: ModuleType, made: Callable[..., Any], comfy: Comfy
) -> None:
    comfy.cancelled = True
    with pytest.raises(rendering.Stopped):
        made(batch_size=1).generate(["a", "bb"], [1, 2])
    assert comfy.batches == [1]
    assert comfy.interrupted, "for interruptible(), which raises ComfyUI's own exception again"


def test_an_interrupt_while_it_scores_is_no_score_that_failed(pack: str, comfy: Comfy) -> None:
    searching = importlib.import_module(f"{pack}.nodes.searching")

    @contextlib.contextmanager
    def loaded() -> Iterator[None]:
        raise Interrupted
        yield

    scorer = SimpleNamespace(identity="eye", relevance_knee=0.28, relevance_slope=20.0)
    at_hand = searching.ScorerAtHand(SimpleNamespace(scorer=scorer, loaded=loaded))
    with pytest.raises(importlib.import_module(f"{pack}.promptadapt_core.decoding").Stopped):
        at_hand.score(["a"], np.zeros((1, 2, 2, 3), dtype=np.uint8))
    assert comfy.interrupted


def test_a_batch_is_halved_when_memory_runs_out(made: Callable[..., Any], comfy: Comfy) -> None:
    comfy.most = 1
    generator = made(batch_size=4)
    with the_global_generator_stays():
        assert len(generator.generate(["a", "b", "c", "d"], [1, 2, 3, 4])) == 4
    assert comfy.batches == [4, 2, 1, 1, 1, 1]
    comfy.most = 0
    with pytest.raises(ValueError, match="latent_image: memory does not suffice for one picture"):
        generator.generate(["a"], [9])


def test_the_ratio_of_a_latent_is_told_to_a_host_that_knows_it(
    made: Callable[..., Any], comfy: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
    assert made(latent=latent)._empty.shape == (1, 4, 4, 4)
    old = lambda model, latent: latent  # noqa: E731
    monkeypatch.setattr(sys.modules["comfy.sample"], "fix_empty_latent_channels", old)
    assert made(latent=latent)._empty.shape == (1, 4, 8, 8)


def test_latents_that_are_no_pictures(made: Callable[..., Any], comfy: Comfy) -> None:
    for samples, told in (
        (torch.zeros(1, 4, 5, 8, 8), "got one of a video"),
        (SimpleNamespace(is_nested=True), "got one with sound"),
    ):
        with pytest.raises(ValueError, match=f"latent_image: expected one of pictures, {told}"):
            made(latent={"samples": samples})
    comfy.pictures_each = 3
    with pytest.raises(ValueError, match="vae: expected 1 pictures of it, got 3"):
        made().generate(["a"], [1])


def test_what_no_widget_takes(rendering: ModuleType, made: Callable[..., Any]) -> None:
    """ComfyUI checks only what is typed, not what is linked."""
    for changed, name in (({"steps": 0}, "steps"), ({"batch_size": 0}, "render_batch_size")):
        given = {"steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple"}
        with pytest.raises(ValueError, match=f"^{name}: expected 1 or more, got 0"):
            rendering.Sampling(**given | changed)
    many = rendering.Sampling(10_000, 200.0, "euler", "simple")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    rendering.ComfyGenerator(None, None, None, None, latent, many)


def test_room_is_made_for_what_learning_takes(
    pack: str, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = importlib.import_module(f"{pack}.nodes.searching")
    networks = torch.nn.Linear(8, 4, bias=False)  # 128 bytes
    monkeypatch.setattr(
        searching,
        "ManagedModel",
        lambda networks, device: SimpleNamespace(
            device=torch.device(device), loaded=lambda: stays(networks)
        ),
    )
    for number, device in ((1000, "cpu"), (0, "cuda"), (1000, "cuda")):
        on_device = searching.OnDevice(device)
        on_device.num_bytes_to_learn = number
        with on_device(networks):
            pass
    assert comfy.freed == [(1128, torch.device("cuda"))]


def test_what_learned_goes_with_its_search(
    pack: str,
    made: Callable[..., Any],
    policy_for: Callable[[Sequence[str]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, and not when garbage is collected: gigabytes, for a large policy."""
    searching, adapting, scoring = (
        importlib.import_module(f"{pack}.{name}")
        for name in ("nodes.searching", "promptadapt_core.adapter", "promptadapt_core.scorers")
    )
    moved = []
    monkeypatch.setattr(
        searching,
        "ManagedModel",
        lambda networks, device: SimpleNamespace(
            device=torch.device("cpu"), loaded=lambda: stays(moved.append(device))
        ),
    )
    shown = SimpleNamespace(update_absolute=lambda *given: None)
    monkeypatch.setattr(searching, "progress_bar", lambda total: shown)
    never = contextlib.nullcontext(lambda: False)
    monkeypatch.setattr(searching, "interruptible", lambda: never)

    class Eye:
        identity, relevance_knee, relevance_slope = "eye", 0.28, 20.0

        def score(self, user_inputs: Sequence[str], pixels: np.ndarray) -> Any:
            grey = torch.from_numpy(pixels[:, 0, 0, 0].astype(np.float32))
            return scoring.Scores(grey / 20, torch.full((len(pixels),), 0.3))

    eye = Eye()
    eye.loaded, eye.scorer = lambda: contextlib.nullcontext(eye), eye
    adapter = adapting.PromptAdapter.load(policy_for(["cat", "dog"]) / "policy")
    policy = SimpleNamespace(adapter=adapter, device="default")
    values = {
        "relevance_weight": 1.0, "aesthetic_weight": 1.0, "method": "ppo", "num_rounds": 1,
    }  # fmt: skip
    adapt = {"token_budget": 75}
    generator = made()
    gc.collect()
    gc.disable()
    try:
        search = searching.Search(generator, eye, policy, "a cat", 7, adapt, values, 0, None)
        found = search.run()
        copy = weakref.ref(search._refiner.copy)
        del search
        assert copy() is None
    finally:
        gc.enable()
    assert found.rounds[0].metrics, "it has learned"
    assert moved


@pytest.fixture
def refining(pack: str) -> ModuleType:
    return importlib.import_module(f"{pack}.nodes.refining")


def test_what_is_linked_refuses_nothing(refining: ModuleType) -> None:
    check = refining.RefinePrompt.VALIDATE_INPUTS
    assert "grpo compares" in check(method="grpo", num_candidates=1)
    assert check(num_candidates=1) is True, "the method may turn out best_of_n"
    assert "trains no LoRA" in check(method="best_of_n", save_policy="lora")
    assert check(save_policy="lora") is True
    assert check() is True


def test_a_lora_is_saved_beside_its_base(
    refining: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(refining, "model_folders", lambda: [first, second])
    base = second / "base"
    assert refining._place_for("lora", " mine ", base) == second / "mine"
    assert refining._place_for("lora", "mine", tmp_path / "bundled") == first / "mine"
    assert refining._place_for("lora", "mine", None) == first / "mine"
    assert refining._place_for("folder", "mine", base) == first / "mine"
    with pytest.raises(ValueError, match="save_name: expected the name of a folder"):
        refining._place_for("folder", "a/b", base)
    monkeypatch.setattr(refining, "model_folders", list)
    with pytest.raises(ValueError, match="knows no folder"):
        refining._place_for("folder", "mine", base)


def test_a_disk_that_refuses_does_not_take_the_search_with_it(
    refining: ModuleType, pack: str
) -> None:
    error = importlib.import_module(f"{pack}.promptadapt_core.settings").SettingsError

    class Full:
        def save(self, kind: str, folder: Path, name: str) -> Path:
            raise error("save_name", f"{folder} cannot be written")

    told = refining._saved(Full(), "folder", Path("models") / "mine")
    assert told == "the refined policy is not saved: save_name: models cannot be written"
