from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.evaluate import rows
from promptadapt_core.evaluate.evaluation import Evaluation, check, load_parts
from promptadapt_core.evaluate.inputs import EvaluationInput, Inputs
from promptadapt_core.evaluate.settings import EvaluateSettings
from promptadapt_core.settings import SettingsError

POLICY = "promptadapt-sd"
INPUTS = Inputs(
    [EvaluationInput("a red cat by the sea", "in-domain"), EvaluationInput("a whale", "other")], []
)


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


def test_a_folder_that_is_no_policy_is_told_before_anything_is_rendered(tmp_path: Path) -> None:
    """Such as that of a run, whose policy is in best/."""
    (tmp_path / "in.txt").write_text("a cat\n", encoding="utf-8")
    (tmp_path / "run" / "best").mkdir(parents=True)
    settings = EvaluateSettings(
        user_inputs=str(tmp_path / "in.txt"), out=str(tmp_path / "out"), device="cpu",
        rows=f"rl={tmp_path / 'run'}",
    )  # fmt: skip
    with pytest.raises(SettingsError, match="^rows: .*run: "):
        Evaluation(settings)
    assert not (tmp_path / "out").exists()


def test_a_broken_policy_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match=f"^rows: {tmp_path}: ".replace("\\", "\\\\")):
        rows.adapted(
            str(tmp_path), EvaluateSettings(device="cpu"), ["a"], tmp_path, never, runs.Silent()
        )
