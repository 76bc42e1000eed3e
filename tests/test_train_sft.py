from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from promptadapt_core import runs
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError
from promptadapt_core.train import __main__ as command
from promptadapt_core.train import bases, losses, preparing, sft
from promptadapt_core.train.sft_settings import SftSettings

SUBJECTS = ("a cat", "an old house", "two boats", "the sea", "a dog", "a red fox")
STYLES = ("oil painting", "8k, sharp focus", "watercolor", "dramatic light")
ROWS = [
    {"user_input": subject, "target": f"{subject}, {style}", "split": "train"}
    for subject in SUBJECTS
    for style in STYLES
]
ROWS += [{**row, "split": "valid"} for row in ROWS[::5]]
TINY: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "num_epochs": 4.0, "batch_size": 7,
    "micro_batch_size": 4, "max_length": 60, "validate_every": 3, "checkpoint_every": 4,
    "log_every": 2, "vocab_size": 300, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
    "tensorboard": False,
}  # fmt: skip
NUM_STEPS = 16  # 24 pairs in batches of 7 are 4 steps, 4 times


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", ROWS)


def write_pairs(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny(pairs: Path, name: str = "run", **changes: Any) -> SftSettings:
    return SftSettings(**{**TINY, "pairs": str(pairs), "out": str(pairs.parent / name), **changes})


def trainer(settings: SftSettings) -> sft.Trainer:
    report = runs.Silent()
    return sft.Trainer(preparing.prepare(settings, report), report)


class StopAfter:
    """Asks to stop after so many steps."""

    def __init__(self, num_steps: int):
        self.left = num_steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def saved(folder: Path) -> dict[str, bytes]:
    """The files whose bytes equal runs must share: the weights."""
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = {"time/hours", "train/tokens_per_second"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_run_learns_and_leaves_what_it_should(pairs: Path) -> None:
    settings = tiny(pairs, lr=0.02, num_epochs=8.0, dropout=0.0)
    result = sft.train_sft(settings)
    assert (result.status, result.step, result.num_steps) == ("done", 32, 32)
    folder = Path(settings.out)
    rows = rows_of(folder)
    assert rows[-1]["valid/nll_per_token"] < 0.8 * rows[0]["train/loss"]
    assert rows[-1]["step"] == 32
    assert {"valid/nll_per_word", "valid/nll_per_word_added", "optim/lr"} <= set(rows[-1])
    assert rows[-1]["valid/best_loss"] == result.best_loss
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["lr"] == 0.02
    policy = Policy.load(result.best)
    assert policy.manifest.name == "run"
    assert policy.manifest.policy_prompt("a cat") == "a cat Rephrase:"
    last = Policy.load(folder / "last")
    assert {str(tensor.dtype) for tensor in last.weights.values()} == {"torch.float32"}
    assert not list(folder.glob("*.new")) + list(folder.glob("*.old"))


def test_no_metric_lacks_a_definition(pairs: Path) -> None:
    settings = tiny(pairs)
    sft.train_sft(settings)
    written = {key for row in rows_of(Path(settings.out)) for key in row}
    assert written == {"step", *sft.SFT_METRICS}


def test_the_loss_is_that_of_each_completion_alone(pairs: Path) -> None:
    """Right padding and the batch change nothing; the head on few positions is the whole one."""
    made = trainer(tiny(pairs, dropout=0.0))
    model, batch = made.model.eval(), made._batch(made.train, [0, 1, 2, 3, 9])
    together = losses.completion_nll(model, batch)
    assert torch.allclose(together, losses.completion_nll(model, batch, whole_logits=True))
    parts = []
    for row in batch.rows:
        pair = made.train[row]
        ids = pair.ids.long()[None]
        logprobs = F.log_softmax(model(ids).logits[0], dim=-1)
        places = range(pair.num_prompt, ids.shape[1])
        parts += [-logprobs[place - 1, ids[0, place]] for place in places]
        assert ids[0, -1] == made.trainee.policy.eos_id
    assert torch.allclose(together, torch.stack(parts), atol=1e-5)


def test_a_model_that_scales_its_logits_is_noticed(pairs: Path) -> None:
    made = trainer(tiny(pairs, dropout=0.0))
    batch = made._batch(made.train, [0])
    assert not losses.needs_whole_logits(made.model, batch)
    plain = made.model.forward

    def scaled(*arguments: Any, **options: Any) -> Any:
        output = plain(*arguments, **options)
        output.logits = output.logits * 100
        return output

    made.model.forward = scaled
    assert losses.needs_whole_logits(made.model, batch)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_give_the_same_gradients(pairs: Path, micro_batch_size: int) -> None:
    gradients = []
    for size in (24, micro_batch_size):
        made = trainer(tiny(pairs, name=f"run{size}", dropout=0.0))
        rows = list(range(24))
        batches = [made._batch(made.train, rows[at : at + size]) for at in range(0, 24, size)]
        loss = made._gradients(batches)
        gradients.append([loss, *(p.grad for p in made.trainee.trained().values())])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_validation_metrics_are_sums_over_words() -> None:
    pairs = [
        losses.TokenPair(torch.zeros(6), 2, num_echo=1, num_words=3, num_added_words=2),
        losses.TokenPair(torch.zeros(4), 2, num_echo=-1, num_words=1, num_added_words=0),
    ]
    nll = [torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.tensor([5.0, 1.0])]
    assert losses.validation_metrics(nll, pairs) == {
        "valid/loss": pytest.approx(16 / 6),
        "valid/nll_per_token": pytest.approx(16 / 6),
        "valid/nll_per_word": pytest.approx(16 / 4),
        "valid/nll_per_word_added": pytest.approx(6 / 2),
    }
    light = losses.validation_metrics(nll, pairs, echo_weight=0.25)
    assert light["valid/loss"] == pytest.approx((1 + 12) / 5.25)
    assert light["valid/nll_per_token"] == pytest.approx(16 / 6)


def test_the_learning_rate_rises_and_falls() -> None:
    settings = SftSettings(lr=1.0, warmup_share=0.1, final_lr_share=0.1)
    rates = [sft.lr_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    assert all(late < early for early, late in zip(rates[10:], rates[11:], strict=False))
    assert sft.lr_at(0, 1, settings) == pytest.approx(1.0)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(pairs: Path, lora_rank: int) -> None:
    changes: dict[str, Any] = {}
    if lora_rank:
        pytest.importorskip("peft")
        base = sft.train_sft(tiny(pairs, name="base", num_epochs=0.25)).best
        changes = {"base": str(base), "lora_rank": lora_rank}
    whole = tiny(pairs, name="whole/run", **changes)
    parts = tiny(pairs, name="parts/run", **changes)
    sft.train_sft(whole)
    stopped = sft.train_sft(parts, should_stop=StopAfter(5))
    assert (stopped.status, stopped.step) == ("stopped", 5)
    resumed = tiny(pairs, name="parts/run", resume=True, **changes)
    assert sft.train_sft(resumed, should_stop=StopAfter(1)).step == 6
    assert sft.train_sft(resumed).step == NUM_STEPS
    assert saved(Path(whole.out)) == saved(Path(parts.out))
    steps = [row["step"] for row in rows_of(Path(parts.out))]
    assert steps == sorted(set(steps))
    if lora_rank:
        assert (Path(whole.out) / "lora" / "adapter_model.safetensors").is_file()
    again = sft.train_sft(resumed)
    assert (again.status, again.step) == ("done", NUM_STEPS)


def test_a_run_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one(
    pairs: Path,
) -> None:
    often = {"checkpoint_every": 1, "validate_every": 2, "log_every": 1, "num_epochs": 60.0}
    whole = tiny(pairs, name="whole/run", **often)
    sft.train_sft(whole)
    out = pairs.parent / "parts" / "run"
    chosen = {**TINY, **often, "pairs": pairs, "out": out}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()
             if name != "tensorboard"]  # fmt: skip
    line = [sys.executable, "-m", "promptadapt_core.train", "sft", "--no-tensorboard", *flags]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    options: dict[str, Any] = {
        "cwd": Path(__file__).parents[1], "env": {**os.environ, **threads},
        "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True,
    }  # fmt: skip
    moments = random.Random(0)
    num_killed = 0
    for _ in range(3):
        process = subprocess.Popen(line + ["--resume"] * out.is_dir(), **options)
        before = metrics_size(out)
        deadline = time.monotonic() + 60
        while process.poll() is None and metrics_size(out) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        num_killed += process.poll() is None
        process.kill()
        assert process.communicate()[1] is not None
    assert num_killed
    final = subprocess.run([*line, "--resume"], timeout=90, check=False, **options)
    assert final.returncode == 0, final.stderr
    assert saved(Path(whole.out)) == saved(out)
    assert without_times(rows_of(Path(whole.out))) == without_times(rows_of(out))


def metrics_size(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


class Killed(BaseException):
    """Stands for the end of the process at a place of our choice."""


def test_last_is_as_far_as_the_state_when_a_run_dies(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(pairs, num_epochs=1.0, checkpoint_every=1)
    train_step = sft.Trainer._train_step

    def dies(trainer: Any) -> None:
        if trainer.progress["step"] == 2:
            raise Killed
        train_step(trainer)

    monkeypatch.setattr(sft.Trainer, "_train_step", dies)
    with pytest.raises(Killed):
        sft.train_sft(settings)
    out = Path(settings.out)
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 2
    last = load_file(out / "last" / "model.safetensors")
    assert all(torch.equal(state["weights"][name], value) for name, value in last.items())


def test_a_last_that_was_lost_is_written_again(pairs: Path) -> None:
    settings = tiny(pairs, num_epochs=1.0)
    sft.train_sft(settings)
    last = Path(settings.out) / "last"
    before = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    assert sft.train_sft(dataclasses.replace(settings, resume=True)).status == "done"
    assert (last / "model.safetensors").read_bytes() == before


def test_a_run_that_ends_before_any_rename_resumes_equal(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny(pairs, name="whole/run", num_epochs=1.0, checkpoint_every=2)
    sft.train_sft(whole)
    rename = os.replace
    num_renames = 0
    for place in range(3, 100, 3):
        parts = tiny(pairs, name=f"parts{place}/run", num_epochs=1.0, checkpoint_every=2)
        count = iter(range(place))

        def rename_or_die(source: Any, target: Any, count: Any = count) -> None:
            if next(count, None) is None:
                raise Killed
            rename(source, target)

        monkeypatch.setattr(os, "replace", rename_or_die)
        try:
            sft.train_sft(parts)
        except Killed:
            num_renames += 1
        else:
            break
        finally:
            monkeypatch.setattr(os, "replace", rename)
        resumed = tiny(pairs, name=f"parts{place}/run", num_epochs=1.0, checkpoint_every=2,
                       resume=True)  # fmt: skip
        sft.train_sft(resumed)
        assert saved(Path(whole.out)) == saved(Path(parts.out))
        assert without_times(rows_of(Path(whole.out))) == without_times(rows_of(Path(parts.out)))
    assert num_renames >= 3


def test_a_run_stops_when_validation_no_longer_gets_better(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(sft, "validation_metrics", lambda *given: {"valid/loss": next(values)})
    settings = tiny(pairs, patience=2, validate_every=1)
    result = sft.train_sft(settings)
    assert (result.status, result.step, result.best_loss) == ("patience", 4, 2.0)


def test_without_validation_pairs_best_is_the_latest(pairs: Path) -> None:
    write_pairs(pairs, [row for row in ROWS if row["split"] == "train"])
    settings = tiny(pairs, num_epochs=1.0)
    result = sft.train_sft(settings)
    assert math.isinf(result.best_loss)
    assert Policy.load(result.best).eos_id == Policy.load(Path(settings.out) / "last").eos_id


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(pairs)
    sft.train_sft(settings, should_stop=StopAfter(4))
    before = saved(Path(settings.out))
    plain = sft.completion_nll
    monkeypatch.setattr(sft, "completion_nll", lambda *given: plain(*given) * math.nan)
    with pytest.raises(SettingsError, match="^lr: the loss or its gradient is not finite"):
        sft.train_sft(tiny(pairs, resume=True))
    assert saved(Path(settings.out)) == before
    monkeypatch.undo()
    assert sft.train_sft(tiny(pairs, resume=True)).step == NUM_STEPS


def test_a_full_disk_stops_the_run_and_keeps_what_was(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(pairs)
    sft.train_sft(settings, should_stop=StopAfter(4))
    before = saved(Path(settings.out))

    def fail(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bases.Policy, "save", fail)
    with pytest.raises(SettingsError, match="^out: .*No space left"):
        sft.train_sft(tiny(pairs, resume=True))
    assert saved(Path(settings.out)) == before
    monkeypatch.undo()
    assert sft.train_sft(tiny(pairs, resume=True)).step == NUM_STEPS


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"base": "no/such/folder"}, "base: "),
    ({"out": ""}, "out: expected the folder"),
    ({"device": "abacus"}, "device: 'abacus' cannot be used"),
    ({"hidden_size": 17}, "hidden_size: expected a multiple"),
    ({"max_length": 8}, "max_length: every pair is longer"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_SETTINGS)
def test_bad_settings_are_named(pairs: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^{reason}"):
        trainer(tiny(pairs, **changes))


def test_a_missing_pairs_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="^pairs: there is no file"):
        trainer(tiny(tmp_path / "none.jsonl"))
    assert not list(tmp_path.iterdir())


def test_pairs_without_training_rows_are_refused(pairs: Path) -> None:
    write_pairs(pairs, [row for row in ROWS if row["split"] == "valid"])
    with pytest.raises(SettingsError, match="^pairs: .* has no rows with"):
        trainer(tiny(pairs))
    assert not Path(tiny(pairs).out).exists()


def test_lora_without_peft_is_one_sentence(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match="^lora_rank: LoRA needs peft"):
        trainer(tiny(pairs, lora_rank=2))


def test_a_run_is_neither_overwritten_nor_resumed_with_other_inputs(pairs: Path) -> None:
    sft.train_sft(tiny(pairs, num_epochs=0.5))
    with pytest.raises(SettingsError, match="^out: .* already holds a run"):
        sft.train_sft(tiny(pairs, num_epochs=0.5))
    with pytest.raises(SettingsError, match=r"^resume: .*--lr was 0.001 and is now 0.01$"):
        sft.train_sft(tiny(pairs, num_epochs=0.5, lr=0.01, resume=True))
    write_pairs(pairs, ROWS[1:])
    with pytest.raises(SettingsError, match="^resume: --pairs: .* is not what the run began with"):
        sft.train_sft(tiny(pairs, num_epochs=0.5, resume=True))


class PressesControlC(runs.Progress):
    """Presses Ctrl-C after the third step."""

    def step(self, step: int, num_steps: int, metrics: Any) -> None:
        super().step(step, num_steps, metrics)
        if step == 3:
            signal.raise_signal(signal.SIGINT)


def arguments(settings: SftSettings, *more: str) -> list[str]:
    chosen = {**TINY, "pairs": settings.pairs, "out": settings.out}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()
             if name != "tensorboard"]  # fmt: skip
    return ["sft", "--no-tensorboard", *flags, *more]


def test_control_c_saves_and_says_how_to_go_on(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(runs, "Progress", PressesControlC)
    settings = tiny(pairs)
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    assert command.main(arguments(settings)) == 130
    assert "with --resume goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    assert command.main(arguments(settings, "--resume")) == 0
    output = capsys.readouterr()
    assert output.out.startswith("done: 16 steps")
    assert "going on after step 4" in output.err


def test_the_command_line_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sft", "--out", "x", "--pairs", "none.jsonl"]) == 2
    assert capsys.readouterr().err == (
        "promptadapt_core.train: --pairs: there is no file none.jsonl\n"
    )
    assert command.main(["sft", "--lr", "7"]) == 2
    assert "--lr: expected a number" in capsys.readouterr().err


def test_tensorboard_files_are_written_where_it_is_installed(pairs: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = tiny(pairs, tensorboard=True, num_epochs=0.5)
    sft.train_sft(settings)
    assert list((Path(settings.out) / "tensorboard").glob("events*"))


def test_bad_input_leaves_no_run_behind(pairs: Path) -> None:
    """The same folder can be used once the mistake is mended."""
    for changes in ({"hidden_size": 15}, {"max_length": 8}, {"base": str(pairs)}):
        with pytest.raises(SettingsError):
            sft.train_sft(tiny(pairs, **changes))
        assert not list((pairs.parent / "run").iterdir())
    assert sft.train_sft(tiny(pairs, num_epochs=0.25)).status == "done"


def test_the_state_of_another_run_is_refused(pairs: Path) -> None:
    out = pairs.parent / "foreign"
    sft.train_sft(tiny(pairs, "foreign", num_epochs=0.5))
    state = torch.load(out / "state.pt", weights_only=True)
    name = next(iter(state["weights"]))
    for changed in (
        {**state, "weights": {**state["weights"], name: torch.zeros(3, 4)}},
        {**state, "optimizer": {}},
        {"format": state["format"]},
    ):
        torch.save(changed, out / "state.pt")
        with pytest.raises(SettingsError, match="^resume: .*state.pt is not of this run"):
            sft.train_sft(tiny(pairs, "foreign", num_epochs=0.5, resume=True))


def test_a_device_without_numbers_is_refused(pairs: Path) -> None:
    with pytest.raises(SettingsError, match="device: "):
        sft.train_sft(tiny(pairs, device="meta"))
