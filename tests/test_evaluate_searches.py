from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.decoding import Stopped
from promptadapt_core.evaluate import inputs, searches
from promptadapt_core.evaluate.evaluation import load_parts
from promptadapt_core.evaluate.inputs import EvaluationInput, Inputs
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.scoring import Parts
from promptadapt_core.evaluate.searches import Searches
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.settings import SettingsError

INPUTS = Inputs(
    [EvaluationInput("a red cat by the sea", "in-domain"), EvaluationInput("a whale", "other"),
     EvaluationInput("a dog", "other"), EvaluationInput("a car", "other")],
    [],
)  # fmt: skip
EVERYONE = {row.user_input for row in INPUTS.rows}
REWARD = EvaluationReward()


@pytest.fixture(autouse=True)
def little_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trainings saw takes seconds to write anew."""
    monkeypatch.setattr(inputs, "training_inputs", lambda held_out: frozenset())


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(EvaluateSettings(num_steps=1, device="cpu", judge="none"))


def never() -> bool:
    return False


class Listening(runs.Silent):
    heard: list[tuple[int, int]] = []

    def step(self, step: int, num_steps: int, metrics: object) -> None:
        self.heard.append((step, num_steps))


def test_the_suffix_is_tuned_on_other_user_inputs(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(num_suffix_inputs=2, num_suffix_renders=3)
    Listening.heard.clear()
    search = Searches(parts, settings, REWARD, tmp_path, reporter=Listening)
    found = search.tuned_suffix(INPUTS)
    # Three sets on two user inputs; the finalists are the same.
    assert found.num_search_rendered == 6
    assert Listening.heard[-1] == (6, 3 * 2 + 9 * 2)
    added = {
        str(prompt).removeprefix(row.user_input)
        for row, prompt in zip(INPUTS.rows, found.adapted_prompts, strict=True)
    }
    assert len(added) == 1
    assert "tuned on 2 other user inputs" in found.source
    Listening.heard.clear()
    assert search.tuned_suffix(INPUTS) == found
    assert Listening.heard == []
    kept = next(tmp_path.glob("suffix-*.jsonl")).read_text(encoding="utf-8")
    assert not any(f'"{row.user_input}' in kept for row in INPUTS.rows)


def test_the_oracle_searches_some_inputs_of_each_domain(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(num_oracle_inputs=2, num_oracle_renders=3, num_oracle_images=1)
    search = Searches(parts, settings, REWARD, tmp_path)
    best = search.ceilings(INPUTS, EVERYONE)
    assert [prompt is None for prompt in best.adapted_prompts] == [False, False, False, True]
    for row, prompt in zip(INPUTS.rows[:3], best.adapted_prompts, strict=False):
        assert str(prompt).startswith(row.user_input)
    assert best.num_search_rendered == 3 * (3 + 3 * searches.CONFIRM_IMAGES)
    assert search.ceilings(INPUTS, {"a whale"}).adapted_prompts == [
        None, best.adapted_prompts[1], None, None
    ]  # fmt: skip


def test_the_suffix_is_a_finalist_of_the_oracle(parts: Parts, tmp_path: Path) -> None:
    """A search of one set knows nothing but the plain user input."""
    settings = EvaluateSettings(num_oracle_inputs=1, num_oracle_renders=1)
    search = Searches(parts, settings, REWARD, tmp_path)
    alone = search.ceilings(INPUTS, {"a whale"})
    assert alone.adapted_prompts[1] == "a whale"
    both = search.ceilings(INPUTS, {"a whale"}, ["golden hour", "oil painting"])
    assert both.num_search_rendered > alone.num_search_rendered
    assert both == search.ceilings(INPUTS, {"a whale"}, ["oil painting", "golden hour"])
    confirmed = next(tmp_path.glob("confirm-*.jsonl")).read_text(encoding="utf-8")
    assert "a whale, oil painting, golden hour" in confirmed


def test_a_search_that_is_stopped_says_so(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(num_oracle_renders=3, num_suffix_inputs=2, num_suffix_renders=3)
    search = Searches(parts, settings, REWARD, tmp_path, lambda: True)
    with pytest.raises(Stopped):
        search.ceilings(INPUTS, EVERYONE)
    with pytest.raises(Stopped):
        search.tuned_suffix(INPUTS)


def test_a_broken_file_is_named_by_its_folder(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(num_oracle_inputs=1, num_oracle_renders=1)
    search = Searches(parts, settings, REWARD, tmp_path)
    search.ceilings(INPUTS, {"a whale"})
    next(tmp_path.glob("oracle-*.jsonl")).write_text("no\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="^out: .*oracle-"):
        search.ceilings(INPUTS, {"a whale"})


def test_a_user_input_that_fails_is_never_the_best() -> None:
    class Broken:
        identity = "broken"

        def generate(self, *_: object, **__: object) -> None:
            raise RuntimeError("it is broken")

    class Nothing:
        identity, relevance_knee, relevance_slope = "nothing", 0.3, 20.0

    parts = Parts(Broken(), Nothing(), None)  # type: ignore[arg-type]
    pay = searches.SearchReward(parts, REWARD.of_search(1, 1), never)
    assert pay(["a cat", "a cat"], ["a cat", "a cat, 8k"]) == [searches.FAILED_REWARD] * 2
    with pytest.raises(SettingsError, match="^renderer: all 2 candidates failed"):
        pay(["a cat", "a dog"], ["a cat", "a dog"])
