"""The settings of the demo, and the one place of its numbers. Text only: imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..lab.vocabulary import COLOURS, PLACES, SUBJECTS
from ..policies import LAB_POLICY, LAB_SFT_POLICY
from ..settings import MAX_SEED, Settings, SettingsError, setting

DEFAULT_TEXTS = (
    "a red cat by the sea",
    "show me a house in a forest",
    "a large lighthouse in the snow",
)
MAX_TEXTS = 32
MAX_TEXT_CHARACTERS = 1000  # of each; the lab reads 75 tokens, which are fewer

# --- demo --train: a run of some minutes on one core ---
NUM_USER_INPUTS = 256  # that the policy learns on, half in domain and half out of domain
NUM_TESTED = 24  # user inputs that training never saw, half in domain and half out of domain
NUM_SHOWN = 4  # of those, with pictures
TRAINING: dict[str, Any] = {  # of train.ppo_settings.PpoSettings: as the lab's policy was trained
    "num_episodes": 3072,
    "rollout_size": 128,
    "group_size": 4,
    "group_baseline": True,
    "num_epochs": 2,
    "minibatch_size": 32,
    "micro_batch_size": 32,
    "lr": 6e-4,
    "value_lr": 1e-3,
    "value_clip_range": 1.0,
    "kl_coef": 0.01,
    "kl_target": 0.0,
    "entropy_coef": 0.01,
    "min_length_limit": 15,
    "max_length_limit": 40,
    "num_steps": 5,
    "render_batch_size": 16,
    "checkpoint_every": 1,
    "samples_every": 0,
    "tensorboard": False,
}
# Of rewards.RewardSettings, for what is shown too: what the lab's policy was trained to raise.
REWARD: dict[str, Any] = {"num_images": 1, "relevance_weight": 3.0}


@dataclasses.dataclass(frozen=True)
class DemoSettings(Settings):
    """What `demo` shows."""

    train: bool = setting(
        False,
        "train the policy for some minutes, and show what it learned; stopped by Ctrl-C, the same "
        "command goes on",
    )
    out: str = setting(
        "promptadapt-demo", "folder for the page, the picture and a run", metavar="FOLDER"
    )
    policy: str = setting(
        "",
        f"a policy, by name or folder [default: {LAB_POLICY}; of --train, which teaches it, "
        f"{LAB_SFT_POLICY}]",
        metavar="NAME|FOLDER",
    )
    num_images: int = setting(
        4, "pictures of each text, before and after with the same seeds", low=1, high=16
    )
    seed: int = setting(
        0, "of the first picture (the next have the next), the text and the run", low=0,
        high=MAX_SEED,
    )  # fmt: skip
    num_steps: int | None = setting(
        None, "sampling steps of a picture; more is finer [default: the renderer's own]", low=1,
        high=1000,
    )  # fmt: skip
    num_episodes: int = setting(
        0,
        f"of --train: candidates to learn from; 0 is {TRAINING['num_episodes']:,}",
        low=0,
        high=1_000_000,
    )
    device: str = setting("cpu", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.strip():
            raise SettingsError("out", "expected a folder")
        if self.num_episodes and not self.train:
            raise SettingsError("num_episodes", "is of --train")

    @property
    def policy_name(self) -> str:
        """The policy that is shown, or the one that training starts from."""
        return self.policy or (LAB_SFT_POLICY if self.train else LAB_POLICY)


def known_words() -> str:
    """What can be asked of the lab, for the help."""
    subjects = ", ".join(subject.name for subject in SUBJECTS)
    texts = "; ".join(DEFAULT_TEXTS)
    return (
        f"The lab is a small world, which knows these subjects: {subjects}; these colours: "
        f"{', '.join(COLOURS)}; these places: {', '.join(PLACES)}. Without TEXT: {texts}."
    )
