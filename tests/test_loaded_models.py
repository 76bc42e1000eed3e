"""One policy and one scorer in memory, loaded when used and dropped when asked."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from promptadapt_core import loaded_models  # noqa: E402
from promptadapt_core.adapter import PromptAdapter  # noqa: E402
from promptadapt_core.job_settings import JobSettings  # noqa: E402
from promptadapt_core.loaded_models import LoadedModels, left_alone, weights_hash  # noqa: E402
from promptadapt_core.policies import BUNDLED_FOLDER, DEFAULT_POLICY  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

SOURCE = BUNDLED_FOLDER / DEFAULT_POLICY


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    shutil.copytree(SOURCE, tmp_path / "mine")
    return [tmp_path]


def state() -> Any:
    return SimpleNamespace(
        interrupted=False, skipped=False, job_count=2, sampling_step=5, sampling_steps=0
    )


def test_a_policy_is_loaded_once_and_anew_when_its_files_change(folders: list[Path]) -> None:
    models = LoadedModels()
    first, policy_hash = models.policy("mine", folders)
    assert models.policy("mine", folders) == (first, policy_hash)
    text = (folders[0] / "mine" / "promptadapt.json").read_text("utf-8")
    changed = text.replace('"mode": "sample"', '"mode": "beam"')
    (folders[0] / "mine" / "promptadapt.json").write_text(changed, "utf-8")
    second, same_hash = models.policy("mine", folders)
    assert second is not first
    assert (second.settings().mode, same_hash) == ("beam", policy_hash)
    shutil.rmtree(folders[0] / "mine")
    with pytest.raises(SettingsError, match="there is no policy 'mine'"):
        models.policy("mine", folders)


def test_a_folder_that_goes_while_it_is_read_is_named(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = loaded_models.policy_folder

    def find_and_lose(name: str, given: list[Path]) -> Path:
        folder = find(name, given)
        shutil.rmtree(folder)
        return folder

    monkeypatch.setattr(loaded_models, "policy_folder", find_and_lose)
    with pytest.raises(SettingsError, match="policy: mine cannot be read") as error:
        LoadedModels().policy("mine", folders)
    assert str(folders[0]) not in str(error.value)  # pages show it to visitors


def test_the_hash_is_of_the_weights() -> None:
    data = (SOURCE / "model.safetensors").read_bytes()
    assert weights_hash(SOURCE) == hashlib.sha256(data).hexdigest()[:10]


def test_unloading_says_what_was_there(folders: list[Path]) -> None:
    models = LoadedModels()
    assert models.unload() == []
    models.policy("mine", folders)
    assert models.unload() == ["policy"]
    assert models.unload() == []


def test_texts_are_those_of_the_adapter() -> None:
    found = LoadedModels().adapt(["a cat on a roof", " ", "a dog"], DEFAULT_POLICY, seed=7)
    adapter = PromptAdapter.load()
    expected = [
        adapter.adapt(text, seed=7)[0].adapted_prompt for text in ("a cat on a roof", "a dog")
    ]
    assert [one.texts[0] for one in found] == [expected[0], " ", expected[1]]
    assert found[1].adaptation.gate == "left alone: it is empty"
    assert found[0].policy_hash == weights_hash(SOURCE)


def test_a_job_moves_the_progress_bar_and_hears_the_buttons() -> None:
    models, seen = LoadedModels(), state()
    found = models.adapt_job(["a cat on a roof"], JobSettings(), 7, 1, seen)
    assert found is not None
    assert found[0].texts == [
        PromptAdapter.load().adapt("a cat on a roof", seed=7)[0].adapted_prompt
    ]
    assert (seen.sampling_step, seen.sampling_steps) == (0, 75)
    seen.interrupted = True
    assert models.adapt_job(["a cat on a roof"], JobSettings(), 7, 1, seen) is None
    seen = state()
    seen.skipped = True
    found = models.adapt_job(["a cat on a roof"], JobSettings(), 7, 1, seen)
    assert found == [left_alone("a cat on a roof", DEFAULT_POLICY, "skipped")]
    assert seen.skipped is False


def test_progress_counts_tokens_within_its_bounds() -> None:
    steps: list[int] = []

    class Watched(SimpleNamespace):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "sampling_step":
                steps.append(value)

    seen = Watched(**vars(state()))
    steps.clear()
    LoadedModels().adapt_job(["a cat on a roof"], JobSettings(num_candidates=3), 7, 1, seen)
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 0
    assert max(steps) <= 75
    assert all(b - a in (0, 1) for a, b in zip(steps[:-2], steps[1:-1], strict=True))
    seen = Watched(**{**vars(state()), "job_count": -1})  # nobody knows yet how much there is
    steps.clear()
    LoadedModels().adapt_job(["a cat on a roof"], JobSettings(), 7, 1, seen)
    assert steps == []


def test_a_scorer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="there is no scorer 'nobody'"):
        LoadedModels().scorer("nobody")
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "promptadapt_core.scorers", raising=False)
    with pytest.raises(SettingsError, match="it needs the package open_clip"):
        LoadedModels().scorer("lab")


def test_the_process_has_one() -> None:
    assert isinstance(loaded_models.MODELS, LoadedModels)
