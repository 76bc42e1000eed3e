from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest

from promptadapt_core.quiet_libraries import quiet_libraries

pytest.importorskip("diffusers")


def test_quiet_blocks_of_several_threads_end_in_any_order() -> None:
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    def state() -> list[Any]:
        libraries = (of_diffusers, of_transformers)
        known = [(x.get_verbosity(), x.is_progress_bar_enabled()) for x in libraries]
        return [*known, list(warnings.filters)]

    before = state()
    both_inside, first_is_out = threading.Barrier(2, timeout=20), threading.Event()
    within: list[Any] = []

    def first() -> None:
        with quiet_libraries():
            both_inside.wait()
        first_is_out.set()

    def second() -> None:
        with quiet_libraries():
            both_inside.wait()
            assert first_is_out.wait(20)
            within.append(state())

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert within[0][:2] == [(of_diffusers.FATAL, False), (of_transformers.FATAL, False)]
    assert within[0][2][0][0] == "ignore"
    assert state() == before


def test_quiet_blocks_within_each_other() -> None:
    before = list(warnings.filters)
    with quiet_libraries():
        with pytest.raises(ValueError, match="a bug"), quiet_libraries():
            raise ValueError("a bug")
        assert list(warnings.filters) != before
    assert list(warnings.filters) == before
