"""What tests of trainings share: a reward without pictures, what equal runs have to leave alike,
and a process that is killed again and again.

The killed process imports this module, so that it is paid by the same reward.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from promptadapt_core import runs

NUM_KILLS = int(os.environ.get("PROMPTADAPT_TEST_KILLS", "2"))  # each costs a start of Python


class WordReward:
    """+1 for one certain word, -0.1 for every word that was added. Notes what it draws."""

    identity = "words"
    metrics = {
        "reward/word_mean": "share of candidates that add the word",
        "reward/length_mean": "minus a tenth of the words that were added, mean",
    }
    other = "length"  # name of the second term
    failing = ""  # user input of which no picture can be drawn

    def __init__(self) -> None:
        self.drawn: list[tuple[str, str, tuple[int, ...]]] = []
        self.calls = 0

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        return [len(user_input)]

    def also(self, added: str) -> float:
        """The second term, of what was added."""
        return -0.1 * len(added.split())

    def reward(
        self, user_inputs: Any, adapted_prompts: Any, seeds: Any, should_stop: Any = None,
        keep_pictures: bool = False,
    ) -> Any:  # fmt: skip
        rows = list(zip(user_inputs, adapted_prompts, map(tuple, seeds), strict=True))
        self.calls += 1
        self.drawn += rows
        added = [adapted[len(user) :] for user, adapted, _ in rows]
        batch: Any = type("Batch", (), {})()
        batch.terms = {
            "word": torch.tensor([float("watercolor" in text) for text in added]),
            self.other: torch.tensor([self.also(text) for text in added]),
        }
        batch.rewards = batch.terms["word"] + batch.terms[self.other]
        batch.ok = torch.tensor([user != self.failing for user in user_inputs])
        return batch

    def describe(self, batch: Any) -> dict[str, float]:
        return {}


class LetterReward(WordReward):
    """+1 for one certain word, a little for the letters."""

    metrics = {"reward/word_mean": "share of candidates that add the word"}
    other = "letters"

    def also(self, added: str) -> float:
        return 0.1 * added.count("o")


class Heard(runs.Silent):
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class StopAfter:
    """A should_stop that says True from the number-th time on that it is asked, from 0."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def short_policy(inputs: Path, folder: Path, context: int = 48) -> Path:
    """The policy of `inputs`, which reads no more than `context` tokens."""
    shutil.copytree(inputs / "policy", folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("wpe.weight"))
    weights[name] = weights[name][:context].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config = {**config, "n_positions": context, "n_ctx": context}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def saved(folder: Path) -> dict[str, bytes]:
    """The files whose bytes equal runs must share."""
    files = [path for kind in ("*.safetensors", "candidates.jsonl", "pairs.jsonl")
             for path in folder.rglob(kind)]  # fmt: skip
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Of metrics.jsonl, without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def num_rows(folder: Path) -> int:
    """Rows of metrics.jsonl that are whole."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def num_lines(folder: Path) -> int:
    """Lines of all candidates and metrics: how far a run in rounds is."""
    rounds = [folder / "rounds" / f"{number:03d}" for number in (1, 2, 3)]
    files = [folder / "metrics.jsonl"]
    files += [place / name for place in rounds
              for name in ("candidates.jsonl", "learning/metrics.jsonl")]  # fmt: skip
    number = 0
    for path in files:
        with contextlib.suppress(OSError):  # not there yet, or just being replaced
            number += path.read_bytes().count(b"\n")
    return number


def train_though_killed(
    work: str,
    chosen: dict[str, Any],
    how_far: Callable[[], int],
    most: int,
    seed: int,
    imports: str = "",
) -> None:
    """Run a training in processes that are killed, then in one that is left alone.

    work: lines of Python that train with `settings`, a dict made of `chosen` and resume; imports:
    lines before them, at which none is killed. Killed at moments drawn at random, once `how_far`
    has grown by up to `most`; on Windows `kill` is TerminateProcess, as sudden as SIGKILL. At least
    one has to be alive still.
    """
    script = Path(chosen["out"]).parent / "script.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        f"from pathlib import Path\nimport training_runs\n{imports}\n\nchosen = {chosen!r}\n"
        "settings = {**chosen, 'resume': Path(chosen['out']).is_dir()}\n"
        f"print('ready', flush=True)\n{work}\n",
        encoding="utf-8",
    )
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    threads = str(torch.get_num_threads())
    options: dict[str, Any] = {
        "env": {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths}, "text": True,
        "stdout": subprocess.PIPE,
    }  # fmt: skip
    moments, num_killed = random.Random(seed), 0
    for _ in range(NUM_KILLS):
        with subprocess.Popen([sys.executable, str(script)], **options) as process:
            assert process.stdout is not None
            process.stdout.readline()  # libraries are loaded, the run begins
            wanted = how_far() + moments.randint(0, most)
            while process.poll() is None and how_far() < wanted:
                time.sleep(0.002)
            time.sleep(moments.uniform(0.0, 0.3))
            num_killed += process.poll() is None
            process.kill()
    final = subprocess.run([sys.executable, str(script)], check=False, timeout=600, **options)
    assert final.returncode == 0
    print(f"killed at {num_killed} moments of {NUM_KILLS}")
    assert num_killed > 0
