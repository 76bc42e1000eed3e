"""Where this ComfyUI keeps our models: models/promptadapt, and what extra_model_paths.yaml adds."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "promptadapt"


def register() -> None:
    """Make ComfyUI know the folder. Outside ComfyUI, where a test imports us, nothing happens."""
    try:
        import folder_paths

        folder_paths.add_model_folder_path(NAME, os.path.join(folder_paths.models_dir, NAME))
    except (ImportError, AttributeError):  # not in ComfyUI, or in one without such folders
        return


def model_folders() -> list[Path]:
    """The folders that may hold policies and scorers."""
    try:
        import folder_paths

        return [Path(folder) for folder in folder_paths.get_folder_paths(NAME)]
    except (ImportError, KeyError):
        return []
