"""Layers point down, and the core keeps out of its host's way. Read by ast, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "promptadapt_core"

# A module imports only those before it. A package (data, train) is one layer.
ORDER = [
    "settings",
    "pipeline_settings",
    "reward_settings",
    "command_line",
    "patterns",
    "moving",
    "syntax",
    "restoration",
    "prompts",
    "asking",
    "cleaning",
    "lexicon",
    "artists",
    "explicit",
    "modifiers",
    "mediums",
    "clip_tokens",
    "gate",
    "additions",
    "alarms",
    "manifest",
    "lora",
    "policies",
    "model_folders",
    "job_settings",
    "controls",
    "infotext",
    "jobs",
    "tokenizing",
    "checkpoints",
    "devices",
    "plain_gpt2",
    "policy",
    "packed_weights",
    "forward_gpt2",
    "forward_any",
    "hypotheses",
    "sampling",
    "beams",
    "decoding",
    "adapter",
    "data",
    "runs",
    "process_group",
    "intervals",
    "page",
    "pixels",
    "contact_sheet",
    "pipeline_files",
    "quiet_libraries",
    "single_files",
    "image_samplers",
    "pipeline_additions",
    "pipeline_loading",
    "images",
    "render_memory",
    "picture_memory",
    "aesthetic_heads",
    "old_open_clip",
    "open_clip_weights",
    "scorers",
    "image_reward",
    "preference_scorers",
    "scorer_folders",
    "picture_rewards",
    "loaded_models",
    "preview",
    "keep_best",
    "http_requests",
    "lab",
    "judging",
    "baselines",
    "picture_scores",
    "rewards",
    "objectives",
    "rollouts",
    "train",
    "refine",
    "evaluate",
    "demo",
    "export",
    "__main__",
]
TEXT_LAYERS = {*ORDER[: ORDER.index("tokenizing")], "data"}
# These may import heavy things inside a function.
LATE_IN_TEXT_LAYERS = {"clip_tokens", "data", "lora"}
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "diffusers"}
HEAVY_LAYERS = {*ORDER[ORDER.index("tokenizing") :]} - {"data", "__main__"}
HEAVY_MODULES = {f"promptadapt_core.{name}" for name in (*HEAVY_LAYERS, "data.instruction")}
HOSTS = {"modules", "comfy", "comfy_api", "folder_paths", "nodes", "gradio", "scripts"}
UNSAFE_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "os.fork", "os.symlink"}
SEEDING_CALLS = {"torch.seed", "random.seed", "np.random.seed", "numpy.random.seed"}
SEEDING_NAMES = {"set_seed", "seed_everything"}


def core_files() -> list[tuple[str, ast.Module]]:
    """(path below promptadapt_core with forward slashes, its syntax tree), sorted."""
    texts = {file.relative_to(CORE): file.read_text("utf-8") for file in sorted(CORE.rglob("*.py"))}
    return [(path.as_posix(), ast.parse(text)) for path, text in texts.items()]


def layer(path: str) -> str:
    """The layer of a file: "data/pairs.py" -> "data", "policy.py" -> "policy"."""
    return path.split("/")[0].removesuffix(".py")


def nodes(tree: ast.AST, late: bool = True) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`; without `late`, not inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from nodes(node, late)


def imports(path: str, tree: ast.AST, late: bool = True) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of what a file imports, names in `from` included."""
    parents = ["promptadapt_core", *path.split("/")[:-1]]
    for node in nodes(tree, late):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            kept = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*kept, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def imported_layer(name: str) -> str:
    """ "gate" of "promptadapt_core.gate.decide"; "" of what is not the core's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "promptadapt_core" and len(parts) > 1 else ""


def dotted(node: ast.AST) -> str:
    """ "torch.random.manual_seed" of such an expression; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            yield node, name


def upward_imports(path: str, tree: ast.Module) -> Iterator[str]:
    place = {name: number for number, name in enumerate(["__init__", *ORDER])}
    for line, name in imports(path, tree):
        other = imported_layer(name)
        if other in place and place[other] > place.get(layer(path), len(ORDER)):
            yield f"{path}:{line} imports {name}, which is above it"


def absolute_imports(path: str, tree: ast.Module) -> Iterator[str]:
    """A host that loads the project as a package of its own knows the core by another name."""
    for node in nodes(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] == "promptadapt_core":
                yield f"{path}:{node.lineno} imports {name} by its absolute name"


def host_imports(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        if name.split(".")[0] in HOSTS:
            yield f"{path}:{line} imports {name} of a host"


def heavy_text_imports(path: str, tree: ast.Module) -> Iterator[str]:
    module = "promptadapt_core." + path.removesuffix(".py").replace("/", ".")
    if layer(path) not in TEXT_LAYERS or module in HEAVY_MODULES:
        return
    for line, name in imports(path, tree, late=layer(path) not in LATE_IN_TEXT_LAYERS):
        heavy = any(f"{name}.".startswith(f"{module}.") for module in HEAVY_MODULES)
        if heavy or name.split(".")[0] in HEAVY:
            yield f"{path}:{line} imports {name} in a text module"


def unsafe_code(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        if name.split(".")[0] in UNSAFE_IMPORTS:
            yield f"{path}:{line} imports {name}"
    for call, name in calls(tree):
        if name in UNSAFE_CALLS:
            yield f"{path}:{call.lineno} calls {name}"
        safe = any(
            word.arg == "weights_only" and getattr(word.value, "value", None) is True
            for word in call.keywords
        )
        if name == "torch.load" and not safe:
            yield f"{path}:{call.lineno} calls torch.load without weights_only=True"


def global_seeding(path: str, tree: ast.Module) -> Iterator[str]:
    """Seeding or drawing from a generator that the host's images come from too."""
    if layer(path) == "train":
        return
    for line, name in imports(path, tree):
        if name.startswith("random.") and name not in {"random.Random", "random.SystemRandom"}:
            yield f"{path}:{line} imports {name} of the global generator"
    python_random = any(name == "random" for _, name in imports(path, tree))
    for call, name in calls(tree):
        first, last = name.split(".")[0], name.split(".")[-1]
        seeds = name in SEEDING_CALLS or last in SEEDING_NAMES
        seeds = seeds or (first == "torch" and last.startswith("manual_seed"))
        draws = python_random and first == "random" and last not in {"Random", "SystemRandom"}
        if seeds or draws:
            yield f"{path}:{call.lineno} calls {name} on the global generator"


Rule = Callable[[str, ast.Module], Iterator[str]]
RULES = [
    upward_imports,
    absolute_imports,
    host_imports,
    heavy_text_imports,
    unsafe_code,
    global_seeding,
]


def test_every_module_has_its_place() -> None:
    unplaced = {layer(path) for path, _ in core_files()} - {"__init__", *ORDER}
    assert not unplaced, f"give each new module its place in ORDER: {sorted(unplaced)}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_core_keeps_the_rule(rule: Rule) -> None:
    offences = [offence for path, tree in core_files() for offence in rule(path, tree)]
    assert not offences, "\n".join(offences)


OFFENCES = [
    (upward_imports, "prompts.py", "from promptadapt_core import policy"),
    (upward_imports, "prompts.py", "from promptadapt_core.adapter import PromptAdapter"),
    (upward_imports, "data/pairs.py", "def build():\n    from ..train.sft import train"),
    (upward_imports, "settings.py", "import promptadapt_core.gate"),
    (upward_imports, "__init__.py", "from . import settings"),
    (absolute_imports, "decoding.py", "from promptadapt_core.beams import BeamSearch"),
    (absolute_imports, "data/pairs.py", "def load():\n    import promptadapt_core.prompts"),
    (host_imports, "adapter.py", "import comfy.utils"),
    (host_imports, "adapter.py", "def load():\n    from modules import shared"),
    (heavy_text_imports, "gate.py", "def decide():\n    import numpy"),
    (heavy_text_imports, "data/pairs.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
    (heavy_text_imports, "clip_tokens.py", "from tokenizers import Tokenizer"),
    (heavy_text_imports, "data/pairs.py", "from ..policy import Policy"),
    (heavy_text_imports, "data/build.py", "from .instruction import Rephraser"),
    (unsafe_code, "policy.py", "import pickle"),
    (unsafe_code, "policy.py", "eval('1')"),
    (unsafe_code, "policy.py", "torch.load('x.bin')"),
    (unsafe_code, "policy.py", "torch.load('x.bin', weights_only=False)"),
    (global_seeding, "decoding.py", "torch.manual_seed(1)"),
    (global_seeding, "decoding.py", "torch.cuda.manual_seed_all(1)"),
    (global_seeding, "decoding.py", "np.random.seed(1)"),
    (global_seeding, "decoding.py", "transformers.set_seed(1)"),
    (global_seeding, "data/pairs.py", "import random\nrandom.shuffle(rows)"),
    (global_seeding, "data/pairs.py", "from random import shuffle"),
]

ALLOWED = [
    (upward_imports, "adapter.py", "from promptadapt_core.settings import SettingsError"),
    (upward_imports, "data/pairs.py", "from . import targets\nfrom .. import prompts, __version__"),
    (upward_imports, "settings.py", "if TYPE_CHECKING:\n    from promptadapt_core import policy"),
    (absolute_imports, "data/pairs.py", "from .. import prompts\nfrom .targets import trim"),
    (heavy_text_imports, "data/rephrase.py", "def load():\n    import torch"),
    (heavy_text_imports, "data/build.py", "def load():\n    from .instruction import Rephraser"),
    (heavy_text_imports, "data/instruction.py", "import torch"),
    (heavy_text_imports, "policy.py", "import torch"),
    (unsafe_code, "policy.py", "model.eval()\ntorch.load('x.bin', weights_only=True)"),
    (global_seeding, "decoding.py", "torch.Generator().manual_seed(1)\ngenerator.manual_seed(1)"),
    (global_seeding, "data/pairs.py", "import random\nrandom.Random(1).shuffle(rows)"),
    (global_seeding, "train/sft.py", "torch.manual_seed(1)"),
]


@pytest.mark.parametrize(("rule", "path", "source"), OFFENCES)
def test_the_rule_names_the_offence(rule: Rule, path: str, source: str) -> None:
    offences = list(rule(path, ast.parse(source)))
    assert len(offences) == 1
    assert offences[0].startswith(f"{path}:")


@pytest.mark.parametrize(("rule", "path", "source"), ALLOWED)
def test_the_rule_lets_the_rest_be(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source))) == []
