"""RL Refine in a real ComfyUI, see comfyui_host.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
for needed in ("torchvision", "open_clip", "safetensors", "PIL"):
    pytest.importorskip(needed)

import numpy as np  # noqa: E402
from comfyui_host import node_of, workflow  # noqa: E402
from PIL import Image  # noqa: E402

NAME = "3 RL Refine (lab)"
MEGABYTE = 1 << 20
SIDE = 128
SOON = 10.0  # seconds; a busy machine of one core runs the tests too


def refine(object_info: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The example workflow, small; "told" shows the JSON, "alone" draws the best prompt as a graph
    without us would."""
    prompt = workflow(NAME, object_info)
    node, inputs = node_of(prompt, "PromptAdaptRefine")
    inputs |= {"num_rounds": 2, "num_candidates": 3, "steps": 4, **changed}
    prompt["told"] = {"class_type": "PreviewAny", "inputs": {"source": [node, 7]}}
    return prompt


def told(run: Any) -> dict[str, Any]:
    assert run.ended == "execution_success", run.error
    return json.loads(run.ui["told"]["text"][0])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def alone(comfyui: Any, prompt: dict[str, Any], text: str) -> np.ndarray:
    """What KSampler and VAEDecode make of a text with the inputs of RL Refine."""
    _, given = node_of(prompt, "PromptAdaptRefine")
    checkpoint = given["model"][0]
    sampled = {
        "seed": given["image_seed"], "denoise": 1.0, "model": given["model"],
        "positive": ["text", 0], "negative": given["negative"],
        "latent_image": given["latent_image"],
        **{name: given[name] for name in ("steps", "cfg", "sampler_name", "scheduler")},
    }  # fmt: skip
    latent, negative = given["latent_image"][0], given["negative"][0]
    graph = {name: prompt[name] for name in (checkpoint, latent, negative)} | {
        "text": {"class_type": "CLIPTextEncode",
                 "inputs": {"text": text, "clip": given["clip"]}},
        "sampled": {"class_type": "KSampler", "inputs": sampled},
        "decoded": {"class_type": "VAEDecode",
                    "inputs": {"samples": ["sampled", 0], "vae": given["vae"]}},
        "shown": {"class_type": "PreviewImage", "inputs": {"images": ["decoded", 0]}},
    }  # fmt: skip
    run = comfyui.run(graph)
    assert run.ended == "execution_success", run.error
    return pixels(comfyui.pictures(run)[0])


def picture_of(comfyui: Any, run: Any, prompt: dict[str, Any], kind: str) -> np.ndarray:
    node, _ = node_of(prompt, kind)
    (image,) = run.ui[node]["images"]
    folder = comfyui.base / ("output" if image["type"] == "output" else "temp")
    return pixels(folder / image["subfolder"] / image["filename"])


def test_the_best_picture_is_what_a_graph_without_us_draws(
    comfyui: Any, object_info: dict[str, Any]
) -> None:
    prompt = refine(object_info, margin=0.0)
    run = comfyui.run(prompt)
    found, (node, given) = told(run), node_of(prompt, "PromptAdaptRefine")
    text = run.ui[node]["text"]
    assert text[:2] == [found["adapted_prompt"], found["result"]]
    assert found["adapted_prompt"].startswith(given["user_input"])
    assert found["image_seeds"] == [given["image_seed"]]
    assert 2 < found["num_images"] == len(found["tried"]) <= 7
    best = found["tried"][0]
    assert found["accepted"] is (best["reward"] > 0)
    shown = picture_of(comfyui, run, prompt, "SaveImage")
    assert shown.shape == (SIDE, SIDE, 3)
    expected = alone(comfyui, prompt, found["adapted_prompt"])
    assert np.abs(shown - expected).max() <= 2, "rendered in a batch"
    assert run.previews > 0


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde"])
def test_a_sampler_that_draws_noise_draws_the_same_alone(
    comfyui: Any, object_info: dict[str, Any], sampler: str
) -> None:
    prompt = refine(object_info, sampler_name=sampler, num_rounds=1, margin=0.0)
    run = comfyui.run(prompt)
    expected = alone(comfyui, prompt, told(run)["adapted_prompt"])
    assert np.abs(picture_of(comfyui, run, prompt, "SaveImage") - expected).max() <= 2


def test_a_second_run_renders_nothing_anew(comfyui: Any, object_info: dict[str, Any]) -> None:
    first = told(comfyui.run(refine(object_info, seed=5)))
    assert first["num_rendered"] == first["num_images"] > 2
    again = told(comfyui.run(refine(object_info, seed=5, margin=50.0)))
    assert again["num_rendered"] == 0
    assert [one["adapted_prompt"] for one in again["tried"]] == [
        one["adapted_prompt"] for one in first["tried"]
    ]
    assert not again["accepted"]
    assert again["adapted_prompt"] == again["user_input"]
    other = told(comfyui.run(refine(object_info, seed=5, cfg=2.0)))
    assert other["num_rendered"] == other["num_images"], "another cfg draws other pictures"


def test_an_interrupt_is_quick_and_what_was_rendered_stays(
    comfyui: Any, object_info: dict[str, Any]
) -> None:
    prompt = refine(object_info, seed=6, num_rounds=50, num_candidates=8, render_batch_size=2)
    node, _ = node_of(prompt, "PromptAdaptRefine")
    prompt_id = comfyui.queue(prompt)
    while comfyui.wait(prompt_id, until="progress").ended != "progress":
        pytest.fail("it ended before it could be interrupted")
    time.sleep(3.0)
    began = time.monotonic()
    comfyui.post("/interrupt", {})
    assert comfyui.wait(prompt_id).ended == "execution_interrupted"
    assert time.monotonic() - began < SOON
    again = told(comfyui.run(refine(object_info, seed=6, num_rounds=1, num_candidates=8,
                                    render_batch_size=2)))  # fmt: skip
    assert again["num_rendered"] < again["num_images"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"user_input": " "}, "expected some words, got none"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_candidates": 1}, "grpo compares"),
        ({"max_images": 1}, "max_images: expected 0 or at least 2"),
        ({"sampler_name": "magic"}, "sampler_name"),
        ({"save_policy": "folder", "save_name": "a/b"}, "expected the name of a folder"),
        ({"save_policy": "lora", "method": "best_of_n"}, "best_of_n trains no LoRA matrices"),
        ({"keep": "dog"}, "does not hold the span 'dog'"),
    ],
)
def test_bad_input_is_refused(
    comfyui: Any, object_info: dict[str, Any], changed: dict[str, Any], words: str
) -> None:
    prompt = refine(object_info, **changed)
    node, _ = node_of(prompt, "PromptAdaptRefine")
    errors = comfyui.refusal(prompt)[node]["errors"]
    assert words in " | ".join(error["details"] for error in errors)


def test_what_only_a_link_can_bring_is_asked_for(comfyui: Any, object_info: dict[str, Any]) -> None:
    run = comfyui.run(refine(object_info, reward_models="lab"))
    assert run.ended == "execution_error"
    message = run.error["exception_message"].strip()
    assert message == "reward_models: expected a link from Load Reward Models"


@pytest.mark.parametrize("kind", ["folder", "lora"])
def test_a_refined_policy_is_saved_and_loaded(
    comfyui: Any, object_info: dict[str, Any], kind: str
) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    name = f"my {kind}"
    prompt = refine(object_info, seed=7, save_policy=kind, save_name=name)
    run = comfyui.run(prompt)
    folder = comfyui.base / "models" / "promptadapt" / name
    assert str(folder) in told(run)["notes"][-1]
    given = {
        "user_input": told(run)["user_input"], "num_candidates": 1, "mode": "auto", "seed": 0,
        "token_budget": 75, "keep": "", "ban": "", "gate": False, "bypass": False,
    }  # fmt: skip
    node, _ = node_of(prompt, "PromptAdaptRefine")
    prompt["refined"] = {"class_type": "PromptAdaptAdapt", "inputs": {**given, "policy": [node, 5]}}
    linked = comfyui.run(prompt)
    assert linked.ended == "execution_success", linked.error
    loaded = comfyui.run(
        {
            "1": {"class_type": "PromptAdaptLoadPolicy", "inputs": {"policy": name}},
            "2": {"class_type": "PromptAdaptAdapt", "inputs": {**given, "policy": ["1", 0]}},
        }
    )
    assert loaded.ended == "execution_success", loaded.error
    assert loaded.ui["2"]["text"] == linked.ui["refined"]["text"]


def test_runs_in_a_row_leave_memory_flat(comfyui: Any, object_info: dict[str, Any]) -> None:
    pytest.importorskip("psutil")
    told(comfyui.run(refine(object_info, seed=10, num_rounds=1)))
    before = comfyui.resident_bytes()
    for seed in range(11, 17):
        told(comfyui.run(refine(object_info, seed=seed, num_rounds=1)))
    assert comfyui.resident_bytes() - before < 60 * MEGABYTE
