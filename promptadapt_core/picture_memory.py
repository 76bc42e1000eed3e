"""Pictures that were rendered before are not rendered again: an ImageGenerator that remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from .images import ImageGenerator, ImageSettings, check_batch

MOST_BYTES = 512 * 1024 * 1024


class PictureMemory:
    """Pictures by (identity of the generator, prompt, seed); those not asked for the longest go
    first once all hold more than most_bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes, self.num_bytes = most_bytes, 0
        self._pictures: OrderedDict[tuple[str, str, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, identity: str, text: str, seed: int) -> np.ndarray | None:
        """(H, W, 3) uint8, not to be written to, or None."""
        key = (identity, text, seed)
        picture = self._pictures.get(key)
        if picture is not None:
            self._pictures.move_to_end(key)
        return picture

    def add(self, identity: str, text: str, seed: int, picture: np.ndarray) -> None:
        key = (identity, text, seed)
        known = self._pictures.pop(key, None)
        self.num_bytes -= 0 if known is None else known.nbytes
        own = picture.copy()  # not a view of a whole batch
        own.setflags(write=False)
        self._pictures[key] = own
        self.num_bytes += own.nbytes
        while self.num_bytes > self.most_bytes and len(self._pictures) > 1:
            self.num_bytes -= self._pictures.popitem(last=False)[1].nbytes


class RememberingGenerator:
    """Renders with `generator` what `memory` does not hold, `batch_size` pictures at a time: when
    it is stopped midway, whole batches are kept. num_rendered: pictures so far."""

    def __init__(self, generator: ImageGenerator, memory: PictureMemory, batch_size: int = 8):
        self.generator, self.memory, self.batch_size = generator, memory, batch_size
        self.num_rendered = 0

    @property
    def identity(self) -> str:
        return self.generator.identity

    @property
    def settings(self) -> ImageSettings:
        return self.generator.settings

    def generate(
        self,
        adapted_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """See ImageGenerator."""
        texts, numbers = check_batch(adapted_prompts, seeds)
        wanted = list(zip(texts, numbers, strict=True))
        if not wanted:
            return self.generator.generate([], [], should_stop=should_stop)
        found = {pair: self.memory.get(self.identity, *pair) for pair in wanted}
        missing = [pair for pair, picture in found.items() if picture is None]
        for start in range(0, len(missing), self.batch_size):
            part = missing[start : start + self.batch_size]
            pictures = self.generator.generate(
                [text for text, _ in part], [seed for _, seed in part], should_stop=should_stop
            )
            self.num_rendered += len(part)
            for pair, picture in zip(part, pictures, strict=True):
                self.memory.add(self.identity, *pair, picture)
                found[pair] = picture
        return np.stack([found[pair] for pair in wanted])
