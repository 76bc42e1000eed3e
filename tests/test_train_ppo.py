from __future__ import annotations

import dataclasses
import errno
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import NUM_KILLS, Heard, StopAfter, num_rows, rows_of, train_though_killed

from promptadapt_core import rollouts, runs
from promptadapt_core.alarms import AlarmSettings
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import __main__ as command
from promptadapt_core.train import ppo, ppo_plan, ppo_preparing, ppo_update, samples
from promptadapt_core.train import user_inputs as reading
from promptadapt_core.train.advantages import advantages_of, learned_rewards
from promptadapt_core.train.ppo_metrics import PPO_METRICS
from promptadapt_core.train.ppo_settings import PpoSettings

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
TINY: dict[str, Any] = {
    "device": "cpu", "rollout_size": 8, "num_episodes": 32, "group_size": 2, "num_epochs": 2,
    "minibatch_size": 4, "micro_batch_size": 3, "lr": 1e-3, "value_lr": 1e-3, "tensorboard": False,
    "min_length_limit": 4, "max_length_limit": 10, "checkpoint_every": 1, "samples_every": 2,
}  # fmt: skip


class WordBatch:
    """Rewards of texts."""

    def __init__(self, user_inputs: list[str], adapted_prompts: list[str], ok: Any):
        pairs = list(zip(user_inputs, adapted_prompts, strict=True))
        added = [adapted[len(user) :] for user, adapted in pairs]
        self.terms = {
            "word": torch.tensor([float("watercolor" in text) for text in added]),
            "length": torch.tensor([-0.1 * len(text.split()) for text in added]),
        }
        self.rewards = self.terms["word"] + self.terms["length"]
        self.ok = torch.tensor([ok(user) for user in user_inputs])
        self.pictures: Any = None


class WordReward:
    """+1 for one certain word, -0.1 for every word that was added."""

    identity = "words"
    metrics = {
        "reward/word_mean": "share of candidates that add the word",
        "reward/length_mean": "minus a tenth of the words that were added, mean",
    }
    failing = ""

    def __init__(self) -> None:
        self.seeds: list[tuple[str, tuple[int, ...]]] = []

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        return [len(user_input), visit]

    def reward(
        self, user_inputs: Any, adapted_prompts: Any, seeds: Any, should_stop: Any = None,
        keep_pictures: bool = False,
    ) -> Any:  # fmt: skip
        self.seeds += [(text, tuple(row)) for text, row in zip(user_inputs, seeds, strict=True)]
        batch = WordBatch(user_inputs, adapted_prompts, lambda user: user != self.failing)
        if keep_pictures:
            batch.pictures = [np.full((2, 4, 4, 3), 9, dtype=np.uint8) for _ in user_inputs]
        return batch

    def describe(self, batch: Any) -> dict[str, float]:
        return {
            f"reward/{name}_mean": term[batch.ok].mean().item()
            for name, term in batch.terms.items()
        }


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A folder with inputs.txt and policy/, an SFT policy that writes styles."""
    return policy_for(SUBJECTS)


def tiny(inputs: Path, out: Path, **changes: Any) -> PpoSettings:
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip
    return PpoSettings(**chosen)


def trainer(settings: PpoSettings, reward: Any = None) -> ppo.PpoTrainer:
    report = runs.Silent()
    reward = reward or WordReward()
    return ppo.PpoTrainer(ppo_preparing.prepare(settings, reward, report), reward, None, report)


def never() -> bool:
    return False


def experience(made: ppo.PpoTrainer) -> Any:
    """An estimated rollout of iteration 0."""
    sampled, _ = made.collector.sample(0, never)
    rollout = sampled.rewarded(made.collector.rewards(sampled, never, False))
    return made.collector.estimates(rollout, 0)


def saved(folder: Path) -> dict[str, bytes]:
    """The files whose bytes equal runs must share: the weights and the samples."""
    files = [path for kind in ("*.safetensors", "samples/*") for path in folder.rglob(kind)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_it_learns_to_write_what_is_paid_for(inputs: Path, tmp_path: Path) -> None:
    settings = tiny(
        inputs, tmp_path / "run", num_episodes=24 * 32, rollout_size=32, group_size=1,
        minibatch_size=16, micro_batch_size=16, num_epochs=4, kl_coef=0.02, kl_target=0.0,
        min_length_limit=8, max_length_limit=16, lr=2e-3, value_lr=2e-3, checkpoint_every=24,
        samples_every=0,
    )  # fmt: skip
    result = ppo.train_ppo(settings, reward=WordReward())
    rows = rows_of(tmp_path / "run")
    first, last = (sum(row["rollout/reward"] for row in part) / 4 for part in (rows[:4], rows[-4:]))
    assert (result.status, result.iteration) == ("done", 24)
    assert last > first + 0.4
    assert rows[-1]["reward/word_mean"] > rows[0]["reward/word_mean"] + 0.3
    assert rows[-1]["kl/ref_kl"] > 0.5
    assert result.best_reward == pytest.approx(
        max(sum(r["rollout/reward"] for r in rows[i : i + 5]) / 5 for i in range(20))
    )
    assert Policy.load(result.best).manifest.name == "run"


def test_a_run_leaves_what_it_should(inputs: Path, tmp_path: Path) -> None:
    report, out = Heard(), tmp_path / "run"
    settings = tiny(inputs, out)
    result = ppo.train_ppo(settings, reward=WordReward(), report=report)
    assert (result.iteration, result.num_iterations) == (4, 4)
    rows = rows_of(out)
    table = {**PPO_METRICS, **WordReward.metrics}
    assert {*rows[0]} == {"step", *(name for name in table if not name.startswith("time/"))}
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train/episodes"] == 32
    assert rows[-1]["train/images"] == 64
    plan = [line for line in report.said if line.startswith("plan")]
    assert plan == ["plan: 4 iterations, 32 episodes, at most 64 images of candidates and 24 of "
                    "plain user inputs"]  # fmt: skip
    assert any("expected, from a probe" in line for line in report.said)
    assert {path.name for path in (out / "samples").iterdir()} == {
        f"0000{n}.{kind}" for n in (1, 2, 4) for kind in ("jsonl", "png")
    }
    sample = json.loads((out / "samples" / "00001.jsonl").read_text().splitlines()[0])
    assert sample["adapted_prompt"].startswith(sample["user_input"])
    assert sample["reward"] == pytest.approx(sum(sample["terms"].values()))
    last = Policy.load(out / "last")
    assert {str(tensor.dtype) for tensor in last.weights.values()} == {"torch.float32"}
    assert not list(out.glob("*.new")) + list(out.glob("*.old")) + list(out.glob("*.partial"))


def test_terms_are_logged_apart_and_add_up(inputs: Path, tmp_path: Path) -> None:
    """Defect 7."""
    ppo.train_ppo(tiny(inputs, tmp_path / "run"), reward=WordReward())
    for row in rows_of(tmp_path / "run"):
        terms = row["reward/word_mean"] + row["reward/length_mean"]
        assert terms == pytest.approx(row["rollout/reward"], abs=1e-6)


def test_the_reference_stays_bit_identical_and_shares_nothing(inputs: Path, tmp_path: Path) -> None:
    """Defect 5."""
    made = trainer(tiny(inputs, tmp_path / "run"))
    start = Policy.load(inputs / "policy").model
    made.run(never)
    assert ppo_preparing.weights_hash(made.ref_model) == ppo_preparing.weights_hash(start)
    assert ppo_preparing.weights_hash(made.learner.model) != ppo_preparing.weights_hash(start)
    places = [
        {parameter.data_ptr() for parameter in network.parameters()}
        for network in (made.learner.model, made.ref_model, made.learner.value_network)
    ]
    assert len(set.union(*places)) == sum(map(len, places))


def test_a_reference_that_drifts_is_noticed(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run", num_episodes=8))
    with torch.no_grad():
        made.ref_model.transformer.wte.weight[0, 0] += 1e-6
    with pytest.raises(AssertionError, match="reference"):
        made.run(never)


def test_the_first_ratio_is_exactly_one(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    rollout = experience(made)
    first = ppo_update.minibatches_of(rollout, made.settings, 0, 0)[0]
    nothing = torch.zeros(rollout.completion_mask.shape)
    row, furthest = ppo_update.gradients(
        made.learner, ppo_update.Lesson(rollout, nothing, nothing, 0.1), first
    )
    assert furthest == 0.0
    assert row["kl/approx_kl"] == 0.0
    made.learner.optimizer.zero_grad()
    with torch.no_grad():
        made.learner.model.transformer.ln_f.weight += 0.01
    with pytest.raises(AssertionError, match="first ratio"):
        ppo_update.update(made.learner, rollout, 0.1, 0)


def test_the_kl_of_the_first_rollout_is_zero_and_grows(inputs: Path, tmp_path: Path) -> None:
    """Defect 1 in the loop: kl_coef follows the KL to the reference."""
    out = tmp_path / "run"
    chosen = {"lr": 0.02, "kl_target": 0.5, "kl_horizon": 8.0, "min_mean_tokens": 0.0}
    ppo.train_ppo(tiny(inputs, out, **chosen), reward=WordReward())
    rows = rows_of(out)
    assert rows[0]["kl/ref_kl"] == 0.0
    assert rows[1]["kl/ref_kl"] != 0.0
    for row, after in zip(rows, rows[1:], strict=False):
        error = max(-0.2, min(0.2, row["kl/ref_kl"] / 0.5 - 1))
        assert after["kl/kl_coef"] == pytest.approx(row["kl/kl_coef"] * (1 + error))
    fixed = tmp_path / "fixed"
    ppo.train_ppo(tiny(inputs, fixed, kl_target=0.0), reward=WordReward())
    assert {row["kl/kl_coef"] for row in rows_of(fixed)} == {0.2}


def gradients_of(made: ppo.PpoTrainer, rollout: Any, micro_batches: list[list[int]]) -> list[Any]:
    shape = rollout.completion_mask.shape
    generator = torch.Generator().manual_seed(4)
    advantages, returns = (torch.randn(shape, generator=generator) for _ in range(2))
    row, _ = ppo_update.gradients(
        made.learner, ppo_update.Lesson(rollout, advantages, returns, 0.1), micro_batches
    )
    networks = (made.learner.model, made.learner.value_network)
    found = [p.grad.clone() for network in networks for p in network.parameters()]
    made.learner.optimizer.zero_grad()
    return [torch.tensor(list(row.values())), *found]


def test_micro_batches_give_the_gradients_of_the_minibatch(inputs: Path, tmp_path: Path) -> None:
    """Padding too: rows of one micro-batch are padded to its own longest."""
    made = trainer(tiny(inputs, tmp_path / "run", entropy_coef=0.1))
    with torch.no_grad():  # a value head of zeros would hide the value network's body
        made.learner.value_network.value_head.weight += 0.1
    rollout = experience(made)
    rows = list(range(8))
    whole = gradients_of(made, rollout, [rows])
    for parts in ([[3, 1], [0, 2, 7], [4, 5, 6]], [[row] for row in rows]):
        for one, other in zip(whole, gradients_of(made, rollout, parts), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_minibatches_hold_every_row_once(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    rollout = experience(made)
    orders = []
    for epoch in range(3):
        minibatches = ppo_update.minibatches_of(rollout, made.settings, 5, epoch)
        assert [[len(rows) for rows in parts] for parts in minibatches] == [[3, 1], [3, 1]]
        orders.append([row for parts in minibatches for rows in parts for row in rows])
        assert sorted(orders[-1]) == list(range(8))
    assert orders[0] != orders[1]


def test_padding_takes_no_part_in_the_update(inputs: Path, tmp_path: Path) -> None:
    """Defect 8: what stands at padding, the end token or anything else, changes no gradient."""
    made = trainer(tiny(inputs, tmp_path / "run", minibatch_size=8, micro_batch_size=8))
    rollout = experience(made)
    assert not rollout.completion_mask.all()
    before = gradients_of(made, rollout, [list(range(8))])
    rollout.completion_ids[~rollout.completion_mask] = made.prepared.adapter.policy.eos_id
    rollout.old_logprobs[~rollout.completion_mask] = math.nan
    rollout.values[~rollout.completion_mask] = math.nan
    for one, other in zip(before, gradients_of(made, rollout, [list(range(8))]), strict=True):
        assert torch.equal(one, other)


def test_the_update_keeps_the_penalty_and_whitens_real_tokens(inputs: Path, tmp_path: Path) -> None:
    """Defects 2 and 3 in the loop: a return from the first token is the reward less the penalty of
    ALL tokens, the last one's too, and padding has no part in the mean and the spread."""
    made = trainer(tiny(inputs, tmp_path / "run", gae_lambda=1.0))
    rollout = experience(made)
    rollout = dataclasses.replace(rollout, ref_logprobs=rollout.old_logprobs - 0.5)
    mask = rollout.completion_mask
    advantages, returns = advantages_of(rollout, made.settings, 0.1)
    assert not mask.all()
    assert torch.allclose(returns[:, 0], rollout.rewards - 0.1 * 0.5 * mask.sum(-1), atol=1e-5)
    assert advantages[mask].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert advantages[mask].std(correction=0).item() == pytest.approx(1.0, abs=1e-5)


def test_what_is_said_twice_is_computed_once_and_counts_twice(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and metrics are those of every row computed by itself."""
    made = trainer(tiny(inputs, tmp_path / "run"))
    rollout = experience(made)
    rows = torch.tensor([0, 0, 1, 0, 2, 3, 2, 5])
    parts = {name: value[rows] if isinstance(value, torch.Tensor) else value
             for name, value in vars(rollout).items()}  # fmt: skip
    for name in ("user_inputs", "adapted_prompts", "image_seeds", "prompt_ids"):
        parts[name] = [getattr(rollout, name)[row] for row in rows]
    repeated = dataclasses.replace(rollout, **parts)
    advantages, returns = advantages_of(repeated, made.settings, 0.1)
    lesson = ppo_update.Lesson(repeated, advantages, returns, 0.1)
    sizes, plain = [], rollouts.token_batch

    def counted(rollout: Any, rows: Any, device: Any = "cpu") -> Any:
        sizes.append(len(rows))
        return plain(rollout, rows, device)

    monkeypatch.setattr(ppo_update, "token_batch", counted)
    networks = (made.learner.model, made.learner.value_network)
    found = []
    for micro_batches in ([list(range(8))], [[row] for row in range(8)]):
        row, _ = ppo_update.gradients(made.learner, lesson, micro_batches)
        found.append((row, [p.grad.clone() for n in networks for p in n.parameters()]))
        made.learner.optimizer.zero_grad()
    assert sizes == [5, *[1] * 8]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_candidates_of_one_input_stay_together(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    rollout = experience(made)
    orders = []
    for epoch in range(8):
        minibatches = ppo_update.minibatches_of(rollout, made.settings, 0, epoch)
        rows = [sorted(row for part in one for row in part) for one in minibatches]
        assert sorted(row for one in rows for row in one) == list(range(8))
        assert all(one[0] % 2 == 0 and one[1] == one[0] + 1 for one in rows)
        orders.append(rows)
    assert len({str(rows) for rows in orders}) > 1


def test_the_value_network_begins_at_zero(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    rollout = experience(made)
    assert not rollout.values.any()
    ppo_update.update(made.learner, rollout, 0.1, 0)
    assert made.collector.estimates(rollout, 0).values[rollout.completion_mask].abs().min() > 0
    assert not any(module.training for module in made.learner.value_network.modules())
    assert not any(module.training for module in made.learner.model.modules())


def test_what_an_input_does_to_all_its_candidates_teaches_nothing(
    inputs: Path, tmp_path: Path
) -> None:
    """group_baseline: a reward that belongs to the user input or its seeds moves no weights."""
    made = trainer(tiny(inputs, tmp_path / "run", group_baseline=True))
    rollout = experience(made)
    assert len(set(rollout.user_inputs)) == 4
    found = learned_rewards(rollout, True)
    luck = torch.tensor([float(7 * len(text) + seeds[0]) for text, seeds in
                         zip(rollout.user_inputs, rollout.image_seeds, strict=True)])  # fmt: skip
    lucky = dataclasses.replace(rollout, rewards=rollout.rewards + luck)
    assert torch.allclose(learned_rewards(lucky, True), found, atol=1e-5)
    assert torch.equal(learned_rewards(lucky, False), lucky.rewards)
    pairs = rollout.rewards.reshape(4, 2)
    assert torch.allclose(found.reshape(4, 2), pairs - pairs.flip(1))


def test_a_group_baseline_is_used(inputs: Path, tmp_path: Path) -> None:
    folders = {}
    for name, chosen in (("with", True), ("without", False)):
        ppo.train_ppo(
            tiny(inputs, tmp_path / name, num_episodes=16, group_baseline=chosen),
            reward=WordReward(),
        )
        folders[name] = saved(tmp_path / name / "last")
    assert folders["with"] != folders["without"]


def test_last_is_as_far_as_the_state_when_a_run_dies(inputs: Path, tmp_path: Path) -> None:
    """Not the policy that it began with: whoever exports last/ gets what the state says."""

    class Fragile(WordReward):
        def reward(self, *given: Any, **options: Any) -> Any:
            if (out / "metrics.jsonl").exists() and len(rows_of(out)) == 2:
                raise KeyboardInterrupt
            return super().reward(*given, **options)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ppo.train_ppo(tiny(inputs, out), reward=Fragile())
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["progress"]["iteration"] == 2
    found = load_file(out / "last" / "model.safetensors")
    begun = load_file(inputs / "policy" / "model.safetensors")
    assert all(torch.equal(tensor, state["policy"][name]) for name, tensor in found.items())
    assert any(not torch.equal(tensor, begun[name].float()) for name, tensor in found.items())
    shutil.rmtree(out / "last")  # as a kill within the very first save leaves it
    resumed = ppo.PpoTrainer(
        ppo_preparing.prepare(tiny(inputs, out, resume=True), WordReward(), runs.Silent()),
        WordReward(), None, runs.Silent(),
    )  # fmt: skip
    assert resumed.progress["iteration"] == 2
    again = load_file(out / "last" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


def test_last_is_never_behind_the_state(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two writes: a run that is over would never write last/ again."""
    settings = tiny(inputs, tmp_path / "run")
    save_state = runs.RunFolder.save_state

    def dies(folder: runs.RunFolder, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.RunFolder, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        ppo.train_ppo(settings, reward=WordReward())
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    last = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert state["progress"]["iteration"] > 0
    assert all(torch.equal(tensor, state["policy"][name]) for name, tensor in last.items())


def test_limits_are_drawn_and_cut_completions_marked(inputs: Path, tmp_path: Path) -> None:
    """Defect 4 in the loop."""
    ppo.train_ppo(tiny(inputs, tmp_path / "run", num_episodes=64), reward=WordReward())
    rows = rows_of(tmp_path / "run")
    limits = {row["rollout/length_limit"] for row in rows}
    assert len(limits) > 2
    assert all(4 <= limit <= 10 for limit in limits)
    assert any(row["rollout/truncated_share"] > 0 for row in rows)


def test_seeds_are_those_of_the_user_input_and_its_visit(inputs: Path, tmp_path: Path) -> None:
    reward = WordReward()
    ppo.train_ppo(tiny(inputs, tmp_path / "run", num_episodes=24), reward=reward)
    of_rollouts = reward.seeds[8:]  # after the probe's
    assert all(seeds == (len(text), seeds[1]) for text, seeds in of_rollouts)
    assert sorted(of_rollouts) == sorted(
        (text, (len(text), visit)) for text in SUBJECTS for visit in (0, 1) for _ in range(2)
    )


def test_every_user_input_comes_once_in_each_pass() -> None:
    places = [place for i in range(5) for place in reading.places_of(i, 4, 10, seed=1)]
    assert sorted(places) == [(place, turn) for place in range(10) for turn in range(2)]
    assert [place for place, turn in places if not turn] != list(range(10))
    assert places != [place for i in range(5) for place in reading.places_of(i, 4, 10, seed=2)]


def test_a_candidate_without_a_picture_is_dropped_and_counted(inputs: Path, tmp_path: Path) -> None:
    reward = WordReward()
    reward.failing = "a cat"
    ppo.train_ppo(tiny(inputs, tmp_path / "run", num_episodes=24), reward=reward)
    rows = rows_of(tmp_path / "run")
    assert sum(row["rollout/num_dropped"] for row in rows) == 4
    assert all(row["rollout/num_candidates"] + row["rollout/num_dropped"] == 8 for row in rows)


def states_of(inputs: Path, out: Path, kept: Path, **changes: Any) -> None:
    """A whole run of 10 iterations; its state and best/ after every one are kept."""
    kept.mkdir()
    made = trainer(tiny(inputs, out, num_episodes=80, checkpoint_every=1, **changes))
    save = made._save_state

    def keep() -> None:
        save()
        shutil.copy(out / "state.pt", kept / f"{made.progress['iteration']}.pt")

    made._save_state = keep  # type: ignore[method-assign]
    made.run(never)


def test_a_run_goes_on_from_any_older_state(inputs: Path, tmp_path: Path) -> None:
    """Defect 9. The folder of a killed run: an older state, newer rows and weights, half files."""
    whole, kept, out = tmp_path / "whole" / "run", tmp_path / "kept", tmp_path / "parts" / "run"
    states_of(inputs, whole, kept)
    shutil.copytree(whole, out)
    expected, rows = saved(whole), rows_of(whole)
    moments = random.Random(3)
    for number in [*moments.sample(range(1, 10), 5), 0]:
        if number:
            shutil.copy(kept / f"{number}.pt", out / "state.pt")
        else:
            (out / "state.pt").unlink()
        with open(out / "metrics.jsonl", "a") as file:
            file.write('{"step": 20, "roll')
        (out / "state.pt.7.partial").write_bytes(b"half")
        (out / "samples").mkdir(exist_ok=True)
        (out / "samples" / "00002.png.7.partial").write_bytes(b"half")
        (out / "best.new").mkdir()
        shutil.rmtree(out / moments.choice(["last", "samples"]))
        reward = WordReward()
        result = ppo.train_ppo(tiny(inputs, out, num_episodes=80, resume=True), reward=reward)
        assert result.status == "done"
        # It goes on; to begin anew would end equal too. The probe asks twice for 4 candidates.
        assert len(reward.seeds) == 2 * 4 + 8 * (10 - number)
        assert not list(out.rglob("*.partial"))
        missing = {name for name in expected if name.startswith("samples/")}
        found = saved(out)
        assert {n: found[n] for n in {*expected} - missing} == {
            n: expected[n] for n in {*expected} - missing
        }
        assert all(expected[n] == found[n] for n in missing & {*found})
        assert rows_of(out) == rows


@pytest.mark.parametrize("asked", [0, 2, 8, 16, 39])
def test_a_run_that_is_stopped_anywhere_ends_equal(
    inputs: Path, tmp_path: Path, asked: int
) -> None:
    """should_stop is asked between tokens: an iteration that was broken off is done anew."""
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    ppo.train_ppo(tiny(inputs, whole), reward=WordReward())
    first = ppo.train_ppo(
        tiny(inputs, parts, checkpoint_every=3),
        reward=WordReward(),
        should_stop=StopAfter(asked - 1),
    )
    assert first.status == "stopped"
    resumed = tiny(inputs, parts, checkpoint_every=3, resume=True)
    assert ppo.train_ppo(resumed, reward=WordReward()).status == "done"
    assert saved(parts) == saved(whole)
    assert rows_of(parts) == rows_of(whole)
    assert ppo.train_ppo(resumed, reward=WordReward()).iteration == 4


def test_a_process_killed_again_and_again_ends_equal(inputs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    changes = {"num_episodes": 8 * (5 + 5 * NUM_KILLS), "checkpoint_every": 2}
    ppo.train_ppo(tiny(inputs, whole, **changes), reward=WordReward())
    chosen = {**TINY, **changes, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt")}  # fmt: skip
    imports = (
        "from promptadapt_core.train import ppo\n"
        "from promptadapt_core.train.ppo_settings import PpoSettings\n"
        "from test_train_ppo import WordReward"
    )
    work = "ppo.train_ppo(PpoSettings(**settings), reward=WordReward())"
    train_though_killed(work, chosen, lambda: num_rows(out), most=6, seed=1, imports=imports)
    assert saved(whole) == saved(out)
    assert rows_of(whole) == rows_of(out)


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"max_ref_kl": 1e-6, "lr": 0.05}, "max_ref_kl", "nats per completion from where"),
        ({"min_mean_tokens": 50.0}, "min_mean_tokens", "collapsed to"),
    ],
)
def test_a_run_that_goes_astray_stops_with_a_clear_sentence(
    inputs: Path, tmp_path: Path, changes: dict[str, Any], name: str, told: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match=told) as caught:
        ppo.train_ppo(tiny(inputs, out, num_episodes=160, **changes), reward=WordReward())
    assert caught.value.name == name
    for folder in ("last", *(["best"] if name == "max_ref_kl" else [])):
        weights = Policy.load(out / folder).weights.values()
        assert all(tensor.isfinite().all() for tensor in weights)


def test_a_loss_that_is_not_finite_stops_before_the_step(inputs: Path, tmp_path: Path) -> None:
    class Huge(WordReward):
        def reward(self, *arguments: Any, **options: Any) -> Any:
            batch = super().reward(*arguments, **options)
            batch.rewards = torch.full_like(batch.rewards, 1e30)
            return batch

    made = trainer(tiny(inputs, tmp_path / "run"), Huge())
    before = ppo_preparing.weights_hash(made.learner.model)
    with pytest.raises(SettingsError, match="value/loss.* not finite in iteration 1; nothing was"):
        made.run(never)
    assert ppo_preparing.weights_hash(made.learner.model) == before
    assert not (tmp_path / "run" / "state.pt").exists()


def test_updates_that_go_too_far_are_left_out(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ppo.train_ppo(tiny(inputs, out, max_approx_kl=1e-9, num_epochs=3), reward=WordReward())
    assert {row["policy/num_updates"] for row in rows_of(out)} == {1.0}


class Scripted(WordReward):
    """Fails for all candidates of the iterations in `empty`, the first being 1."""

    def __init__(self, empty: set[int]):
        super().__init__()
        self.empty, self.calls = empty, -2  # the probe asks twice

    def reward(self, *arguments: Any, **options: Any) -> Any:
        batch = super().reward(*arguments, **options)
        self.calls += 1
        if self.calls in self.empty:
            batch.ok = torch.zeros_like(batch.ok)
            batch.failures = ("the picture is all black", "and another one")
        return batch


def test_an_iteration_without_any_reward_is_passed_over(inputs: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "run", Heard()
    settings = tiny(inputs, out, num_episodes=48)
    assert ppo.train_ppo(settings, reward=Scripted({2, 4, 5}), report=report).status == "done"
    rows = rows_of(out)
    assert [row["rollout/num_candidates"] for row in rows] == [8, 0, 8, 0, 0, 8]
    assert [row["rollout/num_dropped"] for row in rows] == [0, 8, 0, 8, 8, 0]
    assert rows[-1]["train/episodes"] == 48
    assert ["rollout/reward" in row for row in rows] == [True, False, True, False, False, True]
    told = [line for line in report.said if "left out" in line]
    assert told == ["iteration 2: 8 of 8 candidates are left out; the picture is all black"]


def test_a_reward_that_fails_again_and_again_ends_the_run(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match="no candidate of the last 3 iterations, up to 5, has"):
        ppo.train_ppo(tiny(inputs, out, num_episodes=80), reward=Scripted({3, 4, 5, 6}))
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3, 4]
    with pytest.raises(SettingsError, match="none of the first 4 user inputs gets a reward"):
        ppo.train_ppo(tiny(inputs, tmp_path / "other"), reward=Scripted({-1, 0}))


class Constant(WordReward):
    def reward(self, *arguments: Any, **options: Any) -> Any:
        batch = super().reward(*arguments, **options)
        batch.rewards = torch.full_like(batch.rewards, 0.5)
        batch.terms = {"word": batch.rewards, "length": torch.zeros_like(batch.rewards)}
        return batch


def test_a_constant_reward_does_no_harm(inputs: Path, tmp_path: Path) -> None:
    """All advantages may be alike, all returns too."""
    out = tmp_path / "run"
    result = ppo.train_ppo(tiny(inputs, out, gae_lambda=1.0, kl_coef=0.0), reward=Constant())
    rows = rows_of(out)
    assert {row["rollout/reward_std"] for row in rows} == {0.0}
    assert all(isinstance(value, float | int) for row in rows for value in row.values())
    weights = Policy.load(result.best.parent / "last").weights.values()
    assert all(tensor.isfinite().all() for tensor in weights)


def test_few_user_inputs_come_several_times_in_a_rollout(inputs: Path, tmp_path: Path) -> None:
    text, reward = tmp_path / "inputs.txt", WordReward()
    text.write_text("a cat\n", encoding="utf-8")
    report, settings = Heard(), tiny(inputs, tmp_path / "run", user_inputs=str(text))
    assert ppo.train_ppo(settings, reward=reward, report=report).status == "done"
    assert {len(user_input) for user_input, _ in reward.seeds} == {5}
    visits = [seeds[1] for _, seeds in reward.seeds[2:]]
    assert sorted(visits) == [visit for visit in range(16) for _ in range(2)]
    # The seeds are 5 and the number of the visit, 0 to 15: 16 different pictures.
    assert any("32 episodes, at most 64 images of candidates and 16 of" in s for s in report.said)


def test_completions_that_are_all_left_alone_are_the_user_input(
    inputs: Path, tmp_path: Path
) -> None:
    """One token is never a whole modifier: every candidate is its user input."""
    short = {"min_length_limit": 1, "max_length_limit": 1, "min_mean_tokens": 0.0}
    settings = tiny(inputs, tmp_path / "run", **short)
    assert ppo.train_ppo(settings, reward=WordReward()).status == "done"
    for row in rows_of(tmp_path / "run"):
        assert row["rollout/left_alone_share"] == 1.0
        assert row["rollout/num_words_added"] == 0.0


class Onlooker:
    """A judge: of the pictures of WordReward it knows the brightness, of dogs nothing."""

    metrics = {"judge/brightness": "mean of the pictures, 0 to 255"}

    def __init__(self, identity: str = "onlooker"):
        self.identity = identity

    def judge_each(self, user_inputs: Any, adapted_prompts: Any, pictures: Any) -> dict[str, Any]:
        seen = [
            math.nan if some is None or "dog" in text else float(some.mean())
            for text, some in zip(user_inputs, pictures, strict=True)
        ]
        return {"judge/brightness": np.array(seen)}


def test_a_judge_looks_on_and_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    judged, alone, report = tmp_path / "judged" / "run", tmp_path / "alone" / "run", Heard()
    ppo.train_ppo(tiny(inputs, alone), reward=WordReward())
    ppo.train_ppo(tiny(inputs, judged), reward=WordReward(), judge=Onlooker())
    weights = [saved(folder / "last") for folder in (judged, alone)]
    assert weights[0] == weights[1]
    assert all(row["judge/brightness"] == 9.0 for row in rows_of(judged))
    lines = (judged / "samples" / "00004.jsonl").read_text(encoding="utf-8").splitlines()
    for sample in map(json.loads, lines):
        known = None if "dog" in sample["user_input"] else 9.0
        assert sample["judge"] == {"judge/brightness": known}
    assert json.loads((judged / "config.json").read_text())["judge"] == "onlooker"
    again = tiny(inputs, judged, resume=True)
    ppo.train_ppo(again, reward=WordReward(), judge=Onlooker("another"), report=report)
    assert sum(line.startswith("the judge is not the one") for line in report.said) == 1


def test_a_reward_that_never_varies_is_told_of(inputs: Path, tmp_path: Path) -> None:
    class Constant(WordReward):
        metrics = {**WordReward.metrics, "reward/word_std": "of the same"}
        spreads = ("reward/word_std",)

        def describe(self, batch: Any) -> dict[str, float]:
            return {**super().describe(batch), "reward/word_std": 0.0}

        def reward(self, *given: Any, **options: Any) -> Any:
            batch = super().reward(*given, **options)
            batch.rewards = torch.full_like(batch.rewards, 0.1)
            return batch

    out, report = tmp_path / "run", Heard()
    settings = tiny(inputs, out, num_episodes=48)
    assert ppo.train_ppo(settings, reward=Constant(), report=report).status == "done"
    told = [line for line in report.said if line.startswith("alarm (constant)")]
    assert told == [
        f"alarm (constant): {name} is 0 since step 1: what is the same for every candidate teaches "
        "nothing"
        for name in ("rollout/reward_std", "reward/word_std")
    ]
    assert '"name": "constant"' in (out / "alarms.jsonl").read_text(encoding="utf-8")


def test_alarms_are_written_down(inputs: Path, tmp_path: Path) -> None:
    """With settings that find fault with any noise; a resumed run finds the same."""
    outs = [tmp_path / name / "run" for name in ("whole", "parts")]
    changes: dict[str, Any] = {"num_episodes": 64}
    alarms = AlarmSettings(start_window=2, alarm_window=6, length_band=0.0, alarm_deviation=0.5)
    for out in outs:
        stop = StopAfter(99) if out is outs[1] else never
        ppo.train_ppo(
            tiny(inputs, out, **changes), reward=WordReward(), alarms=alarms, should_stop=stop
        )
    resumed = tiny(inputs, outs[1], resume=True, **changes)
    lost = json.dumps({"name": "length", "step": 9, "sentence": "after the last state"}) + "\n"
    (outs[1] / "alarms.jsonl").write_text(lost, encoding="utf-8")
    ppo.train_ppo(resumed, reward=WordReward(), alarms=alarms, should_stop=lambda: True)
    assert lost not in (outs[1] / "alarms.jsonl").read_text(encoding="utf-8")
    assert ppo.train_ppo(resumed, reward=WordReward(), alarms=alarms).status == "done"
    texts = [(out / "alarms.jsonl").read_text(encoding="utf-8") for out in outs]
    assert texts[0] == texts[1]
    found = [json.loads(line) for line in texts[0].splitlines()]
    assert all({*alarm} == {"name", "step", "sentence"} for alarm in found)
    assert rows_of(outs[1])[-1]["train/num_alarms"] == len(found) > 0


def test_tensorboard_shows_every_row_once(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    changes = {"tensorboard": True, "checkpoint_every": 3, "num_episodes": 40}
    made = trainer(tiny(inputs, out, **changes))
    for _ in range(2):  # a process that dies after two iterations, before any state
        made._iterate(never)
    stop = StopAfter(29)
    first = ppo.train_ppo(
        tiny(inputs, out, resume=True, **changes), reward=WordReward(), should_stop=stop
    )
    assert first.status == "stopped"
    ppo.train_ppo(tiny(inputs, out, resume=True, **changes), reward=WordReward())
    made.record.close()
    shown = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = rows_of(out)
    assert len(rows) == 5
    for name in ("rollout/reward", "kl/ref_kl", "reward/word_mean"):
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert {*shown.Tags()["scalars"]} == {*PPO_METRICS, *WordReward.metrics}


def test_a_policy_with_another_tokenizer_is_refused(inputs: Path, tmp_path: Path) -> None:
    """Other texts of the tokens, also in a resumed run of a policy that does not know its own; or
    one token more than the model has rows."""
    out, other = tmp_path / "run", tmp_path / "policy"
    ppo.train_ppo(tiny(inputs, out, num_episodes=8), reward=WordReward())
    shutil.copytree(inputs / "policy", other)
    path = other / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    texts = told["model"]["vocab"]
    first, second = [text for text in texts if text.isalpha()][:2]
    texts[first], texts[second] = texts[second], texts[first]
    path.write_text(json.dumps(told), encoding="utf-8")
    settings = tiny(inputs, tmp_path / "new", policy=str(other))
    with pytest.raises(SettingsError, match="its vocabulary is not the one that its weights"):
        ppo.train_ppo(settings, reward=WordReward())
    manifest = json.loads((other / "promptadapt.json").read_text(encoding="utf-8"))
    (other / "promptadapt.json").write_text(json.dumps({**manifest, "vocab_sha256": ""}))
    settings = tiny(inputs, out, num_episodes=8, policy=str(other), resume=True)
    with pytest.raises(SettingsError, match="--policy is not what the run began with"):
        ppo.train_ppo(settings, reward=WordReward())
    told["added_tokens"].append({**told["added_tokens"][0], "id": len(texts), "content": "<more>"})
    path.write_text(json.dumps(told), encoding="utf-8")
    settings = tiny(inputs, tmp_path / "new", policy=str(other))
    with pytest.raises(SettingsError, match="the tokenizer has .* tokens, the model"):
        ppo.train_ppo(settings, reward=WordReward())
    assert not (tmp_path / "new" / "config.json").exists()


def test_the_state_of_another_run_is_refused(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ppo.train_ppo(tiny(inputs, out, num_episodes=8), reward=WordReward())
    state = torch.load(out / "state.pt", weights_only=True)
    state["policy"]["transformer.wte.weight"] = torch.zeros(3, 4)
    torch.save(state, out / "state.pt")
    with pytest.raises(SettingsError, match="resume: .*state.pt is not of this run"):
        ppo.train_ppo(tiny(inputs, out, num_episodes=8, resume=True), reward=WordReward())


def test_a_disk_that_fills_stops_the_run_which_then_goes_on(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = samples._save, []

    def fills(pixels: np.ndarray, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(pixels, path)

    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    ppo.train_ppo(tiny(inputs, whole), reward=WordReward())
    monkeypatch.setattr(samples, "_save", fills)
    with pytest.raises(SettingsError, match="out: .*samples cannot be written .No space left"):
        ppo.train_ppo(tiny(inputs, out), reward=WordReward())
    assert [row["step"] for row in rows_of(out)] == [1]
    assert not list((out / "samples").glob("*.partial"))
    ppo.train_ppo(tiny(inputs, out, resume=True), reward=WordReward())
    assert saved(out) == saved(whole)
    assert rows_of(out) == rows_of(whole)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_algorithms_without_a_value_network_go_on_bit_for_bit(
    inputs: Path, tmp_path: Path, algorithm: str
) -> None:
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    ppo.train_ppo(tiny(inputs, whole, algorithm=algorithm), reward=WordReward())
    ppo.train_ppo(tiny(inputs, out, algorithm=algorithm, num_episodes=8), reward=WordReward())
    ppo.train_ppo(tiny(inputs, out, algorithm=algorithm, resume=True), reward=WordReward())
    assert saved(out) == saved(whole)
    assert rows_of(out) == rows_of(whole)
    assert not any(name.startswith("value/") for row in rows_of(out) for name in row)


def test_an_algorithm_that_compares_needs_groups(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="group_size: grpo needs 2 or more"):
        tiny(inputs, tmp_path / "run", algorithm="grpo", group_size=1)


def test_the_kl_of_grpo_is_in_the_loss_and_pulls_to_the_reference(
    inputs: Path, tmp_path: Path
) -> None:
    """With equal rewards nothing but the KL is left: a step lowers it."""
    made = trainer(tiny(inputs, tmp_path / "run", algorithm="grpo"))
    rollout = experience(made)
    rollout = dataclasses.replace(rollout, rewards=torch.ones(len(rollout)))
    advantages, returns = advantages_of(rollout, made.settings, 0.1)
    assert not advantages.any()
    rows = [list(range(len(rollout)))]
    lesson = ppo_update.Lesson(rollout, advantages, returns, 0.1)
    far = dataclasses.replace(lesson, rollout=dataclasses.replace(
        rollout, ref_logprobs=rollout.ref_logprobs - 1.0))  # fmt: skip

    def pull(lesson: ppo_update.Lesson) -> float:
        made.learner.optimizer.zero_grad()
        ppo_update.gradients(made.learner, lesson, rows)
        return torch.nn.utils.clip_grad_norm_(made.learner.model.parameters(), math.inf).item()

    # policy = reference, but for rounding: the estimates were made in other micro-batches
    assert pull(lesson) < 1e-4 * pull(far)
    part = far.micro_batch(rows[0], torch.device("cpu"))
    loss, _, logprobs = ppo_update._policy_loss(made.learner, part, sum(rollout.num_tokens))
    # k3 of d = -1: exp(-1) - 1 + 1, at every token
    assert loss.item() == pytest.approx(0.1 * math.exp(-1), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert (gradient[rollout.completion_mask] > 0).all()


def test_rloo_by_hand(inputs: Path, tmp_path: Path) -> None:
    """Two candidates to a group: the difference of rewards less kl_coef * KL, and its opposite."""
    made = trainer(tiny(inputs, tmp_path / "run", algorithm="rloo"))
    rollout = experience(made)
    rollout = dataclasses.replace(rollout, ref_logprobs=rollout.old_logprobs - 0.5)
    advantages, _ = advantages_of(rollout, made.settings, 0.1)
    worth = rollout.rewards - 0.1 * 0.5 * rollout.completion_mask.sum(-1)
    pairs = worth.reshape(-1, 2)
    expected = (pairs - pairs.flip(1)).reshape(-1)
    assert torch.allclose(advantages[:, 0], expected, atol=1e-5)
    assert not advantages[~rollout.completion_mask].any()


def test_the_probe_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    made = trainer(tiny(inputs, tmp_path / "run"))
    networks = (made.learner.model, made.ref_model, made.learner.value_network)
    before = [ppo_preparing.weights_hash(network) for network in networks]
    plan = ppo_plan.make_plan(made.prepared, made.reward, num_done=1)
    assert (plan.counts["iterations"], plan.counts["episodes"]) == (3, 24)
    assert plan.seconds > 0
    assert [ppo_preparing.weights_hash(network) for network in networks] == before
    assert not made.learner.optimizer.state
    assert all(p.grad is None for network in networks for p in network.parameters())


def test_another_run_is_not_gone_on_with(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ppo.train_ppo(tiny(inputs, out, num_episodes=8), reward=WordReward())
    with pytest.raises(SettingsError, match="already holds a run"):
        ppo.train_ppo(tiny(inputs, out, num_episodes=8), reward=WordReward())
    with pytest.raises(SettingsError, match=r"--lr was 0\.001 and is now 0\.1"):
        ppo.train_ppo(tiny(inputs, out, num_episodes=8, lr=0.1, resume=True), reward=WordReward())
    other = WordReward()
    other.identity = "others"
    with pytest.raises(SettingsError, match="the reward .* is not what the run began with"):
        ppo.train_ppo(tiny(inputs, out, num_episodes=8, resume=True), reward=other)
    with pytest.raises(SettingsError, match="there is no run"):
        ppo.train_ppo(tiny(inputs, tmp_path / "none", resume=True), reward=WordReward())


def test_a_run_that_is_made_longer_equals_a_long_one(inputs: Path, tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    ppo.train_ppo(tiny(inputs, long, num_episodes=32), reward=WordReward())
    ppo.train_ppo(tiny(inputs, short, num_episodes=16), reward=WordReward())
    longer = tiny(inputs, short, num_episodes=32, resume=True)
    assert ppo.train_ppo(longer, reward=WordReward()).status == "done"
    assert saved(short / "last") == saved(long / "last")
    config = json.loads((short / "config.json").read_text("utf-8"))
    assert config["settings"]["num_episodes"] == 32
    with pytest.raises(SettingsError, match="num_episodes: the run has sampled 32 already"):
        ppo.train_ppo(tiny(inputs, short, num_episodes=8, resume=True), reward=WordReward())
    assert json.loads((short / "config.json").read_text("utf-8")) == config


def test_user_inputs_are_read_once_each(tmp_path: Path) -> None:
    text = tmp_path / "inputs.txt"
    text.write_text("a cat\n\n a dog \na cat\n", encoding="utf-8")
    assert reading.read_user_inputs(text) == (["a cat", "a dog"], 1)
    rows = tmp_path / "inputs.jsonl"
    rows.write_text('{"user_input": "a cat"}\n{"user_input": "a dog", "split": "test"}\n')
    assert reading.read_user_inputs(rows) == (["a cat"], 0)


def test_only_the_end_of_a_line_ends_a_user_input(tmp_path: Path) -> None:
    """U+2028, U+0085 and the form feed stand in texts from the web. Windows writes \\r\\n."""
    strange = "a cat\u2028on\x85a\x0croof"
    text, rows = tmp_path / "inputs.txt", tmp_path / "INPUTS.JSONL"
    text.write_bytes(f"{strange}\r\na dog\r\n".encode())
    rows.write_text(json.dumps({"user_input": strange}, ensure_ascii=False) + "\n", "utf-8")
    assert reading.read_user_inputs(text) == ([strange, "a dog"], 0)
    assert reading.read_user_inputs(rows) == ([strange], 0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("inputs.txt", b"\n \n", "holds no user inputs"),
        ("inputs.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("inputs.jsonl", b'{"user_input": "a"}\n{"text": 1}\n', "line 2 .* needs the text"),
        ("inputs.jsonl", b"{", "line 1 .* is not JSON"),
        ("none.txt", None, "there is no file"),
    ],
)
def test_bad_files_of_user_inputs_are_refused(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=told):
        reading.read_user_inputs(tmp_path / name)


def test_inputs_that_the_policy_cannot_read_are_left_out(inputs: Path, tmp_path: Path) -> None:
    text = tmp_path / "inputs.txt"
    text.write_text("a cat\na cat\n" + "z q " * 500 + "\n", encoding="utf-8")
    report = Heard()
    settings = tiny(inputs, tmp_path / "run", num_episodes=8, user_inputs=str(text))
    ppo.train_ppo(settings, reward=WordReward(), report=report)
    assert "left out 1 user inputs that are there twice" in report.said
    assert any(line.startswith("left out 1 user inputs; the first, 'z q") for line in report.said)
    text.write_text("z q " * 500, encoding="utf-8")
    with pytest.raises(SettingsError, match="none can be used"):
        ppo.train_ppo(tiny(inputs, tmp_path / "b", user_inputs=str(text)), reward=WordReward())


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="min_length_limit"):
        PpoSettings(min_length_limit=20, max_length_limit=10)
    with pytest.raises(SettingsError, match="group_size: expected a divisor"):
        PpoSettings(rollout_size=8, group_size=3)
    with pytest.raises(SettingsError, match="group_baseline: needs a group_size"):
        PpoSettings(group_baseline=True)
    assert PpoSettings(num_episodes=100, rollout_size=64).num_iterations == 2


def test_samples_show_a_missing_picture_as_black() -> None:
    white = np.full((2, 3, 3, 3), 255, dtype=np.uint8)
    grid = samples._grid([white, None])
    assert grid is not None
    assert grid.shape == (6, 6, 3)
    assert (grid[:3] == 255).all()
    assert not grid[3:].any()
    assert samples._grid([None]) is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--policy: expected a folder"),
        (["--policy=x", "--out=y", "--user-inputs=none"], "--user-inputs: there is no file"),
        (["--lr=2"], "--lr: expected a number from 0.0 to 1.0"),
    ],
)
def test_the_command_line_refuses_bad_input(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    assert command.main(["ppo", *flags]) == 2
    assert told in capsys.readouterr().err
