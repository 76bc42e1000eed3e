"""Figures of a policy: faithfulness, rules, diversity, likelihood, the gate, and time.

    python benchmarks/adapt.py --pairs pairs.jsonl --prompts prompts.jsonl.gz \\
        --eval-prompts eval_prompts.jsonl.gz --out figures.json

`pairs` come from `promptadapt_core.data build`; `prompts` are the engineered prompts they were
built from, for the figures of people beside the policy's; `eval-prompts` has rows with the fields
set, domain and prompt. Prints Markdown tables; nothing is trained and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from ngram import NgramModel

from promptadapt_core import gate, modifiers, prompts
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.additions import banned_pattern
from promptadapt_core.clip_tokens import count_clip_tokens

SHORT_WORDS = 12  # a short plain input has at most this many words
BANNED = ("highly detailed", "artstation", "8k", "sharp focus")


def read_rows(file: str) -> list[dict]:
    opener = gzip.open if file.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def table(title: str, rows: list[dict]) -> None:
    """Print rows of the same keys as a Markdown table."""
    keys = list(rows[0])
    print(f"\n### {title}\n")
    print("| " + " | ".join(keys) + " |")
    print("|" + " --- |" * len(keys))
    for row in rows:
        cells = [f"{row[k]:.3f}" if isinstance(row[k], float) else str(row[k]) for k in keys]
        print("| " + " | ".join(cells) + " |", flush=True)


def faithfulness(adapter: PromptAdapter, name: str, user_inputs: list[str], **given) -> dict:
    """One row: what the first candidates keep, and whether every rule holds."""
    adaptations = adapter.adapt_all(user_inputs, **given)
    adapted = [found for found in adaptations if found.gate == "adapted"]
    banned = banned_pattern(given.get("ban", ()))
    kept, broken, gains, lengths, short = [], Counter(), [], [], []
    for found in adapted:
        best, plain = found.candidates[0], prompts.parse(found.user_input).plain
        added = modifiers.split_modifiers(best.added)
        keys = [modifiers.normal(part) for part in added]
        said = {modifiers.normal(part) for part in modifiers.split_modifiers(plain)}
        kept.append(prompts.kept_share(plain, best.adapted_prompt))
        broken["budget"] += best.num_clip_tokens > adapter.settings(**given).token_budget
        broken["banned"] += bool(banned and banned.search(best.added))
        broken["repeated"] += len(set(keys)) < len(keys) or bool(said & set(keys))
        broken["artist"] += bool(modifiers.find_artists(best.added, thorough=True))
        gains.append(len(added))
        lengths.append(best.num_clip_tokens)
        if len(plain.split()) <= SHORT_WORDS:
            short.append(len(added) >= 3)
    return {
        "set": name,
        "inputs": len(user_inputs),
        "left alone": len(adaptations) - len(adapted),
        "content kept": statistics.mean(kept),
        "kept whole": statistics.mean(share == 1.0 for share in kept),
        "over budget": broken["budget"],
        "banned word": broken["banned"],
        "repeated": broken["repeated"],
        "artist": broken["artist"],
        "short gain 3+": statistics.mean(short) if short else float("nan"),
        "added, mean": statistics.mean(gains),
        "CLIP tokens, mean": statistics.mean(lengths),
    }


def gate_row(name: str, texts: list[str]) -> dict:
    """How many prompts the gate leaves alone; over-long ones are counted apart."""
    alone = long = 0
    for text in texts:
        plain = prompts.parse(text).plain
        num_clip_tokens = count_clip_tokens(plain)
        room = gate.has_room(num_clip_tokens, 75)
        long += not room.adapt
        alone += room.adapt and not gate.decide(plain, num_clip_tokens, 75).adapt
    return {
        "prompts": name,
        "number": len(texts),
        "left alone": alone / len(texts),
        "too long for the budget": long / len(texts),
    }


def likelihood(adapter: PromptAdapter, rows: list[dict], order: int = 5) -> list[dict]:
    """NLL per word of the test targets, beside n-grams fitted on the same training pairs."""
    policy = adapter.policy
    test = [row for row in rows if row["split"] == "test" and row["kind"] == "main"]
    train = [row for row in rows if row["split"] == "train"]
    unique = [row for row in train if row["kind"] == "main"]
    results = [
        _likelihood_row(
            adapter.policy.manifest.name,
            policy,
            test,
            lambda ids, start: policy_nll(policy, ids, start),
        )
    ]
    for name, fitted in (("all pairs", train), ("pairs of kind main", unique)):
        model = NgramModel(order, policy.model.config.vocab_size)
        model.fit(_sequence(policy, row)[0] for row in fitted)
        results.append(_likelihood_row(f"Kneser-Ney {order}-gram, {name}", policy, test, model.nll))
    return results


def _sequence(policy, row: dict) -> tuple[list[int], int, int]:
    """(token ids, where the target starts, where what the user did not say starts)."""
    source = policy.encode(policy.policy_prompt(row["user_input"]))
    target = policy.encode(" " + row["target"])
    said = len(policy.encode(" " + row["user_input"]))
    return [*source, *target, policy.eos_id], len(source), len(source) + said


def _likelihood_row(name: str, policy, rows: list[dict], nll) -> dict:
    whole = added = 0.0
    words = added_words = 0
    for row in rows:
        ids, start, added_start = _sequence(policy, row)
        whole += nll(ids, start)
        added += nll(ids, added_start)
        words += len(row["target"].split())
        added_words += len(row["target"].split()) - len(row["user_input"].split())
    return {
        "model": name,
        "test pairs": len(rows),
        "NLL per word": whole / words,
        "NLL per added word": added / added_words,
    }


@torch.inference_mode()
def policy_nll(policy, ids: list[int], start: int) -> float:
    """Nats of ids[start:] under the policy, given all that is before."""
    logits = policy.model(torch.tensor([ids[:-1]])).logits[0, start - 1 :].float()
    picked = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])
    return -picked.sum().item()


def diversity_row(name: str, lists: list[list[str]]) -> dict:
    """Distinct modifiers of many prompts, and the share of prompts with the most frequent one."""
    counts = Counter(key for parts in lists for key in {modifiers.normal(part) for part in parts})
    ((most, times),) = counts.most_common(1)
    return {
        "whose": name,
        "prompts": len(lists),
        "distinct modifiers": len(counts),
        "modifiers a prompt": statistics.mean(map(len, lists)),
        "most frequent": most,
        "its share": times / len(lists),
    }


def diversity(adapter: PromptAdapter, user_inputs: list[str], people: list[str]) -> list[dict]:
    rows = [diversity_row("people", [list(modifiers.trim(text).modifiers) for text in people])]
    for mode in ("beam", "diverse", "sample"):
        adaptations = adapter.adapt_all(user_inputs, mode=mode, gate=False)
        lists = [modifiers.split_modifiers(found.candidates[0].added) for found in adaptations]
        rows.append(diversity_row(f"policy, {mode}", lists))
    return rows


def seconds(code: str, repeats: int = 5) -> float:
    """Median wall time of a fresh Python process that runs `code`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def timing(adapter: PromptAdapter) -> list[dict]:
    """Fresh and warm times; every row of the table is measured in this one run."""
    adapt = "from promptadapt_core.__main__ import main; main(['adapt', 'a cat on a roof'])"
    rows = [
        {"what": "python -c pass", "seconds": seconds("pass")},
        {
            "what": "import promptadapt_core and its text modules",
            "seconds": seconds("import promptadapt_core.settings, promptadapt_core.prompts"),
        },
        {"what": "import torch, transformers", "seconds": seconds("import torch, transformers")},
        {
            "what": "import torch and transformers' GPT-2",
            "seconds": seconds("import torch; from transformers import GPT2LMHeadModel"),
        },
        {"what": "fresh process to the first adapted prompt", "seconds": seconds(adapt)},
    ]
    for mode in ("beam", "diverse", "sample"):
        times = []
        for i in range(20):
            start = time.perf_counter()
            adapter.adapt(f"a cat on a roof with {i + 2} chimneys", mode=mode)
            times.append(time.perf_counter() - start)
        rows.append({"what": f"warm, one input, {mode}", "seconds": statistics.median(times[2:])})
    return rows


def test_sets(rows: list[dict]) -> dict[str, list[str]]:
    """The user inputs of the test split by kind of pair."""
    return {
        f"test split, {kind}": [
            row["user_input"] for row in rows if row["split"] == "test" and row["kind"] == kind
        ]
        for kind in ("main", "rephrased", "subset", "steps")
    }


def eval_sets(rows: list[dict]) -> dict[str, list[str]]:
    """The evaluation inputs by set."""
    by_set = defaultdict(list)
    for row in rows:
        by_set[f"{row['set']} ({row['domain']})"].append(row["prompt"])
    return dict(by_set)


def gate_rows(pairs: list[dict], engineered: list[dict], people: list[str]) -> list[dict]:
    """Plain inputs and engineered prompts of the test split; where the rows carry them, also the
    plain texts of another trimmer (fields main and pair)."""
    test = [row for row in pairs if row["split"] == "test" and row["kind"] == "main"]
    others = [row for row in engineered if row.get("split") == "test" and row.get("pair")]
    texts = {
        "plain inputs of the test split": [row["user_input"] for row in test],
        "their targets": [row["target"] for row in test],
        "their engineered originals": people,
        "plain by another trimmer (field main)": [row["main"] for row in others],
        "their engineered originals (field prompt)": [row["prompt"] for row in others],
    }
    return [gate_row(name, listed) for name, listed in texts.items() if listed]


class Figures:
    """Tables, printed as they come and kept as JSON."""

    def __init__(self, out: str | None):
        self._out = out
        self._tables: dict[str, list[dict]] = {}

    def show(self, title: str, rows: list[dict]) -> None:
        self._tables[title] = rows
        table(title, rows)
        if self._out:
            Path(self._out).write_text(json.dumps(self._tables, indent=1), encoding="utf-8")


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs")
    parser.add_argument("--prompts")
    parser.add_argument("--eval-prompts")
    parser.add_argument("--policy", default="")
    parser.add_argument("--out", help="the same figures as JSON")
    parser.add_argument("--limit", type=int, default=0, help="inputs per set, for a quick look")
    parser.add_argument("--mode", help="of the faithfulness tables [default: the policy's own]")
    return parser.parse_args()


def main() -> None:
    options = options_given()
    adapter = PromptAdapter.load(options.policy)
    figures = Figures(options.out)
    figures.show("Time", timing(adapter))
    sets: dict[str, list[str]] = {}
    if options.pairs:
        pairs = read_rows(options.pairs)
        figures.show("Likelihood of real engineered prompts", likelihood(adapter, pairs))
        sets.update(test_sets(pairs))
    if options.pairs and options.prompts:
        ids = {row["id"] for row in pairs if row["split"] == "test"}
        engineered = read_rows(options.prompts)
        people = [row["prompt"] for row in engineered if row["id"] in ids]
        figures.show("Gate", gate_rows(pairs, engineered, people))
        typed = list(dict.fromkeys(sets["test split, main"] + sets["test split, rephrased"]))
        thousand = random.Random(0).sample(typed, min(1000, len(typed)))
        figures.show("Diversity", diversity(adapter, thousand, people))
    if options.eval_prompts:
        sets.update(eval_sets(read_rows(options.eval_prompts)))
    given = {"mode": options.mode} if options.mode else {}
    for title, extra, most in (
        ("Faithfulness, default settings", {}, None),
        (f"Faithfulness, banned: {', '.join(BANNED)}", {"ban": BANNED}, 200),
    ):
        rows = [
            faithfulness(adapter, name, texts[: options.limit or most], **given, **extra)
            for name, texts in sets.items()
        ]
        if rows:
            figures.show(title, rows)


if __name__ == "__main__":
    main()
