from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    Heard,
    StopAfter,
    WordReward,
    num_lines,
    rows_of,
    saved,
    short_policy,
    train_though_killed,
)

from promptadapt_core.manifest import Manifest
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import __main__ as command
from promptadapt_core.train import choosing, rejection
from promptadapt_core.train.mining_metrics import MINING_METRICS
from promptadapt_core.train.rejection_settings import RejectionSettings

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
TINY: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "num_rounds": 2, "round_inputs": 6, "group_size": 4,
    "mining_batch": 8, "measure_inputs": 2, "min_length_limit": 6, "max_length_limit": 12,
    "tensorboard": False, "lr": 2e-3, "batch_size": 4, "plain_margin": -9.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    return policy_for(SUBJECTS)


def tiny(inputs: Path, out: Path, **changes: Any) -> RejectionSettings:
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip
    return RejectionSettings(**chosen)


def train(settings: RejectionSettings, **options: Any) -> Any:
    return rejection.train_rejection(settings, **{"reward": WordReward(), **options})


def test_it_learns_to_write_what_is_paid_for(inputs: Path, tmp_path: Path) -> None:
    settings = tiny(
        inputs, tmp_path / "run", num_rounds=4, round_inputs=24, measure_inputs=24, num_epochs=8.0,
        batch_size=8, mining_batch=32, lr=5e-3, plain_margin=0.3,
    )  # fmt: skip
    result = train(settings)
    rows = rows_of(tmp_path / "run")
    assert (result.status, result.round, result.num_rounds) == ("done", 4, 4)
    assert rows[-1]["mined/reward"] > rows[0]["mined/reward"] + 0.3
    assert rows[-1]["reward/word_mean"] > rows[0]["reward/word_mean"] + 0.3
    assert result.best_reward == max(row["mined/reward"] for row in rows)
    assert all(row["learned/reward"] > row["mined/reward"] for row in rows[:-1])


def test_a_run_leaves_what_it_should(inputs: Path, tmp_path: Path) -> None:
    report, out, reward = Heard(), tmp_path / "run", WordReward()
    result = train(tiny(inputs, out), report=report, reward=reward)
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    table = {**MINING_METRICS, **WordReward.metrics, **rejection.REJECTION_METRICS}
    assert {*rows[0]} == {"step", *(name for name in table if not name.startswith("time/"))}
    assert not any(name.startswith("learned/") for name in rows[2])
    assert [row["mined/num_candidates"] for row in rows] == [24, 24, 8]
    assert rows[2]["train/candidates"] == rows[2]["train/images"] == 56
    probes = 2 * 4  # twice four, all different
    paid = {row for row in reward.drawn[probes:] if row[0] != row[1]}
    assert rows[2]["train/rendered"] == len(paid) == sum(r["mined/num_images"] for r in rows)
    assert report.said[0] == (
        "plan: 2 rounds, 14 user inputs with 56 candidates, at most 56 images of candidates and 6 "
        "of plain user inputs"
    )
    assert report.said[1].startswith("expected, from a probe")
    pairs = [json.loads(line) for line in (out / "rounds/001/pairs.jsonl").read_text().splitlines()]
    assert rows[0]["learned/num_pairs"] == len(pairs) == 6
    assert {*pairs[0]} == {"user_input", "target", "split", "reward", "gain"}
    best = {}
    lines = (out / "rounds/001/candidates.jsonl").read_text("utf-8").splitlines()
    for group in map(json.loads, lines):
        for one in group.get("candidates", []):
            if not one["left_alone"]:
                best.setdefault(group["user_input"], []).append(one["worth"]["reward"])
    assert {p["user_input"]: p["reward"] for p in pairs} == {k: max(v) for k, v in best.items()}
    last = Policy.load(out / "last")
    assert {str(tensor.dtype) for tensor in last.weights.values()} == {"torch.float32"}
    assert Policy.load(result.best).manifest.name == "run"
    assert not list(out.rglob("state.pt"))[1:]  # the run's own alone
    assert not list(out.rglob("*.new")) + list(out.rglob("*.old")) + list(out.rglob("*.partial"))


def test_the_manifest_stays_the_policys_own(inputs: Path, tmp_path: Path) -> None:
    policy = Policy.load(inputs / "policy")
    policy.manifest = dataclasses.replace(policy.manifest, decoding={"num_beams": 3}, licence="x")
    saved = Policy.load(policy.save(tmp_path / "policy", torch.float32))
    result = train(tiny(inputs, tmp_path / "run", policy=str(tmp_path / "policy"), num_rounds=1))
    for folder in (result.best, tmp_path / "run" / "last"):
        assert Policy.load(folder).manifest == dataclasses.replace(saved.manifest, name="run")


class Wordy(WordReward):
    """A tenth for every word."""

    def reward(self, *arguments: Any, **options: Any) -> Any:
        batch = super().reward(*arguments, **options)
        batch.rewards = -batch.terms["length"]
        return batch


def test_the_best_weights_are_those_whose_candidates_were_best(
    inputs: Path, tmp_path: Path
) -> None:
    """A learning rate that ruins the policy, which then writes nothing that the rules let through:
    best/ is the policy that it began with."""
    result = train(tiny(inputs, tmp_path / "run", lr=0.5, num_rounds=1), reward=Wordy())
    rows = rows_of(tmp_path / "run")
    assert rows[1]["mined/reward"] < rows[0]["mined/reward"] == result.best_reward
    start = Policy.load(inputs / "policy").weights
    best = Policy.load(result.best).weights
    assert all(torch.equal(start[name].half().float(), best[name]) for name in start)


def test_without_measuring_the_last_is_the_best(inputs: Path, tmp_path: Path) -> None:
    result = train(tiny(inputs, tmp_path / "run", measure_inputs=0))
    assert len(rows_of(tmp_path / "run")) == 2
    assert result.best_reward != result.best_reward  # nan
    last = Policy.load(tmp_path / "run" / "last").weights
    best = Policy.load(result.best).weights
    assert all(torch.equal(last[name].half().float(), best[name]) for name in last)


@pytest.mark.parametrize("asked", [0, 3, 30, 58, 70, 75])
def test_a_run_that_is_stopped_anywhere_ends_equal(
    inputs: Path, tmp_path: Path, asked: int
) -> None:
    """Within the probe, mining or learning of either round."""
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(tiny(inputs, whole))
    first = train(tiny(inputs, parts), should_stop=StopAfter(asked))
    assert first.status == "stopped"
    assert train(tiny(inputs, parts, resume=True)).status == "done"
    assert saved(parts) == saved(whole)
    assert rows_of(parts) == rows_of(whole)
    again = train(tiny(inputs, parts, resume=True), reward=(reward := WordReward()))
    assert (again.status, again.round) == ("done", 2)
    assert reward.drawn == []


def test_a_process_killed_again_and_again_ends_equal(inputs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(tiny(inputs, whole))
    work = (
        "from promptadapt_core.train.rejection import train_rejection\n"
        "from promptadapt_core.train.rejection_settings import RejectionSettings\n"
        "train_rejection(RejectionSettings(**settings), reward=training_runs.WordReward())"
    )
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt")}  # fmt: skip
    train_though_killed(work, chosen, lambda: num_lines(out), 12, seed=1)
    assert saved(whole) == saved(out)
    assert rows_of(whole) == rows_of(out)


def test_a_policy_that_reads_little_learns_what_it_can_read(inputs: Path, tmp_path: Path) -> None:
    """The default of max_length is more than the policy reads."""
    folder = short_policy(inputs, tmp_path / "policy")
    result = train(tiny(inputs, tmp_path / "run", policy=str(folder), num_rounds=1))
    assert result.status == "done"


@pytest.mark.parametrize(("start", "weight"), [("user_input", 0.0), ("free", 1.0)])
def test_what_the_policy_itself_has_to_write_counts(
    inputs: Path, tmp_path: Path, start: str, weight: float
) -> None:
    policy = Policy.load(inputs / "policy")
    policy.manifest = dataclasses.replace(policy.manifest, start=start)
    policy.save(tmp_path / "policy", torch.float32)
    chosen: dict[str, Any] = {"max_length_limit": 24, "min_length_limit": 24, "num_rounds": 1}
    settings = tiny(inputs, tmp_path / "run", policy=str(tmp_path / "policy"), **chosen)
    assert train(settings).status == "done"
    config = (tmp_path / "run" / "rounds" / "001" / "learning" / "config.json").read_text("utf-8")
    assert json.loads(config)["settings"]["echo_weight"] == weight


def test_a_judge_may_go_while_a_round_is_mined(inputs: Path, tmp_path: Path) -> None:
    """What it said of the first batches is in candidates.jsonl."""

    class Onlooker:
        identity, metrics = "onlooker", {"judge/one": "1"}

        def judge_each(self, user_inputs: Any, *_: Any) -> dict[str, Any]:
            return {"judge/one": np.ones(len(user_inputs))}

    out = tmp_path / "run"
    assert train(tiny(inputs, out), judge=Onlooker(), should_stop=StopAfter(30)).status == "stopped"
    assert "judge/one" in (out / "rounds" / "001" / "candidates.jsonl").read_text("utf-8")
    assert train(tiny(inputs, out, resume=True)).status == "done"
    assert not any("judge/one" in row for row in rows_of(out))


def test_candidates_of_a_round_that_is_over_are_only_read(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(inputs, out))
    again, path = tiny(inputs, out, resume=True), out / "rounds" / "001" / "candidates.jsonl"
    whole, before = path.read_bytes(), path.stat().st_mtime_ns
    assert train(again).status == "done"
    assert path.stat().st_mtime_ns == before
    for broken in (whole[:-20], whole + b"x", whole.replace(b'"worth"', b'"words"', 1), b""):
        path.write_bytes(broken)
        with pytest.raises(SettingsError, match="resume: .*candidates.jsonl cannot be used: it is"):
            train(again)
        assert path.read_bytes() == broken
    path.unlink()
    with pytest.raises(SettingsError, match="resume: .*candidates.jsonl cannot be used"):
        train(again)


def test_a_round_in_which_nothing_is_rewarded_is_made_anew(inputs: Path, tmp_path: Path) -> None:
    """As after a scorer that was away."""

    class Away(WordReward):
        def reward(self, *arguments: Any, **options: Any) -> Any:
            batch = super().reward(*arguments, **options)
            if self.calls > 2:  # beside the probe's
                batch.ok[:] = False
            return batch

    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    with pytest.raises(SettingsError, match="renderer: no candidate of round 1 has a reward"):
        train(tiny(inputs, out), reward=Away())
    assert train(tiny(inputs, out, resume=True)).status == "done"
    train(tiny(inputs, whole))
    assert saved(out) == saved(whole)


def test_images_are_limited_over_all_rounds(inputs: Path, tmp_path: Path) -> None:
    limit = 30
    settings = tiny(inputs, tmp_path / "run", round_inputs=500, max_images=limit, group_size=2)
    train(settings)
    rows = rows_of(tmp_path / "run")
    assert 20 < rows[-1]["train/rendered"] <= limit
    assert rows[0]["mined/num_images"] <= (limit - 4) / 2
    with pytest.raises(SettingsError, match="max_images: expected at least"):
        train(tiny(inputs, tmp_path / "few", max_images=3))


def test_nothing_good_enough_is_told_and_what_was_learned_stays(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match="floor: of .* none keeps the floor word=2; nothing"):
        train(tiny(inputs, out, floor=("word=2",)))

    calls = []

    def nothing_later(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise SettingsError("plain_margin", "nothing is left to learn from")
        return choosing.best_candidates(*arguments, **options)

    monkeypatch.setattr(rejection, "best_candidates", nothing_later)
    out = tmp_path / "later"
    with pytest.raises(SettingsError, match="plain_margin: .*in round 2; what was learned before"):
        train(tiny(inputs, out))
    assert Policy.load(out / "last").manifest.name == "later"
    assert [row["step"] for row in rows_of(out)] == [1]


def test_another_run_is_not_gone_on_with(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(inputs, out, num_rounds=1))
    with pytest.raises(SettingsError, match="already holds a run"):
        train(tiny(inputs, out, num_rounds=1))
    with pytest.raises(SettingsError, match=r"--lr was 0\.002 and is now 0\.1"):
        train(tiny(inputs, out, num_rounds=1, lr=0.1, resume=True))
    with pytest.raises(SettingsError, match="--floor was .* and is now"):
        train(tiny(inputs, out, num_rounds=1, floor=("word=0",), resume=True))
    other = WordReward()
    other.identity = "others"
    with pytest.raises(SettingsError, match="the reward .* is not what the run began with"):
        train(tiny(inputs, out, num_rounds=1, resume=True), reward=other)
    with pytest.raises(SettingsError, match="there is no run"):
        train(tiny(inputs, tmp_path / "none", resume=True))
    with pytest.raises(SettingsError, match="user_inputs: there is no file"):
        train(tiny(inputs, tmp_path / "none", user_inputs="nothing.txt"))
    assert not (tmp_path / "none").exists()


def test_a_policy_that_reads_another_template_is_refused(inputs: Path, tmp_path: Path) -> None:
    policy = Policy.load(inputs / "policy")
    policy.manifest = Manifest(name="other", template="{user_input} =>")
    policy.save(tmp_path / "policy", torch.float32)
    with pytest.raises(SettingsError, match="policy: supervised fine-tuning reads"):
        train(tiny(inputs, tmp_path / "run", policy=str(tmp_path / "policy")))
    assert not (tmp_path / "run").exists()


def test_lora_that_cannot_be_had_is_told_before_anything_is_rendered(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(SettingsError, match="lora_rank: LoRA needs peft"):
        train(tiny(inputs, tmp_path / "run", lora_rank=2), reward=(reward := WordReward()))
    assert reward.calls == 0
    assert not (tmp_path / "run").exists()


def test_lora_is_merged_after_each_round(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(tiny(inputs, whole, lora_rank=4))
    train(tiny(inputs, parts, lora_rank=4), should_stop=StopAfter(60))
    train(tiny(inputs, parts, lora_rank=4, resume=True))
    assert saved(parts) == saved(whole)
    start, last = (Policy.load(f).weights for f in (inputs / "policy", whole / "last"))
    assert {*start} == {*last}
    assert any(not torch.equal(start[name], last[name]) for name in start)


def test_the_state_of_another_run_is_refused(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(inputs, out, num_rounds=1))
    (out / "state.pt").write_bytes(b"broken")
    with pytest.raises(SettingsError, match="resume: .*state.pt is broken"):
        train(tiny(inputs, out, num_rounds=1, resume=True))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--policy: expected a folder"),
        (["--policy=x", "--out=y", "--user-inputs=none"], "--user-inputs: there is no file"),
        (["--floor=x"], "--floor: expected TERM=NUMBER"),
        (["--group-size=1"], "--group-size: expected a number from 2 to 64"),
    ],
)
def test_the_command_line_refuses_bad_input(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    for trainer in ("rejection", "dpo"):
        assert command.main([trainer, *flags]) == 2
        assert told in capsys.readouterr().err
