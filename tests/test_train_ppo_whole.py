"""All updates of an iteration, as the trainer makes them, beside the same written out in float64;
and what a run promises of its networks, its alarms and its checkpoints."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_train_ppo import (
    SUBJECTS,
    Onlooker,
    WordReward,
    experience,
    never,
    rows_of,
    saved,
    tiny,
    trainer,
)

from promptadapt_core import runs
from promptadapt_core.policy import Policy
from promptadapt_core.rewards import REWARD_METRICS, TERMS
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import ppo, ppo_preparing, ppo_update
from promptadapt_core.train.ppo_record import Record
from promptadapt_core.train.probing import peak_bytes

KL_COEF = 0.2
CHOSEN: dict[str, Any] = {
    "num_epochs": 2, "minibatch_size": 4, "micro_batch_size": 3, "temperature": 0.7, "gamma": 0.97,
    "gae_lambda": 0.9, "clip_range": 0.02, "value_clip_range": 0.02, "entropy_coef": 0.05,
    "lr": 0.01, "value_lr": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.5, "adam_eps": 0.01,
}  # fmt: skip
Numbers = dict[tuple[int, int], float]  # by (row, token)


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A folder with inputs.txt and policy/, an SFT policy that writes styles."""
    return policy_for(SUBJECTS)


# The update, one completion at a time: no padding, no batch, no function of objectives.py


def ids_of(rollout: Any, row: int) -> tuple[list[int], int]:
    """(all tokens that a network reads, the place of the first that the policy chose)."""
    length = int(rollout.completion_mask[row].sum())
    chosen = rollout.completion_ids[row, :length].tolist()
    return rollout.prompt_ids[row] + chosen, len(rollout.prompt_ids[row])


def distributions(model: Any, rollout: Any, row: int, temperature: float) -> torch.Tensor:
    """(tokens, V): log-probs of what could have stood at each place of the completion."""
    ids, start = ids_of(rollout, row)
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1] / temperature
    return logits - logits.exp().sum(-1, keepdim=True).log()


def values_of(network: Any, rollout: Any, row: int) -> torch.Tensor:
    ids, start = ids_of(rollout, row)
    hidden = network.body(torch.tensor([ids])).last_hidden_state[0, start - 1 : -1]
    return hidden @ network.value_head.weight[0] + network.value_head.bias[0]


def numbers_of(find: Callable[[int], torch.Tensor], rollout: Any) -> Numbers:
    with torch.no_grad():
        return {
            (row, t): value
            for row in range(len(rollout))
            for t, value in enumerate(find(row).tolist())
        }


def logprobs_of(model: Any, rollout: Any, row: int, temperature: float) -> torch.Tensor:
    ids, start = ids_of(rollout, row)
    every = distributions(model, rollout, row, temperature)
    return torch.stack([every[t, token] for t, token in enumerate(ids[start:])])


def advantages_by_loops(
    rollout: Any, old: Numbers, ref: Numbers, values: Numbers, settings: Any
) -> tuple[Numbers, Numbers]:
    """(whitened advantages, returns)."""
    advantages, returns = {}, {}
    for row in range(len(rollout)):
        length = int(rollout.completion_mask[row].sum())
        surprises = []
        for t in range(length):
            paid = -KL_COEF * (old[row, t] - ref[row, t])
            paid += float(rollout.rewards[row]) if t == length - 1 else 0.0
            coming = values[row, t + 1] if t + 1 < length else 0.0
            surprises.append(paid + settings.gamma * coming - values[row, t])
        fade = settings.gamma * settings.gae_lambda
        for t in range(length):
            advantages[row, t] = sum(fade**n * one for n, one in enumerate(surprises[t:]))
            returns[row, t] = advantages[row, t] + values[row, t]
    mean, std = np.mean([*advantages.values()]), np.std([*advantages.values()])
    return {place: (one - mean) / std for place, one in advantages.items()}, returns


class Adam:
    """AdamW, after Loshchilov and Hutter (arXiv 1711.05101), algorithm 2."""

    def __init__(self, network: torch.nn.Module, lr: float, settings: Any):
        self.weights, self.lr, self.settings, self.step = [*network.parameters()], lr, settings, 0
        self.first, self.second = ([torch.zeros_like(w) for w in self.weights] for _ in range(2))

    @torch.no_grad()
    def update(self, gradients: Sequence[torch.Tensor]) -> None:
        settings, self.step = self.settings, self.step + 1
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        scale = min(settings.max_grad_norm / norm, 1.0)
        for place, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            one, two = settings.adam_beta1, settings.adam_beta2
            self.first[place] = one * self.first[place] + (1 - one) * scale * gradient
            self.second[place] = two * self.second[place] + (1 - two) * (scale * gradient) ** 2
            mean = self.first[place] / (1 - one**self.step)
            spread = (self.second[place] / (1 - two**self.step)).sqrt() + settings.adam_eps
            decay = settings.weight_decay if weight.dim() >= 2 else 0.0
            weight -= self.lr * (mean / spread + decay * weight)


def loss_of_tokens(
    rollout: Any, row: int, networks: Sequence[Any], known: Sequence[Numbers], settings: Any
) -> torch.Tensor:
    """The sum over the tokens of one completion."""
    (policy, network), (old, old_values, advantages, returns) = networks, known
    every = distributions(policy, rollout, row, settings.temperature)
    new = logprobs_of(policy, rollout, row, settings.temperature)
    total = torch.zeros((), dtype=torch.float64)
    for t, value in enumerate(values_of(network, rollout, row)):
        place, clip, reach = (row, t), settings.clip_range, settings.value_clip_range
        ratio = (new[t] - old[place]).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        total = total - torch.minimum(ratio * advantages[place], clipped * advantages[place])
        near = value.clamp(old_values[place] - reach, old_values[place] + reach)
        errors = (value - returns[place]) ** 2, (near - returns[place]) ** 2
        total = total + settings.value_coef * torch.maximum(*errors) / 2
        total = total + settings.entropy_coef * (every[t].exp() * every[t]).sum()
    return total


def update_by_loops(
    rollout: Any, networks: Sequence[Any], ref_model: Any, settings: Any
) -> list[torch.nn.Module]:
    """The networks, in float64, after the updates of iteration 0."""
    policy, network, reference = (copy.deepcopy(one).double() for one in (*networks, ref_model))
    heat = settings.temperature
    old, ref = (
        numbers_of(lambda row, model=model: logprobs_of(model, rollout, row, heat), rollout)
        for model in (policy, reference)
    )
    values = numbers_of(lambda row: values_of(network, rollout, row), rollout)
    advantages, returns = advantages_by_loops(rollout, old, ref, values, settings)
    known = (old, values, advantages, returns)
    optimizers = [Adam(policy, settings.lr, settings), Adam(network, settings.value_lr, settings)]
    for epoch in range(settings.num_epochs):
        for parts in ppo_update.minibatches_of(rollout, settings, 0, epoch):
            rows = [row for part in parts for row in part]
            losses = [
                loss_of_tokens(rollout, row, (policy, network), known, settings) for row in rows
            ]
            loss = torch.stack(losses).sum() / sum(rollout.num_tokens[row] for row in rows)
            weights = [weight for one in optimizers for weight in one.weights]
            gradients = torch.autograd.grad(loss, weights)
            number = len(optimizers[0].weights)
            optimizers[0].update(gradients[:number])
            optimizers[1].update(gradients[number:])
    return [policy, network]


def test_a_whole_iteration_of_updates_equals_float64_loops(inputs: Path, tmp_path: Path) -> None:
    """Rewards, KL, GAE, whitening, clips, entropy, minibatches of several micro-batches, gradient
    norms of each network and AdamW: the weights afterwards, to 1e-6."""
    made = trainer(tiny(inputs, tmp_path / "run", **CHOSEN))
    networks = (made.learner.model, made.learner.value_network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # so that there is a KL, and values that are not 0
        for network in networks:
            for weight in network.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    rollout = experience(made)
    assert not rollout.completion_mask.all()
    assert rollout.values[rollout.completion_mask].abs().min() > 0
    before = [copy.deepcopy(network) for network in networks]
    expected = update_by_loops(rollout, networks, made.ref_model, made.settings)
    row = ppo_update.update(made.learner, rollout, KL_COEF, 0)
    assert row["policy/num_updates"] == 4
    assert 0.0 < row["policy/clip_share"] < 1.0
    assert 0.0 < row["value/clip_share"] < 1.0
    assert row["policy/grad_norm"] > 0.5
    for network, wanted, old in zip(networks, expected, before, strict=True):
        parts = zip(network.named_parameters(), wanted.parameters(), old.parameters(), strict=True)
        for (name, found), right, start in parts:
            np.testing.assert_allclose(
                found.detach().numpy(), right.detach().numpy(), rtol=1e-6, atol=1e-6, err_msg=name
            )
            assert (found - start).abs().max() > 1e-4, f"{name} has to move to tell anything"


# What a run promises


def test_the_value_network_begins_as_the_sft_policy(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    body = Policy.load(inputs / "policy").model.base_model.state_dict()
    found = made.learner.value_network.body.state_dict()
    assert found.keys() == body.keys()
    assert all(torch.equal(found[name], body[name].float()) for name in body)


def test_a_policy_with_dropout_learns_without(inputs: Path, tmp_path: Path) -> None:
    """As the bundled ones have it in their configuration."""
    shutil.copytree(inputs / "policy", tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    rates = {f"{part}_pdrop": 0.5 for part in ("resid", "embd", "attn")}
    path.write_text(json.dumps({**told, **rates}), encoding="utf-8")
    made = trainer(tiny(inputs, tmp_path / "run", policy=str(tmp_path / "policy")))
    rollout = experience(made)
    nothing = torch.zeros(rollout.completion_mask.shape)
    lesson = ppo_update.Lesson(rollout, nothing, nothing, 0.1)
    first = ppo_update.minibatches_of(rollout, made.settings, 0, 0)[0]
    assert ppo_update.gradients(made.learner, lesson, first)[1] == 0.0
    ppo_update.update(made.learner, rollout, 0.1, 0)
    networks = (made.learner.model, made.learner.value_network, made.ref_model)
    assert not any(part.training for network in networks for part in network.modules())
    made.learner.model.train()
    assert ppo_update.gradients(made.learner, lesson, first)[1] > 0.1  # there is some to turn off


def test_the_watch_is_given_the_terms_the_judge_and_the_length(
    inputs: Path, tmp_path: Path
) -> None:
    settings = tiny(inputs, tmp_path / "run")
    reward: Any = SimpleNamespace(metrics=REWARD_METRICS)
    watch = Record(settings, reward, Onlooker(), None, runs.Silent()).watch  # type: ignore[arg-type]
    assert watch.terms == tuple(f"reward/{name}_mean" for name in TERMS)
    assert watch.judges == ("judge/brightness",)
    assert watch.length == "rollout/num_tokens"


class InOrder(runs.Silent):
    """A Reporter that keeps what it is told, the steps too."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)

    def step(self, step: int, num_steps: int, metrics: Any) -> None:
        self.heard.append(f"step {step} of {num_steps}")


def test_the_plan_comes_before_the_first_step(inputs: Path, tmp_path: Path) -> None:
    """Episodes, pictures, time and memory."""
    report = InOrder()
    ppo.train_ppo(
        tiny(inputs, tmp_path / "run", num_episodes=16), reward=WordReward(), report=report
    )
    assert report.heard[-2:] == ["step 1 of 2", "step 2 of 2"]
    plan, expected = report.heard[:2]
    assert plan.startswith("plan: 2 iterations, 16 episodes, at most 32 images of candidates and ")
    memory = r", memory \d+\.\d GiB" if peak_bytes(torch.device("cpu")) else ""
    pattern = r"expected, from a probe: at most about \d+ .*" + memory + r", disk \d+\.\d\d GiB"
    assert re.match(pattern, expected)


class HugeLater(WordReward):
    """From the third iteration on rewards that no float32 can square."""

    calls = -2  # the probe asks twice

    def reward(self, *arguments: Any, **options: Any) -> Any:
        batch = super().reward(*arguments, **options)
        self.calls += 1
        if self.calls >= 3:
            batch.rewards = torch.full_like(batch.rewards, 1e30)
        return batch


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    inputs: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    ppo.train_ppo(tiny(inputs, whole), reward=WordReward())
    with pytest.raises(SettingsError, match="not finite in iteration 3; nothing was saved since"):
        ppo.train_ppo(tiny(inputs, out), reward=HugeLater())
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["progress"]["iteration"] == 2
    assert all(tensor.isfinite().all() for tensor in state["policy"].values())
    assert [row["step"] for row in rows_of(out)] == [1, 2]
    ppo.train_ppo(tiny(inputs, out, resume=True), reward=WordReward())
    assert saved(out / "last") == saved(whole / "last")
    assert rows_of(out) == rows_of(whole)


def test_a_kl_that_explodes_keeps_the_last_good_checkpoint(inputs: Path, tmp_path: Path) -> None:
    """The guard speaks before anything is learned from the rollout that went astray."""
    made = trainer(tiny(inputs, tmp_path / "run", max_ref_kl=0.05))
    made._iterate(never)
    made._save_state()
    kept = (tmp_path / "run" / "state.pt").read_bytes()
    best = saved(tmp_path / "run" / "best")
    with torch.no_grad():
        for weight in made.learner.model.parameters():
            weight *= 3.0
    before = ppo_preparing.weights_hash(made.learner.model)
    with pytest.raises(SettingsError, match="nats per completion from where it began"):
        made.run(never)
    assert ppo_preparing.weights_hash(made.learner.model) == before
    assert (tmp_path / "run" / "state.pt").read_bytes() == kept
    assert saved(tmp_path / "run" / "best") == best
