from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from promptadapt_core.baselines import Baseline, BaselineCache
from promptadapt_core.settings import MAX_SEED, SettingsError

CAT = ("a cat", 1)
THIRD = Baseline(1 / 3, float(np.float32(0.1)))


def opened(path: Path, renderer: str = "sd", scorer: str = "clip") -> BaselineCache:
    return BaselineCache(path, renderer, scorer)


def files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.jsonl"))


def test_what_is_added_comes_back_exactly(tmp_path: Path) -> None:
    texts = ["a cat", "a\ncat", "кот \u2028 猫", "half \ud83d", "", '"quoted"\\']
    odd = [THIRD, Baseline(5e-324, 0.0), Baseline(-1.7976931348623157e308, 1.0)]
    wanted = {
        (text, seed): odd[(number + seed) % 3]
        for number, text in enumerate(texts)
        for seed in (0, MAX_SEED)
    }
    cache = opened(tmp_path)
    cache.add(wanted)
    again = opened(tmp_path)
    for found in (cache, again):
        assert {pair: found.get(*pair) for pair in wanted} == wanted
    assert len(again) == len(wanted)
    assert again.get("a dog", 1) is None


def test_without_a_folder_it_is_kept_in_memory(tmp_path: Path) -> None:
    cache = BaselineCache(None, "", "")
    cache.add({CAT: THIRD})
    assert cache.get(*CAT) == THIRD
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [("sd2", "clip"), ("sd", "clip2"), ("s", "dclip")])
def test_renderers_and_scorers_are_kept_apart(tmp_path: Path, other: tuple[str, str]) -> None:
    opened(tmp_path).add({CAT: THIRD})
    assert opened(tmp_path, *other).get(*CAT) is None


def test_the_first_score_of_a_pair_stays(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.add({CAT: THIRD})
    second.add({CAT: Baseline(2.0, 0.2)})
    first.add({CAT: Baseline(3.0, 0.3)})
    assert first.get(*CAT) == opened(tmp_path).get(*CAT) == THIRD
    assert second.get(*CAT) == Baseline(2.0, 0.2)


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.add({})
    assert files(tmp_path) == []
    cache.add({CAT: THIRD})
    before = files(tmp_path)[0].read_bytes()
    cache.add({CAT: THIRD})
    assert files(tmp_path)[0].read_bytes() == before


def test_a_file_cut_at_any_byte_keeps_whole_calls(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    calls = [[("a", 1), ("a", 2)], [("b", 1), ("b", 2), ("c", 1)]]
    for pairs in calls:
        cache.add(dict.fromkeys(pairs, THIRD))
    file = files(tmp_path)[0]
    whole = file.read_bytes()
    sizes = set()
    for end in range(len(whole) + 1):
        file.write_bytes(whole[:end])
        found = opened(tmp_path)
        sizes.add(len(found))
        for pairs in calls:
            assert len({found.get(*pair) for pair in pairs}) == 1
    assert sizes == {0, 2, 5}


def test_after_a_cut_off_file_new_scores_are_kept(tmp_path: Path) -> None:
    opened(tmp_path).add({CAT: THIRD})
    file = files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-5])
    cache = opened(tmp_path)
    cache.add({CAT: Baseline(2.0, 0.2)})
    assert opened(tmp_path).get(*CAT) == Baseline(2.0, 0.2)


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "[]", "7", "{}", '{"rows": 3}', '{"rows": [["a cat", 1]]}', "\x00\xff",
        '{"rows": [["a cat", 1, NaN, 0.5]]}', '{"rows": [["a cat", 1, "5", 0.5]]}',
        '{"rows": [["a cat", 1.0, 5.0, 0.5]]}', '{"rows": [["a cat", true, 5.0, 0.5]]}',
        '{"rows": [[7, 1, 5.0, 0.5]]}', '{"rows": [["a cat", -1, 5.0, 0.5]]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_passed_over(tmp_path: Path, line: str) -> None:
    cache = opened(tmp_path)
    good = json.dumps({"rows": [["a dog", 2, 4.5, 0.25]]})
    (cache.folder / "0.jsonl").write_text(f"{line}\n{good}\n", encoding="utf-8")
    found = opened(tmp_path)
    assert len(found) == 1
    assert found.get("a dog", 2) == Baseline(4.5, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused_whole(tmp_path: Path, bad: float) -> None:
    cache = opened(tmp_path)
    with pytest.raises(SettingsError, match="'a dog' with seed 2 has a score that is not finite"):
        cache.add({CAT: THIRD, ("a dog", 2): Baseline(5.0, bad)})
    assert len(cache) == len(opened(tmp_path)) == 0


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"baselines: .*file.* cannot be used \("):
        opened(tmp_path / "file")
    with pytest.raises(SettingsError, match=r"baselines: .* cannot be used \("):
        opened(tmp_path / ("long" * 100))


@pytest.mark.parametrize("identities", [("", "clip"), ("sd", "")])
def test_an_identity_is_needed_on_disk(tmp_path: Path, identities: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="baselines: the (renderer|scorer) has no identity"):
        BaselineCache(tmp_path, *identities)


def test_a_disk_that_refuses_is_told_and_the_next_file_is_whole(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.add({CAT: THIRD})
    file = files(tmp_path)[0]
    file.unlink()
    file.mkdir()  # what cannot be appended to, for root too
    with pytest.raises(SettingsError, match=r"baselines: .*\.jsonl cannot be written \("):
        cache.add({("a dog", 1): THIRD})
    file.rmdir()
    assert cache.get("a dog", 1) is None
    cache.add({("a dog", 1): THIRD})
    assert opened(tmp_path).get("a dog", 1) == THIRD


def add_many(path: Path, name: str) -> None:
    cache = opened(path)
    for number in range(30):
        cache.add({(name, number): THIRD, ("both", number): THIRD})


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_many, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(opened(tmp_path)) == 4 * 30


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on Windows")
def test_what_was_added_survives_kill_9(tmp_path: Path) -> None:
    program = """
        import itertools, sys
        from promptadapt_core.baselines import Baseline, BaselineCache
        cache = BaselineCache(sys.argv[1], "sd", "clip")
        for number in itertools.count():
            pairs = [(f"{'a cat ' * 2000}{number}", seed) for seed in (1, 2)]
            cache.add({pair: Baseline(float(number), 0.5) for pair in pairs})
            print(number, flush=True)
    """
    told = 0
    for wait in (1, 7, 13):
        folder = tmp_path / str(wait)
        command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            for _ in range(wait):
                told = int(process.stdout.readline())
            process.kill()
        found = opened(folder)
        assert len(found) % 2 == 0
        for number in range(told + 1):
            for seed in (1, 2):
                text = f"{'a cat ' * 2000}{number}"
                assert found.get(text, seed) == Baseline(float(number), 0.5)
