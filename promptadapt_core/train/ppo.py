"""Reinforcement learning of a policy by PPO: it learns to write what its pictures are paid for.

The method is step two of Promptist (Hao et al. 2023, arXiv 2212.09611, section 2.2). Departures
from the paper, and from the code that was released with it (microsoft/LMOps, folder promptist):
- Completions are sampled at the policy's own distribution, not taken from diverse beams: PPO
  learns from ratios to the distribution that the text was drawn from.
- A completion cut by the length limit gets no end token that the policy never chose.
- The reward is added to the last token's KL penalty; advantages are whitened over real tokens;
  masks come from lengths, for the padding token is the end token too.
- kl_coef follows the KL to the SFT policy, which is a copy that shares nothing with the policy and
  is compared bit by bit at the end.
- Policy and value network are clipped to max_grad_norm each by itself, and both are float32.
- Dropout is off; the first ratio of every iteration is asserted to be 1.
- Plain pictures are drawn once for each user input and seed; every reward term is logged apart.

In the lab, and with a diffusers pipeline:

    python -m promptadapt_core.train ppo --policy FOLDER --renderer lab \
        --user-inputs inputs.txt --out runs/ppo
    python -m promptadapt_core.train ppo --policy FOLDER --renderer FOLDER --scorer FOLDER \
        --user-inputs inputs.txt --out runs/ppo --rollout-size 64 --minibatch-size 16

In several processes, on the GPUs of one or more machines or on CPUs, which share the pictures and
the updates; the same run, but for rounding, as in one:

    accelerate launch --multi_gpu --num_processes 8 -m promptadapt_core.train ppo ...
    torchrun --nproc-per-node 2 -m promptadapt_core.train ppo --device cpu ...

A run that was stopped or killed goes on with the same command and --resume, in whatever number of
processes; on a CPU, and in as many as before, its weights equal those of a run that was never
stopped, bit for bit: everything that is drawn comes from the seed and the number of the iteration.
The folder then holds config.json, metrics.jsonl (defined in ppo_metrics.py) and the same in
tensorboard/, best/ (float16, what `adapt --policy` reads), last/ (float32), samples/, baselines/,
alarms.jsonl and state.pt.

Runs on the same user inputs, renderer and scorer save time by a common --baselines folder. Runs at
the same time then share scores that others rendered in other batches, which may differ in the last
digits: their weights are no longer a matter of their own settings alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..alarms import AlarmSettings
from ..decoding import Stopped
from ..judging import Judge, mean_metrics
from ..objectives import AdaptiveKl
from ..process_group import ALONE, ProcessGroup
from ..rollouts import RewardFunction, Rollout
from ..settings import SettingsError
from .ppo_experience import Collector
from .ppo_metrics import rollout_metrics
from .ppo_plan import make_plan
from .ppo_preparing import Prepared, note_length, prepare, weights_hash
from .ppo_record import Record
from .ppo_settings import PpoSettings
from .ppo_update import update

STATE_FORMAT = 1
BEST_WINDOW = 5  # iterations that the best reward is a mean of
MOST_EMPTY = 3  # iterations without any reward, one after the other, that end a run


@dataclasses.dataclass(frozen=True)
class PpoResult:
    """status: "done" or "stopped" (asked to; it can be resumed). best: folder of the weights with
    the highest mean reward over 5 iterations, and that reward."""

    status: str
    iteration: int
    num_iterations: int
    best: Path
    best_reward: float


def train_ppo(
    settings: PpoSettings,
    *,
    reward: RewardFunction,
    judge: Judge | None = None,
    alarms: AlarmSettings | None = None,
    report: runs.Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
    group: ProcessGroup = ALONE,
) -> PpoResult:
    """Train as the settings say; the run folder is settings.out.

    judge: looks at the pictures and takes no part in the reward. should_stop: asked between
    tokens, between pictures and after every iteration; an iteration that is broken off is done
    anew by a resumed run. Raises SettingsError for bad input, a full disk, a loss that is not
    finite, a KL above max_ref_kl, completions shorter than min_mean_tokens and a reward function
    that fails for all candidates again and again; what was saved before stays whole. group: of
    processes that train together, all with the same arguments.
    """
    report = report if report and group.is_main else runs.Silent()
    should_stop = should_stop or (lambda: False)

    def train() -> PpoResult:
        prepared = prepare(settings, reward, report, judge, group)
        trainer = PpoTrainer(prepared, reward, judge, report, alarms)
        try:
            return trainer.run(should_stop)
        finally:
            trainer.record.close()

    return group.together(train)


class PpoTrainer:
    """One run: the networks, the controller of the KL and how far it is."""

    def __init__(
        self,
        prepared: Prepared,
        reward: RewardFunction,
        judge: Judge | None,
        report: runs.Reporter,
        alarms: AlarmSettings | None = None,
    ):
        self.prepared, self.settings = prepared, prepared.settings
        self.learner, self.ref_model = prepared.learner, prepared.ref_model
        self.run_folder, self.reward = prepared.run_folder, reward
        self.judge, self.report, self.group = judge, report, prepared.group
        self.collector = Collector(prepared, reward, judge)
        self.num_iterations = self.settings.num_iterations
        self.ref_hash = weights_hash(self.ref_model)
        settings = self.settings
        self.kl = AdaptiveKl(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        self.record = Record(settings, reward, judge, alarms, report, self.group)
        self.progress: dict[str, Any] = {
            "iteration": 0, "episodes": 0, "images": 0, "seconds": 0.0, "num_empty": 0,
            "recent_rewards": [], "best_window": 0, "best_reward": -torch.inf,
        }  # fmt: skip
        self.saving_seconds = 0.0  # of the state after the last iteration
        self._load_state()
        if self.progress["iteration"] > self.num_iterations:
            done = self.progress["iteration"] * settings.rollout_size
            raise SettingsError("num_episodes", f"the run has sampled {done:,} already")
        note_length(self.run_folder, settings.num_episodes)
        self.run_folder.finish_replacing("best", "last")
        if not (self.run_folder.path / "last").is_dir():
            self._save_last()
        self.record.open(self.progress["iteration"])

    def run(self, should_stop: Callable[[], bool]) -> PpoResult:
        """Train to the end, or until asked to stop."""
        progress, stopped = self.progress, False
        if progress["iteration"] < self.num_iterations:
            stopped = not self._say_plan(should_stop)
        while progress["iteration"] < self.num_iterations and not stopped:
            try:
                row = self.group.together(lambda: self._iterate(should_stop))
            except Stopped:
                stopped = True
                self._save_state()  # no update had begun: these are the weights of the boundary
                break
            stopped = self.group.agree(should_stop)
            last = progress["iteration"] == self.num_iterations
            if stopped or last or progress["iteration"] % self.settings.checkpoint_every == 0:
                began = time.monotonic()
                self._save_state()
                self.saving_seconds = time.monotonic() - began
            self.report.step(progress["iteration"], self.num_iterations, row)
        assert weights_hash(self.ref_model) == self.ref_hash, "the reference policy has changed"
        done = progress["iteration"] == self.num_iterations
        return PpoResult(
            "done" if done else "stopped",
            progress["iteration"],
            self.num_iterations,
            self.run_folder.path / "best",
            progress["best_reward"],
        )

    def _say_plan(self, should_stop: Callable[[], bool]) -> bool:
        """False when it was broken off."""
        try:
            num_done = self.progress["iteration"]
            plan = self.group.together(
                lambda: make_plan(
                    self.prepared, self.reward, num_done, should_stop, judge=self.judge
                )
            )
        except Stopped:
            return False
        sentences = [*plan.sentences(), *getattr(self.reward, "sentences", list)()]
        if self.judge is not None:
            sentences.append(f"judged, with no part in the reward: {', '.join(self.judge.metrics)}")
        for sentence in sentences:
            self.report.say(sentence)
        return not self.group.agree(should_stop)

    def _iterate(self, should_stop: Callable[[], bool]) -> dict[str, float]:
        """One rollout and its updates; the row of metrics, written."""
        iteration = self.progress["iteration"]
        times = [time.monotonic()]
        sampled, row = self.collector.sample(iteration, should_stop)
        times.append(time.monotonic())
        shows = self.record.are_samples_due(iteration + 1)
        batch = self.collector.rewards(sampled, should_stop, shows or self.judge is not None)
        self.record.tell_failures(iteration + 1, batch)
        times.append(time.monotonic())
        judged = self.collector.judgements(sampled, batch)
        if shows:
            pictures = self.collector.pictures(batch, self.settings.num_samples)
            self.record.write_samples(iteration + 1, sampled, batch, judged, pictures)
        times.append(time.monotonic())
        rollout = sampled.rewarded(batch)
        if len(rollout):
            self.progress["num_empty"] = 0
            rollout = self.collector.estimates(rollout, iteration)
            times.append(time.monotonic())
            kl_coef = self.kl.kl_coef
            row |= rollout_metrics(sampled, rollout, kl_coef) | self.reward.describe(batch)
            row |= mean_metrics(judged)
            self._guard(row, iteration)
            self._keep_best(row["rollout/reward"])
            row |= update(self.learner, rollout, kl_coef, iteration)
            if self.settings.kl_target:
                self.kl.update(row["kl/ref_kl"], len(rollout))
        else:
            row |= self._nothing_rewarded(len(sampled), iteration)
            times.append(times[-1])
        times.append(time.monotonic())
        self._advance(row, sampled, times)
        if len(rollout):
            self.record.add_alarms(iteration + 1, row, rollout)
        row["train/num_alarms"] = float(len(self.record.alarms))
        self.record.write_row(iteration + 1, row)
        return row

    def _nothing_rewarded(self, num_sampled: int, iteration: int) -> dict[str, float]:
        """The row of an iteration from which nothing can be learned. SettingsError when there were
        too many of them in a row."""
        self.progress["num_empty"] += 1
        if self.progress["num_empty"] >= MOST_EMPTY:
            raise SettingsError(
                "renderer",
                f"no candidate of the last {MOST_EMPTY} iterations, up to {iteration + 1}, has a "
                "reward; what was saved before is whole",
            )
        return {"rollout/num_candidates": 0.0, "rollout/num_dropped": float(num_sampled)}

    def _guard(self, row: Mapping[str, float], iteration: int) -> None:
        """Stop a run that has gone astray before it learns from what it wrote."""
        settings, kl = self.settings, row["kl/ref_kl"]
        kept = "best/ holds the best before: start anew" if iteration else "start anew"
        if settings.max_ref_kl and not kl <= settings.max_ref_kl:
            raise SettingsError(
                "max_ref_kl",
                f"the policy is {kl:.1f} nats per completion from where it began, more than "
                f"{settings.max_ref_kl:g}, in iteration {iteration + 1}; {kept} with a higher "
                "kl_coef or a lower lr",
            )
        if row["rollout/num_tokens"] < settings.min_mean_tokens:
            raise SettingsError(
                "min_mean_tokens",
                f"completions have collapsed to {row['rollout/num_tokens']:.2f} tokens, fewer than "
                f"{settings.min_mean_tokens:g}, in iteration {iteration + 1}; {kept} with a lower "
                "lr, or look at the reward",
            )

    def _keep_best(self, reward: float) -> None:
        """Save the weights that the rollout came from, when the mean reward is the highest.

        Means over fewer than BEST_WINDOW iterations are compared with their like only."""
        progress = self.progress
        recent = [*progress["recent_rewards"], reward][-BEST_WINDOW:]
        progress["recent_rewards"] = recent
        mean = sum(recent) / len(recent)
        if (len(recent), mean) > (progress["best_window"], progress["best_reward"]):
            progress.update(best_window=len(recent), best_reward=mean)
            policy = self.prepared.adapter.policy
            self.run_folder.save_folder("best", lambda folder: policy.save(folder, torch.float16))

    def _advance(self, row: dict[str, float], sampled: Rollout, times: list[float]) -> None:
        """Count the iteration, and add the counts and times to its row."""
        progress = self.progress
        parts = [after - before for before, after in zip(times, times[1:], strict=False)]
        progress["iteration"] += 1
        progress["episodes"] += len(sampled)
        progress["images"] += sum(map(len, sampled.image_seeds))
        parts.append(self.saving_seconds)
        self.saving_seconds = 0.0
        progress["seconds"] += sum(parts)
        row |= {
            "train/episodes": progress["episodes"],
            "train/images": progress["images"],
            "train/best_reward": progress["best_reward"],
            "time/hours": progress["seconds"] / 3600,
            "time/outside_reward_share": 1.0 - parts[1] / max(sum(parts), 1e-9),
        }
        names = ("sampling", "reward", "judge", "estimate", "update", "saving")
        row |= {f"time/{name}_seconds": part for name, part in zip(names, parts, strict=True)}

    def _save_state(self) -> None:
        learner, value = self.learner, self.learner.value_network
        self._check_agreement()
        self._save_last()  # first: a run that is killed between the two must not be behind in it
        self.run_folder.save_state(
            {
                "format": STATE_FORMAT,
                "progress": {**self.progress, "alarms": self.record.alarms},
                "kl_coef": self.kl.kl_coef,
                "watch": self.record.watch.state(),
                "policy": learner.model.state_dict(),
                "value": value.state_dict() if value is not None else None,
                "optimizer": learner.optimizer.state_dict(),
            }
        )

    def _save_last(self) -> None:
        policy = self.prepared.adapter.policy
        self.run_folder.save_folder("last", lambda folder: policy.save(folder, torch.float32))

    def _check_agreement(self) -> None:
        """SettingsError("device", ...) where processes have come to hold other weights."""
        if self.group.num_processes == 1:
            return
        networks = self.learner.networks().values()
        hashes = self.group.gather(lambda: [weights_hash(network) for network in networks])
        strays = [str(rank) for rank, found in enumerate(hashes) if found != hashes[0]]
        if strays:
            raise SettingsError(
                "device",
                f"after iteration {self.progress['iteration']} process {', '.join(strays)} holds "
                "other weights than the main one: their machines compute differently, so they "
                "cannot train together; what was saved before is whole",
            )

    def _load_state(self) -> None:
        def put(state: dict[str, Any]) -> None:
            self.learner.model.load_state_dict(state["policy"])
            if self.learner.value_network is not None:
                self.learner.value_network.load_state_dict(state["value"])
            self.learner.optimizer.load_state_dict(state["optimizer"])
            self.kl.kl_coef = state["kl_coef"]
            self.record.watch.load_state(state["watch"])
            self.progress.update(state["progress"])
            self.record.alarms = list(self.progress.pop("alarms"))

        self.run_folder.restore(STATE_FORMAT, put)
