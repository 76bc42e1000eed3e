"""Rewards that are never computed twice, not even after a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import runs
from ..settings import SettingsError

FORMAT = 1

Reward = Callable[[list[str], list[str]], Sequence[float]]  # user inputs, adapted prompts


class RewardFile:
    """A reward that remembers, in a JSONL file where it has a path: a first line with the key,
    then one line {"user_input", "adapted_prompt", "reward"} a reward, written as soon as it is
    known. A last line that was cut off is dropped. num_rendered: rewards computed by this object.
    """

    def __init__(self, reward: Reward, path: Path | None = None, key: str = ""):
        """key: whatever tells one reward from another (weights, seeds, settings). Raises
        SettingsError("path", ...) for a file of another key, another kind, or one that cannot be
        read or written."""
        self.reward, self.path = reward, None if path is None else Path(path)
        self.num_rendered = 0
        self.known: dict[tuple[str, str], float] = {}
        if self.path is not None:
            self._open({"format": FORMAT, "key": key})

    def __call__(self, user_inputs: Sequence[str], adapted_prompts: Sequence[str]) -> list[float]:
        """The rewards, in order. Those unknown are computed in one call, each pair once."""
        pairs = list(zip(user_inputs, adapted_prompts, strict=True))
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        if missing:
            rewards = self.reward(*map(list, zip(*missing, strict=True)))
            new = dict(zip(missing, map(float, rewards), strict=True))
            for (_, adapted_prompt), reward in new.items():
                if not math.isfinite(reward):
                    raise ValueError(f"the reward of {adapted_prompt!r} is not finite: {reward}")
            self.num_rendered += len(new)
            self.known |= new
            self._append(new)
        return [self.known[pair] for pair in pairs]

    def _open(self, header: dict[str, Any]) -> None:
        """Read what is there and leave whole lines only."""
        assert self.path is not None
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]  # without half a character at the end
            # Not splitlines: a user input may hold what Unicode calls an end of line.
            lines = whole.decode("utf-8").split("\n")[:-1]
            if lines and json.loads(lines[0]) != header:
                raise SettingsError(
                    "path", f"{self.path} holds rewards of another kind; choose another file"
                )
            for line in lines[1:]:
                row = json.loads(line)
                self.known[row["user_input"], row["adapted_prompt"]] = float(row["reward"])
            if not lines or len(whole) < len(content):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                text = "".join(f"{line}\n" for line in lines)
                runs.write_text(self.path, text or json.dumps(header) + "\n")
        except OSError as error:
            raise SettingsError("path", f"{self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError("path", f"{self.path} is not a file of rewards") from None

    def _append(self, new: dict[tuple[str, str], float]) -> None:
        if self.path is None:
            return
        rows = [
            {"user_input": text, "adapted_prompt": adapted_prompt, "reward": reward}
            for (text, adapted_prompt), reward in new.items()
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        try:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(lines)
                file.flush()
        except OSError as error:
            raise SettingsError("path", f"{self.path}: {error.strerror}") from None
