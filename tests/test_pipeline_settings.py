from __future__ import annotations

import argparse
import dataclasses

import pytest

from promptadapt_core.images import PRECISIONS
from promptadapt_core.pipeline_settings import (
    PipelineOptions,
    PipelineRendering,
    RenderingSettings,
    option_names,
)
from promptadapt_core.settings import SettingsError, add_flags, given
from promptadapt_core.train.ppo_settings import PICTURE_SETTINGS, PpoSettings


def parsed(*flags: str) -> PipelineRendering:
    parser = argparse.ArgumentParser()
    add_flags(parser, PipelineRendering)
    return PipelineRendering(**given(PipelineRendering, parser.parse_args(flags)))


def test_flags_become_settings() -> None:
    found = parsed(
        "--sampler=dpm++", "--render-lora=a.safetensors=0.8", "--render-lora=b.safetensors",
        "--render-batch-size=0", "--render-precision=bfloat16", "--negative-prompt=a dog",
        "--render-offload=model", "--decoder-tiling", "--num-steps=20",
    )  # fmt: skip
    assert found.sampler == "dpm++"
    assert found.render_lora == ("a.safetensors=0.8", "b.safetensors")
    assert (found.render_batch_size, found.num_steps) == (0, 20)
    assert found.decoder_tiling
    assert not found.download
    assert parsed() == PipelineRendering()


@pytest.mark.parametrize(
    ("name", "value"),
    [("sampler", "plms"), ("render_offload", "disk"), ("prediction", "x0"),
     ("render_precision", "int8"), ("render_batch_size", -1), ("render_lora", "a.safetensors")],
)  # fmt: skip
def test_what_is_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        PipelineRendering(**{name: value})
    assert caught.value.name == name


def test_every_rendering_setting_is_offered_to_a_run() -> None:
    """What is neither compared by value nor in the identity of the renderer would be lost."""
    fields = {field.name for field in dataclasses.fields(PipelineRendering)}
    assert set(PICTURE_SETTINGS) == fields - {"render_batch_size"}
    assert set(option_names()) < set(PICTURE_SETTINGS)
    assert {field.name for field in dataclasses.fields(RenderingSettings)} < fields
    assert fields < {field.name for field in dataclasses.fields(PpoSettings)}


def test_precisions_are_those_of_the_renderer() -> None:
    field = next(
        one for one in dataclasses.fields(PipelineRendering) if one.name == "render_precision"
    )
    assert set(field.metadata["choices"]) == {"auto", *PRECISIONS}


def test_options_stay_as_they_are_checked() -> None:
    options = PipelineOptions(render_lora=["a.safetensors"])  # as config.json has it
    assert options.render_lora == ("a.safetensors",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.sampler = "ddim"  # type: ignore[misc]
