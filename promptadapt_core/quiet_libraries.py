"""Silence of diffusers and transformers while they work for us."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator


class _Quiet:
    """How many blocks of `quiet_libraries` are open, in all threads: what they silence is the
    process's, so that the first silences it and the last puts it back."""

    def __init__(self) -> None:
        self.lock, self.depth, self.undo = threading.Lock(), 0, contextlib.ExitStack()

    def enter(self) -> None:
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        with self.lock:
            if not self.depth:
                with contextlib.ExitStack() as undo:
                    for library in (of_diffusers, of_transformers):
                        undo.callback(library.set_verbosity, library.get_verbosity())
                        if library.is_progress_bar_enabled():
                            undo.callback(library.enable_progress_bar)
                        library.set_verbosity(library.FATAL)  # errors are raised besides
                        library.disable_progress_bar()
                    undo.enter_context(warnings.catch_warnings())
                    warnings.simplefilter("ignore")
                    self.undo = undo.pop_all()
            self.depth += 1

    def leave(self) -> None:
        with self.lock:
            self.depth -= 1
            if not self.depth:
                self.undo.close()


_QUIET = _Quiet()


@contextlib.contextmanager
def quiet_root() -> Iterator[None]:
    """open_clip logs to the root logger, to which Python then adds a handler where it has none:
    from then on all of a host's logging would be printed twice. Here it is taken off again."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [] if before else list(root.handlers):
            if type(handler) is logging.StreamHandler:
                root.removeHandler(handler)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings and no progress bars of diffusers and transformers inside the block."""
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()
