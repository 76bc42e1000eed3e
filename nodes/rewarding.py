"""Load Reward Models, Aesthetic Reward, Compare A/B."""

from __future__ import annotations

from typing import Any

from .adapting import CATEGORY, complaint, device_widget, text_widget
from .inputs import check_linked, widgets
from .model_folders import model_folders

WEIGHTS = ("aesthetic_weight", "relevance_weight")
LOADER = "Load Reward Models"
ASKED_FOR = "what was asked for, before it was adapted: relevance is measured against it"


class LoadRewardModels:
    """A scorer: a CLIP and an aesthetic head."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads what judges pictures: the CLIP of the lab, or a folder in models/promptadapt with a "
        "scorer.json beside open_clip weights and an aesthetic head."
    )
    RETURN_TYPES = ("PROMPT_REWARD",)
    RETURN_NAMES = ("reward_models",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.model_folders import scorer_names

        names = scorer_names(model_folders())
        scorer = {
            "default": names[0] if names else "",
            "tooltip": "lab judges pictures of the lab checkpoint only; others are the folders in "
            "models/promptadapt that hold a scorer.json",
        }
        return {"required": {"scorer": (names, scorer)}, "optional": {"device": device_widget()}}

    @classmethod
    def VALIDATE_INPUTS(cls, scorer: str | None = None) -> bool | str:
        from ..promptadapt_core.model_folders import scorer_folder

        return scorer is None or complaint(lambda: scorer_folder(scorer, model_folders()))

    @classmethod
    def IS_CHANGED(cls, scorer: str | None = None, device: str | None = None) -> str:
        from ..promptadapt_core.model_folders import folder_state, scorer_folder

        return folder_state(scorer_folder(scorer, model_folders())) if scorer else ""

    def load(self, scorer: str, device: str = "default") -> tuple[Any]:
        from ..promptadapt_core.model_folders import scorer_folder
        from .memory import load_reward

        return (load_reward(scorer_folder(scorer, model_folders()), device),)


class AestheticReward:
    """Pictures in, their scores and the best of them out."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Scores pictures: how good they look and how well they show what was asked for. Takes a "
        "batch, or the list that follows from the candidates of Prompt Adapt."
    )
    INPUT_IS_LIST = True
    RETURN_TYPES = (
        "FLOAT", "FLOAT", "FLOAT", "IMAGE", "STRING", "IMAGE", "IMAGE", "IMAGE", "STRING",
    )  # fmt: skip
    RETURN_NAMES = (
        "aesthetic", "relevance", "reward", "best_image", "best_prompt", "sorted_images",
        "top_images", "contact_sheet", "json",
    )  # fmt: skip
    OUTPUT_TOOLTIPS = (
        "aesthetic score of each picture, about 1 to 10",
        "likeness of each picture and the text, 0 to 1",
        "the weighted sum, one for each picture",
        "the picture with the highest reward",
        "its adapted prompt, where they were given",
        "all pictures, best first",
        "the best top_k of them",
        "one picture with all of them and their scores, best first",
        "all scores as JSON, in the order of the pictures",
    )
    OUTPUT_IS_LIST = (True, True, True, False, False, False, False, False, False)
    FUNCTION = "score"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.reward_settings import RewardSettings

        top_k = {"default": 1, "min": 1, "max": 4096, "tooltip": "pictures in top_images"}
        baseline = {
            "tooltip": "pictures of the plain text with the same seeds; then the aesthetic counts "
            "as a gain over them"
        }
        adapted = {
            "forceInput": True,
            "tooltip": "the adapted prompts of the pictures, for the contact sheet and best_prompt",
        }
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "a batch, or a list of them"}),
                "reward_models": ("PROMPT_REWARD", {"tooltip": "from Load Reward Models"}),
                "user_input": text_widget(f"{ASKED_FOR}; one text, or one for each picture"),
                "top_k": ("INT", top_k),
                **widgets(RewardSettings, WEIGHTS),
            },
            "optional": {
                "baseline_images": ("IMAGE", baseline),
                "adapted_prompts": ("STRING", adapted),
            },
        }

    def score(
        self,
        images: list[Any],
        reward_models: list[Any],
        user_input: list[str],
        top_k: list[int],
        aesthetic_weight: list[float],
        relevance_weight: list[float],
        baseline_images: list[Any] | None = None,
        adapted_prompts: list[str] | None = None,
    ) -> dict[str, Any]:
        from ..promptadapt_core.contact_sheet import contact_sheet
        from ..promptadapt_core.picture_rewards import one_for_each, reward_pictures, sheet_cells
        from ..promptadapt_core.reward_settings import RewardSettings
        from ..promptadapt_core.settings import SettingsError
        from .memory import interruptible
        from .tensors import as_text, batch_of, frames_of, image_of, pictures_of

        if top_k[0] < 1:  # linked: ComfyUI checks only what is typed
            raise SettingsError("top_k", f"expected 1 or more, got {top_k[0]}")
        check_linked("reward_models", hasattr(reward_models[0], "loaded"), LOADER)
        pictures, counts = pictures_of(images, "images")
        baselines, _ = pictures_of(baseline_images or [], "baseline_images")
        prompts = one_for_each(adapted_prompts or [""], counts, "adapted_prompts")
        user_inputs = one_for_each(user_input, counts, "user_input")
        settings = RewardSettings(
            aesthetic_weight=aesthetic_weight[0], relevance_weight=relevance_weight[0]
        )
        with interruptible() as should_stop, reward_models[0].loaded() as scorer:
            found = reward_pictures(scorer, user_inputs, pictures, baselines, settings, should_stop)
        frames = frames_of(images)
        ordered = [frames[i] for i in found.order]
        rows = found.as_json()
        for row, adapted_prompt in zip(rows, prompts, strict=True):
            if adapted_prompt:
                row["adapted_prompt"] = adapted_prompt
        outputs = (
            found.aesthetic,
            found.relevance,
            found.rewards,
            batch_of(ordered[:1]),
            prompts[found.order[0]],
            batch_of(ordered),
            batch_of(ordered[: top_k[0]]),
            image_of(contact_sheet(sheet_cells(found, pictures, prompts))),
            as_text(rows),
        )
        best = found.order[0]
        text = f"best: picture {best + 1} of {len(pictures)}, reward {found.rewards[best]:.2f}"
        return {"ui": {"text": [text]}, "result": outputs}


class Compare:
    """Two pictures and their scores side by side."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Two pictures of the same text side by side, with their scores; batches in pairs."
    RETURN_TYPES = ("IMAGE", "IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("comparison", "better_image", "difference", "json")
    OUTPUT_TOOLTIPS = (
        "one picture with both and their scores; the better one is framed",
        "the better picture of each pair",
        "reward of B minus reward of A, mean over the pairs",
        "all scores as JSON, A and B of each pair in turn",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        from ..promptadapt_core.reward_settings import RewardSettings

        label = {"forceInput": True, "tooltip": "written below the picture, such as its prompt"}
        return {
            "required": {
                "image_a": ("IMAGE", {"tooltip": "such as the picture of the plain text"}),
                "image_b": ("IMAGE", {"tooltip": "such as that of the adapted prompt"}),
                "reward_models": ("PROMPT_REWARD", {"tooltip": "from Load Reward Models"}),
                "user_input": text_widget(ASKED_FOR),
                **widgets(RewardSettings, WEIGHTS),
            },
            "optional": {"label_a": ("STRING", label), "label_b": ("STRING", label)},
        }

    def compare(
        self,
        image_a: Any,
        image_b: Any,
        reward_models: Any,
        user_input: str,
        aesthetic_weight: float,
        relevance_weight: float,
        label_a: str = "",
        label_b: str = "",
    ) -> dict[str, Any]:
        from ..promptadapt_core.contact_sheet import contact_sheet
        from ..promptadapt_core.picture_rewards import compare_pictures, comparison_cells
        from ..promptadapt_core.reward_settings import RewardSettings
        from .memory import interruptible
        from .tensors import as_text, batch_of, image_of, pictures_of

        check_linked("reward_models", hasattr(reward_models, "loaded"), LOADER)
        first, _ = pictures_of([image_a], "image_a")
        second, _ = pictures_of([image_b], "image_b")
        settings = RewardSettings(
            aesthetic_weight=aesthetic_weight, relevance_weight=relevance_weight
        )
        with interruptible() as should_stop, reward_models.loaded() as scorer:
            found = compare_pictures(scorer, user_input, first, second, settings, should_stop)
        cells = comparison_cells(found, first, second, (label_a, label_b))
        better = [(image_a, image_b)[is_b][i] for i, is_b in enumerate(found.b_is_better)]
        outputs = (
            image_of(contact_sheet(cells, 2)),
            batch_of(better),
            found.difference,
            as_text(found.as_json()),
        )
        return {"ui": {"text": [found.verdict()]}, "result": outputs}
