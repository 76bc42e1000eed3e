"""The ComfyUI pack without ComfyUI: what importing costs, what the nodes promise, the files around
them. The nodes at work: test_nodes_comfyui.py."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from promptadapt_core.settings import AdaptSettings, setting

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "open_clip", "diffusers", "tokenizers", "numpy", "PIL"}
LIMIT_SECONDS, MOST_RUNS = 0.030, 15  # the least of several: a busy machine only ever adds time
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
LOCALES = ("en", "zh")

# As ComfyUI loads a custom node: under its path, in a process that has other modules already.
LOAD = """
import importlib.util, json, sys
from time import {clock} as clock
path = {path!r}
before = set(sys.modules)
started = clock()
spec = importlib.util.spec_from_file_location(path.replace(".", "_x_"), path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
seconds = clock() - started
names = sorted({{name.split(".")[0] for name in set(sys.modules) - before}})
print(json.dumps([seconds, names, sorted(module.NODE_CLASS_MAPPINGS), module.WEB_DIRECTORY]))
"""


def load_in_a_fresh_process() -> tuple[float, set[str], list[str], str]:
    clock = "perf_counter" if sys.platform == "win32" else "process_time"
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(clock=clock, path=ROOT.as_posix())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seconds, loaded, ids, web = json.loads(run.stdout)
    return seconds, set(loaded), ids, web


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    """The pack under a name that no import statement could spell."""
    name = "custom_nodes/prompt adapt-pack"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def sampler_names() -> Iterator[None]:
    """The two lists of ComfyUI that INPUT_TYPES shows; the real ones are in
    test_nodes_comfyui.py."""
    samplers = ModuleType("comfy.samplers")
    samplers.KSampler = SimpleNamespace(SAMPLERS=["euler"], SCHEDULERS=["simple"])
    comfy = ModuleType("comfy")
    comfy.samplers = samplers
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy", comfy)
        patch.setitem(sys.modules, "comfy.samplers", samplers)
        yield


@pytest.fixture(scope="module")
def inputs(pack: ModuleType) -> dict[str, dict[str, tuple]]:
    """Of every node: its inputs in the order in which the front end makes their widgets."""
    found = {}
    for node_id, node in pack.NODE_CLASS_MAPPINGS.items():
        types = node.INPUT_TYPES()
        found[node_id] = {**types.get("required", {}), **types.get("optional", {})}
    return found


def is_widget(entry: tuple) -> bool:
    plain = isinstance(entry[0], list) or entry[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")
    return plain and not entry[1].get("forceInput")


def test_the_pack_is_light_and_fast() -> None:
    least = float("inf")
    for _ in range(MOST_RUNS):
        seconds, loaded, ids, web = load_in_a_fresh_process()
        assert not loaded & HEAVY
        assert "nodes" not in loaded
        assert len(ids) == 7
        assert web == "./web"
        least = min(least, seconds)
        if least < LIMIT_SECONDS:
            return
    pytest.fail(f"loading the pack takes {least * 1000:.0f} ms")


def test_a_host_with_our_folder_on_its_path_does_not_find_our_nodes() -> None:
    code = "import importlib.util, sys; sys.path.insert(0, '.'); import nodes"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "ModuleNotFoundError: No module named 'nodes'" in run.stderr


@pytest.mark.parametrize("guarded", [True, False])
def test_pytest_may_collect_the_checkout(tmp_path: Path, guarded: bool) -> None:
    checkout = tmp_path / "my-check out"
    (checkout / "tests").mkdir(parents=True)
    text = (ROOT / "__init__.py").read_text("utf-8")
    if not guarded:  # the guard is needed: without it the import fails
        text = text.replace("if __package__:", "if True:")
    (checkout / "__init__.py").write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "nodes", checkout / "nodes")
    (checkout / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    (checkout / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode == 0) == guarded, run.stdout + run.stderr


def test_the_mappings_are_literal_and_the_ids_ours(pack: ModuleType) -> None:
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text("utf-8"))
    named = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    ids = [ast.literal_eval(key) for key in named["NODE_CLASS_MAPPINGS"].keys]
    assert ids == list(pack.NODE_CLASS_MAPPINGS)
    assert list(ast.literal_eval(named["NODE_DISPLAY_NAME_MAPPINGS"])) == ids
    assert all(node_id.startswith("PromptAdapt") for node_id in ids)


def test_nodes_import_relatively_and_the_host_late() -> None:
    for file in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                assert not {"promptadapt_core", "nodes"} & {name.split(".")[0] for name in names}, (
                    file
                )
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search("comfy|folder_paths", ast.unparse(node)), file
    host = {
        file.name for file in (ROOT / "nodes").glob("*.py") if "comfy." in file.read_text("utf-8")
    }
    assert host == {"memory.py", "rendering.py", "searching.py"}


def test_every_node_is_described(pack: ModuleType, inputs: dict[str, dict[str, tuple]]) -> None:
    for node_id, node in pack.NODE_CLASS_MAPPINGS.items():
        assert node.CATEGORY == "promptadapt"
        assert len(node.DESCRIPTION) > 20
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert callable(getattr(node, node.FUNCTION))
        assert len(getattr(node, "OUTPUT_TOOLTIPS", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        for name, entry in inputs[node_id].items():
            assert entry[1]["tooltip"], f"{node_id}.{name}"
            assert "may be repeated" not in entry[1]["tooltip"]
            if isinstance(entry[0], list):
                assert entry[1]["default"] in entry[0]
            elif entry[0] in ("INT", "FLOAT"):
                assert entry[1]["min"] <= entry[1]["default"] <= entry[1]["max"]


def test_every_adapt_setting_is_an_input_once(inputs: dict[str, dict[str, tuple]]) -> None:
    main, more = inputs["PromptAdaptAdapt"], inputs["PromptAdaptDecodingSettings"]
    for field in dataclasses.fields(AdaptSettings):
        assert (field.name in main) + (field.name in more) == 1, field.name
        kind, options = (main if field.name in main else more)[field.name]
        if field.metadata["low"] is not None:
            assert (options["min"], options["max"]) == (
                field.metadata["low"],
                field.metadata["high"],
            )
        if field.name == "mode":
            assert kind == ["auto", *field.metadata["choices"]]
            assert options["default"] == "auto"
        elif field.default != ():
            assert options["default"] == field.default
    assert set(main) - {field.name for field in dataclasses.fields(AdaptSettings)} == {
        "user_input", "bypass", "policy", "decoding"
    }  # fmt: skip


@dataclasses.dataclass
class Example:
    words: tuple[str, ...] = setting(("a", "b"), "some words; may be repeated")
    name: str = setting("x", "a name", choices=("x", "y"))
    share: float = setting(0.5, "a share", low=0.0, high=1.0, step=0.25)
    number: int = setting(3, "a number")
    on: bool = setting(True, "a switch")


def test_settings_become_widgets_and_back(pack: ModuleType) -> None:
    module = sys.modules[f"{pack.__name__}.nodes.inputs"]
    made = module.widgets(Example, ["words", "name", "share", "number", "on"])
    assert made["words"] == (
        "STRING", {"default": "a\nb", "multiline": True, "tooltip": "some words; one a line"}
    )  # fmt: skip
    assert made["name"] == (["x", "y"], {"default": "x", "tooltip": "a name"})
    assert made["share"][1] == {
        "default": 0.5, "tooltip": "a share", "min": 0.0, "max": 1.0, "step": 0.25
    }  # fmt: skip
    assert made["number"][0] == "INT"
    assert made["number"][1]["max"] == 2**31 - 1
    assert made["on"] == ("BOOLEAN", {"default": True, "tooltip": "a switch"})
    given = module.settings_from(Example, {"words": " a b \n\n c", "name": "auto", "share": 0.1})
    assert given == {"words": ("a b", "c"), "share": 0.1}
    assert module.settings_from(Example, {"words": "auto"}) == {"words": ("auto",)}, "a word too"
    assert module.settings_from(Example, {"words": " \n"}) == {}, "left to the policy"
    choices, options = module.with_auto(made["name"], "what comes")
    assert choices == ["auto", "x", "y"]
    assert options == {"default": "auto", "tooltip": "auto: what comes; a name"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"user_input": "a cat"}, None),
        ({"user_input": None}, None),  # linked: not known yet
        ({"user_input": " ", "bypass": True}, None),
        ({"user_input": " ", "bypass": None}, None),  # linked: perhaps bypassed
        ({"user_input": " \n"}, "user_input: expected some words"),
        ({"user_input": "a cat", "keep": "dog"}, "keep: the user input does not hold"),
        ({"user_input": "a cat", "keep": "cat\n\na"}, None),
        ({"user_input": "a cat", "ban": "8k\n!?"}, "ban: expected a word or phrase"),
        ({"user_input": "x" * 30_000}, "user_input: expected at most"),
    ],
)
def test_bad_texts_are_refused_in_one_sentence(
    pack: ModuleType, given: dict[str, Any], words: str | None
) -> None:
    node = pack.NODE_CLASS_MAPPINGS["PromptAdaptAdapt"]
    answer = node.VALIDATE_INPUTS(**{"bypass": False, **given})
    if words is None:
        assert answer is True
    else:
        assert answer.startswith(words)
        assert len(answer) < 200


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_a_folder_that_is_gone_is_named(pack: ModuleType, kind: str) -> None:
    node = pack.NODE_CLASS_MAPPINGS[
        {"policy": "PromptAdaptLoadPolicy", "scorer": "PromptAdaptLoadRewardModels"}[kind]
    ]
    names = node.INPUT_TYPES()["required"][kind][0]
    assert node.VALIDATE_INPUTS(**{kind: names[0]}) is True
    state = node.IS_CHANGED(**{kind: names[0]})
    assert re.fullmatch("[0-9a-f]{16}", state)
    assert node.IS_CHANGED(**{kind: names[0]}) == state
    assert f"there is no {kind} 'gone'" in node.VALIDATE_INPUTS(**{kind: "gone"})


def test_bypassed_no_policy_is_asked_for(pack: ModuleType) -> None:
    node = pack.NODE_CLASS_MAPPINGS["PromptAdaptAdapt"]()
    assert node.check_lazy_status(bypass=False, policy=None, seed=1) == ["policy"]
    assert node.check_lazy_status(bypass=False, seed=1) == []
    assert node.check_lazy_status(bypass=True, policy=None) == []


def expected_definitions(pack: ModuleType, inputs: dict[str, dict[str, tuple]]) -> dict[str, Any]:
    """nodeDefs.json in English, as the nodes themselves tell it."""
    made = {}
    for node_id, node in pack.NODE_CLASS_MAPPINGS.items():
        tooltips = getattr(node, "OUTPUT_TOOLTIPS", [""] * len(node.RETURN_NAMES))
        made[node_id] = {
            "display_name": pack.NODE_DISPLAY_NAME_MAPPINGS[node_id],
            "description": node.DESCRIPTION,
            "inputs": {
                name: {"name": name.replace("_", " "), "tooltip": entry[1]["tooltip"]}
                for name, entry in inputs[node_id].items()
            },
            "outputs": {
                str(number): {"name": name.replace("_", " ")} | ({"tooltip": tip} if tip else {})
                for number, (name, tip) in enumerate(zip(node.RETURN_NAMES, tooltips, strict=True))
            },
        }
    return made


def shape(value: Any) -> Any:
    return {key: shape(part) for key, part in value.items()} if isinstance(value, dict) else str


def test_the_translations_follow_the_nodes(
    pack: ModuleType, inputs: dict[str, dict[str, tuple]]
) -> None:
    english, chinese = (
        json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))
        for locale in LOCALES
    )
    assert english == expected_definitions(pack, inputs)
    assert shape(chinese) == shape(english)
    for node_id, told in chinese.items():
        assert re.search("[\u4e00-\u9fff]", told["description"]), node_id


def test_every_node_has_its_help_in_both_languages(pack: ModuleType) -> None:
    docs = ROOT / "web" / "docs"
    for node_id, node in pack.NODE_CLASS_MAPPINGS.items():
        english = (docs / f"{node_id}.md").read_text("utf-8")
        chinese = (docs / node_id / "zh.md").read_text("utf-8")
        assert english.startswith(f"# {pack.NODE_DISPLAY_NAME_MAPPINGS[node_id]}\n")
        types = node.INPUT_TYPES()
        for name in (*types["required"], *types.get("optional", {}), *node.RETURN_NAMES):
            assert f"`{name}`" in english, f"{node_id}: {name}"
            assert f"`{name}`" in chinese, f"{node_id}: {name}"
    pages = {path.stem for path in docs.glob("*.md")}
    assert pages == set(pack.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_fits_the_nodes(
    path: Path, pack: ModuleType, inputs: dict[str, dict[str, tuple]]
) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    ours = [node for node in workflow["nodes"] if node["type"] in pack.NODE_CLASS_MAPPINGS]
    assert ours
    for node in ours:
        about = pack.NODE_CLASS_MAPPINGS[node["type"]]
        names = []
        for name, entry in inputs[node["type"]].items():
            if is_widget(entry):
                names += [name] + (["control"] if name == "seed" else [])
        assert len(node["widgets_values"]) == len(names), node["type"]
        slots = [(slot["name"], slot["type"]) for slot in node["outputs"]]
        assert slots == list(zip(about.RETURN_NAMES, about.RETURN_TYPES, strict=True))
        for slot in node["inputs"]:
            assert slot["name"] in inputs[node["type"]]
    assert path.with_suffix(".jpg").is_file(), "a thumbnail lies beside it"


def test_each_workflow_is_there_for_the_lab_too() -> None:
    names = {path.stem for path in WORKFLOWS}
    plain = {name for name in names if not name.endswith(" (lab)")}
    assert len(plain) >= 2
    assert names == plain | {f"{name} (lab)" for name in plain}
    for name in plain:
        both = [
            json.loads((ROOT / "example_workflows" / f"{one}.json").read_text("utf-8"))
            for one in (name, f"{name} (lab)")
        ]
        latents = ("EmptyLatentImage", "EmptySD3LatentImage")
        kinds = [
            ["latent" if node["type"] in latents else node["type"] for node in one["nodes"]]
            for one in both
        ]
        assert kinds[0] == kinds[1]
        assert both[0]["links"] == both[1]["links"]


def test_the_registry_finds_what_it_asks_for() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    table = text.split("\n[tool.comfy]\n")[1].split("\n[")[0]
    for name in ("PublisherId", "DisplayName", "Icon", "requires-comfyui"):
        assert re.search(rf'^{name} = ".+"$', table, re.MULTILINE), name
    assert (ROOT / "web" / "icon.svg").read_text("utf-8").startswith("<svg")
    ignored = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    assert {"tests/", "benchmarks/"} <= set(ignored)
