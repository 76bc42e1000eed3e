"""The settings of mining, once: default, range, help. Rejection sampling and DPO add their own."""

from __future__ import annotations

import dataclasses
import math

from ..settings import MAX_SEED, SettingsError, setting
from .rewarded_training import RewardedTraining


@dataclasses.dataclass(frozen=True)
class MiningSettings(RewardedTraining):
    """What is sampled from the policy and rewarded, and what of it may be learned from."""

    seed: int = setting(0, "of everything that is drawn", low=0, high=MAX_SEED)
    num_rounds: int = setting(
        4, "times that candidates are sampled and the policy learns from them", low=1, high=1000
    )
    round_inputs: int = setting(256, "user inputs of a round", low=1)
    group_size: int = setting(8, "candidates sampled for each of them", low=2, high=64)
    measure_inputs: int = setting(
        32,
        "user inputs of which candidates are sampled and rewarded once more at the end, to know "
        "whether the last round made the policy better; 0 leaves that out, and best/ is the last",
        low=0,
    )
    mining_batch: int = setting(
        64,
        "candidates sampled, rendered and written down together: what a killed run does again",
        low=2,
        high=65536,
    )
    max_images: int = setting(
        0,
        "pictures of candidates to render in the whole run at most, an equal part in each round; "
        "0 sets no limit. Those of plain user inputs, and of the probe that begins a run, are not "
        "counted",
        low=0,
    )
    temperature: float = setting(1.0, "at which completions are sampled", low=0.05, high=5.0)
    min_length_limit: int = setting(
        15, "least of the longest completion in tokens, drawn for every batch", low=1, high=512
    )
    max_length_limit: int = setting(75, "most of it", low=1, high=512)
    token_budget: int = setting(
        75, "longest adapted prompt in tokens of the CLIP text encoder", low=1, high=750
    )
    floor: tuple[str, ...] = setting(
        (),
        "TERM=NUMBER: least of a reward term, its weight included, compared with the plain user "
        "input's: relevance=-0.2 keeps what loses 0.2 at most; may be repeated",
        metavar="TERM=NUMBER",
    )
    plain_margin: float = setting(
        0.0, "least reward of what is kept, above that of the plain user input", low=-1e6, high=1e6
    )
    resume: bool = setting(False, "go on with the run in the folder")
    tensorboard: bool = setting(True, "write TensorBoard files where it is installed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length_limit > self.max_length_limit:
            raise SettingsError(
                "min_length_limit",
                f"expected at most max_length_limit ({self.max_length_limit}), "
                f"got {self.min_length_limit}",
            )
        if self.mining_batch % self.group_size:
            raise SettingsError(
                "mining_batch", f"expected a multiple of group_size ({self.group_size})"
            )
        self.floors()

    def floors(self) -> dict[str, float]:
        """The least of each term, compared with the plain user input's; of a term that is given
        twice the higher."""
        found: dict[str, float] = {}
        for text in self.floor:
            name, equals, number = (part.strip() for part in text.partition("="))
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not (name and equals and math.isfinite(value)):
                raise SettingsError("floor", f"expected TERM=NUMBER, got {text[:80]!r}")
            found[name] = max(value, found.get(name, value))
        return found

    @property
    def chunk_inputs(self) -> int:
        """User inputs that are sampled and rewarded together."""
        return self.mining_batch // self.group_size

    @property
    def round_chunks(self) -> int:
        """Batches of a round; the last may be smaller than the others."""
        return -(-self.round_inputs // self.chunk_inputs)

    @property
    def measure_chunks(self) -> int:
        """Batches of the candidates that measure the last round."""
        return -(-self.measure_inputs // self.chunk_inputs)

    def most_images(self, done: int, num_images: int) -> int:
        """Pictures of candidates that may have been rendered once so many rounds are over, the
        measuring counting as one; 0 without a limit. num_images: of one candidate."""
        if not self.max_images or done > self.num_rounds:
            return self.max_images
        left = self.max_images - self.measure_inputs * self.group_size * num_images
        least = self.num_rounds * self.group_size * num_images
        if left < least:
            raise SettingsError(
                "max_images",
                f"expected at least {self.max_images - left + least:,} for num_rounds, group_size, "
                f"measure_inputs and {num_images} pictures of each candidate, "
                f"got {self.max_images:,}",
            )
        return left * done // self.num_rounds
