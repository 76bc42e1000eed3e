"""Load Prompt Policy, Decoding Settings, Prompt Adapt."""

from __future__ import annotations

from typing import Any

from .inputs import check_linked, settings_from, widgets, with_auto
from .model_folders import model_folders

CATEGORY = "promptadapt"
MAIN_SETTINGS = ("num_candidates", "mode", "seed", "token_budget", "keep", "ban", "gate")
DECODING_SETTINGS = (
    "max_new_tokens", "min_modifiers", "artists", "num_beams", "diversity_penalty",
    "length_penalty", "temperature", "top_p",
)  # fmt: skip


class LoadPolicy:
    """A policy of this pack or of models/promptadapt."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a language model that adapts prompts: one of this pack, or a folder in "
        "models/promptadapt (your own, or Promptist)."
    )
    RETURN_TYPES = ("PROMPT_POLICY",)
    RETURN_NAMES = ("policy",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.model_folders import policy_names

        names = policy_names(model_folders())
        policy = {
            "default": names[0] if names else "",
            "tooltip": "promptadapt-sd suits Stable Diffusion; lab and lab-sft know only the words "
            "of the lab checkpoint",
        }
        return {"required": {"policy": (names, policy)}, "optional": {"device": device_widget()}}

    @classmethod
    def VALIDATE_INPUTS(cls, policy: str | None = None) -> bool | str:
        """What is linked is not known yet: None, or left out. So below."""
        from ..promptadapt_core.model_folders import policy_folder

        return policy is None or complaint(lambda: policy_folder(policy, model_folders()))

    @classmethod
    def IS_CHANGED(cls, policy: str | None = None, device: str | None = None) -> str:
        from ..promptadapt_core.model_folders import folder_state, policy_folder

        return folder_state(policy_folder(policy, model_folders())) if policy else ""

    def load(self, policy: str, device: str = "default") -> tuple[Any]:
        from ..promptadapt_core.model_folders import policy_folder
        from .memory import load_policy

        return (load_policy(policy_folder(policy, model_folders()), device),)


class DecodingSettings:
    """The settings that most people leave to the policy."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "How the policy writes. Without this node each policy writes as it was trained to; with "
        "it, as set here."
    )
    RETURN_TYPES = ("PROMPT_DECODING",)
    RETURN_NAMES = ("decoding",)
    FUNCTION = "collect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.settings import AdaptSettings

        return {"required": widgets(AdaptSettings, DECODING_SETTINGS)}

    def collect(self, **values: Any) -> tuple[dict[str, Any]]:
        return (values,)


class AdaptPrompt:
    """A user input in, adapted prompts out."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Adds what an image model needs to your text and keeps every word of it. The result is "
        "shown on the node."
    )
    RETURN_TYPES = ("STRING", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("adapted_prompt", "candidates", "added", "user_input")
    OUTPUT_TOOLTIPS = (
        "the best candidate",
        "all candidates as a list, best first: what follows runs once for each",
        "what the policy added to your text",
        "your text as typed, to render it too or to score pictures against it",
    )
    OUTPUT_IS_LIST = (False, True, False, False)
    OUTPUT_NODE = True  # also alone, to see what it writes
    FUNCTION = "adapt"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.settings import AdaptSettings

        settings = widgets(AdaptSettings, MAIN_SETTINGS)
        settings["mode"] = with_auto(settings["mode"], "as the policy was trained to write")
        text = text_widget(
            "what you would type for the image; weights, LoRA tags and wildcards come back as typed"
        )
        bypass = {"default": False, "tooltip": "hand the text on as it is"}
        policy = {"lazy": True, "tooltip": "without one, the policy of this pack"}
        decoding = {"lazy": True, "tooltip": "from Decoding Settings; without it, the policy's own"}
        return {
            "required": {"user_input": text, **settings, "bypass": ("BOOLEAN", bypass)},
            "optional": {
                "policy": ("PROMPT_POLICY", policy),
                "decoding": ("PROMPT_DECODING", decoding),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        user_input: str | None = None,
        keep: str | None = None,
        ban: str | None = None,
        bypass: bool | None = None,
    ) -> bool | str:
        """A linked bypass, not known yet, may turn out on."""
        return bypass is not False or complaint(lambda: check_text(user_input, keep, ban))

    def check_lazy_status(self, bypass: bool, **values: Any) -> list[str]:
        """Bypassed, the node needs no policy, and ComfyUI does not load it. What is linked and not
        computed yet comes as None."""
        waiting = [name for name in ("policy", "decoding") if values.get(name, "") is None]
        return [] if bypass else waiting

    def adapt(
        self,
        user_input: str,
        bypass: bool,
        policy: Any = None,
        decoding: dict[str, Any] | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        from ..promptadapt_core.settings import AdaptSettings
        from .memory import bundled_policy, interruptible

        if bypass:
            return _shown(user_input, [user_input], "", "bypassed")
        check_linked("policy", policy is None or hasattr(policy, "loaded"), "Load Prompt Policy")
        check_linked("decoding", isinstance(decoding, dict | None), "Decoding Settings")
        given = settings_from(AdaptSettings, {**(decoding or {}), **values})
        with interruptible() as should_stop, (policy or bundled_policy()).loaded() as adapter:
            adaptation = adapter.adapt_all([user_input], should_stop=should_stop, **given)[0]
        prompts = [candidate.adapted_prompt for candidate in adaptation.candidates]
        return _shown(user_input, prompts, adaptation.candidates[0].added, adaptation.gate)


def _shown(user_input: str, adapted_prompts: list[str], added: str, gate: str) -> dict[str, Any]:
    """The outputs, and what web/promptadapt.js shows on the node."""
    text = [adapted_prompts[0]] if gate == "adapted" else [adapted_prompts[0], f"({gate})"]
    result = (adapted_prompts[0], adapted_prompts, added, user_input)
    return {"ui": {"text": text}, "result": result}


def text_widget(tooltip: str) -> tuple:
    """What a user types; ComfyUI draws one of {a|b} before we see it, as in its own text nodes."""
    options = {"default": "", "multiline": True, "dynamicPrompts": True, "tooltip": tooltip}
    return ("STRING", options)


def device_widget() -> tuple:
    choices = ["default", "cpu"]
    tooltip = "default: where ComfyUI runs its text encoders; the model leaves the GPU after use"
    return (choices, {"default": choices[0], "tooltip": tooltip})


def check_text(user_input: str | None, keep: str | None, ban: str | None) -> None:
    """SettingsError for what no policy adapts; None is what is linked and not known yet."""
    from ..promptadapt_core import prompts
    from ..promptadapt_core.settings import AdaptSettings

    lists = settings_from(AdaptSettings, {"keep": keep or "", "ban": ban or ""})
    AdaptSettings(**lists)
    if user_input is not None:
        prompts.parse(user_input, lists.get("keep", ()))


def complaint(check: Any) -> bool | str:
    """True, or the sentence of the SettingsError that `check` raises."""
    from ..promptadapt_core.settings import SettingsError

    try:
        check()
    except SettingsError as error:
        return str(error)
    return True
