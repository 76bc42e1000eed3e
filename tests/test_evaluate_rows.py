from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.decoding import Stopped
from promptadapt_core.evaluate import rows
from promptadapt_core.evaluate.evaluation import check, load_parts
from promptadapt_core.evaluate.inputs import EvaluationInput, Inputs
from promptadapt_core.evaluate.reward import EvaluationReward
from promptadapt_core.evaluate.scoring import Parts
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.settings import SettingsError

POLICY = "promptadapt-sd"
QUICK = EvaluateSettings(num_steps=1, device="cpu", judge="none")
INPUTS = Inputs(
    [EvaluationInput("a red cat by the sea", "in-domain"), EvaluationInput("a whale", "other")], []
)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(QUICK)


def never() -> bool:
    return False


def adapted(out: Path, user_inputs: Sequence[str], **settings: str) -> rows.Prompts:
    return rows.adapted(
        POLICY, EvaluateSettings(device="cpu", **settings), user_inputs, out, never, runs.Silent()
    )


def test_a_policy_is_asked_once_for_each_user_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a cat " * 200
    first = adapted(tmp_path, ["a cat", long.strip()])
    assert first.adapted_prompts[0] != "a cat"
    assert str(first.adapted_prompts[0]).startswith("a cat, ")
    assert first.adapted_prompts[1] == long.strip()
    assert first.num_too_long == 1
    assert first == adapted(tmp_path / "again", ["a cat", long.strip()])
    monkeypatch.setattr(rows.PromptAdapter, "adapt_all", None)  # it is not asked again
    assert adapted(tmp_path, ["a cat", long.strip()]) == first
    with pytest.raises(TypeError):
        adapted(tmp_path, ["a cat"], decoding="greedy")


def test_greedy_is_the_likeliest_text(tmp_path: Path) -> None:
    found = adapted(tmp_path, ["a cat", "a dog, oil painting, sharp focus, 8k"], decoding="greedy")
    adapter = rows.PromptAdapter.load(POLICY)
    (best,) = adapter.adapt("a cat", mode="beam", num_beams=1, gate=False, min_modifiers=0)
    assert found.adapted_prompts[0] == best.adapted_prompt
    assert str(found.adapted_prompts[1]).startswith("a dog, oil painting, sharp focus, 8k, ")


def test_people_wrote_something_or_the_row_is_refused() -> None:
    written = Inputs([EvaluationInput("a cat", "d", "a cat, 8k"), EvaluationInput("a", "d")], [])
    assert rows.written_by_people(written).adapted_prompts == ["a cat, 8k", None]
    with pytest.raises(SettingsError, match="^rows: people: no user input"):
        rows.written_by_people(INPUTS)


def test_the_suffix_is_tuned_on_other_user_inputs(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(suffix_inputs=2, suffix_renders=3)
    heard: list[int] = []

    class Listening(runs.Silent):
        def step(self, step: int, num_steps: int, metrics: object) -> None:
            heard.append(step)

    def tuned(out: Path) -> tuple[str, int]:
        return rows.tuned_suffix(
            parts, settings, EvaluationReward(), INPUTS, out, never, Listening()
        )

    suffix, number = tuned(tmp_path)
    assert number == 6  # three sets on two user inputs; the finalists are the same
    assert heard[-1] == 6
    heard.clear()
    assert tuned(tmp_path) == (suffix, number)
    assert heard == []
    kept = next(tmp_path.glob("suffix-*.jsonl")).read_text(encoding="utf-8")
    assert not any(f'"{row.user_input}' in kept for row in INPUTS.rows)


def test_the_oracle_searches_some_inputs_of_each_domain(parts: Parts, tmp_path: Path) -> None:
    more = [EvaluationInput("a dog", "other"), EvaluationInput("a car", "other")]
    inputs = Inputs([*INPUTS.rows, *more], [])
    settings = EvaluateSettings(oracle_inputs=2, oracle_renders=3, oracle_images=1)

    def found(usable: set[str]) -> rows.Prompts:
        return rows.best_found(
            parts, settings, EvaluationReward(), inputs, usable, tmp_path, never, runs.Silent()
        )

    best = found({row.user_input for row in inputs.rows})
    assert [prompt is None for prompt in best.adapted_prompts] == [False, False, False, True]
    for row, prompt in zip(inputs.rows[:3], best.adapted_prompts, strict=False):
        assert str(prompt).startswith(row.user_input)
    assert best.num_search_rendered == 3 * (3 + 3 * rows.CONFIRM_IMAGES)
    assert found({"a whale"}).adapted_prompts[1:] == [best.adapted_prompts[1], None, None]


def test_a_search_that_is_stopped_says_so(parts: Parts, tmp_path: Path) -> None:
    settings = EvaluateSettings(oracle_renders=3, suffix_inputs=2, suffix_renders=3)
    stopped = (EvaluationReward(), INPUTS)
    with pytest.raises(Stopped):
        rows.best_found(
            parts, settings, *stopped, {"a whale"}, tmp_path, lambda: True, runs.Silent()
        )
    with pytest.raises(Stopped):
        rows.tuned_suffix(parts, settings, *stopped, tmp_path, lambda: True, runs.Silent())


def test_in_a_search_a_user_input_that_fails_is_never_the_best() -> None:
    class Broken:
        identity = "broken"

        def generate(self, *_: object, **__: object) -> None:
            raise RuntimeError("it is broken")

    class Nothing:
        identity, relevance_knee, relevance_slope = "nothing", 0.3, 20.0

    parts = Parts(Broken(), Nothing(), None)  # type: ignore[arg-type]
    pay = rows.SearchReward(parts, EvaluationReward().of_search(1, 1), never)
    assert pay(["a cat", "a cat"], ["a cat", "a cat, 8k"]) == [rows.FAILED_REWARD] * 2
    with pytest.raises(SettingsError, match="^renderer: all 2 candidates failed"):
        pay(["a cat", "a dog"], ["a cat", "a dog"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"out": ""}, "^out: expected a folder"),
        ({"out": __file__}, "^out: .* is a file"),
        ({"renderer": "nowhere", "suffix": "8k"}, "^renderer: expected lab or a folder"),
        ({"scorer": "nowhere"}, "^scorer: expected lab or a folder"),
        ({"rows": "rl=nowhere"}, "^rows: there is no policy 'nowhere'"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_loaded(
    changes: dict[str, str], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        check(EvaluateSettings(**{"out": "report", **changes}))


def test_a_judge_must_not_be_the_scorer() -> None:
    folder = Path(rows.__file__).parents[1] / "lab" / "weights" / "scorer"
    with pytest.raises(SettingsError, match="^judge: this is the scorer"):
        load_parts(EvaluateSettings(device="cpu", judge=str(folder)))


def test_a_broken_policy_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match=f"^rows: {tmp_path}: ".replace("\\", "\\\\")):
        rows.adapted(
            str(tmp_path), EvaluateSettings(device="cpu"), ["a"], tmp_path, never, runs.Silent()
        )
