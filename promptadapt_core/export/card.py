"""The model card of an export, written from its run: README.md in the format of the hub."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex

from .. import page
from ..lora import LoraBase
from ..manifest import Manifest
from ..runs import duration
from .command import shown_name, train_command
from .evaluation_table import code, table_row
from .finished import Run
from .settings import NO_LICENCE, ExportSettings

CARD_NAME, CURVES_NAME = "README.md", "curves.png"
METHODS = {
    "sft": "supervised fine-tuning on pairs of a plain and an engineered prompt",
    "ppo": "reinforcement learning (PPO) from rendered pictures",
    "grpo": "reinforcement learning (GRPO) from rendered pictures",
    "rloo": "reinforcement learning (RLOO) from rendered pictures",
    "rejection": "fine-tuning on the best of its own prompts, by their pictures",
    "dpo": "preferences between prompts (DPO)",
}
# What a reader looks at first: (metric, what it is).
LEVELS = {
    "sft": (("train/loss", "training loss, nats a token"),
            ("valid/loss", "validation loss, nats a token"),
            ("valid/nll_per_word_added", "validation, nats an added word")),
    "ppo": (("rollout/reward", "mean reward"), ("kl/ref_kl", "KL to the start, nats a completion"),
            ("rollout/num_tokens", "tokens of a completion"),
            ("rollout/distinct_share", "share of different prompts")),
    "rounds": (("mined/reward", "mean reward"), ("mined/plain_reward", "of the plain user inputs"),
               ("mined/best_reward", "of each user input's best"),
               ("mined/num_tokens", "tokens of a completion"),
               ("mined/distinct_share", "share of different prompts")),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card is made of. table: of an evaluation, Markdown. base: of LoRA matrices."""

    run: Run
    settings: ExportSettings
    manifest: Manifest
    checkpoint: str
    num_parameters: int
    has_curves: bool
    table: str = ""
    base: LoraBase | None = None

    def text(self) -> str:
        parts = [
            self._front_matter(),
            f"# {self.manifest.name}",
            self._about(),
            self._use(),
            self._data(),
            self._training(),
            self._results(),
        ]
        if self.table:
            parts.append(f"## Evaluation\n\n{self.table}")
        if self.settings.samples:
            parts.append(self._samples())
        parts += [self._limits(), self._versions()]
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        """YAML; JSON texts are YAML texts too."""
        settings = self.settings
        lines = ["---"]
        if settings.licence != NO_LICENCE:
            lines.append(f"license: {json.dumps(settings.licence)}")
        lines += ["language:", *(f"- {json.dumps(code)}" for code in settings.language or ("en",))]
        lines.append(f"library_name: {'peft' if self.base else 'transformers'}")
        lines.append("pipeline_tag: text-generation")
        if settings.base_model:
            lines.append(f"base_model: {json.dumps(settings.base_model)}")
            kind = "adapter" if self.base else "finetune"
            lines.append(f"base_model_relation: {kind}")
        tags = dict.fromkeys(
            ["promptadapt", "prompt-adaptation", "text-to-image", self.run.method, *settings.tag]
        )
        lines += ["tags:", *(f"- {json.dumps(tag, ensure_ascii=False)}" for tag in tags), "---"]
        return "\n".join(lines)

    def _about(self) -> str:
        settings, run = self.settings, self.run
        first = settings.summary.strip() or (
            "A policy for [promptadapt](https://github.com/promptadapt/promptadapt): it turns what "
            "a person types into the prompt that an image model wants."
        )
        start = run.start
        begun = "nothing" if start == "scratch" else code(shown_name(start))
        size = f"{self.num_parameters / 1e6:,.1f} million parameters"
        rows = [
            ("trained by", METHODS.get(run.method, run.method)),
            ("from", begun),
            ("how far", f"{run.how_far()}; these are the weights of `{self.checkpoint}`"),
            ("size", size),
            ("reads", code(self.manifest.template)),
            ("licence", settings.licence if settings.licence != NO_LICENCE else "none given"),
        ]
        if self.base:
            name, identity = self.base
            told = (
                f"LoRA matrices of {code(name)} (weights {identity}), which is needed beside them"
            )
            rows.insert(3, ("file", told))
        table = "\n".join([table_row(["", ""]), table_row(["---", "---"]), *map(table_row, rows)])
        return f"{first}\n\n{table}"

    def _use(self) -> str:
        name = self.manifest.name
        beside = ""
        if self.base:
            beside = (
                f" {code(self.base.name)} has to be there too, if promptadapt does not bring it."
            )
        return (
            "## Use\n\n"
            f"Put this folder into {code(f'models/promptadapt/{name}')} of ComfyUI, Automatic1111 "
            f"or Forge: the nodes and scripts of promptadapt list it as {code(name)}.{beside} On "
            "the command line:\n\n"
            f"    python -m promptadapt_core adapt --policy {shlex.quote(name)} "
            '--models-folder FOLDER "a cat"'
            "\n\nwhere `FOLDER` is the one that this folder lies in."
        )

    def _data(self) -> str:
        lines = []
        for data in self.run.data():
            number = f", {data.number:,} different lines" if data.number else ""
            lines.append(f"- {data.what}: {code(data.name)}{number}, SHA-256 {code(data.sha256)}")
        policy = self.run.config["data"].get("policy") or self.run.config["data"].get("base")
        if policy:
            lines.append(f"- the policy it began with: files of SHA-256 `{policy}...`")
        text = "\n".join(lines) or "Nothing is known of it any more."
        shown = "Some of their texts stand under Samples." if self.settings.samples else ""
        shown = shown or "None of their texts is in this folder."
        return f"## Data\n\n{text}\n\n{shown}"

    def _training(self) -> str:
        command = train_command(self.run)
        fence = "```"
        while fence in command:
            fence += "`"
        parts = ["## Training", f"{fence}\n{command}\n{fence}"]
        parts.append(
            "Folders are left out of the command, and defaults, which are the version's below."
        )
        renderer = self.run.config.get("reward", {}).get("renderer", {})
        if renderer:
            size = f"{renderer['size']} pixels" if renderer.get("size") else "the model's own size"
            parts.append(
                f"Pictures: {size}, {renderer.get('num_steps')} steps, guidance "
                f"{renderer.get('guidance_scale')}. Rewards depend on renderer and scorer."
            )
        hours = self.run.last("time/hours")
        machine = self.run.config.get("machine", {})
        if math.isfinite(hours):
            told = ", ".join(f"{name} {value}" for name, value in machine.items())
            parts.append(f"It took {duration(3600 * hours)} ({told}).")
        return "\n\n".join(parts)

    def _results(self) -> str:
        run = self.run
        names = LEVELS.get(run.trainer, LEVELS["rounds"])
        judged = [(name, name) for name in (run.rows[-1] if run.rows else {}) if "judge/" in name]
        rows = [
            table_row([what, *map(page.number, levels)])
            for metric, what in (*names, *judged)
            if all(map(math.isfinite, levels := run.levels(metric)))
        ]
        parts = ["## Curves"]
        if self.has_curves:
            parts.append(f"![how the chief metrics went]({CURVES_NAME})")
        if rows:
            heads = [table_row(["", "at the start", "at the end"]), table_row(["---"] * 3)]
            parts.append("\n".join([*heads, *rows]))
        if run.alarms:
            told = ", ".join(f"{code(name)} {n} times" for name, n in sorted(run.alarms.items()))
            parts.append(f"Alarms: {told}.")
        elif run.trainer == "ppo":
            parts.append("No alarms.")
        if len(parts) == 1:
            parts.append("The run has written no metrics.")
        return "\n\n".join(parts)

    def _samples(self) -> str:
        found = self.run.samples(self.settings.samples)
        lines = [table_row(["user input", "adapted prompt"]), table_row(["---", "---"])]
        lines += [table_row([_escaped(text) for text in pair]) for pair in found]
        about = "The newest that the run wrote down, as they came."
        return "\n".join(["## Samples", "", about, "", *lines])

    def _limits(self) -> str:
        lines = [
            "Meant for adapting prompts of text-to-image models, by promptadapt: its rules keep "
            "what the user typed, take out names of artists and what was banned, and hold the "
            "length. The weights alone promise none of that.",
        ]
        if self.run.trainer in ("ppo", "rejection") or self.run.config.get("reward"):
            renderer = code(shown_name(str(self.run.settings.get("renderer", ""))))
            lines.append(
                f"It learned to please one scorer with pictures of one model ({renderer}). What "
                "that scorer likes is not what everybody likes, and other image models may answer "
                "its words otherwise."
            )
        lines += [
            "It writes what its data made likely, and repeats what it was paid for.",
            "It was not tested for anything that this card does not show.",
        ]
        return "## Intended use and limits\n\n" + "\n".join(f"- {line}" for line in lines)

    def _versions(self) -> str:
        versions = self.run.config.get("versions", {})
        told = ", ".join(f"{name} {value}" for name, value in versions.items())
        return f"## Versions\n\n{told or 'not known'}"


def _escaped(text: str) -> str:
    """As text in Markdown: no markup, whatever somebody typed."""
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>#!~" else char for char in text)


def description(run: Run) -> str:
    """One line for the lists of the hosts."""
    start = "scratch" if run.start == "scratch" else shown_name(run.start)
    return f"{run.method} from {start}, {run.how_far()}"
