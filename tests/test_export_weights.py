"""LoRA matrices of a run: as trained, or taken out of what training merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from promptadapt_core.export import exporting
from promptadapt_core.export.settings import ExportSettings
from promptadapt_core.lora import read_base
from promptadapt_core.model_folders import policy_names
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.bases import with_seeded_lora
from promptadapt_core.train.sft import train_sft
from promptadapt_core.train.sft_settings import SftSettings

INPUTS = ("a cat", "an old house")


@pytest.fixture(scope="module")
def models(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A models folder with the policy `base`; beside it runs/lora, a run that trained LoRA."""
    made = policy_for(INPUTS)
    models = made / "models"
    shutil.copytree(made / "sft" / "best", models / "base")
    train_sft(
        SftSettings(
            pairs=str(made / "pairs.jsonl"), base=str(models / "base"),
            out=str(made / "runs" / "lora"), lora_rank=4, lr=1e-2, num_epochs=2.0, batch_size=8,
            device="cpu", precision="fp32", max_length=60, tensorboard=False,
        )
    )  # fmt: skip
    return models


def export(run: Path, out: Path, **changes: Any) -> Path:
    settings = ExportSettings(out=str(out), licence="mit", lora=True, **changes)
    return exporting.export(run, settings).folder


def furthest(first: Policy, second: Policy) -> float:
    """The head is left out: it is the token embedding."""
    names = [name for name in second.weights if name != "lm_head.weight"]
    return max((first.weights[n] - second.weights[n]).abs().max().item() for n in names)


def test_the_matrices_of_fine_tuning_give_the_checkpoint(models: Path) -> None:
    run = models.parent / "runs" / "lora"
    folder = export(run, models / "small")
    assert "small" in policy_names([models])
    base = Policy.load(models / "base")
    assert read_base(folder) == ("base", base.identity)
    own, best = Policy.load(folder), Policy.load(run / "best")
    assert furthest(own, best) < 2e-3 < furthest(base, best)
    assert own.manifest.name == "small"
    assert own.manifest.description.startswith("sft from base")
    assert not (folder / "model.safetensors").exists()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert f"LoRA matrices of `base` (weights {base.identity})" in card
    written = "".join(p.read_text("utf-8") for p in folder.glob("*.json"))
    assert str(models) not in written


def test_a_host_has_to_know_the_base(models: Path, tmp_path: Path) -> None:
    run = models.parent / "runs" / "lora"
    with pytest.raises(SettingsError, match="lora: a host finds the policy .* copy .*base into"):
        export(run, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    shutil.copytree(models / "base", tmp_path / "base")
    Policy.load(export(run, tmp_path / "small"))
    with pytest.raises(SettingsError, match="lora: the matrices are kept of best only"):
        export(run, tmp_path / "other", checkpoint="last")


def merged_run(models: Path, tmp_path: Path, num_rounds: int, rank: int) -> Path:
    """A run of rounds that merged random matrices of such a rank after each of them."""
    policy = Policy.load(models / "base")
    for number in range(num_rounds):
        wrapped = with_seeded_lora(policy.model, rank, number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        policy = policy.clone(wrapped.merge_and_unload())
    run = tmp_path / "run"
    policy.save(run / "best", torch.float16)
    policy.save(run / "last", torch.float32)
    settings = {"policy": str(models / "base"), "lora_rank": rank, "num_rounds": num_rounds}
    config = {"trainer": "rejection", "settings": settings, "data": {"policy": "abc"}}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = "".join(json.dumps({"step": n + 1}) + "\n" for n in range(num_rounds))
    (run / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return run


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_matrices_that_were_merged_are_found_again(
    models: Path, tmp_path: Path, checkpoint: str
) -> None:
    """Two rounds of rank 2: a difference of rank 4, in float16 beside what that rounded."""
    run = merged_run(models, tmp_path, 2, 2)
    shutil.copytree(models / "base", tmp_path / "models" / "base")
    folder = export(run, tmp_path / "models" / "small", checkpoint=checkpoint)
    assert json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"] == 4
    own, wanted = Policy.load(folder), Policy.load(run / checkpoint)
    assert furthest(own, wanted) < (1e-5 if checkpoint == "last" else 1e-3)
    assert furthest(Policy.load(models / "base"), wanted) > 0.05


def test_a_difference_of_a_higher_rank_is_refused(models: Path, tmp_path: Path) -> None:
    run = merged_run(models, tmp_path, 1, 8)
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["settings"]["lora_rank"] = 2
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copytree(models / "base", tmp_path / "models" / "base")
    with pytest.raises(SettingsError, match="changed more than matrices of rank 2 in each of 1"):
        export(run, tmp_path / "models" / "small")
    assert not (tmp_path / "models" / "small").exists()


def test_changed_embeddings_are_no_lora(models: Path, tmp_path: Path) -> None:
    run = merged_run(models, tmp_path, 1, 2)
    policy = Policy.load(run / "best")
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[3] += 0.1
    policy.save(run / "best", torch.float16)
    shutil.copytree(models / "base", tmp_path / "models" / "base")
    with pytest.raises(SettingsError, match="lora: the run changed more than"):
        export(run, tmp_path / "models" / "small")


def test_another_base_is_refused(models: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(models.parent / "runs" / "lora", run)
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["data"]["base"] = "000000000000"
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SettingsError, match="lora: .*base is not the base that the run began"):
        export(run, models / "other")
