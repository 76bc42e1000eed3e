"""The command line: `python -m promptadapt_core adapt "a cat on a roof"`.

Exit code 0, 2 with one sentence on stderr for bad input, 130 when Ctrl-C stopped a run, whose
state is then saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import __version__
from .command_line import (
    Parser,
    interruptible,
    keep_freed_memory,
    run,
    sentence,
    write_utf8,
)
from .demo.outputs import check_texts
from .demo.settings import DemoSettings, known_words
from .settings import AdaptSettings, SettingsError, add_flags, given


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    write_utf8()
    parser = _parser()
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: options.run(options), extra=options.extra)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="promptadapt", description="A plain prompt in, the prompt an image model wants out."
    )
    parser.add_argument("--version", action="version", version=f"promptadapt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adapt = commands.add_parser(
        "adapt",
        help="adapt user inputs",
        epilog="The promptadapt.json of a policy may bring other defaults of its own.",
    )
    adapt.add_argument("text", nargs="*", metavar="TEXT", help="user inputs")
    adapt.add_argument("--file", metavar="FILE", help="user inputs, one a line, UTF-8")
    adapt.add_argument(
        "--policy",
        default="",
        metavar="NAME|FOLDER",
        help="a policy listed by `policies`, or a folder [default: the bundled one]",
    )
    adapt.add_argument(
        "--download",
        action="store_true",
        help="let --policy be fetched from the hub when it is not here",
    )
    adapt.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps [default: cpu]")
    adapt.add_argument("--json", action="store_true", help="one JSON object per input line")
    _add_models_folder(adapt)
    add_flags(adapt, AdaptSettings)
    adapt.set_defaults(run=_adapt, extra="run")
    policies = commands.add_parser("policies", help="list what is found where")
    policies.add_argument("--json", action="store_true", help="one JSON object per policy")
    _add_models_folder(policies)
    policies.set_defaults(run=_policies, extra="run")
    demo = commands.add_parser(
        "demo", help="see what adapting does to pictures, in the lab", epilog=known_words()
    )
    demo.add_argument("text", nargs="*", metavar="TEXT", help="what the pictures show")
    add_flags(demo, DemoSettings)
    demo.set_defaults(run=_demo, extra="train")
    return parser


def _add_models_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-folder", metavar="FOLDER", help="more policies, one per folder")


def _adapt(options: argparse.Namespace) -> None:
    settings = given(AdaptSettings, options)
    AdaptSettings(**settings)  # a bad value is reported before the slow imports
    placed = [("", text) for text in options.text]
    if options.file is not None:
        placed += _lines(options.file)
    if not placed:
        raise SettingsError("user_input", "expected at least one text to adapt, or --file")
    _check(placed, settings.get("keep", ()))
    user_inputs = [user_input for _, user_input in placed]
    from .adapter import PromptAdapter

    adapter = PromptAdapter.load(
        options.policy,
        models_folder=options.models_folder,
        device=options.device,
        download=options.download,
    )
    for batch in _batches(user_inputs, 64):
        for adaptation in adapter.adapt_all(batch, **settings):
            _print(adaptation, options.json)


def _check(placed: list[tuple[str, str]], keep: Sequence[str]) -> None:
    """Every input is looked at before the first is adapted: a bad one never costs the others."""
    from . import prompts

    for place, user_input in placed:
        try:
            prompts.parse(user_input, keep)
        except SettingsError as error:
            name = "file" if place and error.name == "user_input" else error.name
            raise SettingsError(name, place + error.reason) from None


def _print(adaptation, as_json: bool) -> None:
    if as_json:
        print(json.dumps(adaptation.as_json(), ensure_ascii=False), flush=True)
        return
    for candidate in adaptation.candidates:
        print(candidate.adapted_prompt, flush=True)
    if adaptation.gate != "adapted":
        print(adaptation.gate, file=sys.stderr)


def _policies(options: argparse.Namespace) -> None:
    from .policies import find_policies, lab_policies

    if options.models_folder is not None and not os.path.isdir(options.models_folder):
        raise SettingsError("models_folder", f"there is no folder {options.models_folder}")
    for found in find_policies(options.models_folder):
        if options.json:
            print(json.dumps(found.as_json(), ensure_ascii=False))
        else:
            print(
                f"{found.name:24} {found.size_bytes / 1e6:8.1f} MB  {found.folder}\n"
                f"{'':24} {sentence(found.description)}"
            )
    names = lab_policies()
    if names and not options.json:
        print(f"for the lab's pictures only, by --policy NAME: {', '.join(names)}")


def _demo(options: argparse.Namespace) -> int:
    settings = DemoSettings(**given(DemoSettings, options))
    check_texts(options.text)
    from .runs import Progress

    if settings.train:
        return _demo_training(settings, options.text)
    from .demo.showing import show, table

    made = show(settings, options.text, Progress())
    for line in table(made.comparisons):
        print(line)
    print(f"wrote {made.page} and {made.picture}")
    return 0


def _demo_training(settings: DemoSettings, texts: Sequence[str]) -> int:
    from .demo.lessons import table, teach
    from .runs import Progress

    keep_freed_memory()
    with interruptible() as should_stop:
        lesson = teach(settings, texts, Progress, should_stop)
    if lesson.page is None:
        result = lesson.result
        print(
            f"stopped after iteration {result.iteration} of {result.num_iterations} and saved; "
            "the same command goes on",
            file=sys.stderr,
        )
        return 130
    for line in table(lesson):
        print(line)
    print(f"wrote {lesson.page}")
    return 0


def _lines(file: str) -> list[tuple[str, str]]:
    """The non-empty lines of a UTF-8 file, each with its place: ("line 3: ", "a cat")."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError("file", f"{file} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError("file", f"{file:.200} cannot be read ({reason})") from None
    # not splitlines(), which cuts at rarer marks too: U+2028, U+0085, form feeds
    lines = [(f"line {number}: ", line) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(place, line) for place, line in lines if line.strip()]
    if not lines:
        raise SettingsError("file", f"{file} holds no text")
    return lines


def _batches(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


if __name__ == "__main__":
    sys.exit(main())
