"""Fixtures that every test file may use."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the data folder `shared` beside the checkout")
    return folder


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
