"""The nodes at work in a real ComfyUI, see comfyui_host.py. One server for all tests.

Where there is no network, no pip or no torchvision, the tests skip and say why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
for needed in ("torchvision", "open_clip", "safetensors", "PIL"):
    pytest.importorskip(needed)

from comfyui_host import WORKFLOWS, node_of, workflow  # noqa: E402
from PIL import Image  # noqa: E402

from promptadapt_core.adapter import PromptAdapter  # noqa: E402
from promptadapt_core.lab import folders  # noqa: E402
from promptadapt_core.policies import DEFAULT_POLICY  # noqa: E402
from promptadapt_core.scorers import read_description  # noqa: E402

LAB_WORKFLOWS = sorted(path.stem for path in WORKFLOWS.glob("* (lab).json"))
OTHER_WORKFLOWS = sorted(
    path.stem for path in WORKFLOWS.glob("*.json") if path.stem not in LAB_WORKFLOWS
)
PACK = "prompt-adapt"  # as in conftest.py
MEGABYTE = 1 << 20


def adapt(user_input: str = "a cat on a roof", **changed: Any) -> dict[str, Any]:
    """A prompt of one Prompt Adapt, node 1."""
    inputs = {
        "user_input": user_input, "num_candidates": 1, "mode": "auto", "seed": 0,
        "token_budget": 75, "keep": "", "ban": "", "gate": True, "bypass": False,
    }  # fmt: skip
    return {"1": {"class_type": "PromptAdaptAdapt", "inputs": {**inputs, **changed}}}


def score(nodes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A prompt that scores what node "pictures" of `nodes` makes; 3 shows the JSON."""
    inputs = {
        "images": ["pictures", 0], "reward_models": ["1", 0], "user_input": "a red house",
        "top_k": 1, "aesthetic_weight": 1.0, "relevance_weight": 1.0,
    }  # fmt: skip
    return {
        **nodes,
        "1": {"class_type": "PromptAdaptLoadRewardModels", "inputs": {"scorer": "lab"}},
        "2": {"class_type": "PromptAdaptAestheticReward", "inputs": {**inputs, **changed}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 8]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 7]}},
    }


def empty_image(side: int, number: int = 1) -> dict[str, Any]:
    inputs = {"width": side, "height": side, "batch_size": number, "color": 0x4080C0}
    return {"class_type": "EmptyImage", "inputs": inputs}


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def refused_for(errors: dict[str, Any], node: str) -> str:
    """All that is said of a node in node_errors."""
    return " | ".join(error["details"] for error in errors[node]["errors"])


def test_the_nodes_and_the_files_around_them_are_served(
    comfyui: Any, object_info: dict[str, Any]
) -> None:
    ours = {name: about for name, about in object_info.items() if name.startswith("PromptAdapt")}
    assert len(ours) == 7
    assert {about["python_module"] for about in ours.values()} == {f"custom_nodes.{PACK}"}
    policies = ours["PromptAdaptLoadPolicy"]["input"]["required"]["policy"][0]
    assert policies[:2] == [DEFAULT_POLICY, "copied"]
    scorers = ours["PromptAdaptLoadRewardModels"]["input"]["required"]["scorer"][0]
    assert scorers == ["lab", "copied-scorer"]
    place = f"/extensions/{PACK}"
    assert "registerExtension" in comfyui.get(f"{place}/promptadapt.js")
    assert comfyui.get(f"{place}/docs/PromptAdaptAdapt.md").startswith("# Prompt Adapt")
    assert comfyui.get(f"{place}/docs/PromptAdaptAdapt/zh.md").startswith("#")
    names = [path.stem for path in WORKFLOWS.glob("*.json")]
    assert sorted(comfyui.get("/workflow_templates")[PACK]) == sorted(names)
    assert "PromptAdaptAdapt" in comfyui.get("/i18n")["zh"]["nodeDefs"]
    failed = [line for line in comfyui.log().splitlines() if "IMPORT FAILED" in line]
    assert not [line for line in failed if PACK in line]  # ComfyUI's own may lack a package


def test_adapt_and_render(comfyui: Any, object_info: dict[str, Any]) -> None:
    prompt = workflow("1 adapt and render (lab)", object_info)
    run = comfyui.run(prompt)
    assert run.ended == "execution_success", run.error
    node, inputs = node_of(prompt, "PromptAdaptAdapt")
    (text,) = run.ui[node]["text"]
    policy = node_of(prompt, "PromptAdaptLoadPolicy")[1]["policy"]
    (here,) = PromptAdapter.load(policy).adapt(inputs["user_input"], seed=inputs["seed"])
    assert text == here.adapted_prompt, "another process, the same text"
    assert text.startswith(inputs["user_input"])
    assert text != inputs["user_input"]
    (picture,) = comfyui.pictures(run)
    assert size_of(picture) == (128, 128)
    again = comfyui.run(prompt)
    assert set(again.cached) >= set(prompt) - {node_of(prompt, "SaveImage")[0]}


def test_adapt_many_render_all_keep_the_best(comfyui: Any, object_info: dict[str, Any]) -> None:
    prompt = workflow("2 adapt, render all, keep the best (lab)", object_info)
    reward, _ = node_of(prompt, "PromptAdaptAestheticReward")
    compare, _ = node_of(prompt, "PromptAdaptCompare")
    adapter, inputs = node_of(prompt, "PromptAdaptAdapt")
    shown = {"rewards": (reward, 2), "best": (reward, 4), "json": (reward, 8),
             "compared": (compare, 3), "candidates": (adapter, 1)}  # fmt: skip
    for name, (node, slot) in shown.items():
        prompt[name] = {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}}
    run = comfyui.run(prompt)
    assert run.ended == "execution_success", run.error
    found = {name: run.ui[name]["text"] for name in shown}
    assert len(found["candidates"]) == inputs["num_candidates"] == 4
    rows = json.loads(found["json"][0])
    assert [row["adapted_prompt"] for row in rows] == found["candidates"]
    assert [row["reward"] for row in rows] == pytest.approx(list(map(float, found["rewards"])))
    best = min(rows, key=lambda row: row["rank"])
    assert best["reward"] == max(row["reward"] for row in rows)
    assert found["best"] == [best["adapted_prompt"]]
    (pair,) = json.loads(found["compared"][0])
    assert pair["b"]["aesthetic"] == pytest.approx(best["aesthetic"], abs=1e-4)
    gain = pair["b"]["aesthetic"] - pair["a"]["aesthetic"]
    assert best["aesthetic_gain"] == pytest.approx(gain, abs=1e-4)
    knee = read_description(folders.WEIGHTS / "scorer").relevance_knee
    assert max(row["relevance"] for row in rows) > knee - 0.1, "the pictures show what was asked"
    sizes = sorted(map(size_of, comfyui.pictures(run)))
    assert sizes[0] == (128, 128)
    assert sizes[1][0] == sizes[2][0] > 384, "two columns each"
    assert f"of {len(rows)}, reward" in run.ui[reward]["text"][0]


@pytest.mark.parametrize("name", OTHER_WORKFLOWS)
def test_what_the_other_workflows_lack_is_said(
    comfyui: Any, object_info: dict[str, Any], name: str
) -> None:
    prompt = workflow(name, object_info)
    if any(node["class_type"] == "PromptAdaptAdapt" for node in prompt.values()):
        prompt_id, errors = comfyui.queue_what_can_be(prompt)
        assert comfyui.wait(prompt_id).ended == "execution_success", "it can be run alone"
    else:
        errors = comfyui.refusal(prompt)
    missing = {"CheckpointLoaderSimple", "PromptAdaptLoadRewardModels"}
    assert {prompt[node]["class_type"] for node in errors} <= missing
    checkpoint, _ = node_of(prompt, "CheckpointLoaderSimple")
    assert "safetensors" in refused_for(errors, checkpoint)


def test_without_a_loader_settings_and_bypass(comfyui: Any) -> None:
    prompt = adapt(num_candidates=2, seed=2**64 - 1, keep="cat\nroof", ban="8k\nartstation")
    prompt["1"]["inputs"]["decoding"] = ["2", 0]
    prompt["2"] = {"class_type": "PromptAdaptDecodingSettings", "inputs": {
        "max_new_tokens": 20, "min_modifiers": 1, "artists": False, "num_beams": 4,
        "diversity_penalty": 1.0, "length_penalty": 1.0, "temperature": 0.8, "top_p": 0.9,
    }}  # fmt: skip
    prompt["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}}
    run = comfyui.run(prompt)
    assert run.ended == "execution_success", run.error
    here = PromptAdapter.load().adapt(
        "a cat on a roof", num_candidates=2, seed=2**64 - 1, keep=("cat", "roof"),
        ban=("8k", "artstation"), max_new_tokens=20, min_modifiers=1, num_beams=4,
    )  # fmt: skip
    assert run.ui["3"]["text"] == [candidate.adapted_prompt for candidate in here]
    engineered = "a cat, oil painting, sharp focus, dramatic lighting, 8k, artstation"
    for left, note in (
        (adapt(engineered), "left alone: it is engineered already"),
        (adapt("a cat " * 60, gate=False), "left alone: it has"),
        (adapt("a cat", bypass=True), "bypassed"),
    ):
        run = comfyui.run(left)
        text, told = run.ui["1"]["text"]
        assert text == left["1"]["inputs"]["user_input"]
        assert told.startswith(f"({note}")


def test_bypassed_the_linked_policy_is_not_even_loaded(comfyui: Any) -> None:
    prompt = adapt(bypass=True, policy=["2", 0])
    prompt["2"] = {"class_type": "PromptAdaptLoadPolicy", "inputs": {"policy": "copied"}}
    run = comfyui.run(prompt)
    assert run.ended == "execution_success", run.error
    assert run.executed == ["1"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"user_input": "  "}, "expected some words, got none"),
        ({"user_input": "a\0cat"}, "NUL character"),
        ({"keep": "dog"}, "does not hold the span 'dog'"),
        ({"ban": "!"}, "expected a word or phrase"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"num_candidates": 65}, "num_candidates"),
        ({"seed": -1}, "seed"),
        ({"mode": "best"}, "mode"),
        ({"token_budget": "many"}, "token_budget"),
    ],
)
def test_bad_input_is_refused(comfyui: Any, changed: dict[str, Any], words: str) -> None:
    errors = comfyui.refusal(adapt(**changed))
    assert words in refused_for(errors, "1")


def test_a_linked_text_that_is_bad_is_told_of_too(comfyui: Any) -> None:
    prompt = adapt()
    prompt["1"]["inputs"]["user_input"] = ["2", 0]
    prompt["2"] = {"class_type": "PrimitiveString", "inputs": {"value": " "}}
    run = comfyui.run(prompt)
    assert run.ended == "execution_error"
    assert run.error["exception_message"].strip() == "user_input: expected some words, got none"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (adapt(policy="lab"), "policy: expected a link from Load Prompt Policy"),
        (adapt(decoding="x"), "decoding: expected a link from Decoding Settings"),
        (score({}, images="x"), "images: expected a link from a node that makes an IMAGE"),
        (score({"pictures": empty_image(64)}, reward_models="lab"), "reward_models: expected a"),
        (score({"pictures": empty_image(64)}, user_input=" "), "user_input: expected what was"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split(":")[0],
)  # fmt: skip
def test_what_only_a_link_can_bring_is_asked_for(
    comfyui: Any, prompt: dict[str, Any], words: str
) -> None:
    run = comfyui.run(prompt)
    assert run.ended == "execution_error"
    assert run.error["exception_message"].startswith(words)


def test_a_policy_that_is_deleted_and_comes_back(comfyui: Any) -> None:
    folder, away = comfyui.base / "models/promptadapt/copied", comfyui.base / "away"
    prompt = adapt(policy=["2", 0])
    prompt["2"] = {"class_type": "PromptAdaptLoadPolicy", "inputs": {"policy": "copied"}}
    first = comfyui.run(prompt)
    assert first.ended == "execution_success", first.error
    assert comfyui.run(prompt).executed == []
    folder.rename(away)
    assert "there is no policy 'copied'" in refused_for(comfyui.refusal(prompt), "2")
    away.rename(folder)
    (folder / "changed.txt").write_text("another state")
    again = comfyui.run(prompt)
    assert "2" in again.executed, "a folder that has changed is read again"
    assert again.ui["1"]["text"] == first.ui["1"]["text"]


def test_a_broken_scorer_says_what_is_wrong(comfyui: Any) -> None:
    folder = comfyui.base / "models/promptadapt/copied-scorer"
    from safetensors.torch import load_file, save_file

    head = next(folder.glob("*head*.safetensors"))
    weights = load_file(head)
    save_file({name: tensor[..., :-1].contiguous() if tensor.dim() > 1 else tensor
               for name, tensor in weights.items()}, head)  # fmt: skip
    prompt = score({"pictures": empty_image(64)})
    prompt["1"]["inputs"]["scorer"] = "copied-scorer"
    run = comfyui.run(prompt)
    assert run.ended == "execution_error"
    assert "head" in run.error["exception_message"]
    assert run.error["node_id"] == "1"


@pytest.mark.parametrize(
    ("side", "number"), [(1, 1), (64, 64), (300, 2)], ids=["1x1", "64 pictures", "large"]
)
def test_odd_pictures_are_scored(comfyui: Any, side: int, number: int) -> None:
    run = comfyui.run(score({"pictures": empty_image(side, number)}))
    assert run.ended == "execution_success", run.error
    rows = json.loads(run.ui["3"]["text"][0])
    assert [row["rank"] for row in rows] == list(range(1, number + 1)), "equals stay in order"


def test_alpha_changes_nothing_and_texts_must_fit(comfyui: Any) -> None:
    mask = {"class_type": "SolidMask", "inputs": {"value": 0.3, "width": 64, "height": 64}}
    joined = {"class_type": "JoinImageWithAlpha",
              "inputs": {"image": ["rgb", 0], "alpha": ["mask", 0]}}  # fmt: skip
    plain = comfyui.run(score({"pictures": empty_image(64)}))
    alpha = comfyui.run(score({"rgb": empty_image(64), "mask": mask, "pictures": joined}))
    assert alpha.ended == "execution_success", alpha.error
    assert alpha.ui["3"]["text"] == plain.ui["3"]["text"]
    wrong = score({"pictures": empty_image(64, 3), "base": empty_image(64, 2)})
    wrong["2"]["inputs"]["baseline_images"] = ["base", 0]
    run = comfyui.run(wrong)
    assert run.ended == "execution_error"
    assert run.error["exception_message"].startswith(
        "baseline_images: 3 pictures cannot take turns"
    )


def test_an_interrupt_gives_the_host_back(comfyui: Any) -> None:
    long = adapt("a cat on a roof", mode="diverse", num_candidates=64)
    long["1"]["inputs"]["decoding"] = ["2", 0]
    long["2"] = {"class_type": "PromptAdaptDecodingSettings", "inputs": {
        "max_new_tokens": 512, "min_modifiers": 20, "artists": False, "num_beams": 64,
        "diversity_penalty": 5.0, "length_penalty": -5.0, "temperature": 5.0, "top_p": 1.0,
    }}  # fmt: skip
    prompt_id = comfyui.queue(long)
    begun = comfyui.wait(prompt_id, until="executing")
    while "1" not in begun.executed:
        begun = comfyui.wait(prompt_id, until="executing")
        assert begun.ended == "executing", "it ended before it could be interrupted"
    comfyui.post("/interrupt", {})
    run = comfyui.wait(prompt_id)
    assert run.ended == "execution_interrupted"
    print(f"from interrupt to idle: {run.seconds:.2f} s")
    assert run.seconds < 20.0  # on a machine that others may use; one token takes milliseconds
    assert comfyui.run(adapt("a dog")).ended == "execution_success"


def test_ten_runs_leave_the_memory_flat(comfyui: Any, object_info: dict[str, Any]) -> None:
    prompt = workflow("2 adapt, render all, keep the best (lab)", object_info)
    _, inputs = node_of(prompt, "PromptAdaptAdapt")
    inputs["mode"], inputs["num_candidates"] = "sample", 2
    held = []
    for seed in range(10):
        inputs["seed"] = seed
        run = comfyui.run(prompt)
        assert run.ended == "execution_success", run.error
        held.append(comfyui.resident_bytes())
    growth = held[-1] - max(held[:4])
    print("resident MB after each run:", [number // MEGABYTE for number in held])
    assert growth < 48 * MEGABYTE
