"""The settings of the reward, without what it takes to compute one: command lines show them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .settings import MAX_SEED, Settings, SettingsError, setting


@dataclass(frozen=True)
class RewardSettings(Settings):
    """The terms of the reward and their weights; a weight of 0 leaves a term out."""

    aesthetic_weight: float = setting(
        1.0, "of the aesthetic gain over the plain input's pictures", low=0.0, high=100.0
    )
    relevance_weight: float = setting(
        1.0, "of the pictures' relevance to the user input", low=0.0, high=100.0
    )
    length_weight: float = setting(
        0.05, "reward lost per CLIP token beyond length_budget", low=0.0, high=100.0
    )
    length_budget: int = setting(
        75, "CLIP tokens of an adapted prompt that cost nothing; 75 is one chunk", low=1, high=750
    )
    copy_weight: float = setting(
        1.0,
        "reward lost by a candidate that drops all content words of the user input, or that does "
        "nothing but repeat itself",
        low=0.0,
        high=100.0,
    )
    num_images: int = setting(2, "pictures per adapted prompt", low=1, high=64)
    num_seeds: int = setting(
        0,
        "different seeds of one user input, taken in turn whenever it is met; each costs a picture "
        "of the plain input once. 0 is num_images: always the same",
        low=0,
        high=4096,
    )
    image_seed: int = setting(0, "of the pictures' seeds", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.num_seeds < self.num_images:
            raise SettingsError(
                "num_seeds", f"expected 0 or at least num_images ({self.num_images})"
            )
        if not any(self.weights().values()):
            raise SettingsError("aesthetic_weight", "all weights are 0: nothing is rewarded")

    def weights(self) -> dict[str, float]:
        """The weight of each term in TERMS."""
        return {
            "aesthetic_gain": self.aesthetic_weight,
            "relevance": self.relevance_weight,
            "length": self.length_weight,
            "copy": self.copy_weight,
        }

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        """num_images different seeds, 0 to 2**32 - 1, the `visit`-th choice from its num_seeds.

        All candidates of one user input are to be given the same ones.
        """
        number = max(self.num_seeds, self.num_images)
        text = user_input.encode("utf-8", "surrogatepass")
        head = f"{self.image_seed}\n".encode()
        start = int.from_bytes(hashlib.sha256(head + text).digest()[:4], "big")
        first = visit * self.num_images
        return [(start + (first + i) % number) % 2**32 for i in range(self.num_images)]
