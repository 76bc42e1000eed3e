"""A folder on the Hugging Face hub, with the user's own token. Only here is anything sent."""

from __future__ import annotations

import re
from pathlib import Path

from ..settings import SettingsError

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)


def check_repository(name: str) -> None:
    """SettingsError("push", ...) for what can be no repository, without a token and without the
    client; nothing is sent."""
    if not REPOSITORY.fullmatch(name):
        raise SettingsError("push", f"expected OWNER/NAME, got {name!r:.80}")
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise SettingsError(
            "push", "there is no token of yours here: run `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, name: str, public: bool) -> str:
    """Send the files of the folder to a model repository, made where there is none; its address.

    Private unless `public`; one that is there already and is not what was asked for is refused.
    SettingsError("push", ...) for whatever the hub or the network refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(name, private=not public, exist_ok=True)
        is_private = api.model_info(made.repo_id).private
        if not public and not is_private:
            reason = f"{made.repo_id} is there already and public: --public publishes there"
            raise SettingsError("push", reason)
        if public and is_private:
            reason = f"{made.repo_id} is there already and private: leave --public out"
            raise SettingsError("push", reason)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Export of promptadapt"
        )
    except SettingsError:
        raise
    except Exception as error:  # the client's own, those of its HTTP library, and OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError(
            "push", f"{name} could not be sent ({reason}); {folder} is whole"
        ) from None
    return str(made)
