"""The policy and the scorer that a host has in memory: loaded when used, dropped when asked.

A web page has many visitors and one memory, so there is one policy and one scorer at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .adapter import Adaptation, Candidate, PromptAdapter
from .decoding import Stopped
from .job_settings import JobSettings
from .model_folders import folder_state, policy_folder, scorer_folder
from .policies import weight_files
from .settings import AdaptSettings, SettingsError

HASH_DIGITS = 10
READ_BYTES = 1 << 20


class AdaptedInput(NamedTuple):
    """An adaptation and the hash of the policy's weights."""

    adaptation: Adaptation
    policy_hash: str

    @property
    def texts(self) -> list[str]:
        """The adapted prompts, best first."""
        return [candidate.adapted_prompt for candidate in self.adaptation.candidates]


class JobState(Protocol):
    """What a host's progress bar shows and its buttons set. job_count: below 1 until known."""

    interrupted: bool
    skipped: bool
    job_count: int
    sampling_step: int
    sampling_steps: int


class LoadedModels:
    """Thread-safe. folders: where models lie besides the bundled ones."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._policy: tuple[tuple[str, str], PromptAdapter, str] | None = None
        self._scorer: tuple[tuple[str, str], Any] | None = None

    def policy(
        self, name: str, folders: Sequence[Path] = (), device: str = "cpu"
    ) -> tuple[PromptAdapter, str]:
        """(the policy of that name, the hash of its weights). Loaded anew once its files or the
        device change. SettingsError("policy", ...) where it is gone or broken."""
        folder = policy_folder(name, folders)
        with self._lock, _readable("policy", name):
            key = (folder_state(folder), device)
            if self._policy is None or self._policy[0] != key:
                self._policy = None  # before the next one takes its memory
                policy_hash = weights_hash(folder)  # first: a folder that goes then is not loaded
                self._policy = (key, PromptAdapter.load(folder, device=device), policy_hash)
            return self._policy[1], self._policy[2]

    def scorer(self, name: str, folders: Sequence[Path] = (), device: str = "cpu") -> Any:
        """The scorer of that name. SettingsError("scorer", ...) where it is gone or broken, or its
        package is missing."""
        folder = scorer_folder(name, folders)
        try:
            from .scorers import OpenClipScorer
        except ModuleNotFoundError as error:
            if error.name != "open_clip":
                raise
            command = f'"{sys.executable}" -m pip install open_clip_torch'
            raise SettingsError("scorer", f"it needs the package open_clip: {command}") from None
        with self._lock, _readable("scorer", name):
            key = (folder_state(folder), device)
            if self._scorer is None or self._scorer[0] != key:
                self._scorer = None
                self._scorer = (key, OpenClipScorer.load(folder, device))
            return self._scorer[1]

    def adapt(
        self,
        user_inputs: Sequence[str],
        policy: str,
        folders: Sequence[Path] = (),
        device: str = "cpu",
        should_stop: Callable[[], bool] | None = None,
        **given: Any,
    ) -> list[AdaptedInput]:
        """Each user input adapted, see PromptAdapter.adapt_all. An empty one stays empty."""
        adapter, policy_hash = self.policy(policy, folders, device)
        worded = [text for text in user_inputs if text.strip()]
        found = iter(adapter.adapt_all(worded, should_stop=should_stop, **given))
        adaptations = [next(found) if t.strip() else None for t in user_inputs]
        return [
            AdaptedInput(adaptation, policy_hash)
            if adaptation
            else left_alone(text, policy, "it is empty")
            for text, adaptation in zip(user_inputs, adaptations, strict=True)
        ]

    def adapt_job(
        self,
        user_inputs: Sequence[str],
        settings: JobSettings,
        image_seed: int,
        num_images: int,
        state: JobState,
        folders: Sequence[Path] = (),
        device: str = "cpu",
    ) -> list[AdaptedInput] | None:
        """The user inputs of a job of num_images pictures, the first of which has the seed
        image_seed; left alone once the user skips, None once the user interrupts."""
        given = settings.for_adapter(image_seed, num_images)
        counted = state.job_count > 0  # or steps are none of the bar's business
        if counted:
            state.sampling_step, state.sampling_steps = 0, AdaptSettings().max_new_tokens

        def should_stop() -> bool:
            if counted:
                state.sampling_step = min(state.sampling_step + 1, state.sampling_steps)
            return state.interrupted or state.skipped

        try:
            return self.adapt(user_inputs, settings.policy, folders, device, should_stop, **given)
        except Stopped:
            if state.interrupted:
                return None
            state.skipped = False
            return [left_alone(text, settings.policy, "skipped") for text in user_inputs]
        finally:
            if counted:
                state.sampling_step = 0

    def unload(self) -> list[str]:
        """Drop what is loaded; what it was. Who still adapts keeps it to the end."""
        with self._lock:
            dropped = ["policy"] if self._policy else []
            dropped += ["scorer"] if self._scorer else []
            self._policy = self._scorer = None
        return dropped


MODELS = LoadedModels()  # of this process


@contextlib.contextmanager
def _readable(setting: str, name: str) -> Iterator[None]:
    """SettingsError for a folder that goes while it is read. It tells no path."""
    try:
        yield
    except OSError as error:
        reason = f"{name} cannot be read ({error.strerror or type(error).__name__})"
        raise SettingsError(setting, reason) from error


def left_alone(user_input: str, policy: str, reason: str) -> AdaptedInput:
    """A user input that no policy has read."""
    itself = Candidate(user_input, "", 0.0, 0, 0)
    return AdaptedInput(Adaptation(user_input, policy, f"left alone: {reason}", [itself]), "")


def weights_hash(folder: Path) -> str:
    """10 hexadecimal digits of the weights of a policy: SHA-256 of its files, in order."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    return digest.hexdigest()[:HASH_DIGITS]
