from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("open_clip")

from promptadapt_core.evaluate.acceptance import acceptance
from promptadapt_core.evaluate.gallery import Gallery
from promptadapt_core.evaluate.inputs import EvaluationInput, Inputs
from promptadapt_core.evaluate.measured import Measured, MeasuredRow
from promptadapt_core.evaluate.plots import plots
from promptadapt_core.evaluate.report import (
    candidate_rows,
    markdown,
    plain_values,
    report_page,
    write_report,
)
from promptadapt_core.evaluate.rows import Prompts
from promptadapt_core.evaluate.settings import RowPlan
from promptadapt_core.evaluate.statistics import Resampling
from promptadapt_core.settings import SettingsError

INPUTS = Inputs(
    [
        EvaluationInput("a cat", "in-domain"),
        EvaluationInput("a dog", "in-domain"),
        EvaluationInput("five words are in this", "in-domain"),
        EvaluationInput("a whale", "out-of-domain"),
        EvaluationInput("a <b>boat</b>", "out-of-domain"),
    ],
    ["left out 1"],
)
METRICS = {
    "reward": "the sum",
    "aesthetic": "of pictures",
    "cosine": "of both",
    "num_tokens": "of texts",
    "judge/taste": "how good",
    "judge/place_accuracy": "how right",
}
USER_INPUTS = [row.user_input for row in INPUTS.rows]


def row(
    name: str, rewards: list[list[float]], ends: list[str | None], place: float = 0.9
) -> MeasuredRow:
    """ends: what each training seed adds; None: the row has none of the user inputs."""
    folders = tuple(f"{name}{seed}" for seed in range(len(rewards))) if name in "sft rl" else ()
    plan = RowPlan(name, "policy" if folders else name, folders)
    prompts = [
        Prompts([None if math.isnan(r) else text + (end or "") for text, r in
                 zip(USER_INPUTS, seed, strict=True)])
        for seed, end in zip(rewards, ends, strict=True)
    ]  # fmt: skip
    values = {name: np.array(rewards) for name in METRICS}
    values["judge/place_accuracy"] = np.full((len(rewards), 5), place)
    return MeasuredRow(plan, prompts, values, "a note")


def measured() -> Measured:
    nan = math.nan
    rows = [
        row("user_input", [[0.0, 0.0, 0.0, 0.0, 0.0]], [""]),
        row("suffix", [[0.5, 0.4, 0.6, 0.5, 0.6]], [", foggy night"]),
        row("sft", [[1.0, 1.0, 1.3, 1.0, 1.1]], [", at night, oil painting"]),
        row("rl", [[2.0, 2.2, 2.1, 3.0, 3.0], [2.0, 2.0, 2.1, 3.0, 3.4]],
            [", oil painting, golden hour", ", foggy, golden hour light"], place=0.87),
        row("oracle", [[3.0, nan, 3.0, 4.0, nan]], [", golden hour light"]),
    ]  # fmt: skip
    return Measured(INPUTS, rows, METRICS, Resampling(0, 200), 4, lambda text: len(text.split()))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return everything(measured())


def everything(made: Measured) -> dict[str, Any]:
    return {
        "inputs": {"in-domain": 3, "out-of-domain": 2},
        "notes": INPUTS.notes,
        "acceptance": acceptance(made),
        "rows": made.summary(),
        "differences": made.differences(),
        "by_length": made.by_length(),
        "failures": ["one & <two>"],
    }


def entry(found: dict[str, Any], name: str, domain: str = "in-domain") -> dict[str, Any]:
    (only,) = [e for e in found["rows"] if (e["row"], e["domain"]) == (name, domain)]
    return only


def test_means_by_row_domain_and_training_seed(found: dict[str, Any]) -> None:
    rl = entry(found, "rl")
    assert rl["metrics"]["reward"]["value"] == pytest.approx((6.3 + 6.1) / 6)
    assert rl["metrics"]["reward"]["number"] == 3
    assert [part["folder"] for part in rl["by_seed"]] == ["rl0", "rl1"]
    assert rl["by_seed"][1]["metrics"]["reward"]["value"] == pytest.approx(6.1 / 3)
    assert "by_seed" not in entry(found, "sft")
    assert (rl["num_inputs"], rl["num_failed"], rl["num_rendered"]) == (3, 0, 12)


def test_a_row_may_have_some_of_the_inputs_only(found: dict[str, Any]) -> None:
    oracle = entry(found, "oracle")
    assert (oracle["num_inputs"], oracle["num_failed"], oracle["num_rendered"]) == (2, 0, 8)
    assert oracle["metrics"]["reward"]["number"] == 2
    assert oracle["gap_share"] is None


def test_the_gap_is_measured_where_the_oracle_searched(found: dict[str, Any]) -> None:
    assert entry(found, "rl")["gap_share"]["value"] == pytest.approx(2.05 / 3.0)
    assert entry(found, "rl", "out-of-domain")["gap_share"]["value"] == pytest.approx(0.75)
    assert entry(found, "user_input")["gap_share"] is None
    of_seeds = [part["gap_share"]["value"] for part in entry(found, "rl")["by_seed"]]
    assert of_seeds == pytest.approx([4.1 / 6.0, 4.1 / 6.0])


def test_left_alone_and_diversity(found: dict[str, Any]) -> None:
    assert entry(found, "user_input")["left_alone_share"] == 1.0
    assert math.isnan(entry(found, "user_input")["diversity"]["distinct_additions"])
    rl = entry(found, "rl")
    assert rl["left_alone_share"] == 0.0
    diversity = rl["diversity"]
    assert diversity["distinct_additions"] == pytest.approx(1 / 3)
    assert diversity["most_frequent"] == "oil painting, golden hour"
    assert diversity["most_frequent_share"] == 1.0
    # The suffix adds one word pair to each of three inputs: three pairs are compared.
    assert diversity["num_pairs"] == 3
    assert entry(found, "suffix")["diversity"]["distinct_pairs"] == pytest.approx(1 / 3)
    assert diversity["distinct_pairs"] == 1.0


def test_differences_are_to_each_earlier_row(found: dict[str, Any]) -> None:
    of_reward = {
        (e["row"], e["minus"]): e
        for e in found["differences"]
        if e["metric"] == "reward" and e["domain"] == "out-of-domain"
    }
    assert len(of_reward) == 10
    assert ("sft", "rl") not in of_reward
    assert of_reward["rl", "sft"]["value"] == pytest.approx(3.1 - 1.05)
    assert of_reward["rl", "sft"]["above_0"]
    assert of_reward["oracle", "rl"]["number"] == 1
    assert not of_reward["oracle", "rl"]["above_0"]


def test_lengths_are_those_of_the_user_inputs(found: dict[str, Any]) -> None:
    rl = [e for e in found["by_length"] if e["row"] == "rl" and e["domain"] == "in-domain"]
    assert [(e["tokens"], e["num_inputs"]) for e in rl] == [([1, 4], 2), ([5, 5], 1)]
    assert rl[0]["gain"]["value"] == pytest.approx(2.05)


def line(found: dict[str, Any], start: str) -> dict[str, Any]:
    (only,) = [one for one in found["acceptance"] if one["name"].startswith(start)]
    return only


def test_what_must_show_is_met_or_missed(found: dict[str, Any]) -> None:
    names = [one["name"] for one in found["acceptance"]]
    assert not any("best_of_n" in name for name in names)
    assert line(found, "user inputs, in-domain")["met"] is False
    assert line(found, "training seeds of rl")["value"] == 2
    for name in ("sft over user_input", "rl over sft", "rl over suffix"):
        for domain in ("in-domain", "out-of-domain"):
            assert line(found, f"reward, {name}, {domain}")["met"] is True
    growth = line(found, "reward, what rl adds to sft")
    assert growth["value"] == pytest.approx(3.1 - 1.05 - 1.05)
    assert growth["met"] is False  # of two training seeds and two user inputs
    assert growth["low"] < 0.0 < growth["high"]
    gap = line(found, "share of the oracle gap closed by rl, in-domain")
    assert (gap["met"], gap["value"]) == (False, pytest.approx(2.05 / 3.0))
    assert line(found, "share of the oracle gap closed by rl, out-of-domain")["met"] is True
    assert line(found, "judge/taste, rl over user_input, in-domain")["met"] is True
    accuracy = line(found, "judge/place_accuracy, rl over user_input, in-domain")
    assert (accuracy["met"], accuracy["value"]) == (False, pytest.approx(-0.03))


def test_a_training_run_brings_its_own_figures(tmp_path: Path) -> None:
    rows = [
        {"train/episodes": 100, "train/images": 200, "time/hours": 0.1,
         "time/outside_reward_share": 0.3},
        {"train/episodes": 200, "train/images": 400, "time/hours": 0.6,
         "time/outside_reward_share": 0.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = measured()
    rl = made.rows[3]
    made.rows[3] = MeasuredRow(
        RowPlan("rl", "policy", (str(tmp_path / "best"), str(tmp_path / "last"), "elsewhere")),
        rl.prompts,
        rl.values,
    )
    found = {"acceptance": acceptance(made)}
    assert line(found, "minutes of the run")["value"] == pytest.approx(36.0)
    assert line(found, "minutes of the run")["met"] is False
    assert line(found, "share of its time outside")["value"] == pytest.approx(0.3 * 0.1 / 0.6)
    assert line(found, "share of its time outside")["met"] is True
    assert line(found, "images per episode")["value"] == 2.0
    assert line(found, "images per episode")["met"] is None


def test_a_preference_judge_is_one_of_taste() -> None:
    made = measured()
    for one in made.rows:
        one.values["judge/preference"] = one.values["reward"]
    made.metrics = {"reward": "the sum", "judge/preference": "how well liked"}
    found = {"acceptance": acceptance(made)}
    assert line(found, "judge/preference, rl over user_input, in-domain")["met"] is True


def run_lines(folder: Path, rows: list[dict[str, float]]) -> dict[str, Any]:
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = measured()
    rl = made.rows[3]
    plan = RowPlan("rl", "policy", (str(folder / "best"), str(folder / "last")))
    made.rows[3] = MeasuredRow(plan, rl.prompts, rl.values)
    return {"acceptance": acceptance(made)}


def test_a_run_that_is_not_over_has_not_met_its_time(tmp_path: Path) -> None:
    rows = [{"train/episodes": 100, "train/images": 100, "time/hours": 0.1}]
    config = {"settings": {"num_episodes": 100}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert line(run_lines(tmp_path, rows), "minutes of the run")["met"] is True
    config["settings"]["num_episodes"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    minutes = line(run_lines(tmp_path, rows), "minutes of the run")
    assert (minutes["met"], minutes["note"]) == (None, "100 of its 1,000 episodes")


@pytest.mark.parametrize(("rendered", "met"), [((90, 100), True), ((120, 100), False)])
def test_pictures_that_were_rendered_count(
    tmp_path: Path, rendered: tuple[int, int], met: bool
) -> None:
    rows = [
        {"train/episodes": 100 * turn, "train/images": 100 * turn, "reward/num_rendered": number}
        for turn, number in enumerate(rendered, start=1)
    ]
    images = line(run_lines(tmp_path, rows), "images per episode")
    assert (images["value"], images["met"]) == (pytest.approx(sum(rendered) / 200), met)


def test_what_the_interval_leaves_open_is_said(found: dict[str, Any]) -> None:
    gap = line(found, "share of the oracle gap closed by rl, out-of-domain")
    assert (gap["met"], gap["note"]) == (True, "the aim is 0.9; not by the whole interval")


def test_an_oracle_below_another_row_is_no_ceiling() -> None:
    def gap_of(name: str, rewards: list[float]) -> dict[str, Any]:
        made = measured()
        made.rows[4].values["reward"][0, :3] = [2.5, 2.6, 2.7]  # the oracle
        row = made.row(name)
        assert row is not None
        row.values["reward"][:, :3] = rewards
        return line({"acceptance": acceptance(made)}, "share of the oracle gap closed by rl, in-")

    assert gap_of("suffix", [2.4, 2.5, 2.6])["met"] is True
    clear = gap_of("suffix", [4.0, 4.1, 4.2])
    assert (clear["met"], clear["note"][:24]) == (None, "suffix above the oracle,")
    unclear = gap_of("suffix", [5.0, 2.0, 2.0])
    assert (unclear["met"], unclear["note"][:24]) == (True, "suffix above the oracle,")
    itself = gap_of("rl", [4.0, 4.1, 4.2])  # which may well be better
    assert (itself["met"], itself["note"]) == (True, "and at the aim")


def test_candidates_that_failed_are_told(found: dict[str, Any]) -> None:
    assert not any("that failed" in one["name"] for one in found["acceptance"])
    made = measured()
    made.rows[3].values["reward"][0, 0] = math.nan
    failed = line({"acceptance": acceptance(made)}, "candidates of rl that failed, in-domain")
    assert (failed["value"], failed["met"]) == (1, None)


def test_nothing_is_asked_where_there_is_no_policy() -> None:
    made = measured()
    made.rows = made.rows[:2]
    assert [one["name"] for one in acceptance(made)] == [
        "user inputs, in-domain", "user inputs, out-of-domain"
    ]  # fmt: skip


def test_the_terminal_gets_markdown(found: dict[str, Any]) -> None:
    text = markdown(measured(), found)
    lines = text.splitlines()
    assert lines[0].startswith("| in-domain | reward | over user_input | gap closed |")
    assert "| **missed** | 3 |  | at least 200 | user inputs, in-domain |" in lines
    tables = text.split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_the_page_is_whole_and_says_what_is_missing(found: dict[str, Any]) -> None:
    made = measured()
    text = report_page(made, found, [], Gallery({}))
    for tag in ("table", "tr", "figure", "p", "h2", "html", "body"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>")
    assert "matplotlib is not installed" in text
    assert "one &amp; &lt;two&gt;" in text
    for row_name in ("suffix", "rl", "oracle"):
        assert f">{row_name} − user_input</td>" in text
    assert ">· seed 2</td>" in text


def test_pictures_stand_side_by_side(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "one.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    cells = {(4, name): (f"a <b>boat</b>, {name}", path) for name in ("user_input", "rl")}
    cells[4, "suffix"] = ("a boat", None)
    made = measured()
    gallery = Gallery(cells)
    assert gallery.html_of(made, "in-domain") == ""
    text = gallery.html_of(made, "out-of-domain")
    assert text.count("<img ") == 2
    assert text.count("no picture") == 1
    assert "<b>" not in text
    assert "reward 3.00" in text
    assert text.count("<td") == 6  # the user input and five rows, of which two have nothing


def test_a_domain_may_have_any_name(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("matplotlib")
    made = measured()
    names = {"in-domain": "$\\frac$", "out-of-domain": "日本語 <b>"}
    rows = [dataclasses.replace(some, domain=names[some.domain]) for some in INPUTS.rows]
    made.inputs = Inputs(rows, [])
    drawn = plots(made, everything(made))
    assert "$\\frac$" in drawn[0][1]
    assert "日本語 &lt;b&gt;" in drawn[0][1]
    assert not recwarn.list


def test_lengths_that_few_user_inputs_have_are_in_the_table_only(found: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    assert len(plots(measured(), found)) == 2
    assert found["by_length"]


def test_plots_are_inline_and_their_ids_apart(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("promptadapt_core.evaluate.plots.LEAST_OF_LENGTH", 1)
    drawn = plots(measured(), found)
    assert len(drawn) == 3
    ids: list[str] = []
    for _, svg in drawn:
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert "metadata" not in svg
        own = re.findall(r'\bid="([^"]*)"', svg)
        used = re.findall(r'(?:url\(#|href="#)([^)"]*)', svg)
        assert set(used) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))
    assert "out-of-domain" in drawn[0][1]
    assert drawn == plots(measured(), found)


def test_the_files_hold_what_json_can_write(tmp_path: Path, found: dict[str, Any]) -> None:
    made = measured()
    write_report(tmp_path / "new" / "out", found, candidate_rows(made), "<p>grün \ud800</p>")
    text = (tmp_path / "new" / "out" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text)["inputs"] == {"in-domain": 3, "out-of-domain": 2}
    lines = (tmp_path / "new" / "out" / "candidates.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(one) for one in lines]
    assert len(rows) == 5 * 5 + 5 - 2
    assert rows[-1]["adapted_prompt"] == "a whale, golden hour light"
    assert "grün ?" in (tmp_path / "new" / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"^out: .* cannot be written"):
        write_report(tmp_path / "file", found, [], "")


def test_numbers_that_are_none_are_none() -> None:
    assert plain_values({"a": [math.nan, 1.0], "b": (math.inf, "x", True)}) == {
        "a": [None, 1.0], "b": [None, "x", True]
    }  # fmt: skip
