"""The ComfyUI nodes. Thin: every rule lives in promptadapt_core, imported when it is used."""

if __name__ == "nodes":  # a host that keeps our folder on sys.path must not find us as its `nodes`
    raise ModuleNotFoundError("No module named 'nodes'", name="nodes")

from . import model_folders
from .adapting import AdaptPrompt, DecodingSettings, LoadPolicy
from .refining import RefinePrompt
from .rewarding import AestheticReward, Compare, LoadRewardModels

NODE_CLASS_MAPPINGS = {
    "PromptAdaptLoadPolicy": LoadPolicy,
    "PromptAdaptDecodingSettings": DecodingSettings,
    "PromptAdaptAdapt": AdaptPrompt,
    "PromptAdaptLoadRewardModels": LoadRewardModels,
    "PromptAdaptAestheticReward": AestheticReward,
    "PromptAdaptRefine": RefinePrompt,
    "PromptAdaptCompare": Compare,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PromptAdaptLoadPolicy": "Load Prompt Policy",
    "PromptAdaptDecodingSettings": "Decoding Settings",
    "PromptAdaptAdapt": "Prompt Adapt",
    "PromptAdaptLoadRewardModels": "Load Reward Models",
    "PromptAdaptAestheticReward": "Aesthetic Reward",
    "PromptAdaptRefine": "RL Refine",
    "PromptAdaptCompare": "Compare A/B",
}

model_folders.register()
