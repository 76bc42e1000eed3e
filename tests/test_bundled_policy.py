"""What the README promises of the bundled policy, on real user inputs of every set."""

import gzip
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from promptadapt_core import modifiers, prompts
from promptadapt_core.adapter import PromptAdapter

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "promptadapt_core" / "policies" / "promptadapt-sd"
PER_SET = 12


@pytest.fixture(scope="module")
def adapter():
    return PromptAdapter.load()


@pytest.fixture(scope="module")
def user_inputs(shared):
    """A few inputs of every evaluation set, evenly from all over it."""
    by_set = defaultdict(list)
    with gzip.open(shared / "data" / "eval_prompts.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            by_set[row["set"]].append(row["prompt"])
    return [text for texts in by_set.values() for text in texts[:: len(texts) // PER_SET]]


@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_real_inputs_keep_their_words_and_every_rule_holds(adapter, user_inputs, mode):
    adaptations = adapter.adapt_all(user_inputs, mode=mode)
    adapted = [found for found in adaptations if found.gate == "adapted"]
    assert len(adapted) > 0.7 * len(user_inputs)
    shares, gains = [], []
    for found in adapted:
        best, plain = found.candidates[0], prompts.parse(found.user_input).plain
        added = modifiers.split_modifiers(best.added)
        shares.append(prompts.kept_share(plain, best.adapted_prompt))
        assert best.num_clip_tokens <= 75
        assert len({modifiers.normal(part) for part in added}) == len(added)
        assert not modifiers.find_artists(best.added, thorough=True)
        if len(plain.split()) <= 12:
            gains.append(len(added) >= 3)
    assert statistics.mean(shares) >= 0.98
    assert statistics.mean(gains) >= 0.95


def test_it_is_small_and_says_where_it_comes_from():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 16 * 1024 * 1024
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for promised in ("## Data", "## Commands", "## Figures", "## Failures seen", "Apache-2.0"):
        assert promised in card


def test_the_example_of_the_readme_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = [text for text in examples if "PromptAdapter" in text]  # not those of a server
    done = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        cwd=ROOT,
        encoding="utf-8",
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("a cat on a roof, ") == 3
