"""`demo --train`, with a run so short that nothing is learned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.__main__ import main
from promptadapt_core.demo import curves, learning, lessons
from promptadapt_core.demo.comparing import SCORES, Comparison, Shown, Wording
from promptadapt_core.demo.settings import REWARD, TRAINING, DemoSettings
from promptadapt_core.evaluate import inputs
from promptadapt_core.evaluate.settings import EVALUATION_SEED
from promptadapt_core.lab.captions import read
from promptadapt_core.lab.folders import CACHE_VARIABLE
from promptadapt_core.lab.writers import is_held_out, user_inputs
from promptadapt_core.policies import LAB_SFT_POLICY, lab_policies
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.settings import SettingsError
from promptadapt_core.train.ppo_settings import PpoSettings

TINY: dict[str, Any] = {
    **TRAINING, "num_episodes": 8, "rollout_size": 4, "group_size": 2, "num_epochs": 1,
    "minibatch_size": 4, "micro_batch_size": 4, "min_length_limit": 4, "max_length_limit": 8,
    "checkpoint_every": 1,
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    LAB_SFT_POLICY not in lab_policies(), reason="the lab's policies are not bundled"
)


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "lab_cache"))
    monkeypatch.setattr(learning, "TRAINING", TINY)
    monkeypatch.setattr(learning, "REWARD", {"num_images": 1})
    monkeypatch.setattr(learning, "NUM_USER_INPUTS", 6)
    monkeypatch.setattr(learning, "NUM_TESTED", 2)
    monkeypatch.setattr(lessons, "NUM_SHOWN", 1)
    # What trainings saw takes seconds to write anew.
    monkeypatch.setattr(inputs, "training_inputs", lambda held_out: frozenset())


def demo(out: Path, *more: str) -> int:
    """The exit code of a run of two iterations."""
    return main(
        ["demo", *more, "--train", "--out", str(out), "--num-steps", "1", "--num-images", "1"]
    )


def test_the_numbers_in_the_settings_fit_the_trainer() -> None:
    settings = PpoSettings(**TRAINING)
    assert settings.num_iterations * settings.rollout_size == settings.num_episodes
    RewardSettings(**REWARD)


def test_tested_user_inputs_are_never_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "NUM_USER_INPUTS", 300)
    monkeypatch.setattr(learning, "NUM_TESTED", 40)
    seen = frozenset(user_inputs(60, EVALUATION_SEED, held_out=False))  # by the SFT policy
    monkeypatch.setattr(inputs, "training_inputs", lambda held_out: seen)
    learned, tested = learning.learned_from(0), learning.tested_on(0)
    assert not seen & set(tested)
    assert len(set(learned)) == 300
    assert len(set(tested)) == 40
    assert not set(learned) & set(tested)
    for texts in (learned, tested):  # in domain and out of domain in turn
        assert not any(is_held_out(read(text)) for text in texts[::2])
        assert any(is_held_out(read(text)) for text in texts[1::2])


def test_the_command_trains_goes_on_and_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*arguments: Any) -> lessons.Lesson:
        return teach(*arguments[:3], lambda: (tmp_path / "run" / "state.pt").exists())

    teach = lessons.teach
    monkeypatch.setattr(lessons, "teach", stopping)
    assert demo(tmp_path) == 130
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[-1] == (
        "stopped after iteration 1 of 2 and saved; the same command goes on"
    )
    assert not (tmp_path / "training.html").exists()

    monkeypatch.setattr(lessons, "teach", teach)
    assert demo(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("In 2 iterations the mean reward of what it writes went from ")
    assert lines[1].split()[-5:] == ["typed", "before", "training", "after", "training"]
    assert lines[2].split()[0] == "reward"
    assert len(lines[2].split()) == 4
    assert lines[-1] == f"wrote {tmp_path / 'training.html'}"
    assert [row["step"] for row in curves.read_rows(tmp_path / "run")] == [1, 2]
    text = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert text.count("<img ") == 3  # typed, before, after
    assert text.count("<section>") == 1
    assert "In 2 iterations the mean reward" in text
    assert not re.search(r'src="(?!data:)', text)

    # a run that is done is shown anew, here with a text of one's own
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert demo(tmp_path, "a <tiny> whale") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    text = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "a &lt;tiny&gt; whale" in text
    assert "words that mean nothing in the lab: &lt;tiny&gt;" in text

    # and never gone on with as another
    assert demo(tmp_path, "--seed", "1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("promptadapt: --out: ")
    assert error.endswith("; choose another folder")


def test_a_stop_while_the_end_is_rendered_keeps_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DemoSettings(
        train=True, out=str(tmp_path), num_steps=1, num_images=1, num_episodes=4
    )
    asked: list[bool] = []

    class Report(runs.Silent):
        def say(self, text: str) -> None:
            if text.startswith("rendering"):
                asked.append(True)

    lesson = lessons.teach(settings, [], Report, lambda: bool(asked))
    assert lesson.page is None
    assert (lesson.result.status, lesson.result.iteration) == ("done", 1)
    assert lessons.teach(settings, [], runs.Silent).page is not None


def test_a_folder_that_is_no_run_of_this_demo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"trainer": "sft", "settings": {}}', "utf-8")
    settings = DemoSettings(train=True, out=str(tmp_path), num_steps=1)
    with pytest.raises(SettingsError, match="cannot be gone on with") as told:
        lessons.teach(settings, [], runs.Silent)
    assert told.value.name == "out"


def test_the_summary_counts_who_gained() -> None:
    def compared(before: float, after: float) -> Any:
        rewards = [0.0, before, after]
        shown = [
            Shown(
                Wording("x"), None, None,
                {**dict.fromkeys(SCORES, 0.0), "reward": reward}, "",
            )
            for reward in rewards
        ]  # fmt: skip
        return Comparison("x", [0], [], shown)

    rows = [{"step": 1, "rollout/reward": -1.0}, {"step": 2, "rollout/reward": 3.0}]
    told = lessons.summary(rows, [compared(1.0, 2.0), compared(1.0, 0.0), compared(1.0, 1.0)])
    assert "went from 1.00 to 1.00" in told  # both ends are means of all there is
    assert "1 now have a higher reward than before and 1 a lower one" in told
    assert told.endswith("their mean went from 1.00 to 1.00.")
