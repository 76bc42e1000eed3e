"""Schedulers of diffusers by short names (pipeline_settings.SAMPLERS).

Only those that draw their noise from the picture's own generator: a picture then depends neither
on its batch nor on the process.
"""

from __future__ import annotations

from typing import Any

from .quiet_libraries import quiet_libraries
from .settings import SettingsError

DPM = "DPMSolverMultistepScheduler"
EVEN, LEADING, TRAILING = (
    {"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")
)
# The class, and what differs from its defaults. Where the timesteps lie is always said: a model's
# own configuration may carry what was meant for another scheduler.
DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", LEADING),
    "ddpm": ("DDPMScheduler", LEADING),
    "dpm++": (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 2, **EVEN}),
    "dpm++-karras": (DPM, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True, **EVEN}),
    "dpm++-sde": (DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, **EVEN}),
    "euler": ("EulerDiscreteScheduler", EVEN),
    "euler-a": ("EulerAncestralDiscreteScheduler", EVEN),
    "heun": ("HeunDiscreteScheduler", EVEN),
    "lcm": ("LCMScheduler", LEADING),
    "lightning": ("EulerDiscreteScheduler", TRAILING),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, **LEADING}),
    "tcd": ("TCDScheduler", LEADING),
    "turbo": ("EulerAncestralDiscreteScheduler", TRAILING),
    "unipc": ("UniPCMultistepScheduler", EVEN),
}
# Of models that match flows. Their pipelines hand the scheduler no generator, so that none here
# may draw noise.
FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "dpm++": (DPM, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
}
# A Brownian motion; noise from pipelines that hand over no generator.
FOREIGN_NOISE = {
    "CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "FlowMatchLCMScheduler"
}  # fmt: skip
# What few-step models and LoRAs were made for; guidance 1 is none.
FEW_STEPS: dict[str, dict[str, Any]] = {
    "lcm": {"num_steps": 4, "guidance_scale": 1.0},
    "lightning": {"num_steps": 4, "guidance_scale": 1.0},
    "tcd": {"num_steps": 4, "guidance_scale": 1.0},
    "turbo": {"num_steps": 1, "guidance_scale": 1.0},
}


def set_sampler(pipeline: Any, name: str) -> None:
    """Give the pipeline the scheduler of the name, with the model's own noise levels. Raises
    SettingsError("sampler", ...) where the model and the scheduler do not fit."""
    import diffusers

    old = pipeline.scheduler
    known = FLOW if matches_flow(old) else DIFFUSION
    if name not in known:
        kind = type(pipeline).__name__
        names = ", ".join(known)
        raise SettingsError("sampler", f"the {kind} of this renderer takes {names}, not {name}")
    class_name, changes = known[name]
    if old.config.get("rescale_betas_zero_snr"):  # such models start from nothing but noise
        changes = {**changes, **TRAILING}
    if old.config.get("stochastic_sampling"):
        changes = {**changes, "stochastic_sampling": False}
    if known is FLOW and class_name == DPM:
        changes = {**changes, "flow_shift": float(old.config.get("shift", 1.0))}
    scheduler_class = getattr(diffusers, class_name)
    try:
        with quiet_libraries():
            pipeline.scheduler = scheduler_class.from_config(old.config, **changes)
    except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError("sampler", f"{name} does not fit this renderer: {told}") from None


def check_noise(scheduler: Any) -> None:
    """SettingsError("sampler", ...) for one, as a renderer may bring it, whose noise is not drawn
    from the picture's own generator: the same seed would give another picture every time."""
    config = getattr(scheduler, "config", {})
    if type(scheduler).__name__ in FOREIGN_NOISE or config.get("stochastic_sampling"):
        names = ", ".join(FLOW if matches_flow(scheduler) else DIFFUSION)
        reason = f"the renderer's own {type(scheduler).__name__} draws noise that no seed governs"
        raise SettingsError("sampler", f"{reason}; choose one of {names}")


def matches_flow(scheduler: Any) -> bool:
    """Whether the model of this scheduler predicts the flow from noise to picture."""
    config = getattr(scheduler, "config", {})
    flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    return "FlowMatch" in type(scheduler).__name__ or bool(flow)


def recommended_by_sampler(pipeline: Any, name: str) -> dict[str, Any]:
    """The ImageSettings that few-step schedulers ask for, {} for others."""
    found = dict(FEW_STEPS.get(name, {}))
    unet = getattr(pipeline, "unet", None)
    if unet is not None and unet.config.get("time_cond_proj_dim"):
        found.pop("guidance_scale", None)  # distilled with guidance as an input
    return found
