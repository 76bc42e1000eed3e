"""RL Refine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .adapting import CATEGORY, check_text, complaint, text_widget
from .inputs import check_linked, settings_from, widgets
from .model_folders import model_folders
from .rewarding import ASKED_FOR, WEIGHTS

MAIN_SETTINGS = ("method", "num_rounds", "num_candidates", "num_images", "seed")
LIMITS = ("margin", "max_images", "max_seconds")
LEARNING = ("lr", "num_epochs", "kl_coef", "temperature")
TEXT_SETTINGS = ("token_budget", "keep", "ban")
SAVES = ("no", "folder", "lora")
LORA_RANK = 16


class RefinePrompt:
    """Searches for the best prompt with the very model of the graph."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Looks for the prompt that this very model draws best: writes candidates, renders and "
        "scores them, lets a copy of the policy learn from the pictures, and again. Your text "
        "comes back if nothing is better."
    )
    RETURN_TYPES = (
        "STRING", "IMAGE", "STRING", "IMAGE", "IMAGE", "PROMPT_POLICY", "BOOLEAN", "STRING",
    )  # fmt: skip
    RETURN_NAMES = (
        "best_prompt", "best_image", "tried", "contact_sheet", "reward_curve", "refined_policy",
        "accepted", "json",
    )  # fmt: skip
    OUTPUT_TOOLTIPS = (
        "the best prompt; your text where nothing beats it by the margin",
        "its pictures, as they were rendered in the search",
        "all prompts that were tried, best first, as a list: what follows runs once for each",
        "one picture with everything that was tried and its scores, best first",
        "how the reward went from round to round",
        "the policy that learned, for Prompt Adapt",
        "whether a prompt beats your text by the margin",
        "everything that was tried, its scores and the rounds, as JSON",
    )
    OUTPUT_IS_LIST = (False, False, True, False, False, False, False, False)
    OUTPUT_NODE = True  # also alone, to see what it finds
    FUNCTION = "refine"

    def __init__(self) -> None:
        """ComfyUI keeps this object between runs: pictures that were rendered once stay known."""
        self._memory: Any = None
        self._known: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.refine.settings import RefineSettings
        from ..promptadapt_core.reward_settings import RewardSettings
        from ..promptadapt_core.settings import AdaptSettings
        from .rendering import sampler_choices

        samplers, schedulers = sampler_choices()
        steps = {"default": 20, "min": 1, "max": 10000, "tooltip": "sampling steps of a picture"}
        cfg = {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01,
               "tooltip": "how strongly the prompt pulls"}  # fmt: skip
        batch = {
            "default": 1, "min": 1, "max": 64,
            "tooltip": "pictures at once: more is faster; halved when memory runs out",
        }  # fmt: skip
        image_seed = {
            "default": 0, "min": 0, "max": 2**64 - 1 - 64,
            "tooltip": "of the pictures, the same for every prompt; the second picture of a prompt "
            "has the next one, and so on",
        }  # fmt: skip
        save = {
            "default": SAVES[0],
            "tooltip": "write the refined policy to models/promptadapt: as a folder, or as LoRA "
            "matrices, which need the package peft",
        }
        name = {"default": "refined", "tooltip": "of the folder; a number is added to a known one"}
        settings = widgets(AdaptSettings, TEXT_SETTINGS)
        settings |= widgets(RewardSettings, WEIGHTS)
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "what renders, LoRAs included"}),
                "clip": ("CLIP", {"tooltip": "its text encoder"}),
                "vae": ("VAE", {"tooltip": "its decoder"}),
                "latent_image": ("LATENT", {"tooltip": "an empty latent of the size to render"}),
                "reward_models": ("PROMPT_REWARD", {"tooltip": "from Load Reward Models"}),
                "user_input": text_widget(ASKED_FOR),
                **widgets(RefineSettings, MAIN_SETTINGS),
                "image_seed": ("INT", image_seed),
                "steps": ("INT", steps),
                "cfg": ("FLOAT", cfg),
                "sampler_name": _choices(samplers),
                "scheduler": _choices(schedulers),
                "render_batch_size": ("INT", batch),
                **widgets(RefineSettings, LIMITS),
                **settings,
                **widgets(RefineSettings, LEARNING),
                "save_policy": (list(SAVES), save),
                "save_name": ("STRING", name),
            },
            "optional": {
                "negative": ("CONDITIONING", {"tooltip": "without one, that of an empty text"}),
                "policy": ("PROMPT_POLICY", {"tooltip": "without one, the policy of this pack"}),
                "decoding": (
                    "PROMPT_DECODING",
                    {"tooltip": "from Decoding Settings: how the policy's own answer, the first "
                     "candidate, is written"},
                ),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        user_input: str | None = None,
        keep: str | None = None,
        ban: str | None = None,
        save_policy: str | None = None,
        save_name: str | None = None,
        method: str | None = None,
        num_candidates: int | None = None,
        num_images: int | None = None,
        max_images: int | None = None,
    ) -> bool | str:
        """What one widget says against another; None is what is linked and not known yet.
        ComfyUI checks the range of what is not named."""
        from ..promptadapt_core.refine.saving import check_name
        from ..promptadapt_core.refine.settings import BEST_OF_N, RefineSettings

        def check() -> None:
            given = {
                "method": method or BEST_OF_N,  # which refuses nothing
                "num_candidates": num_candidates, "num_images": num_images,
                "max_images": max_images,
            }  # fmt: skip
            known = {name: value for name, value in given.items() if value is not None}
            RefineSettings(**known)
            if save_policy not in (None, SAVES[0]) and save_name is not None:
                check_name(save_name)
            if method is not None:
                _check_lora(save_policy, method)
            check_text(user_input, keep, ban)

        return complaint(check)

    def refine(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        latent_image: dict[str, Any],
        reward_models: Any,
        user_input: str,
        image_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        render_batch_size: int,
        save_policy: str,
        save_name: str,
        negative: Any = None,
        policy: Any = None,
        decoding: dict[str, Any] | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        import torch

        from ..promptadapt_core.settings import AdaptSettings
        from .memory import bundled_policy
        from .rendering import ComfyGenerator, Sampling
        from .searching import Search

        _check_links(model, clip, vae, latent_image, reward_models, negative, policy, decoding)
        policy = policy or bundled_policy()
        place = None
        if save_policy != SAVES[0]:  # now, not after an hour
            _check_lora(save_policy, values["method"])
            place = _place_for(save_policy, save_name, policy.adapter.policy.folder)
        sampling = Sampling(steps, cfg, sampler_name, scheduler, render_batch_size)
        adapt = {**(decoding or {}), **{name: values.pop(name) for name in TEXT_SETTINGS}}
        with torch.inference_mode(False):  # or the copy could never be trained
            generator = ComfyGenerator(model, clip, vae, negative, latent_image, sampling)
            self._known = generator.adopt(self._known)
            search = Search(
                generator,
                reward_models,
                policy,
                user_input,
                image_seed,
                settings_from(AdaptSettings, adapt),
                values,
                LORA_RANK if save_policy == "lora" else 0,
                self._memory,
            )
            self._memory = search.memory
            found = search.run()
            refined = search.refined_policy()
            if place is not None:
                found.notes.append(_saved(search, save_policy, place))
        return _outputs(found, refined)


def _check_links(
    model: Any,
    clip: Any,
    vae: Any,
    latent_image: Any,
    reward_models: Any,
    negative: Any,
    policy: Any,
    decoding: Any,
) -> None:
    for name, fits, source in (
        ("model", hasattr(model, "load_device"), "a checkpoint"),
        ("clip", hasattr(clip, "tokenize"), "a checkpoint"),
        ("vae", hasattr(vae, "decode"), "a checkpoint"),
        (
            "latent_image",
            isinstance(latent_image, dict) and "samples" in latent_image,
            "an empty latent",
        ),
        ("reward_models", hasattr(reward_models, "loaded"), "Load Reward Models"),
        ("negative", isinstance(negative, list | None), "CLIP Text Encode"),
        ("policy", policy is None or hasattr(policy, "loaded"), "Load Prompt Policy"),
        ("decoding", isinstance(decoding, dict | None), "Decoding Settings"),
    ):
        check_linked(name, fits, source)


def _choices(names: list[str]) -> tuple:
    return (names, {"default": names[0], "tooltip": "as in KSampler"})


def _check_lora(save_policy: str | None, method: str) -> None:
    from ..promptadapt_core.refine.settings import BEST_OF_N
    from ..promptadapt_core.settings import SettingsError

    if save_policy == "lora" and method == BEST_OF_N:
        raise SettingsError("save_policy", f"{method} trains no LoRA matrices")


def _place_for(save_policy: str, name: str, base: Path | None) -> Path:
    """The folder to save in and the name there. LoRA matrices are found beside their base."""
    from ..promptadapt_core.refine.saving import check_name
    from ..promptadapt_core.settings import SettingsError

    name, folders = check_name(name), model_folders()
    if not folders:
        raise SettingsError("save_policy", "ComfyUI knows no folder models/promptadapt")
    beside = save_policy == "lora" and base is not None and base.parent in folders
    return (base.parent if beside else folders[0]) / name


def _saved(search: Any, kind: str, place: Path) -> str:
    """What became of it: a disk that is full must not take the search with it."""
    from ..promptadapt_core.settings import SettingsError

    try:
        return f"the refined policy is saved in {search.save(kind, place.parent, place.name)}"
    except SettingsError as error:
        return f"the refined policy is not saved: {error}"


def _outputs(found: Any, refined: Any) -> dict[str, Any]:
    """The outputs, and what web/promptadapt.js shows on the node."""
    import torch

    from ..promptadapt_core.pixels import floats_of
    from ..promptadapt_core.refine.curve import reward_curve
    from .tensors import as_text, image_of

    result = (
        found.adapted_prompt,
        torch.from_numpy(floats_of(found.answer.pictures)),
        [one.adapted_prompt for one in found.ranked],
        image_of(found.sheet()),
        image_of(reward_curve(found)),
        refined,
        found.accepted,
        as_text(found.as_json()),
    )
    text = [found.adapted_prompt, found.sentence(), *found.notes]
    return {"ui": {"text": text}, "result": result}
