from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from promptadapt_core.decoding import Stopped
from promptadapt_core.images import ImageSettings
from promptadapt_core.picture_memory import PictureMemory, RememberingGenerator
from promptadapt_core.settings import SettingsError


class Drawer:
    """One pixel a picture: length of the text, seed."""

    identity, settings = "drawer", ImageSettings()

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, int]]] = []
        self.stop_at_call = 0

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        self.calls.append(list(zip(adapted_prompts, seeds, strict=True)))
        if len(self.calls) == self.stop_at_call:
            raise Stopped
        rows = [(len(text), seed, 0) for text, seed in self.calls[-1]]
        return np.array(rows, dtype=np.uint8).reshape(-1, 1, 1, 3)


def test_a_picture_is_rendered_once() -> None:
    drawer = Drawer()
    generator = RememberingGenerator(drawer, PictureMemory())
    first = generator.generate(["a", "bb", "a", "a"], [1, 1, 1, 2])
    assert first[:, 0, 0, :2].tolist() == [[1, 1], [2, 1], [1, 1], [1, 2]]
    assert drawer.calls == [[("a", 1), ("bb", 1), ("a", 2)]]
    again = generator.generate(["bb", "ccc"], [1, 1])
    assert again[:, 0, 0, 0].tolist() == [2, 3]
    assert drawer.calls[1:] == [[("ccc", 1)]]
    assert generator.num_rendered == 4
    assert (generator.identity, generator.settings) == ("drawer", drawer.settings)


def test_another_generator_shares_nothing() -> None:
    memory, other = PictureMemory(), Drawer()
    RememberingGenerator(Drawer(), memory).generate(["a"], [1])
    other.identity = "another"
    RememberingGenerator(other, memory).generate(["a"], [1])
    assert other.calls == [[("a", 1)]]


def test_what_was_rendered_before_a_stop_is_kept() -> None:
    drawer, memory = Drawer(), PictureMemory()
    drawer.stop_at_call = 2
    generator = RememberingGenerator(drawer, memory, batch_size=2)
    with pytest.raises(Stopped):
        generator.generate(["a", "bb", "ccc"], [1, 1, 1])
    assert len(memory) == 2
    generator.generate(["a", "bb", "ccc"], [1, 1, 1])
    assert drawer.calls[2:] == [[("ccc", 1)]]


def test_the_memory_forgets_what_was_not_asked_for_the_longest() -> None:
    memory = PictureMemory(most_bytes=2 * 12)
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    memory.add("g", "a", 1, picture)
    memory.add("g", "b", 1, picture)
    memory.add("g", "b", 1, picture)  # again: it counts once
    assert (len(memory), memory.num_bytes) == (2, 24)
    assert memory.get("g", "a", 1) is not None
    memory.add("g", "c", 1, picture)
    assert [memory.get("g", name, 1) is not None for name in "abc"] == [True, False, True]
    assert memory.num_bytes == 24


def test_a_kept_picture_is_not_written_to() -> None:
    memory, picture = PictureMemory(), np.zeros((2, 2, 3), dtype=np.uint8)
    memory.add("g", "a", 1, picture)
    picture[:] = 9
    kept = memory.get("g", "a", 1)
    assert not kept.any()
    with pytest.raises(ValueError, match="read-only"):
        kept[:] = 1


def test_nothing_and_nonsense() -> None:
    generator = RememberingGenerator(Drawer(), PictureMemory())
    assert len(generator.generate([], [])) == 0
    with pytest.raises(SettingsError, match="seeds"):
        generator.generate(["a"], [1, 2])
