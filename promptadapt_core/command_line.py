"""What the command lines share: one sentence for bad input, exit codes, UTF-8 everywhere."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from .settings import SettingsError

MAX_SENTENCE = 400  # characters of an error; what a user typed may be a megabyte


class Parser(argparse.ArgumentParser):
    """Bad usage is one sentence and exit code 2, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {sentence(message)} (see --help)\n")


def sentence(text: str) -> str:
    """On one line, and no longer than one reads."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_SENTENCE else text[:MAX_SENTENCE] + "..."


def write_utf8() -> None:
    """Windows pipes default to a code page; what people type may be in any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def run(program: str, work: Callable[[], int | None], extra: str = "run") -> int:
    """The exit code of `work`: its own, 0 for None, 2 for bad input with one sentence on stderr,
    130 for Ctrl-C. `extra` names the pip extra that brings a missing module."""
    try:
        code = work() or 0
        if sys.stdout is not None:  # a process may be started without one
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough: `| head`
        _write_to_nowhere()
        return 0
    except SettingsError as error:
        return _refused(program, f"{_typed(error.name)}: {error.reason}")
    except ModuleNotFoundError as error:
        return _refused(program, f'{error}; install it with pip install "promptadapt[{extra}]"')
    except OSError as error:  # a full disk under stdout
        _write_to_nowhere()
        return _refused(program, str(error))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def interruptible(tells: bool = True) -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside the block: the first makes the function that it gives say True, so that a run
    saves and stops; the second breaks off at once. tells: say so on stderr."""
    asked = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if tells:
            print("\nstopping after this step; Ctrl-C again breaks off at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors, where the C library is glibc.

    By default each large tensor is fresh memory that the kernel has to clear, which costs a CPU
    training step up to a fifth of its time. Figures of mallopt's arguments: malloc.h.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return  # another system, another allocator


def _typed(name: str) -> str:
    """A setting's name as the user typed it."""
    return {"user_input": "TEXT", "run": "RUN"}.get(name) or f"--{name.replace('_', '-')}"


def _refused(program: str, reason: str) -> int:
    print(f"{program}: {sentence(reason)}", file=sys.stderr)
    return 2


def _write_to_nowhere() -> None:
    """What is still buffered must not fail once more when Python ends."""
    # a stdout that is none or no file has nothing buffered that could fail
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
