"""What every training from rendered pictures is asked: its policy, its inputs, its models."""

from __future__ import annotations

import dataclasses

from ..pipeline_settings import PipelineRendering
from ..settings import setting


@dataclasses.dataclass(frozen=True)
class RewardedTraining(PipelineRendering):
    """Settings that PPO and the trainings in rounds share."""

    policy: str = setting("", "the SFT policy to start from", metavar="FOLDER|NAME")
    user_inputs: str = setting(
        "", "one a line (.txt), or .jsonl with a field user_input", metavar="FILE"
    )
    renderer: str = setting(
        "lab",
        "what draws the candidates: lab, the folder of a diffusers pipeline, a checkpoint of one "
        ".safetensors file, or with --download a name of the hub",
        metavar="lab|FOLDER|FILE|NAME",
    )
    scorer: str = setting(
        "lab", "lab, or a folder with scorer.json that scores the pictures", metavar="lab|FOLDER"
    )
    judge: str = setting(
        "auto",
        "a held-out model that looks at the pictures and takes no part in the reward: none, lab, a "
        "folder with scorer.json, or auto, the lab's judge where the lab draws",
        metavar="auto|none|lab|FOLDER",
    )
    out: str = setting("", "run folder: config.json, metrics.jsonl, checkpoints", metavar="FOLDER")
    baselines: str = setting(
        "",
        "folder where the scores of the plain user inputs' pictures are kept, which runs may "
        "share; left out, a folder in the run's own",
        metavar="FOLDER",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", metavar="DEVICE")
