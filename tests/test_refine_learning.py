from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from promptadapt_core import prompts
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.decoding import Stopped
from promptadapt_core.policy import Policy
from promptadapt_core.refine.learning import PolicyCopy, _move_state
from promptadapt_core.refine.settings import RefineSettings
from promptadapt_core.rollouts import Rollout, sample_rollout
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.ppo_preparing import weights_hash


@pytest.fixture(scope="module")
def policy(policy_for: Callable[[Sequence[str]], Path]) -> Policy:
    return Policy.load(policy_for(("a cat", "a dog")) / "policy")


def experience(copy: PolicyCopy) -> Rollout:
    """Twelve completions, rewarded by their lengths."""
    adapter = PromptAdapter(copy.policy)
    asked = adapter.settings(mode="sample", num_candidates=12, min_modifiers=0, gate=False)
    work, _ = adapter.prepare(prompts.parse("a cat"), asked)
    rollout = sample_rollout(
        adapter, [work], asked, max_new_tokens=12, image_seeds=[[1]],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return dataclasses.replace(rollout, rewards=rollout.completion_mask.sum(-1).float())


def names_that_learned(copy: PolicyCopy, before: dict[str, torch.Tensor]) -> set[str]:
    after = copy.policy.model.state_dict()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def kept(copy: PolicyCopy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in copy.policy.model.state_dict().items()}


def test_a_copy_shares_nothing_with_the_policy(policy: Policy) -> None:
    copy = PolicyCopy(policy, RefineSettings(lr=1e-2))
    before = weights_hash(policy.clone().model)
    copy.learn(experience(copy), 1)
    refined = copy.refined()
    assert weights_hash(policy.clone().model) == before
    assert weights_hash(refined.model) == weights_hash(copy.policy.model) != before
    learned = weights_hash(refined.model)
    copy.learn(experience(copy), 2)
    assert weights_hash(refined.model) == learned, "what was handed out stays as it was"
    assert not any(parameter.requires_grad for parameter in refined.model.parameters())


def test_lora_trains_its_matrices_alone(policy: Policy, untouched_generators: Callable) -> None:
    pytest.importorskip("peft")
    with untouched_generators():
        copy = PolicyCopy(policy, RefineSettings(lr=1e-2, lora_rank=2))
        before = kept(copy)
        copy.learn(experience(copy), 1)
    learned = names_that_learned(copy, before)
    assert learned
    assert all("lora_" in name for name in learned)
    assert weights_hash(copy.refined().model) != weights_hash(policy.clone().model)


def test_best_of_n_has_nothing_to_learn_with(policy: Policy) -> None:
    copy = PolicyCopy(policy, RefineSettings(method="best_of_n"))
    assert copy.trainee is None
    assert weights_hash(copy.refined().model) == weights_hash(policy.clone().model)
    assert next(copy.networks.parameters()) is next(copy.policy.model.parameters())


def test_all_networks_are_moved_together(policy: Policy) -> None:
    """What a host moves holds the copy, the reference and the value network."""
    copy = PolicyCopy(policy, RefineSettings(method="ppo"))
    held = {id(parameter) for parameter in copy.networks.parameters()}
    for network in (copy.policy.model, copy.ref_model, copy._learner.value_network):
        assert {id(parameter) for parameter in network.parameters()} <= held


def test_the_moments_follow_the_weights(policy: Policy) -> None:
    copy = PolicyCopy(policy, RefineSettings())
    copy.learn(experience(copy), 1)
    optimizer = copy._learner.optimizer
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert moments
    assert any(moment.any() for moment in moments)
    _move_state(optimizer, torch.device("meta"))
    assert all(state["exp_avg"].is_meta for state in optimizer.state.values())
    assert not any(state["step"].is_meta for state in optimizer.state.values()), "a plain number"


@pytest.mark.parametrize("fails", [False, True])
def test_the_moments_are_on_the_device_only_while_it_learns(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    from promptadapt_core.refine import learning

    copy, places = PolicyCopy(policy, RefineSettings()), []
    rollout = experience(copy)
    monkeypatch.setattr(learning, "CPU", "rests")
    monkeypatch.setattr(learning, "_move_state", lambda _, place: places.append(place))
    if fails:
        monkeypatch.setattr(learning, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        copy.learn(rollout, 1)
    assert places == [torch.device("cpu"), "rests"]


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_restart_makes_it_what_it_was(policy: Policy, lora_rank: int) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    copy = PolicyCopy(policy, RefineSettings(lr=1e-2, lora_rank=lora_rank))
    before = weights_hash(copy.refined().model)
    copy.learn(experience(copy), 1)
    assert weights_hash(copy.refined().model) != before
    copy.restart()
    assert weights_hash(copy.refined().model) == before


def test_learning_stops_between_two_layers(policy: Policy) -> None:
    """On the way forward and on the way back, at any look; nothing is left behind."""
    copy, looks = PolicyCopy(policy, RefineSettings(num_epochs=1)), []
    rollout = experience(copy)
    backward = []

    def stops_at(last: int) -> Callable[[], bool]:
        def should_stop() -> bool:
            looks.append(torch.is_grad_enabled())
            backward.append(any(p.grad is not None for p in copy.policy.model.parameters()))
            return len(looks) == last

        return should_stop

    copy.learn(rollout, 1)  # the first time finds out how the logits are to be had
    copy.learn(rollout, 1, stops_at(0))
    num_looks = len(looks)
    leaves = [one for one in copy.networks.modules() if not list(one.children())]
    assert num_looks > 3 * len(leaves)  # of both policies, for two micro-batches
    assert {True, False} == set(backward)
    for last in (1, 2, num_looks // 3, num_looks // 2, num_looks - 1, num_looks):
        looks.clear()
        with pytest.raises(Stopped):
            copy.learn(rollout, 1, stops_at(last))
        assert len(looks) == last
        assert all(parameter.grad is None for parameter in copy.policy.model.parameters())
        hooks = [(one._forward_hooks, one._forward_pre_hooks) for one in copy.networks.modules()]
        assert not any(any(pair) for pair in hooks)


def test_looking_changes_nothing(policy: Policy) -> None:
    hashes = set()
    for should_stop in (None, lambda: False):
        copy = PolicyCopy(policy, RefineSettings(lr=1e-2, method="ppo"))
        copy.learn(experience(copy), 1, should_stop)
        hashes.add(weights_hash(copy.policy.model))
    assert len(hashes) == 1


def test_what_learning_takes(policy: Policy) -> None:
    """Beside the networks: the gradient and two moments of what learns, and activations."""
    size = sum(p.nbytes for p in PolicyCopy(policy, RefineSettings()).ref_model.parameters())
    for settings, expected in (
        (RefineSettings(), 6 * size),
        (RefineSettings(method="best_of_n"), 0),
    ):
        assert PolicyCopy(policy, settings).num_bytes_to_learn == expected
    assert PolicyCopy(policy, RefineSettings(method="ppo")).num_bytes_to_learn > 8 * size


def test_a_loss_that_is_no_number_is_told(policy: Policy) -> None:
    copy = PolicyCopy(policy, RefineSettings())
    rollout = experience(copy)
    before = weights_hash(copy.policy.model)
    rewards = rollout.rewards.clone()
    rewards[0] = torch.inf
    with pytest.raises(SettingsError, match="lr: .*not finite"):
        copy.learn(dataclasses.replace(rollout, rewards=rewards), 1)
    assert weights_hash(copy.policy.model) == before
