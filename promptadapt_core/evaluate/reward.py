"""The reward's settings for an evaluation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..reward_settings import RewardSettings
from ..settings import MAX_SEED, setting
from .settings import EVALUATION_SEED


@dataclasses.dataclass(frozen=True)
class EvaluationReward(RewardSettings):
    """As in training, but with pictures' seeds that no training uses, always the same ones."""

    num_images: int = setting(
        4, "pictures per adapted prompt, and those that best_of_n chooses from", low=1, high=64
    )
    image_seed: int = setting(
        EVALUATION_SEED, "of the pictures' seeds; searches use the three after it", low=0,
        high=MAX_SEED - 3,
    )  # fmt: skip
    num_seeds: ClassVar[int] = 0  # type: ignore[misc]  # no setting here

    def of_search(self, number: int, num_images: int) -> RewardSettings:
        """The same terms on pictures of other seeds: number is 1, 2 or 3."""
        values = dataclasses.asdict(self)
        values |= {"num_images": num_images, "image_seed": self.image_seed + number}
        return RewardSettings(**values)
