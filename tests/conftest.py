"""Fixtures that every test file may use."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACK = "prompt-adapt"  # no space here: ComfyUI 0.3.75 then serves none of a pack's files


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the data folder `shared` beside the checkout")
    return folder


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Any]:
    """A running ComfyUI with the pack, the lab checkpoint, a copied policy and copied scorers."""
    for needed in ("torch", "torchvision", "open_clip", "safetensors", "PIL"):
        pytest.importorskip(needed)
    import comfyui_host as host

    from promptadapt_core.lab import export, folders
    from promptadapt_core.policies import BUNDLED_FOLDER, DEFAULT_POLICY

    cache = getattr(pytestconfig, "cache", None)
    kept = Path(cache.mkdir("comfyui")) if cache else tmp_path_factory.mktemp("comfyui")
    base = tmp_path_factory.mktemp("Comfy UI-base")
    host.copy_pack(base / "custom_nodes", PACK)
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    server = None
    try:
        folder, python = host.find_comfyui(kept)
        export.export_checkpoint(None, checkpoints / "lab.safetensors")
        ours = base / "models" / "promptadapt"
        shutil.copytree(BUNDLED_FOLDER / DEFAULT_POLICY, ours / "copied")
        shutil.copytree(folders.WEIGHTS / "scorer", ours / "copied-scorer")
        server = host.ComfyUI(folder, python, base)
        server.wait_until_up()
        yield server
    except host.Unavailable as error:
        pytest.skip(f"there is no ComfyUI here: {error}")
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def object_info(comfyui: Any) -> dict[str, Any]:
    return comfyui.get("/object_info")


@pytest.fixture(scope="session")
def policy_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """Given user inputs, a folder with inputs.txt and policy/, a tiny SFT policy that adds two
    styles to each of them."""

    def make(user_inputs: Sequence[str]) -> Path:
        from promptadapt_core.train.sft import train_sft
        from promptadapt_core.train.sft_settings import SftSettings

        folder = tmp_path_factory.mktemp("policy_for")
        (folder / "inputs.txt").write_text("\n".join(user_inputs) + "\n", encoding="utf-8")
        styles = ("oil painting", "sharp focus", "watercolor", "dramatic light", "8k")
        rows = [
            {"user_input": text, "target": f"{text}, {first}, {second}", "split": "train"}
            for text in user_inputs
            for first in styles
            for second in styles
            if first != second
        ]
        pairs = folder / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = train_sft(
            SftSettings(
                pairs=str(pairs), out=str(folder / "sft"), device="cpu", precision="fp32",
                num_epochs=8.0, batch_size=24, micro_batch_size=24, max_length=60, lr=0.01,
                vocab_size=330, hidden_size=32, num_layers=2, num_heads=2, dropout=0.0,
                tensorboard=False, validate_every=1000, checkpoint_every=1000,
            )
        )  # fmt: skip
        shutil.copytree(made.best.parent / "last", folder / "policy")
        return folder

    return make


def generator_states() -> dict[str, Any]:
    """The states of the global generators, of NumPy and torch only where they are loaded."""
    states: dict[str, Any] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        state = sys.modules["numpy"].random.get_state()
        states["numpy.random"] = (state[0], state[1].tobytes(), *state[2:])
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return states


@pytest.fixture
def untouched_generators() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with untouched_generators():` fails if the body moves a global generator."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        before = generator_states()
        yield
        after = generator_states()
        moved = [name for name, state in before.items() if after[name] != state]
        assert not moved, f"the global generator of {', '.join(moved)} was touched"

    return watch


@pytest.fixture(autouse=True)
def isolated_generators() -> Iterator[None]:
    """No test sees what another drew: torch's global generator, which builds tiny models, is put
    back. Python's `random`, which nothing here has a reason to use, must be as it was."""
    python_state = random.getstate()
    torch = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch else None
    yield
    if torch:
        torch.set_rng_state(torch_state)
    if random.getstate() != python_state:
        random.setstate(python_state)
        pytest.fail("the test moved the global generator of `random`")
