"""The settings of a refinement, once: default, range, help."""

from __future__ import annotations

import dataclasses

from ..settings import MAX_SEED, Settings, SettingsError, setting

BEST_OF_N = "best_of_n"
METHODS = ("grpo", "ppo", BEST_OF_N)


@dataclasses.dataclass(frozen=True)
class RefineSettings(Settings):
    """How the best prompt for one user input is searched for."""

    method: str = setting(
        "grpo",
        "grpo and ppo: a copy of the policy learns from the pictures after every round; "
        "best_of_n: the policy stays as it is and its best candidate wins",
        choices=METHODS,
    )
    num_rounds: int = setting(4, "rounds of writing, rendering and learning", low=1, high=1000)
    num_candidates: int = setting(8, "new prompts rendered in each round", low=1, high=256)
    num_images: int = setting(
        1, "pictures per prompt; their mean counts, so that more find what holds for any seed",
        low=1, high=64,
    )  # fmt: skip
    margin: float = setting(
        0.05, "reward by which a prompt must beat your text, or your text comes back",
        low=0.0, high=100.0,
    )  # fmt: skip
    max_images: int = setting(
        0, "pictures to render at most, those of your text included; 0: no limit", low=0, high=10**6
    )
    max_seconds: float = setting(
        0.0, "no rendering is begun that would end later; 0: no limit", low=0.0, high=10.0**6
    )
    lr: float = setting(2e-4, "learning rate of the copy", low=0.0, high=1.0, step=1e-5)
    num_epochs: int = setting(4, "passes over the prompts of a round", low=1, high=100)
    kl_coef: float = setting(
        0.02, "how strongly the copy is held to the policy that it began as", low=0.0, high=100.0
    )
    temperature: float = setting(
        1.0, "of sampling; lower is more of the same", low=0.05, high=5.0, step=0.05
    )
    token_budget: int = setting(
        75, "longest adapted prompt in tokens of the CLIP text encoder", low=1, high=750
    )
    lora_rank: int = setting(
        0, "train LoRA matrices of this rank, and nothing else; 0 trains all weights. Needs peft",
        low=0, high=1024,
    )  # fmt: skip
    seed: int = setting(0, "of the prompts", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 * self.num_images
        if 0 < self.max_images < least:
            raise SettingsError(
                "max_images", f"expected 0 or at least {least}: your text and one prompt"
            )
        if self.num_candidates < 2 and self.learns:
            raise SettingsError("num_candidates", f"{self.method} compares: expected 2 or more")

    @property
    def learns(self) -> bool:
        return self.method != BEST_OF_N
