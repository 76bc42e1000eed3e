from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines as tiny  # noqa: E402

from promptadapt_core.image_samplers import (  # noqa: E402
    DIFFUSION,
    FLOW,
    matches_flow,
    recommended_by_sampler,
    set_sampler,
)
from promptadapt_core.images import DiffusersGenerator, ImageSettings  # noqa: E402
from promptadapt_core.pipeline_settings import SAMPLERS, PipelineOptions  # noqa: E402
from promptadapt_core.quiet_libraries import quiet_libraries  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipelines")
    with quiet_libraries():
        for kind in ("sd1", "sd2", "sd3", "flux"):
            tiny.write_pipeline(kind, place / kind)
    return place


def load(folder: Path, sampler: str, **settings: Any) -> DiffusersGenerator:
    return DiffusersGenerator.load(
        folder, device="cpu", batch_size=2, options=PipelineOptions(sampler=sampler), size=16,
        **settings,
    )  # fmt: skip


def test_every_name_has_a_scheduler() -> None:
    assert set(SAMPLERS) == set(DIFFUSION) | set(FLOW)
    for name, _ in (*DIFFUSION.values(), *FLOW.values()):
        assert hasattr(diffusers, name)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_the_pictures_own(
    place: Path,
    sampler: str,
    untouched_generators: Callable[[], AbstractContextManager[None]],
) -> None:
    generator = load(place / "sd1", sampler, num_steps=3)
    prompts, seeds = ["a red cat", "a boat"], [3, 4]
    with untouched_generators():
        together = generator.generate(prompts, seeds).astype(int)
    alone = [generator.generate([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert np.abs(together - np.stack(alone)).max() <= 1
    again = generator.generate(prompts, seeds)
    assert np.array_equal(again, together)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("sampler", FLOW)
def test_flow_models_take_their_own(
    place: Path,
    kind: str,
    sampler: str,
    untouched_generators: Callable[[], AbstractContextManager[None]],
) -> None:
    generator = load(place / kind, sampler, num_steps=2)
    assert matches_flow(generator.pipeline.scheduler)
    with untouched_generators():
        pictures = generator.generate(["a red cat", "a boat"], [3, 4]).astype(int)
    assert np.abs(pictures[:1] - generator.generate(["a red cat"], [3])).max() <= 1


def test_samplers_are_part_of_the_identity(place: Path) -> None:
    found = {load(place / "sd1", name, num_steps=2).identity for name in ("auto", *SAMPLERS)}
    assert len(found) == 1 + len(SAMPLERS)


def test_the_models_noise_levels_and_prediction_stay(place: Path) -> None:
    for sampler in ("dpm++", "euler", "unipc", "lightning"):
        generator = load(place / "sd2", sampler)
        config = generator.pipeline.scheduler.config
        assert config.prediction_type == "v_prediction"
        assert (config.beta_start, config.beta_end) == (0.00085, 0.012)
        assert config.beta_schedule == "scaled_linear"
    solver = load(place / "sd1", "dpm++").pipeline.scheduler
    assert solver.config.algorithm_type == "dpmsolver++"
    assert solver.config.solver_order == 2
    assert load(place / "sd1", "turbo").pipeline.scheduler.config.timestep_spacing == "trailing"


def test_timesteps_are_the_samplers_unless_the_model_needs_the_last(place: Path) -> None:
    pipeline = load(place / "sd2", "auto").pipeline
    assert pipeline.scheduler.config.timestep_spacing == "leading"
    set_sampler(pipeline, "dpm++")
    assert pipeline.scheduler.config.timestep_spacing == "linspace"
    pipeline = load(place / "sd2", "auto").pipeline
    pipeline.scheduler.register_to_config(rescale_betas_zero_snr=True)
    set_sampler(pipeline, "euler")
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert pipeline.scheduler.config.rescale_betas_zero_snr


def test_the_shift_of_a_flow_stays(place: Path) -> None:
    generator = load(place / "sd3", "dpm++")
    assert generator.pipeline.scheduler.config.flow_shift == 3.0


@pytest.mark.parametrize(
    ("sampler", "steps", "guidance"),
    [("lcm", 4, 1.0), ("turbo", 1, 1.0), ("lightning", 4, 1.0), ("dpm++", 20, 7.5)],
)
def test_few_steps_are_recommended(place: Path, sampler: str, steps: int, guidance: float) -> None:
    found = load(place / "sd1", sampler).settings
    assert found == ImageSettings(num_steps=steps, guidance_scale=guidance, size=16)
    chosen = load(place / "sd1", sampler, num_steps=7, guidance_scale=2.0).settings
    assert (chosen.num_steps, chosen.guidance_scale) == (7, 2.0)


def test_a_model_that_reads_its_guidance_keeps_it() -> None:
    class Distilled:
        unet = type("UNet", (), {"config": {"time_cond_proj_dim": 256}})()

    assert recommended_by_sampler(Distilled(), "lcm") == {"num_steps": 4}
    assert recommended_by_sampler(object(), "lcm") == {"num_steps": 4, "guidance_scale": 1.0}
    assert recommended_by_sampler(object(), "auto") == {}


def own_scheduler(folder: Path, kind: str, place: Path, **changes: Any) -> Path:
    """A copy of a renderer that brings another scheduler."""
    copied = Path(shutil.copytree(folder, place / kind))
    for path, told in (
        (copied / "model_index.json", {"scheduler": ["diffusers", kind]}),
        (copied / "scheduler" / "scheduler_config.json", {"_class_name": kind, **changes}),
    ):
        content = {**json.loads(path.read_text(encoding="utf-8")), **told}
        path.write_text(json.dumps(content), encoding="utf-8")
    return copied


@pytest.mark.parametrize(
    ("kind", "scheduler", "changes"),
    [
        ("sd1", "DPMSolverSDEScheduler", {}),
        ("sd3", "FlowMatchLCMScheduler", {}),
        ("sd3", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ],
)
def test_noise_that_no_seed_governs_is_refused(
    place: Path, tmp_path: Path, kind: str, scheduler: str, changes: dict[str, Any]
) -> None:
    if not hasattr(diffusers, scheduler):
        pytest.skip("this diffusers has no such scheduler")
    if scheduler == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    folder = own_scheduler(place / kind, scheduler, tmp_path, **changes)
    with pytest.raises(SettingsError, match=f"sampler: the renderer's own {scheduler} draws noise"):
        load(folder, "auto")
    assert load(folder, "euler").settings.size == 16


def test_a_scheduler_of_the_other_kind_is_refused(place: Path) -> None:
    with pytest.raises(SettingsError, match="takes euler, dpm\\+\\+, not lcm") as caught:
        load(place / "flux", "lcm")
    assert caught.value.name == "sampler"


def test_a_scheduler_that_does_not_fit_is_refused(place: Path) -> None:
    pipeline = load(place / "sd1", "auto").pipeline
    pipeline.scheduler.register_to_config(beta_schedule="of another kind")
    with pytest.raises(SettingsError, match="sampler: ddim does not fit this renderer"):
        set_sampler(pipeline, "ddim")
