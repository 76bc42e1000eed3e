from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    Heard,
    LetterReward,
    StopAfter,
    num_lines,
    rows_of,
    saved,
    short_policy,
    train_though_killed,
)

from promptadapt_core import objectives, prompts, runs
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.policy import Policy
from promptadapt_core.settings import AdaptSettings, SettingsError
from promptadapt_core.tokenizing import read_backend, vocab_sha256
from promptadapt_core.train import dpo, dpo_learning, dpo_optimizer, dpo_pairs, votes
from promptadapt_core.train.dpo_metrics import DPO_METRICS, DPO_ROUND_METRICS
from promptadapt_core.train.dpo_settings import DpoSettings
from promptadapt_core.train.mining_metrics import MINING_METRICS

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
TINY: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "num_rounds": 2, "round_inputs": 6, "group_size": 8,
    "mining_batch": 16, "measure_inputs": 2, "min_length_limit": 8, "max_length_limit": 12,
    "tensorboard": False, "lr": 1e-3, "batch_size": 4, "micro_batch_size": 3, "plain_margin": -9.0,
    "margin": 0.05, "length_gap": 6, "log_every": 1, "checkpoint_every": 1, "valid_share": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    return policy_for(SUBJECTS)


def tiny(inputs: Path, out: Path, **changes: Any) -> DpoSettings:
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt"), **changes}  # fmt: skip
    return DpoSettings(**chosen)


def train(settings: DpoSettings, **options: Any) -> Any:
    return dpo.train_dpo(settings, **{"reward": LetterReward(), **options})


def rows() -> list[dict[str, Any]]:
    """Of each subject the texts with a word are better than those without."""
    return [
        {
            "user_input": text, "chosen": f"{text}, watercolor, {style}",
            "rejected": f"{text}, {style}, 8k",
        }
        for text in SUBJECTS for style in ("oil painting", "sharp focus", "dramatic light")
    ]  # fmt: skip


def vote_file(folder: Path, found: list[dict[str, Any]]) -> str:
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path)


def learning(inputs: Path, out: Path, reference: Policy | None = None, **changes: Any) -> Any:
    policy = Policy.load(inputs / "policy")
    settings = tiny(inputs, out, **changes)
    return dpo_learning.DpoLearning(
        settings, rows(), policy, policy.manifest, reference, out, torch.device("cpu"),
        runs.Silent(),
    )  # fmt: skip


def test_it_learns_to_write_what_is_paid_for(inputs: Path, tmp_path: Path) -> None:
    settings = tiny(
        inputs, tmp_path / "run", num_rounds=3, round_inputs=24, measure_inputs=24, num_epochs=4.0,
        batch_size=8, micro_batch_size=8, pairs_per_input=9, mining_batch=64, valid_share=0.0,
        lr=1e-3, sft_coef=0.5, checkpoint_every=50,
    )  # fmt: skip
    result = train(settings)
    found = rows_of(tmp_path / "run")
    assert (result.status, result.round) == ("done", 3)
    assert found[-1]["reward/word_mean"] > found[0]["reward/word_mean"] + 0.2
    assert found[-1]["mined/reward"] > found[0]["mined/reward"] + 0.2
    assert all(row["learned/accuracy"] > 0.7 for row in found[:-1])
    assert all(abs(row["learned/length_gap"]) <= 0.25 for row in found[:-1])


def test_a_run_leaves_what_it_should(inputs: Path, tmp_path: Path) -> None:
    report, out = Heard(), tmp_path / "run"
    result = train(tiny(inputs, out), report=report)
    found = rows_of(out)
    assert [row["step"] for row in found] == [1, 2, 3]
    table = {**MINING_METRICS, **LetterReward.metrics, **DPO_ROUND_METRICS}
    assert {*found[0]} == {"step", *(name for name in table if not name.startswith("time/"))}
    learned = rows_of(out / "rounds" / "001" / "learning")
    assert {*learned[0]} == {"step", *(n for n in DPO_METRICS if not n.startswith("time/"))}
    pairs = dpo_pairs.read_rows(out / "rounds" / "001" / "pairs.jsonl")
    assert found[0]["learned/num_pairs"] == len(pairs)
    for pair in pairs:
        assert pair["margin"] >= 0.05
        assert abs(pair["length_gap"]) <= 6
        assert pair["chosen"].startswith(pair["user_input"])
    assert report.said[0].startswith("plan: 2 rounds, 14 user inputs with 112 candidates")
    assert Policy.load(result.best).manifest.name == "run"
    last = Policy.load(out / "last")
    assert {str(tensor.dtype) for tensor in last.weights.values()} == {"torch.float32"}


def test_a_policy_that_writes_the_whole_text_learns_it_whole(inputs: Path, tmp_path: Path) -> None:
    """What it begins with is its own choice, and counts."""
    policy = Policy.load(inputs / "policy")
    policy.manifest = dataclasses.replace(policy.manifest, start="free")
    policy.save(tmp_path / "policy", torch.float32)
    settings = tiny(
        inputs, tmp_path / "run", policy=str(tmp_path / "policy"), num_rounds=1, round_inputs=12,
        max_length_limit=24, min_length_limit=24,
    )  # fmt: skip
    assert train(settings).status == "done"
    pairs = dpo_pairs.read_rows(tmp_path / "run" / "rounds" / "001" / "pairs.jsonl")
    texts = {pair[name] for pair in pairs for name in ("chosen", "rejected")}
    assert not all(text.startswith(SUBJECTS) for text in texts)
    assert Policy.load(tmp_path / "run" / "last").manifest.start == "free"


def test_log_probs_are_those_of_the_model_token_by_token(inputs: Path) -> None:
    """Padding, batching and the head's places change nothing; what is echoed may count nothing."""
    policy = Policy.load(inputs / "policy")
    pairs, _ = dpo_pairs.to_tokens(rows()[:5], policy, 100, 0.0, runs.Silent())
    for echo_weight in (1.0, 0.0):
        batch = dpo_pairs.pair_batch(pairs, range(5), policy.eos_id, echo_weight)
        found, tokens = dpo_pairs.text_logprobs(policy.model, batch, False)
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        for place, text in enumerate(texts):
            ids = text.ids.long()
            logprobs = policy.model(ids[None]).logits[0].log_softmax(-1)
            start = text.num_prompt + (0 if echo_weight else text.num_echo)
            places = range(start, len(ids))
            expected = sum(logprobs[at - 1, ids[at]].item() for at in places)
            assert found[place].item() == pytest.approx(expected, abs=1e-3)
            assert tokens[place] == len(places)


def test_nothing_is_preferred_at_the_start(inputs: Path, tmp_path: Path) -> None:
    made = learning(inputs, tmp_path / "run")
    parts = made._gradients([0, 1, 2], 3)
    assert parts["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert parts["train/margin"] == pytest.approx(0.0, abs=1e-4)
    assert parts["train/chosen_gain"] == pytest.approx(0.0, abs=1e-3)


def gradients_of(made: Any, parts: list[list[int]]) -> list[torch.Tensor]:
    found = [made._gradients(part, 6) for part in parts]
    total = torch.tensor([sum(one[name] for one in found) for name in found[0]])
    gradients = [p.grad.clone() for p in made.trainee.trained().values()]
    made.optimizer.zero_grad()
    return [total, *gradients]


def test_micro_batches_give_the_gradients_of_the_batch(inputs: Path, tmp_path: Path) -> None:
    made = learning(inputs, tmp_path / "run", sft_coef=0.3, valid_share=0.0)
    whole = gradients_of(made, [[0, 1, 2, 3, 4, 5]])
    for parts in ([[3, 1], [0, 2], [4, 5]], [[row] for row in range(6)]):
        for one, other in zip(whole, gradients_of(made, parts), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_computing_activations_twice_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    plain = learning(inputs, tmp_path / "plain", valid_share=0.0)
    thrifty = learning(inputs, tmp_path / "thrifty", valid_share=0.0, gradient_checkpointing=True)
    calls = []
    part = thrifty.model.transformer.h[0].attn
    part.register_forward_pre_hook(lambda *_: calls.append(1))
    rows = [[0, 1, 2, 3, 4, 5]]
    for one, other in zip(gradients_of(plain, rows), gradients_of(thrifty, rows), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert len(calls) == 2  # forward, and once more for the backward pass
    thrifty.model.supports_gradient_checkpointing = False
    with pytest.raises(SettingsError, match="gradient_checkpointing: .* has none"):
        dpo_learning._checkpoint_gradients(thrifty.model)


def test_what_the_user_typed_is_no_preference(inputs: Path, tmp_path: Path) -> None:
    """Both texts begin with it, so that it cancels out; with sft_coef it would not."""
    made = learning(inputs, tmp_path / "run", valid_share=0.0)
    losses = []
    with torch.no_grad():
        made.model.transformer.ln_f.weight += 0.05
    for echo_weight in (0.0, 1.0):
        made.echo_weight = echo_weight
        made.ref_train = torch.zeros(len(made.train), 2)
        parts = made._gradients([0, 1, 2], 3)
        made.optimizer.zero_grad()
        losses.append((parts["train/loss"], parts["train/nll"]))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-4)
    assert losses[0][1] != pytest.approx(losses[1][1], abs=1e-2)


def test_the_better_texts_get_likelier_than_the_others(inputs: Path, tmp_path: Path) -> None:
    made = learning(inputs, tmp_path / "run", num_epochs=6.0, valid_share=0.0, lr=2e-3)
    assert made.run(lambda: False)
    found = rows_of(tmp_path / "run")
    assert found[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found[-1]["train/loss"] < 0.3
    assert found[-1]["train/chosen_gain"] > found[-1]["train/rejected_gain"] + 5
    assert found[-1]["train/accuracy"] == 1.0


def test_the_likelihood_of_the_chosen_can_be_kept(inputs: Path, tmp_path: Path) -> None:
    gains = {}
    for coef in (0.0, 1.0):
        made = learning(inputs, tmp_path / str(coef), num_epochs=6.0, sft_coef=coef)
        made.run(lambda: False)
        gains[coef] = rows_of(tmp_path / str(coef))[-1]["train/chosen_gain"]
    assert gains[1.0] > gains[0.0]


def test_the_pairs_of_a_user_input_either_train_or_validate(inputs: Path, tmp_path: Path) -> None:
    policy = Policy.load(inputs / "policy")
    for share in (0.0, 0.2, 0.3):
        train_pairs, valid = dpo_pairs.to_tokens(rows(), policy, 100, share, runs.Silent())
        told = [{tuple(p.chosen.ids[: p.chosen.num_prompt].tolist()) for p in part}
                for part in (train_pairs, valid)]  # fmt: skip
        assert not told[0] & told[1]
        assert len(train_pairs) + len(valid) == len(rows())
        assert bool(valid) == (share > 0)
    report = Heard()
    long = {"user_input": "a cat", "chosen": "a cat, " + "8k " * 60, "rejected": "a cat"}
    short, _ = dpo_pairs.to_tokens([*rows()[:2], long], policy, 60, 0.0, report)
    assert len(short) == 2
    assert report.said == ["left out 1 pairs longer than 60 tokens"]
    with pytest.raises(SettingsError, match="max_length: every pair is longer than 8 tokens"):
        dpo_pairs.to_tokens(rows(), policy, 8, 0.0, report)
    everything = [row for row in rows() if dpo_pairs.is_valid(row["user_input"], 0.5)]
    assert len(dpo_pairs.to_tokens(everything, policy, 100, 0.5, report)[0]) == len(everything)


def test_texts_longer_than_the_policy_reads_are_left_out(inputs: Path, tmp_path: Path) -> None:
    folder = short_policy(inputs, tmp_path / "policy")
    long = {name: f"a cat, {name} " + "8k " * 40 for name in ("chosen", "rejected")}
    report = Heard()
    settings = tiny(
        inputs, tmp_path / "run", policy=str(folder), num_epochs=1.0,
        votes=vote_file(tmp_path, [*rows(), {"user_input": "a cat", **long}]),
    )  # fmt: skip
    assert train(settings, reward=None, report=report).status == "done"
    assert "round 1: left out 1 pairs longer than 48 tokens" in report.said


# The reference


def test_the_reference_stays_what_it_was(inputs: Path, tmp_path: Path) -> None:
    """One that is named and is the policy itself gives the same run as none; another does not, and
    no file of it changes."""
    other = tmp_path / "policy"
    policy = Policy.load(inputs / "policy")
    with torch.no_grad():
        policy.model.transformer.ln_f.weight += 0.2
    policy.save(other, torch.float32)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    runs_of = {"none": "", "same": str(inputs / "policy"), "other": str(other)}
    found = {}
    for name, reference in runs_of.items():
        out = tmp_path / name / "run"
        train(tiny(inputs, out, reference=reference, num_rounds=1))
        found[name] = (out / "last" / "model.safetensors").read_bytes()
    assert found["none"] == found["same"]
    assert found["none"] != found["other"]
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_a_reference_with_another_tokenizer_is_refused(inputs: Path, tmp_path: Path) -> None:
    other = tmp_path / "policy"
    shutil.copytree(inputs / "policy", other)
    path = other / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    texts = told["model"]["vocab"]
    first, second = [text for text in texts if text.isalpha()][:2]
    texts[first], texts[second] = texts[second], texts[first]
    path.write_text(json.dumps(told), encoding="utf-8")
    mine = {"votes": vote_file(tmp_path, rows())}
    for refused in ("its vocabulary is not the one", "has another tokenizer than"):
        for chosen in ({}, mine):
            settings = tiny(inputs, tmp_path / "run", reference=str(other), **chosen)
            with pytest.raises(SettingsError, match=f"^reference: .*{refused}"):
                train(settings, reward=None if chosen else LetterReward())
            assert not (tmp_path / "run").exists()
        manifest = json.loads((other / "promptadapt.json").read_text(encoding="utf-8"))
        manifest["vocab_sha256"] = vocab_sha256(read_backend(other))  # trained with that one
        (other / "promptadapt.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(SettingsError, match="reference: "):
        train(tiny(inputs, tmp_path / "run", reference=str(tmp_path / "none")))


# Votes


def test_votes_are_learned_from_without_a_picture(inputs: Path, tmp_path: Path) -> None:
    path = vote_file(tmp_path, [*rows(), {**rows()[0], "chosen": rows()[0]["rejected"]}])
    report = Heard()
    settings = tiny(inputs, tmp_path / "run", votes=path, user_inputs="", num_epochs=3.0)
    result = train(settings, reward=None, report=report)
    assert (result.status, result.round, result.num_rounds) == ("done", 1, 1)
    assert "left out 1 votes between equal texts" in report.said
    (row,) = rows_of(tmp_path / "run")
    assert row["learned/num_pairs"] == len(rows())
    assert not any(name.startswith(("mined/", "reward/")) for name in row)
    assert {p.name for p in (tmp_path / "run" / "rounds" / "001").iterdir()} == {
        "pairs.jsonl", "learning"
    }  # fmt: skip
    start, best = (Policy.load(f).weights for f in (inputs / "policy", result.best))
    assert any(not torch.equal(start[name].half().float(), best[name]) for name in start)


def test_votes_on_texts_with_syntax_are_read_as_the_policy_writes(
    inputs: Path, tmp_path: Path
) -> None:
    path = vote_file(tmp_path, [
        {"user_input": "a cat <lora:x:1>", "chosen": "a cat, 8k <lora:x:1>",
         "rejected": "a cat, oil painting <lora:x:1>"},
        {"user_input": "a dog", "chosen": "a wolf, 8k", "rejected": "a dog, 8k"},
        {"user_input": "a fox", "chosen": "a fox, (8k:1.2)", "rejected": "a fox, (8k:1.1)"},
    ])  # fmt: skip
    report = Heard()
    train(tiny(inputs, tmp_path / "run", votes=path), reward=None, report=report)
    assert dpo_pairs.read_rows(tmp_path / "run" / "rounds" / "001" / "pairs.jsonl") == [
        {"user_input": "a cat", "chosen": "a cat, 8k", "rejected": "a cat, oil painting"}
    ]
    assert any(line.startswith("left out 2 votes; the first, on 'a dog'") for line in report.said)
    alone = vote_file(tmp_path, [
        {"user_input": "a dog", "chosen": "a wolf, 8k", "rejected": "a dog, 8k"}
    ])  # fmt: skip
    with pytest.raises(SettingsError, match="votes: none can be learned from; the first: a text"):
        train(tiny(inputs, tmp_path / "other", votes=alone), reward=None)


def test_votes_on_what_the_adapter_writes_are_all_read(inputs: Path) -> None:
    """With the syntax, the full stop and the request that people type around what they want."""
    adapter, asked = adapter_of(inputs)
    for typed in ("a (cat:1.2), hat", "draw me a cat.", "[a cat]", "a cat <lora:x:1>, asleep"):
        work, _ = adapter.prepare(prompts.parse(typed, asked.keep), asked)
        assert work is not None
        first, second = (work.parsed.append(style) for style in ("oil painting", "8k"))
        report = Heard()
        (row,) = votes.vote_rows([votes.Vote(typed, first, second)], adapter, asked, report)
        assert row["chosen"] == f"{row['user_input']}, oil painting"
        assert row["rejected"] == f"{row['user_input']}, 8k"
        assert report.said == []


def test_votes_that_contradict_each_other_are_counted(inputs: Path) -> None:
    adapter, asked = adapter_of(inputs)
    report, found = Heard(), [votes.Vote("a cat", "a cat, 8k", "a cat, oil painting")] * 3
    found += [votes.Vote("a cat", "a cat, oil painting", "a cat, 8k")]
    found += [votes.Vote("a dog", "a dog, oil painting", "a dog, 8k")]
    assert len(votes.vote_rows(found, adapter, asked, report)) == 5
    assert report.said == ["1 pairs of texts got votes both ways; all of them count"]


def adapter_of(inputs: Path) -> tuple[PromptAdapter, AdaptSettings]:
    adapter = PromptAdapter(Policy.load(inputs / "policy"))
    return adapter, adapter.settings(mode="sample", gate=False, min_modifiers=0)


GOOD = b'{"user_input": "a", "chosen": "a, b", "rejected": "a, c"}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no file"),
        (b"\n \n", "holds no votes"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (GOOD + b'{"user_input": "a", "chos', "line 2 of .* is not JSON"),
        (b'user_input,chosen,rejected\na,"a, b","a, c"\n', "line 1 .* expected one object a line"),
        (GOOD + b"\n" + b'["a", "b", "c"]\n', "line 3 .* needs the texts user_input, chosen"),
        (GOOD + b'{"user_input": "a", "chosen": "a, b"}\n', "line 2 .* needs the texts"),
        (GOOD + b'{"user_input": "a", "chosen": 3, "rejected": "a"}\n', "line 2 .* needs the"),
        (GOOD + b'{"user_input": "a", "chosen": " ", "rejected": "a"}\n', "line 2 .* needs the"),
        (b'{"user_input": "a", "chosen": "\\ud800", "rejected": "a"}\n', "half a character"),
        (b'{"user_input": "a", "chosen": "a, b", "rejected": "a, b "}\n', "are the same"),
    ],
)
def test_bad_files_of_votes_are_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "votes.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=told) as caught:
        train(tiny(inputs, tmp_path / "run", votes=str(path)), reward=None)
    assert caught.value.name == "votes"
    assert not (tmp_path / "run").exists()


def test_rare_marks_end_no_vote(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    row = {"user_input": "a\u2028b", "chosen": "x\x85", "rejected": "y"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n")
    assert votes.read_votes(path) == ([votes.Vote(**row)], 0)


def test_either_votes_or_a_reward(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="votes: expected either"):
        train(tiny(inputs, tmp_path / "run"), reward=None)
    with pytest.raises(SettingsError, match="votes: expected either"):
        train(tiny(inputs, tmp_path / "run", votes=vote_file(tmp_path, rows())))
    assert (DpoSettings(votes="x").num_lessons, DpoSettings().num_lessons) == (1, 4)


# Runs that go on, and runs that cannot


@pytest.mark.parametrize("asked", [20, 45, 47, 60])
def test_a_run_that_is_stopped_anywhere_ends_equal(
    inputs: Path, tmp_path: Path, asked: int
) -> None:
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    changes = {"checkpoint_every": 3, "log_every": 2}
    train(tiny(inputs, whole, **changes))
    first = train(tiny(inputs, parts, **changes), should_stop=StopAfter(asked))
    assert first.status == "stopped"
    resumed = tiny(inputs, parts, resume=True, **changes)
    assert train(resumed).status == "done"
    assert saved(parts) == saved(whole)
    assert rows_of(parts) == rows_of(whole)


def test_learning_goes_on_from_any_state(inputs: Path, tmp_path: Path) -> None:
    """Killed between two steps, with newer rows and half files about."""
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    options: dict[str, Any] = {"num_epochs": 3.0, "log_every": 2, "checkpoint_every": 2}
    learning(inputs, whole, **options).run(lambda: False)
    for steps in (1, 2, 5):
        made = learning(inputs, out, **options)
        if steps == 5:
            made.run(StopAfter(2))
            continue
        for _ in range(2):  # the process dies after these
            began = time.monotonic()
            made._step()
            made._after_step(False, began)
        with open(out / "metrics.jsonl", "a") as file:
            file.write('{"step": 90, "tra')
        (out / "state.pt.7.partial").write_bytes(b"half")
    learning(inputs, out, **options).run(lambda: False)
    assert saved(out) == saved(whole)
    assert rows_of(out) == rows_of(whole)


def test_a_process_killed_again_and_again_ends_equal(inputs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(tiny(inputs, whole))
    work = (
        "from promptadapt_core.train.dpo import train_dpo\n"
        "from promptadapt_core.train.dpo_settings import DpoSettings\n"
        "train_dpo(DpoSettings(**settings), reward=training_runs.LetterReward())"
    )
    chosen = {**TINY, "policy": str(inputs / "policy"), "out": str(out),
              "user_inputs": str(inputs / "inputs.txt")}  # fmt: skip
    train_though_killed(work, chosen, lambda: num_lines(out), 16, seed=2)
    assert saved(whole) == saved(out)
    assert rows_of(whole) == rows_of(out)


def test_a_loss_that_is_not_finite_stops_before_the_step(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learning(inputs, tmp_path / "run")
    made._step()
    made._after_step(False, time.monotonic())
    before = {name: p.detach().clone() for name, p in made.trainee.trained().items()}
    real = objectives.dpo_loss

    def broken(*arguments: Any, **options: Any) -> Any:
        loss, margins = real(*arguments, **options)
        return loss * math.nan, margins

    monkeypatch.setattr(objectives, "dpo_loss", broken)
    with pytest.raises(SettingsError, match="lr: train/loss.* is not finite in step 2; the check"):
        made._step()
    assert all(torch.equal(p, before[name]) for name, p in made.trainee.trained().items())
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 1


def test_a_run_with_other_settings_is_not_gone_on_with(inputs: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "run", vote_file(tmp_path, rows())
    settings = {"votes": path, "num_epochs": 1.0}
    train(tiny(inputs, out, **settings), reward=None)
    with pytest.raises(SettingsError, match=r"--beta was 0\.1 and is now 0\.5"):
        train(tiny(inputs, out, **settings, beta=0.5, resume=True), reward=None)
    vote_file(tmp_path, rows()[1:])
    with pytest.raises(SettingsError, match="--votes is not what the run began with"):
        train(tiny(inputs, out, **settings, resume=True), reward=None)
    with pytest.raises(SettingsError, match="is not what the run began with"):
        train(tiny(inputs, out, num_epochs=1.0, resume=True))


def test_lora_learns_and_goes_on(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options: dict[str, Any] = {"lora_rank": 4, "lr": 5e-3, "gradient_checkpointing": True}
    whole, out = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    learning(inputs, whole, **options).run(lambda: False)
    assert not learning(inputs, out, **options).run(StopAfter(2))
    made = learning(inputs, out, **options)
    assert all("lora_" in name for name in made.trainee.trained())
    assert made.run(lambda: False)
    assert saved(out) == saved(whole)
    found = rows_of(out)
    assert found[-1]["train/loss"] < found[0]["train/loss"]
    assert {*Policy.load(out / "last").weights} == {*Policy.load(inputs / "policy").weights}


# The optimizer


def test_the_learning_rate_warms_up_and_falls(inputs: Path, tmp_path: Path) -> None:
    settings = tiny(inputs, tmp_path / "run", lr=1.0, warmup_share=0.2)
    found = [dpo_optimizer.lr_at(step, 10, settings) for step in range(10)]
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[-1] == pytest.approx(0.1)
    assert found[2:] == sorted(found[2:], reverse=True)
    assert dpo_optimizer.lr_at(0, 1, settings) == 1.0


def test_8_bits_need_bitsandbytes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(SettingsError, match="optimizer: adamw8bit needs bitsandbytes: pip install"):
        learning(inputs, tmp_path / "run", optimizer="adamw8bit")


@pytest.mark.parametrize(
    ("changes", "missing", "told"),
    [
        ({"optimizer": "adamw8bit"}, "bitsandbytes", "optimizer: adamw8bit needs bitsandbytes"),
        ({"lora_rank": 2}, "peft", "lora_rank: LoRA needs peft"),
    ],
)
def test_what_learning_lacks_is_told_before_anything_is_rendered(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], missing: str, told: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    reward = LetterReward()
    with pytest.raises(SettingsError, match=told):
        train(tiny(inputs, tmp_path / "run", **changes), reward=reward)
    assert reward.calls == 0
    assert not (tmp_path / "run").exists()


def test_8_bits_learn_or_are_refused(inputs: Path, tmp_path: Path) -> None:
    """Some versions of bitsandbytes have nothing for a CPU."""
    pytest.importorskip("bitsandbytes")
    try:
        made = learning(inputs, tmp_path / "run", optimizer="adamw8bit", num_epochs=3.0)
    except SettingsError as error:
        pytest.skip(error.reason)
    assert not made.run(StopAfter(3))
    made = learning(inputs, tmp_path / "run", optimizer="adamw8bit", num_epochs=3.0)
    assert made.run(lambda: False)
    found = rows_of(tmp_path / "run")
    assert found[-1]["train/loss"] < found[0]["train/loss"]
