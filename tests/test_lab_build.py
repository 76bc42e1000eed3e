from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from promptadapt_core import runs
from promptadapt_core.lab import bench, bundle, galleries, report
from promptadapt_core.lab import build as building
from promptadapt_core.lab.build import WORKS, build, planned
from promptadapt_core.lab.folders import CACHE_VARIABLE, WEIGHTS
from promptadapt_core.lab.progress import BuildProgress, Work
from promptadapt_core.lab.settings import PARTS, LabSettings, ReportSettings
from promptadapt_core.lab.works import num_valid
from promptadapt_core.settings import SettingsError

TINY: dict[str, Any] = {
    "device": "cpu", "num_pictures": 160, "num_judge_pictures": 64, "num_vae_steps": 2,
    "num_vae_decoder_steps": 2, "num_vae_encoder_steps": 2, "vae_batch_size": 2,
    "num_renderer_layers": 2, "num_renderer_steps": 3, "renderer_batch_size": 2,
    "num_clip_steps": 2, "clip_batch_size": 4, "num_aesthetic_steps": 3,
    "aesthetic_batch_size": 8, "num_judge_steps": 2, "judge_batch_size": 4,
    "num_calibration_pictures": 3,
}  # fmt: skip


def tiny(out: Path, **changes: Any) -> LabSettings:
    return LabSettings(**{**TINY, "out": str(out), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its name in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Watcher(runs.Silent):
    """Remembers what a build says and does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.planned: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def plan(self, works: list[Work]) -> None:
        self.planned = [work.name for work in works]

    def begin(self, name: str) -> None:
        self.begun.append(name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny lab, built in one go."""
    out = tmp_path_factory.mktemp("built") / "lab"
    watcher = Watcher()
    assert build(tiny(out), report=watcher) is None
    assert watcher.begun == watcher.planned
    assert watcher.begun == list(dict.fromkeys(name for part in PARTS for name in WORKS[part]))
    return out


def test_a_build_that_is_stopped_at_every_step_ends_with_the_same_weights(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lab"
    stopped_in = []
    while (name := build(tiny(out), should_stop=lambda: True)) is not None:
        stopped_in.append(name)
        assert len(stopped_in) < 20
    assert set(stopped_in) >= {"vae", "vae-decoder", "vae-encoder", "renderer", "clip", "judge"}
    assert contents(out / "weights") == contents(built / "weights")


def test_another_seed_gives_other_weights_of_the_same_layout(built: Path, tmp_path: Path) -> None:
    assert build(tiny(tmp_path, seed=5, part="judge")) is None
    other = contents(tmp_path / "judge" / "weights")
    same = contents(built / "judge" / "weights")
    assert other.keys() == same.keys()
    assert other != same


def test_the_weights_have_the_layout_of_the_bundled_ones(built: Path) -> None:
    found = contents(built / "weights")
    assert {name.split("/")[0] for name in found} == {"transformer", "vae", "scorer", "judge"}
    assert {"scorer/scorer.json", "judge/judge.safetensors", "vae/config.json"} <= found.keys()
    if not WEIGHTS.is_dir():
        pytest.skip("no weights are bundled yet")
    bundled = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*.safetensors")}
    assert {name for name in found if name.endswith(".safetensors")} == bundled


def test_a_finished_build_is_left_alone(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (built / "weights").rglob("*")}
    watcher = Watcher()
    assert build(tiny(built), report=watcher) is None
    assert watcher.begun == []
    assert watcher.lines == [f"all parts are built: {built / 'weights'}"]
    assert {path: path.stat().st_mtime_ns for path in (built / "weights").rglob("*")} == before


def test_weights_that_are_lost_are_put_together_again(built: Path) -> None:
    before = contents(built / "weights")
    (built / "weights").rename(built / "weights.old")  # as a kill between two renames leaves it
    assert build(tiny(built)) is None
    assert contents(built / "weights") == before
    (built / "weights.json").unlink()
    assert build(tiny(built)) is None
    assert contents(built / "weights") == before


@pytest.mark.parametrize("name", ["judge/weights/judge.safetensors", "weights/vae/config.json"])
@pytest.mark.parametrize("cut", [True, False])
def test_files_that_are_lost_are_written_again(built: Path, name: str, cut: bool) -> None:
    before = contents(built / "weights"), contents(built / "judge" / "weights")
    if cut:
        (built / name).write_bytes(b"")
    else:
        (built / name).unlink()
    assert build(tiny(built)) is None
    assert (contents(built / "weights"), contents(built / "judge" / "weights")) == before


def test_a_killed_calibration_leaves_nothing(built: Path) -> None:
    script = "\n".join(
        (
            "import os, sys; from pathlib import Path; import torch",
            "from promptadapt_core.lab import bundle; from promptadapt_core.lab.build import WORKS",
            "bundle.calibrate_relevance = lambda *given: os._exit(9)",
            "built = Path(sys.argv[1])",
            "parts = {part: built / works[-1] / 'weights' for part, works in WORKS.items()}",
            "bundle.write_bundle(built / 'weights', parts, 2, 0, torch.device('cpu'))",
        )
    )
    names, before = {path.name for path in built.iterdir()}, contents(built / "weights")
    options: dict[str, Any] = {"cwd": Path(__file__).parents[1], "check": False}
    run = subprocess.run([sys.executable, "-c", script, str(built)], **options)
    assert run.returncode == 9
    assert {path.name for path in built.iterdir()} == names | {"weights.new"}
    assert build(tiny(built)) is None
    assert {path.name for path in built.iterdir()} == names
    assert contents(built / "weights") == before


def test_an_untrained_clip_is_said_and_not_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_calibrate", lambda *_: (0.1, 60.0))
    parts = {part: built / WORKS[part][-1] / "weights" for part in PARTS}
    watcher = Watcher()
    bundle.write_bundle(tmp_path / "weights", parts, 2, 0, torch.device("cpu"), watcher)
    assert watcher.lines == ["CLIP hardly tells user inputs apart: relevance will mean little"]
    found = json.loads((tmp_path / "weights" / "scorer" / "scorer.json").read_text("utf-8"))
    assert (found["relevance_knee"], found["relevance_slope"]) == (0.1, 60.0)


def test_one_part_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="renderer needs vae, .*--part vae first") as caught:
        build(tiny(tmp_path, part="renderer"))
    assert caught.value.name == "part"
    with pytest.raises(SettingsError, match="aesthetic needs clip"):
        build(tiny(tmp_path, part="aesthetic"))


def test_one_part_is_built_alone(tmp_path: Path) -> None:
    watcher = Watcher()
    assert build(tiny(tmp_path, part="judge"), report=watcher) is None
    assert watcher.begun == ["judge-pictures", "judge"]
    assert watcher.lines[-1] == "still to build: vae, renderer, clip, aesthetic"
    assert not (tmp_path / "weights").exists()


def test_a_folder_of_another_build_is_refused(tmp_path: Path) -> None:
    building.open_folder(tiny(tmp_path))
    building.open_folder(tiny(tmp_path, part="vae", save_every_seconds=1.0, device="auto"))
    with pytest.raises(SettingsError, match="was begun with --num-pictures 160, not 200"):
        building.open_folder(tiny(tmp_path, num_pictures=200))
    (tmp_path / "build.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(SettingsError, match="build.json cannot be read"):
        building.open_folder(tiny(tmp_path))


def test_a_folder_of_another_world_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building.open_folder(tiny(tmp_path))
    before = (tmp_path / "build.json").read_bytes()
    with monkeypatch.context() as changed:
        changed.setattr(building, "world_fingerprint", lambda: "another")
        with pytest.raises(
            SettingsError, match="a build of another version of the lab's"
        ) as caught:
            building.open_folder(tiny(tmp_path))
    assert caught.value.name == "out"
    building.open_folder(tiny(tmp_path))
    assert (tmp_path / "build.json").read_bytes() == before
    (tmp_path / "build.json").write_text('{"seed": 0}', encoding="utf-8")  # of before there was one
    with pytest.raises(SettingsError, match="another version of the lab's world"):
        building.open_folder(tiny(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "state.pt"])
def test_the_folder_of_a_training_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(SettingsError, match="holds the run of a training; choose") as caught:
        building.open_folder(tiny(tmp_path))
    assert "--resume" not in caught.value.reason


def test_two_processes_never_do_the_same_work(tmp_path: Path) -> None:
    settings = tiny(tmp_path, part="judge")
    with building.alone(tmp_path, "judge"):  # the other process
        with pytest.raises(SettingsError, match="another process is at work on .*judge") as caught:
            build(settings)
        assert caught.value.name == "out"
        with building.alone(tmp_path, "vae"):  # another part may go on
            pass
    assert build(settings) is None


@pytest.mark.parametrize("name", ["pictures", "weights"])
def test_what_parts_share_is_waited_for(tmp_path: Path, name: str) -> None:
    lines, asked = Watcher(), []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    with building.alone(tmp_path, name):  # the other process
        with building.alone(tmp_path, name, should_stop, lines) as mine:
            assert not mine
        assert len(asked) == 3
    assert lines.lines == [f"waiting for another process, which is at work on {tmp_path / name}"]
    with building.alone(tmp_path, name, should_stop, lines) as mine:
        assert mine
    assert len(asked) == 3  # no need to ask


def test_a_build_that_waits_can_be_stopped_and_goes_on_when_the_other_is_done(
    tmp_path: Path,
) -> None:
    settings, watcher = tiny(tmp_path, part="vae"), Watcher()
    with building.alone(tmp_path, "pictures"):  # the other process
        assert build(settings, should_stop=lambda: True) == "pictures"
        thread = threading.Thread(target=build, args=(settings,), kwargs={"report": watcher})
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert watcher.lines[-1].startswith("waiting for another process")
        assert not (tmp_path / "pictures").exists()
    thread.join()
    assert watcher.lines[-1] == "still to build: renderer, clip, aesthetic, judge"


def test_two_processes_build_two_parts_from_nothing(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "lab"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    line = [sys.executable, "-m", "promptadapt_core.lab", "build", "--out", str(out), *flags]
    options: dict[str, Any] = {
        "cwd": Path(__file__).parents[1], "stderr": subprocess.PIPE, "text": True,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    processes = [
        subprocess.Popen([*line, "--part", part, "--num-threads=1"], **options)
        for part in ("vae", "clip")
    ]
    for process in processes:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    for name in ("vae-encoder", "clip"):
        assert contents(out / name / "weights").keys() == contents(built / name / "weights").keys()


def test_a_disk_that_knows_no_locks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(building.filelock.FileLock, "acquire", acquire)
    with pytest.raises(SettingsError, match="cannot be written .*support flock") as caught:
        building.open_folder(tiny(tmp_path))
    assert caught.value.name == "out"


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = "\n".join(
        (
            "import os, signal, sys; from pathlib import Path",
            "from promptadapt_core.lab.build import alone",
            "with alone(Path(sys.argv[1]), 'judge'): os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    options: dict[str, Any] = {"cwd": Path(__file__).parents[1], "check": False}
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], **options)
    assert run.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["judge.lock"]
    with building.alone(tmp_path, "judge"):
        pass


def test_only_what_the_disk_says_is_about_the_disk(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part: built / WORKS[part][-1] / "weights" for part in PARTS}

    def write() -> None:
        bundle.write_bundle(tmp_path / "weights", parts, 2, 0, torch.device("cpu"))

    def fail(error: Exception) -> None:
        def raises(*_: Any) -> None:
            raise error

        monkeypatch.setattr(bundle, "_calibrate", raises)

    for error, words in (
        (OSError(28, "No space left on device"), "cannot be written .*No space left"),
        (SettingsError("weights", "clip is broken"), "clip is broken"),
    ):
        fail(error)
        with pytest.raises(SettingsError, match=words) as caught:
            write()
        assert caught.value.name == "out"
    fail(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_decoder_need_not_be_sharpened() -> None:
    settings = tiny(Path("x"), num_vae_decoder_steps=0)
    assert [work.name for work in planned(settings, ["vae"])] == ["pictures", "vae", "vae-encoder"]


def test_too_few_pictures_to_hold_some_out() -> None:
    with pytest.raises(SettingsError, match="num_pictures: expected a number from 64"):
        tiny(Path("x"), num_pictures=63)
    assert num_valid(64) == 8
    assert num_valid(60_000) == 512


def test_the_built_lab_can_be_measured(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "NUMBERS_OF_STEPS", (1,))
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(report, "LEAST_PAIRS", 1)
    monkeypatch.setattr(report, "AMONG", 10)
    monkeypatch.setattr(galleries, "SUBJECTS", galleries.SUBJECTS[:2])
    monkeypatch.setattr(galleries, "EFFECTIVE", galleries.EFFECTIVE[:3])
    monkeypatch.setattr(report, "EFFECTIVE", report.EFFECTIVE[:3])
    settings = ReportSettings(
        out=str(tmp_path / "report"), weights=str(built / "weights"), num_pictures=20, num_steps=1,
        guidance_scale=1.0,
    )  # fmt: skip
    found = report.write_report(settings)
    assert (tmp_path / "report" / "report.html").is_file()
    assert found["settings"]["num_steps"] == 1
    assert found["weights"].keys() >= {"judge/judge.safetensors"}
    assert found["speeds"]["pictures scored per second"] > 0


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from promptadapt_core.lab.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
def test_a_disk_that_refuses_leaves_the_last_good_state(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "lab"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    line = ["build", "--out", str(out), "--part", "judge", *flags]
    limit = 1_000_000  # the pictures fit, the weights of the judge do not
    options: dict[str, Any] = {
        "cwd": Path(__file__).parents[1], "capture_output": True, "text": True, "check": False,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    full = subprocess.run([sys.executable, "-c", LIMITED, str(limit), *line], **options)
    assert full.returncode == 2, full.stderr
    assert "--out: " in full.stderr.splitlines()[-1]
    assert "is whole" in full.stderr.splitlines()[-1]
    assert not (out / "judge" / "finished.json").exists()
    assert build(tiny(out, part="judge")) is None
    assert contents(out / "judge" / "weights") == contents(built / "judge" / "weights")


def test_progress_knows_the_time_left_for_all_parts() -> None:
    progress = BuildProgress(io.StringIO())
    progress.plan([Work("first", 10.0), Work("second", 30.0)])
    progress.begin("first")
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        progress.step(0, 100, {})
        now[0] += 5.0
        progress.step(50, 100, {"train/loss": 0.5})
        # five seconds for work of five: ten left here are five and thirty
        assert progress.whole_left() == pytest.approx(35.0)
        now[0] += 10.0
        progress.step(100, 100, {})
        assert progress.whole_left() == pytest.approx(15.0 / 10.0 * 30.0)
        progress.begin("second")
        assert progress.whole_left() == pytest.approx(45.0)
        progress.step(0, 10, {})
        now[0] += 15.0
        progress.step(5, 10, {})
        # thirty seconds for work of 25
        assert progress.whole_left() == pytest.approx(15.0 * 30.0 / 25.0)
    text = progress.stream.getvalue()  # type: ignore[attr-defined]
    assert "first\nstep 0/100" in text


def test_progress_writes_both_times() -> None:
    stream = io.StringIO()
    progress = BuildProgress(stream, every_seconds=0.0)
    progress.plan([Work("first", 10.0), Work("second", 30.0)])
    progress.begin("first")
    now = [100.0]
    row: Mapping[str, float] = {"train/loss": 0.25}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        progress.step(0, 4, {})
        now[0] += 60.0
        progress.step(1, 4, row)
    assert stream.getvalue().splitlines()[-1] == (
        "step 1/4 (25%), 3 min left, 15 min for all parts, loss 0.250"
    )


def test_the_bundle_names_the_parts_that_it_was_made_from(built: Path) -> None:
    note = json.loads((built / "weights.json").read_text("utf-8"))
    assert sorted(note["parts"]) == sorted(PARTS)
    assert note["files"] == runs.file_sizes(built / "weights")
