"""A run becomes a folder that hosts list: the whole way, with real runs of a tiny policy."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.export import __main__ as command
from promptadapt_core.export import exporting
from promptadapt_core.export.settings import ExportSettings
from promptadapt_core.model_folders import policy_folder, policy_names
from promptadapt_core.policy import Policy
from promptadapt_core.settings import SettingsError

INPUTS = ("a cat", "an old house", "two boats")


@pytest.fixture(scope="module")
def made(policy_for: Callable[[Sequence[str]], Path]) -> Path:
    """A folder with the run sft/, and beside it what it was made of."""
    return policy_for(INPUTS)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ask for an address or connect."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"the network was touched: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def exported(run: Path, out: Path, **changes: Any) -> Path:
    settings = ExportSettings(**{"out": str(out), "licence": "apache-2.0", **changes})
    return exporting.export(run, settings).folder


def front_matter(folder: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def test_hosts_list_what_was_exported(made: Path, tmp_path: Path, unreachable: None) -> None:
    models = tmp_path / "models" / "promptadapt"
    folder = exported(made / "sft", models / "my-policy")
    assert "my-policy" in policy_names([models])
    assert policy_folder("my-policy", [models]) == folder
    best, own = Policy.load(made / "sft" / "best"), Policy.load(folder)
    assert all(torch.equal(own.weights[name], best.weights[name]) for name in best.weights)
    assert own.manifest.name == "my-policy"
    assert own.manifest.licence == "apache-2.0"
    assert own.manifest.description.startswith("sft from scratch, ")
    said = [
        PromptAdapter(policy).adapt("a cat", seed=3)[0].adapted_prompt for policy in (own, best)
    ]
    assert said[0] == said[1]


def test_the_run_stays_as_it_was(made: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    exported(made / "sft", tmp_path / "mine", samples=0)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_the_card_is_written_from_the_run(made: Path, tmp_path: Path) -> None:
    folder = exported(
        made / "sft", tmp_path / "mine", language=("en", "de"), tag=("cats",),
        base_model="someone/base", summary="For cats.",
    )  # fmt: skip
    found = front_matter(folder)
    assert found["license"] == "apache-2.0"
    assert found["language"] == ["en", "de"]
    assert found["library_name"] == "transformers"
    assert found["base_model"] == "someone/base"
    assert {"promptadapt", "text-to-image", "sft", "cats"} <= {*found["tags"]}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "For cats." in text
    assert "`pairs.jsonl`, 60 different lines, SHA-256 `" in text
    assert "--num-epochs 8.0" in text
    assert "--batch-size 24" in text
    assert f"torch {torch.__version__}" in text
    assert str(made) not in text
    assert "an old house" not in text


def test_no_licence_is_a_choice_too(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="licence: expected the licence that you give"):
        exported(made / "sft", tmp_path / "mine", licence="")
    folder = exported(made / "sft", tmp_path / "mine", licence="none")
    assert "license" not in front_matter(folder)
    assert Policy.load(folder).manifest.licence == ""


def test_last_has_the_same_format(made: Path, tmp_path: Path) -> None:
    folder = exported(made / "sft", tmp_path / "mine", checkpoint="last")
    last = Policy.load(made / "sft" / "last").weights
    own = Policy.load(folder).weights
    assert all(torch.equal(own[name], last[name].half().float()) for name in last)
    assert "these are the weights of `last`" in (folder / "README.md").read_text("utf-8")


def test_a_run_that_was_killed_while_it_saved_is_told_of(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "sft", run)
    (run / "best").rename(run / "best.old")
    with pytest.raises(SettingsError, match="checkpoint: .* was being replaced"):
        exported(run, tmp_path / "mine")
    shutil.rmtree(run / "best.old")
    with pytest.raises(SettingsError, match="has no best/ yet"):
        exported(run, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_metrics_file_that_was_cut_off_does_no_harm(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "sft", run)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 99, "train/lo')
    folder = exported(run, tmp_path / "mine")
    assert "99" not in Policy.load(folder).manifest.description


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"out": ""}, "out: expected the folder"),
        ({"out": "promptadapt-sd"}, "out: promptadapt-sd is the name of a policy that"),
        ({"out": "lab-sft"}, "out: lab-sft is the name of a policy that"),
        ({"out": "con"}, "out: expected the name of a folder"),
        ({"lora": True}, "lora: the run trained all weights"),
        ({"evaluation": "nowhere.json"}, "evaluation: there is no file nowhere.json"),
        ({"samples": 3}, "samples: the run has written none"),
    ],
)
def test_bad_settings_write_nothing(
    made: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    out = str(tmp_path / "mine")
    if "out" in changes:
        out = changes["out"] and str(tmp_path / changes["out"])
    settings = ExportSettings(**{"licence": "mit", **changes, "out": out})
    with pytest.raises(SettingsError, match=told):
        exporting.export(made / "sft", settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SettingsError, match="out: .* is there already"):
        exported(made / "sft", tmp_path / "mine")


def test_a_half_written_export_is_not_listed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while it is written, so not either where its process was killed."""
    seen: list[list[str]] = []
    write = exporting.write_whole

    def watched(*arguments: Any) -> None:
        write(*arguments)
        seen.append([name for name in policy_names([tmp_path]) if name not in policy_names()])

    monkeypatch.setattr(exporting, "write_whole", watched)
    exported(made / "sft", tmp_path / "mine")
    assert seen == [[]]


def test_folders_beside_it_are_not_touched(made: Path, tmp_path: Path) -> None:
    """mine.old and mine.new are what people call their own copies."""
    for name in ("mine.old", "mine.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text(name, encoding="utf-8")
    folder = exported(made / "sft", tmp_path / "mine")
    for name in ("mine.old", "mine.new"):
        assert (tmp_path / name / "precious").read_text(encoding="utf-8") == name
    assert not (folder / "precious").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.old", "mine.new"}


def test_a_disk_that_refuses_is_one_sentence(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the weights: safetensors has an error of its own for it."""
    import safetensors

    def refuse(*arguments: Any, **options: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Policy, "save", refuse)
    with pytest.raises(SettingsError, match="out: .*mine cannot be written .*No space left"):
        exported(made / "sft", tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_lacks_numbers_is_one_sentence(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "sft" / "best", run / "best")
    for settings in ({"num_episodes": "many", "rollout_size": 2}, {"num_episodes": 2.5}, {}):
        config = {"trainer": "ppo", "settings": settings, "data": {}}
        (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if not settings:  # an older run that did not know them had what is the default now
            assert "0 of" in Policy.load(exported(run, tmp_path / "mine")).manifest.description
            continue
        with pytest.raises(SettingsError, match="run: .*num_episodes"):
            exported(run, tmp_path / "mine")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_model": "C:\\Users\\jane\\gpt2"}, "base_model: expected OWNER/NAME"),
        ({"base_model": "a\nb: c"}, "base_model: expected OWNER/NAME"),
        ({"out": "mine "}, "out: expected the name of a folder"),
    ],
)
def test_what_would_spoil_the_card_is_refused(
    made: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    out = str(tmp_path / changes.pop("out", "mine"))
    with pytest.raises(SettingsError, match=told):
        exporting.export(made / "sft", ExportSettings(**{"licence": "mit", "out": out, **changes}))


def test_the_front_matter_is_yaml_of_texts(made: Path, tmp_path: Path) -> None:
    """`no` is a language, 1.0 and `null` are licences of nobody: none may turn into a value."""
    for number, licence in enumerate(("no", "1.0", "null")):
        folder = exported(
            made / "sft", tmp_path / str(number), licence=licence, language=("no", "de"),
            tag=("\U0001d49c tag", "1e3"), base_model="owner/model",
        )  # fmt: skip
        found = front_matter(folder)
        assert found["license"] == licence
        assert found["language"] == ["no", "de"]
        assert found["tags"][-2:] == ["\U0001d49c tag", "1e3"]
        assert found["base_model"] == "owner/model"


def test_no_setting_breaks_out_of_the_card(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "sft", run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["settings"]["pairs"] = "C:\\Users\\jane\\a`b|c<img src=x>.jsonl"
    config["settings"]["base"] = "x`y|<b>z"
    config["reward"] = {"terms": {}}
    config["settings"]["renderer"] = "r`<script>"
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 999, "train/loss": NaN, "valid/loss": Infinity}\n')
    folder = exported(run, tmp_path / "my `own`")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "jane" not in text
    assert "``a`b|c<img src=x>.jsonl``" in text
    assert "| from | ``x`y\\|<b>z`` |" in text
    assert "``r`<script>``" in text
    assert "`` my `own` ``" in text
    assert "--policy 'my `own`' --models-folder" in text
    assert not {"nan", "inf"} & set(text.lower().split())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no folder"),
        ({}, "is not a run: it has no config.json"),
        ({"config.json": "{"}, "cannot be read"),
        ({"config.json": '{"model_type": "gpt2"}'}, "is not a run of promptadapt_core.train"),
        ({"config.json": '{"trainer": "ppo", "settings": {}}'}, "is not a run of promptadapt"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, str] | None, told: str
) -> None:
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
        for name, text in content.items():
            (run / name).write_text(text, encoding="utf-8")
    assert command.main([str(run), f"--out={tmp_path / 'mine'}", "--licence=mit"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("promptadapt_core.export: RUN: ")  # as --help calls it
    assert not (tmp_path / "mine").exists()


def test_the_command_line_says_where_it_is(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert command.main([str(made / "sft"), f"--out={out}", "--licence=mit"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}, 0.")
    assert command.main([str(out), "--licence=mit"]) == 2
    assert "--out: expected the folder to write" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom promptadapt_core.export.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'numpy', 'transformers', 'matplotlib') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True,
        text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert run.stdout.splitlines()[-1] == "[]"
    assert "--licence" in run.stdout


def test_a_ppo_run_has_curves_and_samples(made: Path, tmp_path: Path) -> None:
    """Without pictures: a run folder as the trainer leaves it."""
    pytest.importorskip("matplotlib")
    run = tmp_path / "ppo"
    shutil.copytree(made / "sft" / "best", run / "best")
    settings = {
        "policy": "/home/someone/secret/runs/sft/best", "user_inputs": "C:\\Users\\me\\inputs.txt",
        "renderer": "someone/model", "algorithm": "grpo", "num_episodes": 64, "rollout_size": 16,
        "group_size": 4, "lr": 1e-3,
    }  # fmt: skip
    config = {
        "trainer": "ppo", "settings": settings,
        "data": {"policy": "abc", "user_inputs": "f" * 64, "reward": "r"},
        "reward": {"terms": {"relevance_weight": 3.0}, "renderer": {"size": 64, "num_steps": 5}},
        "versions": {"promptadapt": "0.1.0"}, "machine": {"device": "cpu"},
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [
        {"step": n, "rollout/reward": n / 4, "judge/taste": 5.0, "kl/ref_kl": n, "train/passes": n}
        for n in (1, 2, 3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
    alarm = json.dumps({"name": "collapse", "step": 2, "sentence": "all say 'a secret'"})
    (run / "alarms.jsonl").write_text(f"{alarm}\n{alarm}\n", encoding="utf-8")
    (run / "samples").mkdir()
    sample = {"user_input": "a | cat\nthere", "adapted_prompt": "a | cat, <b>8k</b>"}
    (run / "samples" / "00003.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8")

    plain = exported(run, tmp_path / "plain")
    assert (plain / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = (plain / "README.md").read_text(encoding="utf-8")
    assert "3 of 4 iterations" in text
    assert "--algorithm grpo" in text
    assert "--policy sft/best" in text
    assert "--renderer someone/model" in text
    assert "--relevance-weight 3.0" in text
    assert "`inputs.txt`, 4 different lines" in text  # 3 iterations of 4 inputs, 3 passes
    assert "| mean reward | 0.25 | 0.75 |" in text
    assert "`collapse` 2 times" in text
    for private in ("secret", "someone/secret", "Users", "8k"):
        assert private not in text
    shown = exported(run, tmp_path / "shown", samples=5)
    text = (shown / "README.md").read_text(encoding="utf-8")
    assert "| a \\| cat there | a \\| cat, \\<b\\>8k\\</b\\> |" in text
