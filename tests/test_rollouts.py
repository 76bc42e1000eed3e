from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from promptadapt_core import rollouts
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.decoding import Stopped
from promptadapt_core.policy import Policy, new_policy, train_tokenizer
from promptadapt_core.rollouts import Rollout

TEXTS = ["a cat, oil painting, sharp focus", "an old house, watercolor, 8k"] * 4
INPUTS = ["a cat", "an old house by the sea", "two boats"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Random weights, made larger so that some tokens are much likelier than others."""
    made = new_policy(train_tokenizer(TEXTS, 300), 16, 2, 2, num_positions=128, seed=3)
    with torch.no_grad():
        made.model.transformer.wte.weight *= 12.0
    return made


def asked(policy: Policy, **changes: Any) -> tuple[PromptAdapter, Any]:
    adapter = PromptAdapter(policy)
    chosen = {"mode": "sample", "top_p": 1.0, "temperature": 1.0, "gate": False, **changes}
    return adapter, adapter.settings(**chosen)


def sampled(policy: Policy, seed: int = 0, limit: int = 12, **changes: Any) -> Rollout:
    adapter, settings = asked(policy, **changes)
    works, left_alone = rollouts.readable(adapter, INPUTS, settings)
    assert not left_alone
    return rollouts.sample_rollout(
        adapter,
        works,
        settings,
        max_new_tokens=limit,
        image_seeds=[[n, n + 1] for n in range(len(works))],
        generator=torch.Generator().manual_seed(seed),
    )


def zeros(batch: rollouts.TokenBatch) -> torch.Tensor:
    return torch.zeros(batch.completion_ids.shape)


def estimated(policy: Policy, rollout: Rollout, **changes: Any) -> Rollout:
    options = {"policy_model": policy.model, "ref_model": policy.model, "values": zeros,
               "temperature": 1.0, **changes}  # fmt: skip
    return rollouts.estimated(rollout, [list(range(len(rollout)))], **options)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_drawn_from_the_policys_own_distribution(
    policy: Policy, temperature: float
) -> None:
    """No beams, no nucleus, no bans: the frequencies are the softmax at the temperature."""
    adapter, settings = asked(policy, temperature=temperature)
    works = rollouts.readable(adapter, INPUTS[:1], settings)[0] * 3000
    rollout = rollouts.sample_rollout(
        adapter, works, settings, max_new_tokens=1, image_seeds=[[0]] * 3000,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    drawn = rollout.completion_ids[:, 0].bincount(minlength=policy.config["vocab_size"])
    ids = torch.tensor([rollout.prompt_ids[0]])
    with torch.no_grad():
        expected = (policy.model(ids).logits[0, -1] / temperature).softmax(-1)
    assert (drawn / 3000 - expected).abs().sum() / 2 < 0.12
    assert expected.max() > 0.02


def test_a_completion_ends_with_the_end_token_or_is_marked_as_truncated(policy: Policy) -> None:
    rollout = sampled(policy, limit=8, num_candidates=40)
    assert len(rollout) == 120
    assert 0 < rollout.truncated.sum() < 120
    for row, length in enumerate(rollout.num_tokens):
        ids = rollout.completion_ids[row, :length].tolist()
        assert rollout.completion_mask[row].tolist() == [True] * length + [False] * (
            rollout.completion_mask.shape[1] - length
        )
        if rollout.truncated[row]:
            assert length == 8
            assert policy.eos_id not in ids
        else:
            assert ids.index(policy.eos_id) == length - 1


def test_candidates_of_one_input_stand_side_by_side_with_its_seeds(policy: Policy) -> None:
    rollout = sampled(policy, num_candidates=2)
    assert rollout.user_inputs == [text for text in INPUTS for _ in range(2)]
    assert rollout.image_seeds == [[n, n + 1] for n in range(3) for _ in range(2)]


def test_adapted_prompts_are_the_adapters(policy: Policy) -> None:
    rollout = sampled(policy, num_candidates=20)
    for row, user_input in enumerate(rollout.user_inputs):
        adapted_prompt = rollout.adapted_prompts[row]
        assert adapted_prompt.startswith(user_input)
        assert (adapted_prompt == user_input) == bool(rollout.left_alone[row])


def test_logprobs_are_those_of_each_sequence_alone(policy: Policy) -> None:
    """The batch, its padding and the sampler's forward change nothing."""
    rollout = estimated(policy, sampled(policy, num_candidates=3), temperature=0.7)
    lengths = rollout.num_tokens
    for row, prompt_ids in enumerate(rollout.prompt_ids):
        completion = rollout.completion_ids[row, : lengths[row]]
        ids = torch.cat([torch.tensor(prompt_ids), completion])
        with torch.no_grad():
            logprobs = (policy.model(ids[None]).logits[0] / 0.7).log_softmax(-1)
        before = range(len(prompt_ids) - 1, len(ids) - 1)
        alone = torch.stack([logprobs[place, ids[place + 1]] for place in before])
        assert torch.allclose(rollout.old_logprobs[row, : lengths[row]], alone, atol=1e-4)
        assert not rollout.old_logprobs[row, lengths[row] :].any()
    assert torch.equal(rollout.old_logprobs, rollout.ref_logprobs)


def test_the_padding_token_changes_nothing(policy: Policy) -> None:
    """The end token pads in some models: masks come from lengths, so it is learned all the same."""
    rollout = sampled(policy, num_candidates=40)
    ended = (~rollout.truncated).nonzero()[0].item()
    rows = list(range(len(rollout)))
    found = []
    for padding_id in (policy.eos_id, 7):
        batch = rollouts.token_batch(rollout, rows, padding_id=padding_id)
        with torch.no_grad():
            logits = rollouts.completion_logits(policy.model, batch)
        found.append(logits[batch.completion_mask])
    assert torch.allclose(*found, atol=1e-5)
    last = rollout.num_tokens[ended] - 1
    assert rollout.completion_ids[ended, last] == policy.eos_id
    assert rollout.completion_mask[ended, last]


def test_sampling_reads_the_weights_as_they_are(policy: Policy) -> None:
    """One weight that no sample of the packed copies sees is changed in place."""
    own = Policy(policy.manifest, policy.config, model=copy.deepcopy(policy.model),
                 tokenizer=policy.tokenizer)  # fmt: skip
    before = sampled(own, num_candidates=8)
    with torch.no_grad():
        own.model.transformer.h[0].mlp.c_fc.bias[1] += 50.0
        own.model.transformer.h[1].attn.c_attn.weight.view(-1)[1] += 50.0
    after = sampled(own, num_candidates=8)
    fresh = Policy(policy.manifest, policy.config, model=copy.deepcopy(own.model),
                   tokenizer=policy.tokenizer)  # fmt: skip
    expected = sampled(fresh, num_candidates=8)
    assert torch.equal(after.completion_ids, expected.completion_ids)
    assert after.completion_ids.tolist() != before.completion_ids.tolist()


def test_the_head_alone_gives_the_whole_logits(policy: Policy) -> None:
    batch = rollouts.token_batch(sampled(policy), [0, 1, 2])
    with torch.no_grad():
        short, whole = (rollouts.completion_logits(policy.model, batch, w) for w in (False, True))
    assert torch.allclose(short, whole, atol=1e-5)
    assert not rollouts.needs_whole_logits(policy.model, batch)


@dataclass
class Batch:
    rewards: torch.Tensor
    terms: dict[str, torch.Tensor]
    ok: torch.Tensor


def test_candidates_without_a_reward_are_dropped(policy: Policy) -> None:
    rollout = replace(sampled(policy), rewards=torch.zeros(3))
    rewards = torch.tensor([1.0, 2.0, float("nan")])
    batch = Batch(rewards, {"word": rewards + 1}, torch.tensor([False, True, True]))
    kept = rollout.rewarded(batch)
    assert len(kept) == 1
    assert kept.user_inputs == [INPUTS[1]]
    assert kept.rewards.tolist() == [2.0]
    assert kept.terms["word"].tolist() == [3.0]
    assert kept.num_tokens == [rollout.num_tokens[1]]
    whole = rollout.rewarded(Batch(torch.ones(3), {}, torch.ones(3, dtype=torch.bool)))
    assert whole.user_inputs == INPUTS


def test_user_inputs_that_are_left_alone_are_named(policy: Policy) -> None:
    adapter, settings = asked(policy)
    unreadable = ["\ud800", "a\0cat", "z" * 20_001]
    texts = ["a cat", "<lora:x:1>", "a " * 90, *unreadable]
    works, left_alone = rollouts.readable(adapter, texts, settings)
    assert [work.typed.user_input for work in works] == ["a cat"]
    assert list(left_alone) == texts[1:]
    assert all(left_alone.values())


def test_the_generator_alone_decides(
    policy: Policy,
    untouched_generators: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    with untouched_generators():
        first, again, other = (sampled(policy, seed, num_candidates=4) for seed in (5, 5, 6))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert first.completion_ids.tolist() != other.completion_ids.tolist()


def test_it_stops_when_asked(policy: Policy) -> None:
    adapter, settings = asked(policy)
    works = rollouts.readable(adapter, INPUTS, settings)[0]
    with pytest.raises(Stopped):
        rollouts.sample_rollout(
            adapter, works, settings, max_new_tokens=5, image_seeds=[[0]] * 3,
            generator=torch.Generator(), should_stop=lambda: True,
        )  # fmt: skip
