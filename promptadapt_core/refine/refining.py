"""The search for the best prompt of one user input, with the image model at hand.

Every round the policy writes, what is new is rendered and rewarded, and a copy of the policy
learns from it: GRPO (arXiv 2402.03300) or PPO with all completions of the round as one group. The
first prompt of a round is what the policy, as it is then, answers when it is asked as usual;
nothing is learned from it, for it was not sampled. Every prompt and the user input itself are
rendered with the same seeds. A completion that says what was rendered before costs no picture and
teaches all the same.

    found = Refiner(adapter, rewarder, "a cat on a roof").run()
    found.adapted_prompt

The user input comes back where nothing beats it by the margin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import prompts
from ..adapter import PromptAdapter, Work
from ..devices import is_out_of_memory
from ..picture_memory import PictureMemory, RememberingGenerator
from ..policy import Policy
from ..rewards import NothingRewarded, RewardBatch, Rewarder
from ..rollouts import SAMPLED_TOGETHER, Rollout, sample_rollout
from ..settings import AdaptSettings, SettingsError
from ..train.seeds import generator_of
from .learning import PolicyCopy
from .outcome import MOST_CELLS, OWN, PLAIN, SAMPLED, Refinement, Round, Tried, best_of
from .settings import RefineSettings

MOST_DRAWS = 8  # completions for each new prompt that a round wants, while few are wanted
AtHand = Callable[[torch.nn.Module], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Progress:
    """num_images of at most most_images are rendered. best: the best so far, None at first."""

    num_images: int
    most_images: int
    text: str
    best: Tried | None


def _num_draws(num_candidates: int) -> tuple[int, int]:
    """(how often the policy is asked in a round, for how many completions each time). They are
    drawn together, and memory is not without end."""
    number = min(MOST_DRAWS * num_candidates, max(SAMPLED_TOGETHER, num_candidates))
    most = AdaptSettings.__dataclass_fields__["num_candidates"].metadata["high"]
    times = math.ceil(number / most)
    return times, math.ceil(number / times)


def stays(networks: torch.nn.Module) -> contextlib.AbstractContextManager:
    """The AtHand of who has the networks where they belong already."""
    return contextlib.nullcontext()


class Refiner:
    """One refinement. base: the policy that it began with. copy: what writes and learns; see
    PolicyCopy.networks."""

    def __init__(
        self,
        adapter: PromptAdapter,
        rewarder: Rewarder,
        user_input: str,
        settings: RefineSettings | None = None,
        *,
        adapt: Mapping[str, Any] | None = None,
        image_seeds: Sequence[int] | None = None,
        memory: PictureMemory | None = None,
        batch_size: int = 8,
        at_hand: AtHand = stays,
        report: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ):
        """adapter: of the policy to begin with, which is left as it is. rewarder: renders, scores
        and knows how many pictures a prompt gets. adapt: further settings of AdaptSettings, such
        as keep and ban. image_seeds: of the num_images pictures of every prompt; None: the
        rewarder's own for this user input. memory: pictures of earlier runs. batch_size: pictures
        rendered between two looks at the budget. at_hand: `with at_hand(networks):` has them on
        their device. report: after every batch. SettingsError for what the policy cannot read."""
        self.settings = settings or RefineSettings()
        self.user_input, self.should_stop = user_input, should_stop
        self.at_hand, self.report = at_hand, report or (lambda progress: None)
        self.generator = RememberingGenerator(
            rewarder.generator, memory if memory is not None else PictureMemory(), batch_size
        )
        own = dataclasses.replace(rewarder.settings, num_images=self.settings.num_images)
        self.rewarder = Rewarder(
            self.generator, rewarder.scorer, own, rewarder.baselines, rewarder.count_tokens
        )
        seeds = own.seeds_of(user_input) if image_seeds is None else list(image_seeds)
        if len(seeds) != self.settings.num_images:
            told = f"expected {self.settings.num_images}, one for each picture, got {len(seeds)}"
            raise SettingsError("image_seeds", told)
        self.image_seeds = seeds
        self.base = adapter.policy
        self.copy = PolicyCopy(adapter.policy, self.settings)
        self.adapter = PromptAdapter(self.copy.policy, rewarder.count_tokens)
        given = {
            **(adapt or {}), "token_budget": self.settings.token_budget, "gate": False,
            "seed": self.settings.seed,
        }  # fmt: skip
        self.usual = self.adapter.settings(**{**given, "num_candidates": 1})
        self.num_times, number = _num_draws(self.settings.num_candidates)
        self.asked = dataclasses.replace(
            self.usual, mode="sample", temperature=self.settings.temperature, top_p=1.0,
            min_modifiers=0, num_candidates=number,
        )  # fmt: skip
        self.work = self._work()
        self.tried: list[Tried] = []
        self.rounds: list[Round] = []
        self.notes: list[str] = []
        self._known: dict[str, Tried] = {}
        self._failed: set[str] = set()  # prompts that cannot be rendered or scored
        self._began = time.monotonic()
        self._slowest = 0.0  # seconds of a batch
        self._learns = self.settings.learns

    def run(self) -> Refinement:
        """Search. decoding.Stopped once should_stop() is true: pictures of whole batches are in
        the memory then, so that a second run goes through them quickly. SettingsError where the
        user input itself cannot be rendered or scored."""
        self._began = time.monotonic()
        plain = self._try_plain()
        self._slowest = time.monotonic() - self._began
        for number in range(1, self.settings.num_rounds + 1):
            if not self._affordable(1):
                break
            self._round(number)
        best = best_of(self.tried, plain)
        return Refinement(
            user_input=self.user_input,
            accepted=best is not plain and best.reward > plain.reward + self.settings.margin,
            plain=plain,
            best=best,
            tried=self.tried,
            rounds=self.rounds,
            margin=self.settings.margin,
            image_seeds=self.image_seeds,
            num_images=self.num_images,
            num_rendered=self.generator.num_rendered,
            seconds=time.monotonic() - self._began,
            notes=self.notes,
        )

    def refined_policy(self) -> Policy:
        """The copy as it is now."""
        return self.copy.refined()

    @property
    def num_images(self) -> int:
        """Pictures that were asked for, those that failed and those in memory too: a second run
        stops where the first one did."""
        return (len(self.tried) + len(self._failed)) * self.settings.num_images

    @property
    def most_images(self) -> int:
        settings = self.settings
        most = (1 + settings.num_rounds * settings.num_candidates) * settings.num_images
        return min(most, settings.max_images or most)

    def _work(self) -> Work:
        parsed = prompts.parse(self.user_input, self.usual.keep)
        work, reason = self.adapter.prepare(parsed, self.asked)
        if work is None:
            raise SettingsError("user_input", reason)
        return work

    def _try_plain(self) -> Tried:
        batch = self._rewarded([self.user_input])
        if not batch.ok[0]:
            raise SettingsError("renderer", f"your text: {'; '.join(batch.failures[:1])}")
        pictures = self.generator.generate(
            [self.user_input] * len(self.image_seeds),
            self.image_seeds,
            should_stop=self.should_stop,
        )
        plain = self._noted(self.user_input, PLAIN, 0, batch, 0, pictures)
        self._tell("your text")
        return plain

    def _round(self, number: int) -> None:
        """Write, render, learn."""
        rollout, sources = self._write(number)
        num_before = len(self.tried)
        self._try_all(sources, number)
        rewarded = self._learnable(rollout)
        metrics: dict[str, float] = {}
        if self._learns and len(rewarded) > 1:
            metrics = self._learn(rewarded, number)
        best = best_of(self.tried, self.tried[0])
        self.rounds.append(
            Round(number, rewarded.rewards.tolist(), best.reward, len(self.tried) - num_before,
                  metrics)
        )  # fmt: skip

    def _write(self, number: int) -> tuple[Rollout, dict[str, str]]:
        """The completions of a round, and the new prompts in them with where they come from.

        Completions are taken in an order of chance (they come likeliest first), until a new prompt
        would be one more than the round wants: which of them are left out depends neither on their
        rewards nor on their probabilities.
        """
        settings, limit = self.settings, self._num_affordable()
        wanted = min(settings.num_candidates, limit)
        sources: dict[str, str] = {}
        generator = generator_of(settings.seed, "refine", number)
        with self.at_hand(self.copy.networks):
            if number == 1 or self._learns:  # what it has learned, at its best
                usual = self.adapter.adapt_all(
                    [self.user_input], should_stop=self.should_stop,
                    **dataclasses.asdict(self.usual),
                )[0].candidates[0].adapted_prompt  # fmt: skip
                if self._is_new(usual):
                    sources[usual] = OWN
            rollout = sample_rollout(
                self.adapter,
                [self.work] * self.num_times,
                self.asked,
                max_new_tokens=self.asked.max_new_tokens,
                image_seeds=[self.image_seeds] * self.num_times,
                generator=generator,
                should_stop=self.should_stop,
            )
        taken = torch.zeros(len(rollout), dtype=torch.bool)
        for place in torch.randperm(len(rollout), generator=generator).tolist():
            text = rollout.adapted_prompts[place]
            if self._is_new(text) and text not in sources:
                if len(sources) == wanted:
                    break
                sources[text] = SAMPLED
            taken[place] = True
        return rollout.kept(taken), sources

    def _is_new(self, text: str) -> bool:
        return text not in self._known and text not in self._failed

    def _try_all(self, sources: Mapping[str, str], number: int) -> None:
        """Render and reward new prompts, batch by batch, as far as the budget goes."""
        texts = list(sources)
        size = max(1, self.generator.batch_size // self.settings.num_images)
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            if not self._affordable(len(part)):
                return
            began = time.monotonic()
            batch = self._rewarded(part)
            self._slowest = max(self._slowest, time.monotonic() - began)
            self._note_failures(batch)
            for place, text in enumerate(part):
                pictures = (batch.pictures or [])[place]
                if batch.ok[place] and pictures is not None:
                    self._noted(text, sources[text], number, batch, place, pictures)
                else:
                    self._failed.add(text)
            self._forget_pictures()
            self._tell(f"round {number} of {self.settings.num_rounds}")

    def _rewarded(self, texts: Sequence[str]) -> RewardBatch:
        seeds = [self.image_seeds] * len(texts)
        user_inputs = [self.user_input] * len(texts)
        try:
            return self.rewarder.reward(user_inputs, texts, seeds, self.should_stop, True)
        except NothingRewarded as error:
            return error.batch

    def _noted(
        self,
        text: str,
        source: str,
        number: int,
        batch: RewardBatch,
        place: int,
        pictures: np.ndarray,
    ) -> Tried:
        tried = Tried(
            adapted_prompt=text,
            source=source,
            round=number,
            reward=float(batch.rewards[place]),
            terms={name: float(values[place]) for name, values in batch.terms.items()},
            aesthetic=float(batch.logged["aesthetic"][place]),
            cosine=float(batch.logged["cosine"][place]),
            pictures=pictures,
        )
        self.tried.append(tried)
        self._known[text] = tried
        return tried

    def _forget_pictures(self) -> None:
        """Kept are all pictures of the best prompt, and of others the one that a sheet shows."""
        others = range(1, len(self.tried))
        for rank, place in enumerate(sorted(others, key=lambda place: -self.tried[place].reward)):
            one, number = self.tried[place], int(rank < MOST_CELLS)
            if rank and len(one.pictures) > number:
                one = dataclasses.replace(one, pictures=one.pictures[:number].copy())
                self.tried[place] = self._known[one.adapted_prompt] = one

    def _learnable(self, rollout: Rollout) -> Rollout:
        """The completions whose prompts have rewards, with them."""
        known = [self._known.get(text) for text in rollout.adapted_prompts]
        rewards = torch.tensor([one.reward if one else 0.0 for one in known])
        kept = torch.tensor([one is not None for one in known])
        return dataclasses.replace(rollout, rewards=rewards).kept(kept)

    def _learn(self, rollout: Rollout, number: int) -> dict[str, float]:
        """Metrics of the updates. Where the copy cannot learn, the search goes on without."""
        try:
            with self.at_hand(self.copy.networks):
                return self.copy.learn(rollout, number, self.should_stop)
        except SettingsError:  # its weights are on the way to be no numbers
            self.copy.restart()
            self._note_once(
                f"the policy stopped learning in round {number} and is what it was at first: its "
                "loss was not finite; try a lower lr"
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._note_once("the policy stopped learning: memory does not suffice")
        self._learns = False
        return {}

    def _num_affordable(self) -> int:
        """Prompts that the budget of pictures still pays for."""
        return (self.most_images - self.num_images) // self.settings.num_images

    def _affordable(self, number: int) -> bool:
        """Whether the budget pays for a batch of so many prompts; it notes that it is spent."""
        limit = self.settings.max_seconds
        if limit and time.monotonic() - self._began + self._slowest > limit:
            self._note_once(f"stopped: the budget of {limit:g} s is spent")
            return False
        if self._num_affordable() < number:
            self._note_once(f"stopped: the budget of {self.most_images} pictures is spent")
            return False
        return True

    def _note_once(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _note_failures(self, batch: RewardBatch) -> None:
        for sentence in batch.failures:
            self._note_once(sentence)

    def _tell(self, text: str) -> None:
        best = max(self.tried, key=lambda one: one.reward, default=None)
        self.report(Progress(self.num_images, self.most_images, text, best))
