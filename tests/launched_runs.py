"""One process of a group that trains, for tests/test_train_processes.py.

    python launched_runs.py JOBS        RANK, WORLD_SIZE, MASTER_ADDR, ... as a launcher sets them

JOBS: a .json file with a list of jobs, done one after the other. A job: "settings" of PPO,
"settings_of_1" (those in which process 1 differs), and what goes wrong: "rank", "iteration" and
"fault", see Trouble. What came of them is written beside JOBS as outcomes-RANK.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptadapt_core.decoding import Stopped
from promptadapt_core.images import ImageSettings
from promptadapt_core.process_group import ALONE, ProcessFailed, ProcessGroup, process_group
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.scorers import Scores
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.ppo import train_ppo
from promptadapt_core.train.ppo_settings import PpoSettings
from promptadapt_core.train.rendered_reward import RenderedReward


class Trouble:
    """What goes wrong in one process in one iteration, counted from 1; 0 is the plan's probe."""

    def __init__(self, fault: str = "", iteration: int = 1):
        self.fault, self.iteration, self.now = fault, iteration, 0
        self.stops = False

    def draw(self) -> None:
        """Before pictures are drawn."""
        if self.fault == "interrupt" and self.now == self.iteration:
            self.stops = True

    def judge(self) -> None:
        """Once in the probe and in every iteration."""
        self.now += 1
        if self.now <= self.iteration or not self.fault:
            return
        if self.fault == "setting":
            raise SettingsError("scorer", "it has had enough")
        if self.fault == "program":
            raise TypeError("a fault\nof two lines")
        if self.fault == "kill":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        if self.fault == "wait":
            time.sleep(60)
        self.stops = self.fault == "stop"


class Painter:
    """Draws 4 x 4 pixels: red says how long the text is, green whether it has a certain word, blue
    is noise of the seed."""

    identity = "painter"
    settings = ImageSettings()

    def __init__(self, trouble: Trouble):
        self.trouble, self.drawn = trouble, []

    def generate(self, adapted_prompts: Any, seeds: Any, *, should_stop: Any = None) -> np.ndarray:
        self.trouble.draw()
        if should_stop is not None and should_stop():
            raise Stopped
        self.drawn += zip(adapted_prompts, seeds, strict=True)
        pictures = np.zeros((len(seeds), 4, 4, 3), dtype=np.uint8)
        for picture, text, seed in zip(pictures, adapted_prompts, seeds, strict=True):
            noise = hashlib.sha256(f"{text} {seed}".encode()).digest()[0] // 8
            picture[:] = (min(len(text.split()), 50), 255 * ("watercolor" in text), noise)
        return pictures


class Viewer:
    """Likes green, less so red."""

    identity = "viewer"
    relevance_knee, relevance_slope = 0.28, 20.0

    def score(self, user_inputs: Any, pixels: np.ndarray) -> Scores:
        red, green, blue = torch.from_numpy(pixels[:, 0, 0].astype(np.float32)).unbind(1)
        return Scores(5 + green / 255 - red / 20 + blue / 100, torch.full_like(red, 0.3))


class Onlooker:
    """A judge, of brightness."""

    metrics = {"judge/brightness": "mean of the pictures, 0 to 255"}
    identity = "onlooker"

    def __init__(self, trouble: Trouble):
        self.trouble = trouble

    def judge_each(self, user_inputs: Any, adapted_prompts: Any, pictures: Any) -> dict[str, Any]:
        self.trouble.judge()
        means = [np.nan if some is None else float(some.mean()) for some in pictures]
        return {"judge/brightness": np.array(means)}


def run(
    chosen: dict[str, Any], group: ProcessGroup = ALONE, fault: str = "", iteration: int = 1
) -> dict[str, Any]:
    """One job in this process. status: of the run, or the error; drawn: all (text, seed)."""
    settings, trouble = PpoSettings(**chosen), Trouble(fault, iteration)
    painter = Painter(trouble)
    try:
        baselines = Path(settings.out).with_suffix(".baselines")
        reward = RenderedReward(painter, Viewer(), RewardSettings(), baselines, group)
        result = train_ppo(
            settings,
            reward=reward,
            judge=Onlooker(trouble),
            should_stop=lambda: trouble.stops,
            group=group,
        )
        status = result.status
    except (SettingsError, ProcessFailed, TypeError) as error:
        status = f"{type(error).__name__}: {error}"
    return {"status": status, "drawn": painter.drawn}


def main() -> None:
    jobs_file = Path(sys.argv[1])
    jobs = json.loads(jobs_file.read_text(encoding="utf-8"))
    outcomes = []
    with process_group("cpu", jobs[0].get("timeout_minutes", 5.0)) as group:
        print("ready", flush=True)
        for job in jobs:
            chosen, fault = job["settings"], ""
            if group.rank == 1:
                chosen = {**chosen, **job.get("settings_of_1", {})}
            if group.rank == job.get("rank"):
                fault = job["fault"]
            outcomes.append(run(chosen, group, fault, job.get("iteration", 1)))
            path = jobs_file.with_name(f"outcomes-{group.rank}.json")
            path.write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
