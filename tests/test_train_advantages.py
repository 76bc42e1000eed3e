from __future__ import annotations

from typing import Any

import pytest
import torch

from promptadapt_core.rollouts import Rollout
from promptadapt_core.train import advantages
from promptadapt_core.train.ppo_settings import PpoSettings


def rollout(
    user_inputs: list[str], seeds: list[int], rewards: list[float], lengths: list[int]
) -> Rollout:
    """Two nats above the reference at each completion's first token, none elsewhere."""
    number, longest = len(user_inputs), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    old = torch.zeros(number, longest)
    old[:, 0] = -1.0
    ref = torch.zeros(number, longest)
    ref[:, 0] = -3.0
    old[~mask] = ref[~mask] = float("nan")  # padding reaches no result
    return Rollout(
        user_inputs=user_inputs, adapted_prompts=user_inputs,
        image_seeds=[[seed] for seed in seeds], prompt_ids=[[1]] * number,
        completion_ids=torch.zeros(number, longest, dtype=torch.long), completion_mask=mask,
        truncated=torch.zeros(number, dtype=torch.bool),
        left_alone=torch.zeros(number, dtype=torch.bool), rewards=torch.tensor(rewards), terms={},
        old_logprobs=old, ref_logprobs=ref, values=torch.zeros(number, longest),
    )  # fmt: skip


def found(made: Rollout, algorithm: str, kl_coef: float = 0.1, **changes: Any) -> list[list[float]]:
    settings = PpoSettings(algorithm=algorithm, group_size=2, **changes)
    result, returns = advantages.advantages_of(made, settings, kl_coef)
    assert result.isfinite().all()
    assert bool((result[~made.completion_mask] == 0).all())
    if algorithm != "ppo":
        assert not returns.any()  # no value network learns them
    return [[round(value, 4) for value in row] for row in result.tolist()]


PAIR = (["a", "a", "b", "b"], [7, 7, 7, 7], [1.0, 4.0, 2.0, 2.0], [1, 2, 2, 1])


def test_grpo_divides_what_differs_by_its_spread() -> None:
    """1 and 4: 1.5 from their mean, which is their standard deviation. The KL has no part."""
    assert found(rollout(*PAIR), "grpo", 9.0) == [[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


def test_rloo_compares_with_the_others_less_their_kl() -> None:
    """Each is 2 nats from the reference, which cancels out, until one is not."""
    made = rollout(*PAIR)
    assert found(made, "rloo") == [[-3.0, 0.0], [3.0, 3.0], [0.0, 0.0], [0.0, 0.0]]
    made.old_logprobs[1, 1] = 5.0  # 5 nats more, of the second token: 0.1 each
    assert found(made, "rloo") == [[-2.5, 0.0], [2.5, 2.5], [0.0, 0.0], [0.0, 0.0]]


def test_of_three_each_is_compared_with_the_mean_of_two() -> None:
    made = rollout(["a"] * 3, [1] * 3, [0.0, 3.0, 6.0], [1, 1, 1])
    assert found(made, "rloo") == [[-4.5], [0.0], [4.5]]
    assert found(made, "grpo") == [[-1.2247], [0.0], [1.2247]]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_other_seeds_are_another_group(algorithm: str) -> None:
    """Only candidates with the same luck are compared; one that is left alone learns nothing."""
    made = rollout(["a", "a", "a", "b"], [1, 2, 1, 1], [1.0, 9.0, 1.0, 5.0], [1, 1, 1, 1])
    assert found(made, algorithm) == [[0.0]] * 4
    assert advantages.groups_of(made).tolist() == [0, 1, 0, 2]


def test_a_candidate_without_a_reward_takes_no_part() -> None:
    made = rollout(*PAIR)
    kept = made.kept(torch.tensor([False, True, True, True]))
    assert found(kept, "rloo") == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_ppo_may_learn_from_what_is_above_the_others() -> None:
    """Then what all candidates of a user input have in common changes nothing."""
    made, luckier = rollout(*PAIR), rollout(*PAIR)
    luckier.rewards[:2] += 100.0
    assert found(made, "ppo", group_baseline=True) == found(luckier, "ppo", group_baseline=True)
    assert found(made, "ppo") != found(luckier, "ppo")
