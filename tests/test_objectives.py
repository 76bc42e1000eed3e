from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptadapt_core import objectives

F64 = torch.float64
LOG_2 = 0.693147180559945
NAMES = "logprobs old_logprobs ref_logprobs values old_values advantages returns".split()
few = settings(max_examples=25, deadline=None)


def rows(*numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=F64)


def mask_of(*lengths: int, width: int = 0) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def near(found: torch.Tensor, expected: list | float, tolerance: float = 1e-9) -> bool:
    return torch.allclose(found.double(), rows(expected)[0], rtol=0.0, atol=tolerance)


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random tensors of one minibatch in float64, right padded with zeros, and their mask."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    completion_mask = mask_of(*lengths, width=6)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    numbers = torch.randn((len(NAMES), *completion_mask.shape), generator=generator, dtype=F64)
    return as_batch(numbers * completion_mask), completion_mask


def as_batch(numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """numbers (7, B, T) by their names, and rewards (B,)."""
    made = dict(zip(NAMES, numbers, strict=True))
    return {**made, "rewards": made["returns"].sum(-1)}


def results(batch: dict[str, torch.Tensor], mask: torch.Tensor, num_tokens: float) -> dict:
    """Every function that takes a mask: (B,) or (B, T) results by row, then sums of the loss."""
    new, old, ref = batch["logprobs"], batch["old_logprobs"], batch["ref_logprobs"]
    rewards = objectives.token_rewards(batch["rewards"], old, ref, mask, 0.2)
    advantages, returns = objectives.gae(rewards, batch["values"], mask, 0.9, 0.95)
    policy = objectives.ppo_policy_loss(
        new, old, batch["advantages"], mask, clip_range=0.2, num_tokens=num_tokens
    )
    value = objectives.ppo_value_loss(
        batch["values"], batch["old_values"], batch["returns"], mask,
        value_clip_range=0.2, num_tokens=num_tokens,
    )  # fmt: skip
    by_row = [
        objectives.kl_k1(new, ref, mask), objectives.kl_k3(new, ref, mask), rewards, advantages,
        returns, objectives.completion_logprobs(new, mask),
    ]  # fmt: skip
    of_all = [
        objectives.masked_whiten(batch["advantages"], mask),
        objectives.masked_whiten(batch["advantages"], mask, shift_mean=False),
    ]
    numbers = [
        objectives.masked_mean(batch["values"], mask), objectives.ref_kl(new, ref, mask),
        objectives.explained_variance(batch["values"], batch["returns"], mask),
    ]  # fmt: skip
    return {"by_row": by_row, "of_all": of_all, "numbers": numbers, "parts": [*policy, *value]}


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(left, right, strict=True)
    )


# Hand-worked numbers


def test_means_see_real_tokens_only() -> None:
    values, mask = rows([1, 2, 99], [6, 99, 99]), mask_of(2, 1, width=3)
    assert objectives.masked_mean(values, mask) == 3.0  # (1 + 2 + 6) / 3
    assert objectives.minibatch_mean(values, mask, 9) == 1.0  # 9 / 9 tokens of the minibatch
    assert objectives.masked_mean(values, mask_of(0, 0, width=3)) == 0.0


def test_whitening_by_hand() -> None:
    values, mask = rows([1, 3, 99], [5, 7, 99]), mask_of(2, 2, width=3)
    # mean 4; deviations -3 -1 1 3; variance (9 + 1 + 1 + 9) / 4 = 5; std 2.2360679775
    whitened = objectives.masked_whiten(values, mask)
    assert near(whitened[0], [-1.3416407865, -0.4472135955, 0])
    assert near(whitened[1], [0.4472135955, 1.3416407865, 0])
    kept = objectives.masked_whiten(values, mask, shift_mean=False)
    assert near(kept[0], [2.6583592135, 3.5527864045, 0])


@pytest.mark.parametrize("number", [0.0, 0.1, -3e4, 1e-30])
@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_whitening_without_spread_is_finite(number: float, length: int, dtype) -> None:
    values = torch.full((1, 3), number, dtype=dtype, requires_grad=True)
    mask = mask_of(length, width=3)
    for shift_mean, expected in ((True, 0.0), (False, number if length else 0.0)):
        whitened = objectives.masked_whiten(values, mask, shift_mean)
        assert torch.allclose(whitened, (expected * mask).to(dtype))
        (gradient,) = torch.autograd.grad(whitened.sum(), values)
        assert gradient.isfinite().all()


def test_token_logprobs_at_the_sampling_temperature() -> None:
    logits = rows([0, math.log(3)]).reshape(1, 1, 2).expand(1, 2, 2)
    ids = torch.tensor([[0, 1]])
    # odds 1 : 3, so 1/4 and 3/4
    assert near(objectives.token_logprobs(logits, ids)[0], [-1.3862943611, -0.2876820724])
    # half the temperature squares the odds, 1 : 9, so 1/10 and 9/10
    assert near(objectives.token_logprobs(logits, ids, 0.5)[0], [-2.3025850930, -0.1053605157])


def test_entropy_by_hand() -> None:
    logits = rows([0, math.log(3), -math.inf], [5, 5, -math.inf]).requires_grad_()
    # 1/4 * 1.3862943611 + 3/4 * 0.2876820724 = 0.5623351446; two alike have log 2
    found = objectives.entropy(logits)
    assert near(found, [0.5623351446, LOG_2])
    # at 0.5: 1/10 * 2.3025850930 + 9/10 * 0.1053605157 = 0.3250829734
    assert near(objectives.entropy(logits, 0.5), [0.3250829734, LOG_2])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    # the gradient is -p (log p + H): -1/4 * (-1.3862943611 + 0.5623351446) = 0.2059898041
    assert near(gradient[0], [0.2059898041, -0.2059898041, 0])


def test_kl_estimates_by_hand() -> None:
    new, ref, mask = rows([-1, -2, 7]), rows([-1 + LOG_2, -2 - LOG_2, 9]), mask_of(2, width=3)
    assert near(objectives.kl_k1(new, ref, mask)[0], [-LOG_2, LOG_2, 0])
    # d = log 2: 2 - 1 - 0.6931471806; d = -log 2: 1/2 - 1 + 0.6931471806
    assert near(objectives.kl_k3(new, ref, mask)[0], [0.3068528194, 0.1931471806, 0])
    # per completion: -1 + 3 = 2 and 1; mean 1.5
    new, ref = rows([-1, -1], [-2, 9]), rows([0, -4], [-3, 0])
    assert objectives.ref_kl(new, ref, mask_of(2, 1)) == 1.5
    assert near(objectives.completion_logprobs(new, mask_of(2, 1)), [-2, -2])


def test_token_rewards_by_hand() -> None:
    old, ref = rows([-1, -2, -3], [-1, 0, 0]), rows([-2, -1, -5], [-4, 0, 0])
    found = objectives.token_rewards(torch.tensor([10, 20]), old, ref, mask_of(3, 1), 0.5)
    # k1 is 1 -1 2 and 3; times -0.5; the last tokens get 10 - 1 and 20 - 1.5
    assert near(found[0], [-0.5, 0.5, 9.0])
    assert near(found[1], [18.5, 0, 0])
    empty = objectives.token_rewards(torch.ones(1), old[:1], ref[:1], mask_of(0, width=3), 0.5)
    assert near(empty[0], [0, 0, 0])


def test_gae_by_hand() -> None:
    rewards, values, mask = (
        rows([1, 0, 2], [4, 99, 99]),
        rows([2, 4, 6], [1, 99, 99]),
        mask_of(3, 1),
    )
    advantages, returns = objectives.gae(rewards, values, mask, gamma=0.5, gae_lambda=0.5)
    # surprises: 1 + 2 - 2 = 1; 0 + 3 - 4 = -1; 2 + 0 - 6 = -4. Each carries 0.25 of the next:
    # -4; -1 - 1 = -2; 1 - 0.5 = 0.5. The second row ends after its first token: 4 + 0 - 1 = 3.
    assert near(advantages[0], [0.5, -2, -4])
    assert near(advantages[1], [3, 0, 0])
    assert near(returns[0], [2.5, 2, 2])
    assert near(returns[1], [4, 0, 0])


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 8.0, 5.0])
    groups = torch.tensor([7, 3, 7, 3, 7, 9])  # any numbers, in any order; the last is alone
    # 1 3 8: mean 4, deviations -3 -1 4, variance 26 / 3, std 2.9439202888
    found = objectives.group_advantages(rewards, groups)
    assert near(found, [-1.0190493307, 0, -0.3396831102, 0, 1.3587324410, 0], 1e-6)


def test_group_advantages_of_equal_rewards_are_exactly_0() -> None:
    rewards, groups = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7]), torch.arange(6) // 3
    assert not objectives.group_advantages(rewards, groups).any()


def test_less_the_others_by_hand() -> None:
    rewards = torch.tensor([2.0, 1.0, 7.0, 3.0, 8.0])
    groups = torch.tensor([4, 9, 5, 9, 9])  # any numbers, in any order; two are alone
    # 1 - 5.5, 3 - 4.5, 8 - 2
    assert near(objectives.less_the_others(rewards, groups), [0, -4.5, 0, -1.5, 6], 1e-6)


def test_less_the_others_of_equal_rewards_is_exactly_0() -> None:
    """0.1 is no binary fraction: the mean of three of them is another number."""
    rewards, groups = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7]), torch.arange(6) // 3
    assert not objectives.less_the_others(rewards, groups).any()


def test_policy_loss_by_hand() -> None:
    new = rows([math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5), 0.0]).requires_grad_()
    advantages, mask = rows([2, -2, 2, -2, 99]), mask_of(4, width=5)
    loss, clip_share, approx_kl = objectives.ppo_policy_loss(
        new, torch.zeros_like(new), advantages, mask, clip_range=0.2, num_tokens=4
    )
    # the worse of plain and clipped: -1.2 * 2; 1.5 * 2; -0.5 * 2; 0.8 * 2: sum 1.2, over 4 tokens
    assert near(loss, 0.3)
    assert clip_share == 0.5  # the first and the last
    # k3 with r - 1 - log r: 1.5: 0.5 - 0.4054651081 = 0.0945348919; 0.5: -0.5 + 0.6931471806 =
    # 0.1931471806; each twice over 4 tokens
    assert near(approx_kl, 0.1438410362)
    (gradient,) = torch.autograd.grad(loss, new)
    # -ratio * advantage / 4 where the clip is not the worse: 3 / 4 and -1 / 4
    assert near(gradient[0], [0, 0.75, -0.25, 0, 0])
    assert not clip_share.requires_grad
    assert not approx_kl.requires_grad


def test_value_loss_by_hand() -> None:
    values = rows([1.0, 1.0, 0.1, 99]).requires_grad_()
    returns, mask = rows([2, 0, 1, 99]), mask_of(3, width=4)
    loss, clip_share = objectives.ppo_value_loss(
        values, torch.zeros_like(values), returns, mask, value_clip_range=0.2, num_tokens=3
    )
    # clipped to 0.2: errors 1 and 1.8, take 3.24; 1 and 0.2, take 1; 0.9, take 0.81; sum 5.05 / 6
    assert near(loss, 5.05 / 6)
    assert near(clip_share, 1 / 3)
    (gradient,) = torch.autograd.grad(loss, values)
    assert near(gradient[0], [0, 1 / 3, -0.3, 0])  # (value - return) / 3, none where clipped
    loss, clip_share = objectives.ppo_value_loss(
        values, torch.zeros_like(values), returns, mask, value_clip_range=math.inf, num_tokens=3
    )
    assert near(loss, 2.81 / 6)  # 1 + 1 + 0.81
    assert clip_share == 0


def test_values_within_the_range_never_count_as_clipped() -> None:
    generator = torch.Generator().manual_seed(1)
    old, values, returns = torch.randn((3, 1, 4096), generator=generator)
    share = objectives.ppo_value_loss(
        values, old, returns, mask_of(4096), value_clip_range=10.0, num_tokens=4096
    )[1]
    assert share == 0  # old + (values - old) is not quite values, and would count as clipped


def test_explained_variance_by_hand() -> None:
    returns, mask = rows([1, 3, 99], [5, 7, 99]), mask_of(2, 2, width=3)
    # returns: variance 5. Errors 1 -1 1 -1: variance 1, so 0.8
    values = rows([0, 4, 0], [4, 8, 0])
    assert near(objectives.explained_variance(values, returns, mask), 0.8)
    assert objectives.explained_variance(returns, returns, mask) == 1
    assert objectives.explained_variance(returns * 0 + 2, returns, mask) == 0
    assert near(objectives.explained_variance(-returns, returns, mask), -3)  # 1 - 4 * 5 / 5
    assert objectives.explained_variance(values, returns * 0 + 2, mask) == 0


def test_dpo_loss_by_hand() -> None:
    chosen, rejected = rows([-1, -5]).requires_grad_(), rows([-4, -5]).requires_grad_()
    loss, margins = objectives.dpo_loss(
        chosen[0], rejected[0], rows([-2, -5])[0], rows([-3, -5])[0], beta=0.5, num_pairs=2
    )
    assert near(margins, [1, 0])  # 0.5 * (1 - -1) and nothing
    # -log sigmoid(1) = log(1 + 1/e) = 0.3132616875; log 2; mean 0.5032044340
    assert near(loss, 0.5032044340)
    gradients = torch.autograd.grad(loss, (chosen, rejected))
    # -beta * (1 - sigmoid(margin)) / 2 = -0.25 * 0.2689414214 and -0.25 * 0.5
    assert near(gradients[0][0], [-0.0672353553, -0.125])
    assert near(gradients[1][0], [0.0672353553, 0.125])
    assert not margins.requires_grad


def test_adaptive_kl_by_hand() -> None:
    controller = objectives.AdaptiveKl(kl_coef=0.2, target=6.0, horizon=1000)
    assert controller.update(6.6, 100) == pytest.approx(0.202)  # error 0.1 * 100 / 1000 = +1%
    assert controller.update(60.0, 100) == pytest.approx(0.202 * 1.02)  # no more than 0.2: +2%
    assert controller.update(-3.0, 500) == pytest.approx(0.202 * 1.02 * 0.9)  # -0.2 / 2 = -10%
    assert controller.update(math.inf, 10**6) == pytest.approx(0.202 * 1.02 * 0.9 * 1.2)
    with pytest.raises(ValueError, match="ref_kl: expected a number, got NaN"):
        controller.update(math.nan, 100)


# Properties


@few
@given(batches(), st.sampled_from([0.0, 1.0, -1e4, 1e4, math.nan, math.inf, -math.inf]))
def test_padding_content_changes_nothing(made: tuple, content: float) -> None:
    batch, mask = made
    dirty = {
        name: part if name == "rewards" else part.masked_fill(~mask, content)
        for name, part in batch.items()
    }
    for part in (batch, dirty):
        part["logprobs"].requires_grad_()
        part["values"].requires_grad_()
    clean, found = (results(part, mask, 7) for part in (batch, dirty))
    assert all(same(clean[kind], found[kind]) for kind in clean)
    gradients = [
        torch.autograd.grad(
            sum(part.sum() for kind in found.values() for part in kind if part.requires_grad),
            (inputs["logprobs"], inputs["values"]),
        )
        for found, inputs in ((clean, batch), (found, dirty))
    ]
    assert same(*gradients)


@few
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(made: tuple, shuffler) -> None:
    batch, mask = made
    order = list(range(len(mask)))
    shuffler.shuffle(order)
    found = results(batch, mask, 7)
    moved = results({name: part[order] for name, part in batch.items()}, mask[order], 7)
    for kind in ("by_row", "of_all"):
        assert same([part[order] for part in found[kind]], moved[kind])
    assert same(found["numbers"] + found["parts"], moved["numbers"] + moved["parts"])


@few
@given(batches())
def test_micro_batches_add_up_to_the_minibatch(made: tuple) -> None:
    batch, mask = made
    num_tokens = int(mask.sum())
    whole = results(batch, mask, num_tokens)
    micro = [
        results(
            {name: part[i : i + 1] for name, part in batch.items()}, mask[i : i + 1], num_tokens
        )
        for i in range(len(mask))
    ]
    sums = [
        torch.stack(parts).sum(0) for parts in zip(*(one["parts"] for one in micro), strict=True)
    ]
    assert same(whole["parts"], sums)
    joined = [torch.cat(parts) for parts in zip(*(one["by_row"] for one in micro), strict=True)]
    assert same(whole["by_row"], joined)


def test_the_mean_of_micro_batch_means_is_another_loss() -> None:
    """Why num_tokens is an argument: rows of 3 tokens and of 1 must not weigh the same."""
    values, mask = rows([1, 1, 1], [5, 0, 0]), mask_of(3, 1)
    parts = [objectives.minibatch_mean(values[i], mask[i], 4) for i in (0, 1)]
    assert sum(parts) == objectives.masked_mean(values, mask) == 2.0
    assert sum(objectives.masked_mean(values[i], mask[i]) for i in (0, 1)) / 2 == 3.0


@few
@given(batches(), st.floats(1e-6, 1e6), st.floats(-100, 100))
def test_whitened_tokens_have_mean_0_and_std_1(made: tuple, scale: float, shift: float) -> None:
    batch, mask = made
    whitened = objectives.masked_whiten(scale * (batch["advantages"] + shift), mask)
    real = whitened[mask].numpy()
    assert np.mean(real) == pytest.approx(0.0, abs=1e-8)
    assert np.std(real) == pytest.approx(1.0, abs=1e-8)
    assert (whitened[~mask] == 0).all()


@few
@given(batches(), st.floats(0.0, 1.0))
def test_gae_with_lambda_1_is_the_discounted_return_minus_the_value(made, gamma: float) -> None:
    batch, mask = made
    advantages, returns = objectives.gae(batch["returns"], batch["values"], mask, gamma, 1.0)
    for row in range(len(mask)):
        length = int(mask[row].sum())
        for t in range(length):
            rest = batch["returns"][row, t:length].tolist()
            total = sum(gamma**later * reward for later, reward in enumerate(rest))
            assert returns[row, t].item() == pytest.approx(total, abs=1e-9)
            assert advantages[row, t].item() == pytest.approx(
                total - batch["values"][row, t].item(), abs=1e-9
            )


@few
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30))
def test_k3_is_never_negative(differences: list[float]) -> None:
    ref = torch.tensor([differences])
    k3 = objectives.kl_k3(torch.zeros_like(ref), ref, torch.ones_like(ref, dtype=torch.bool))
    assert (k3 >= -1e-12).all()  # 1e-12: rounding where the difference is below 1e-7


@few
@given(batches())
def test_at_ratio_1_the_loss_is_minus_the_mean_advantage(made: tuple) -> None:
    batch, mask = made
    old = batch["old_logprobs"].clone().requires_grad_()
    loss, clip_share, approx_kl = objectives.ppo_policy_loss(
        old, batch["old_logprobs"], batch["advantages"], mask,
        clip_range=0.2, num_tokens=int(mask.sum()),
    )  # fmt: skip
    assert loss.item() == pytest.approx(-batch["advantages"][mask].mean().item())
    assert (clip_share, approx_kl) == (0, 0)
    (gradient,) = torch.autograd.grad(loss, old)
    # a step down the gradient makes tokens of positive advantage likelier, the others less so
    assert (gradient.sign() == -batch["advantages"].sign() * mask).all()


@pytest.mark.parametrize("compare", [objectives.group_advantages, objectives.less_the_others])
def test_candidates_are_compared_within_their_group_only(compare: Callable) -> None:
    """What all of a group have in common changes nothing, nor does the order; sums are 0."""
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(12, generator=generator, dtype=F64)
    groups = torch.arange(12) // 4
    found = compare(rewards, groups)
    assert torch.allclose(found.reshape(3, 4).sum(-1), torch.zeros(3, dtype=F64), atol=1e-9)
    luck = torch.tensor([5.0, -3.0, 100.0], dtype=F64)[groups]
    assert torch.allclose(compare(rewards + luck, groups), found, atol=1e-9)
    order = torch.randperm(12, generator=generator)
    assert torch.allclose(compare(rewards[order], groups[order]), found[order], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    halves = as_batch(torch.randn((7, 3, 4), generator=generator).to(dtype))
    found = results(halves, mask_of(4, 2, 1), 7)
    exact = results({name: part.float() for name, part in halves.items()}, mask_of(4, 2, 1), 7)
    for kind in found:
        assert all(part.dtype == torch.float32 for part in found[kind])
        assert all(map(torch.equal, found[kind], exact[kind]))
    logits, ids = torch.randn((2, 3, 5), generator=generator).to(dtype), torch.zeros(2, 3).long()
    for one in (logits, logits.float()):
        assert torch.equal(objectives.entropy(one, 0.7), objectives.entropy(logits.float(), 0.7))
        found_logprobs = objectives.token_logprobs(one, ids, 0.7)
        assert torch.equal(found_logprobs, objectives.token_logprobs(logits.float(), ids, 0.7))


def test_inputs_stay_as_they_were_and_nothing_is_drawn(untouched_generators) -> None:
    batch = as_batch(torch.randn((7, 3, 4), generator=torch.Generator().manual_seed(3)))
    mask = mask_of(4, 2, 1)
    before = {name: part.clone() for name, part in batch.items()}
    with untouched_generators():
        results(batch, mask, 7)
    assert all(torch.equal(part, before[name]) for name, part in batch.items())
    assert torch.equal(mask, mask_of(4, 2, 1))


def test_results_stay_on_the_device_and_nothing_is_fetched_from_it() -> None:
    """The meta device has no numbers: reading one, or mixing in a CPU tensor, is an error."""
    batch = as_batch(torch.empty(7, 4, 6, device="meta"))
    mask = torch.empty(4, 6, dtype=torch.bool, device="meta")
    found = results(batch, mask, mask.sum())
    logits, ids = torch.empty(4, 6, 9, device="meta"), torch.zeros(4, 6, device="meta").long()
    other = [
        objectives.entropy(logits), objectives.token_logprobs(logits, ids),
        *objectives.dpo_loss(*[batch["rewards"]] * 4, beta=0.1, num_pairs=4),
    ]  # fmt: skip
    assert all(part.is_meta for part in [*other, *(one for kind in found.values() for one in kind)])


# A whole PPO update against float64 loops

LENGTHS, NUM_INPUTS, NUM_HIDDEN, VOCAB_SIZE = (4, 1, 3), 3, 4, 5
KL_COEF, TEMPERATURE, GAMMA, GAE_LAMBDA, LR = 0.2, 0.7, 0.97, 0.9, 0.5
CLIP_RANGE, VALUE_CLIP_RANGE, VALUE_COEF, ENTROPY_COEF = 0.2, 0.2, 2.3, 0.05


def update_case() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5).normal
    shape = (len(LENGTHS), max(LENGTHS))
    case = {
        "inputs": draw(size=(*shape, NUM_INPUTS)),
        "policy_in": draw(size=(NUM_INPUTS, NUM_HIDDEN)),
        "policy_out": draw(size=(NUM_HIDDEN, VOCAB_SIZE)),
        "value_in": draw(size=(NUM_INPUTS, NUM_HIDDEN)),
        "value_out": draw(size=NUM_HIDDEN),
        "rewards": draw(size=len(LENGTHS)),
        "ref_logprobs": draw(size=shape) - 2.0,
    }
    case["ids"] = np.random.default_rng(6).integers(0, VOCAB_SIZE, shape)
    # Sampled by slightly other weights, so that some tokens of either sign are clipped.
    before = {name: part + 0.2 * draw(size=part.shape) for name, part in case.items()
              if name.endswith(("_in", "_out"))}  # fmt: skip
    scaled = np.tanh(case["inputs"] @ before["policy_in"]) @ before["policy_out"] / TEMPERATURE
    logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    case["old_logprobs"] = np.take_along_axis(logprobs, case["ids"][..., None], -1)[..., 0]
    case["old_values"] = np.tanh(case["inputs"] @ before["value_in"]) @ before["value_out"]
    return case


def update_by_objectives(case: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    part = {
        name: torch.from_numpy(array).to(dtype if array.dtype == np.float64 else torch.int64)
        for name, array in case.items()
    }
    weights = {name: part[name].requires_grad_() for name in part if name.endswith(("_in", "_out"))}
    mask, num_tokens = mask_of(*LENGTHS), sum(LENGTHS)
    rewards = objectives.token_rewards(
        part["rewards"], part["old_logprobs"], part["ref_logprobs"], mask, KL_COEF
    )
    advantages, returns = objectives.gae(rewards, part["old_values"], mask, GAMMA, GAE_LAMBDA)
    logits = torch.tanh(part["inputs"] @ weights["policy_in"]) @ weights["policy_out"]
    values = torch.tanh(part["inputs"] @ weights["value_in"]) @ weights["value_out"]
    policy_loss, clip_share, approx_kl = objectives.ppo_policy_loss(
        objectives.token_logprobs(logits, part["ids"], TEMPERATURE), part["old_logprobs"],
        objectives.masked_whiten(advantages, mask), mask,
        clip_range=CLIP_RANGE, num_tokens=num_tokens,
    )  # fmt: skip
    value_loss, value_clip_share = objectives.ppo_value_loss(
        values, part["old_values"], returns, mask,
        value_clip_range=VALUE_CLIP_RANGE, num_tokens=num_tokens,
    )  # fmt: skip
    entropy = objectives.masked_mean(objectives.entropy(logits, TEMPERATURE), mask)
    loss = policy_loss + VALUE_COEF * value_loss - ENTROPY_COEF * entropy
    loss.backward()
    found = {f"gradient of {name}": weight.grad for name, weight in weights.items()}
    found |= {f"new {name}": (w - LR * w.grad).detach() for name, w in weights.items()}
    found |= {"loss": loss.detach(), "entropy": entropy.detach(), "approx_kl": approx_kl}
    found |= {"clip share": clip_share, "value clip share": value_clip_share}
    return {name: tensor.double().numpy() for name, tensor in found.items()}


def whitened_advantages_by_loops(case: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """{(row, t): whitened advantage}, {(row, t): return}, each sum written out from its token."""
    advantages, returns = {}, {}
    for row, length in enumerate(LENGTHS):
        surprises = []
        for t in range(length):
            paid = -KL_COEF * (case["old_logprobs"][row, t] - case["ref_logprobs"][row, t])
            paid += case["rewards"][row] if t == length - 1 else 0.0
            coming = case["old_values"][row, t + 1] if t + 1 < length else 0.0
            surprises.append(paid + GAMMA * coming - case["old_values"][row, t])
        for t in range(length):
            later = enumerate(surprises[t:])
            advantages[row, t] = sum((GAMMA * GAE_LAMBDA) ** n * one for n, one in later)
            returns[row, t] = advantages[row, t] + case["old_values"][row, t]
    mean, std = np.mean(list(advantages.values())), np.std(list(advantages.values()))
    return {place: (one - mean) / std for place, one in advantages.items()}, returns


def update_by_loops(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    advantages, returns = whitened_advantages_by_loops(case)
    names = [name for name in case if name.endswith(("_in", "_out"))]
    found = {f"gradient of {name}": np.zeros_like(case[name]) for name in names}
    found |= dict.fromkeys(["loss", "entropy", "approx_kl", "clip share", "value clip share"], 0.0)
    share = 1.0 / sum(LENGTHS)
    for (row, t), advantage in advantages.items():
        x, token = case["inputs"][row, t], case["ids"][row, t]
        hidden = np.tanh(x @ case["policy_in"])
        odds = np.exp(hidden @ case["policy_out"] / TEMPERATURE)
        p = odds / odds.sum()
        entropy = sum(-one * math.log(one) for one in p)
        ratio = p[token] / math.exp(case["old_logprobs"][row, t])
        is_clipped = ratio > 1 + CLIP_RANGE if advantage > 0 else ratio < 1 - CLIP_RANGE
        edge = 1 + CLIP_RANGE if advantage > 0 else 1 - CLIP_RANGE
        found["loss"] -= share * advantage * (edge if is_clipped else ratio)
        found["loss"] -= share * ENTROPY_COEF * entropy
        found["entropy"] += share * entropy
        found["approx_kl"] += share * (ratio - 1 - math.log(ratio))
        found["clip share"] += share * is_clipped
        chosen = np.eye(len(p))[token]
        slope = np.zeros(len(p)) if is_clipped else -advantage * ratio * (chosen - p)
        slope = slope + ENTROPY_COEF * p * (np.log(p) + entropy)
        slope = share * slope / TEMPERATURE
        found["gradient of policy_out"] += np.outer(hidden, slope)
        back = (case["policy_out"] @ slope) * (1 - hidden**2)
        found["gradient of policy_in"] += np.outer(x, back)

        hidden = np.tanh(x @ case["value_in"])
        value, old, target = hidden @ case["value_out"], case["old_values"][row, t], returns[row, t]
        held = min(max(value, old - VALUE_CLIP_RANGE), old + VALUE_CLIP_RANGE)
        is_clipped = abs(held - target) > abs(value - target)
        error = (held if is_clipped else value) - target
        found["loss"] += share * VALUE_COEF * 0.5 * error**2
        found["value clip share"] += share * is_clipped
        slope = 0.0 if is_clipped else share * VALUE_COEF * error
        found["gradient of value_out"] += slope * hidden
        back = slope * case["value_out"] * (1 - hidden**2)
        found["gradient of value_in"] += np.outer(x, back)
    return found | {f"new {name}": case[name] - LR * found[f"gradient of {name}"] for name in names}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
def test_a_whole_update_equals_float64_loops(dtype: torch.dtype, tolerance: float) -> None:
    case = update_case()
    expected, found = update_by_loops(case), update_by_objectives(case, dtype)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("clip share", "value clip share"):
        assert 0.0 < expected[name] < 1.0, "the case must have clipped and free tokens"
    assert all(abs(expected[f"gradient of {name}_in"]).max() > 0.01 for name in ("policy", "value"))


# The defects of the released code, by their numbers in docs/method.md


def test_defect_1_the_controller_follows_the_reference_not_the_sampler() -> None:
    old, ref, mask = rows([-1, -1]), rows([-6, -6]), mask_of(2)  # 10 nats from the reference
    right = objectives.AdaptiveKl(kl_coef=0.2, target=5.0)
    assert right.update(objectives.ref_kl(old, ref, mask).item(), 1000) > 0.2
    wrong = objectives.AdaptiveKl(kl_coef=0.2, target=5.0)
    assert wrong.update(objectives.ref_kl(old, old, mask).item(), 1000) < 0.2


def test_defect_2_the_last_token_keeps_its_penalty() -> None:
    old, ref, mask = rows([-1, -2, 0]), rows([-2, -5, 0]), mask_of(2, width=3)
    found = objectives.token_rewards(torch.tensor([7.0]), old, ref, mask, 0.5)
    assert near(found[0], [-0.5, 7 - 1.5, 0])
    overwritten = -0.5 * (old - ref)
    overwritten[0, 1] = 7.0
    assert not torch.allclose(found, overwritten)


def test_defect_3_padding_has_no_part_in_whitening() -> None:
    advantages, mask = rows([1, 3, 0, 0], [5, 7, 0, 0]), mask_of(2, 2, width=4)
    found = objectives.masked_whiten(advantages, mask)
    over_padding = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert near(found[mask].mean(), 0)
    assert near(found[mask].std(correction=0), 1)
    assert over_padding[mask].mean() > 0.5
    assert over_padding[mask].std(correction=0) < 0.9


def test_defect_8_a_pad_id_that_is_also_the_end_token_counts_once() -> None:
    """Pad and end share id 0. The mask goes by length, so the chosen end token is real: it bears
    the reward and its penalty. A mask by id takes it away."""
    ids = torch.tensor([[4, 0, 0, 0], [4, 7, 5, 0]])
    old, ref, rewards = torch.full((2, 4), -1.0), torch.full((2, 4), -3.0), torch.tensor([8.0, 9.0])
    found = objectives.token_rewards(rewards, old, ref, mask_of(2, 4), 0.5)
    assert near(found[0], [-1, 7, 0, 0])
    assert near(found[1], [-1, -1, -1, 8])
    by_id = objectives.token_rewards(rewards, old, ref, ids != 0, 0.5)
    assert near(by_id[0], [7, 0, 0, 0])
    assert near(by_id[1], [-1, -1, 8, 0])


def test_the_sign_of_k3() -> None:
    """With the difference the other way round the mean is not KL(policy || reference)."""
    policy, reference = rows([0.9, 0.1])[0], rows([0.5, 0.5])[0]
    true_kl = 0.3680642072  # 0.9 * log 1.8 + 0.1 * log 0.2 = 0.5290079986 - 0.1609437912
    new, ref, mask = policy.log()[None], reference.log()[None], mask_of(2)
    assert near((policy * objectives.kl_k3(new, ref, mask)[0]).sum(), true_kl)
    assert near((policy * objectives.kl_k1(new, ref, mask)[0]).sum(), true_kl)
    reversed_k3 = (new - ref).exp() - 1 - (new - ref)
    # 0.9 * (0.8 - 0.5877866649) + 0.1 * (-0.8 + 1.6094379124)
    assert near((policy * reversed_k3[0]).sum(), 0.2719357928)


def test_a_cut_off_completion_is_not_paid_for_reaching_the_limit() -> None:
    """With lambda 1 the return of every token is the reward itself, cut off or not. The value of
    the text that did not come, added, would make a return of 5 of a reward of 2."""
    rewards, values = rows([0, 0, 2.0]), rows([1, 1, 3.0])
    returns = objectives.gae(rewards, values, mask_of(3), 1.0, 1.0)[1]
    assert near(returns[0], [2, 2, 2])
    bootstrapped = rewards.clone()
    bootstrapped[0, -1] += 3.0
    assert near(objectives.gae(bootstrapped, values, mask_of(3), 1.0, 1.0)[1][0], [5, 5, 5])
