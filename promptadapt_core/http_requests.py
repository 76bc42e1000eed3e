"""What a host's web server is asked and answers, as plain objects. Knows no web framework.

Every function takes the JSON object of a request and gives that of the answer; SettingsError names
what is wrong with the request.
"""

from __future__ import annotations

import base64
import binascii
import io
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .loaded_models import LoadedModels
from .model_folders import LAB_SCORER, policy_folder, policy_names, scorer_names
from .picture_rewards import reward_pictures
from .policies import DEFAULT_POLICY
from .prompts import parse
from .reward_settings import RewardSettings
from .settings import AdaptSettings, SettingsError

MOST_TEXTS = MOST_PICTURES = 256  # in one request
MOST_PIXELS = 2**28  # of the pictures of one request: 256 of 1024 x 1024
FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow knows more than it is wise to take from strangers
WEIGHTS = ("aesthetic_weight", "relevance_weight")


def policies_answer(
    models: LoadedModels, request: Any = None, folders: Sequence[Path] = (), device: str = "cpu"
) -> dict[str, Any]:
    """{"policies": [{"name", "default"}], "scorers": [name]}. No path leaves the computer."""
    names = policy_names(folders)
    return {
        "policies": [{"name": name, "default": name == DEFAULT_POLICY} for name in names],
        "scorers": scorer_names(folders),
    }


def adapt_answer(
    models: LoadedModels, request: Any, folders: Sequence[Path] = (), device: str = "cpu"
) -> dict[str, Any]:
    """{"user_input": text or list of them, "policy": name, and any setting of `adapt`} ->
    {"policy", "policy_hash", "adaptations": [...]}, one for each user input."""
    fields = {**_object(request)}
    texts = _texts(fields.pop("user_input", None))
    policy = _text("policy", fields.pop("policy", DEFAULT_POLICY))
    _check_names(fields, typing.get_type_hints(AdaptSettings), ("user_input", "policy"))
    given = {name: value for name, value in fields.items() if value is not None}
    settings = AdaptSettings(**given)
    policy_folder(policy, folders)
    for text in texts:  # before the policy takes time and memory
        parse(text, settings.keep)
    found = models.adapt(texts, policy, folders, device, **given)
    return {
        "policy": policy,
        "policy_hash": found[0].policy_hash,
        "adaptations": [one.adaptation.as_json() for one in found],
    }


def score_answer(
    models: LoadedModels, request: Any, folders: Sequence[Path] = (), device: str = "cpu"
) -> dict[str, Any]:
    """{"images": [PNG, JPEG or WebP in base64], "user_input": text or one for each image, "scorer":
    name, "baseline_images", "aesthetic_weight", "relevance_weight"} -> {"scores": [...], "order":
    numbers of the images, best first}."""
    fields = {**_object(request)}
    pictures = _pictures("images", fields.pop("images", None))
    baselines = _pictures("baseline_images", fields.pop("baseline_images", None) or [])
    texts = _texts(fields.pop("user_input", None))
    scorer = _text("scorer", fields.pop("scorer", LAB_SCORER))
    known = ("images", "baseline_images", "user_input", "scorer")
    _check_names(fields, WEIGHTS, known)
    settings = RewardSettings(**{n: value for n, value in fields.items() if value is not None})
    texts = texts * len(pictures) if len(texts) == 1 else texts
    plain = [parse(text).plain or text for text in texts]
    found = reward_pictures(
        models.scorer(scorer, folders, device), plain, pictures, baselines, settings
    )
    return {"scorer": scorer, "scores": found.as_json(), "order": found.order}


def _object(request: Any) -> dict[str, Any]:
    if not isinstance(request, dict):
        raise SettingsError("request", f"expected a JSON object, got {type(request).__name__}")
    return request


def _check_names(fields: dict, known: Any, others: Sequence[str]) -> None:
    for name in fields:
        if name not in known:
            raise SettingsError(
                str(name)[:80], f"no such field; there are {', '.join([*others, *known])}"
            )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SettingsError(name, f"expected text, got {type(value).__name__}")
    return value


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or len(texts) > MOST_TEXTS:
        reason = f"expected a text or a list of 1 to {MOST_TEXTS} of them"
        raise SettingsError("user_input", reason)
    return [_text("user_input", text) for text in texts]


def _pictures(name: str, value: Any) -> list[np.ndarray]:
    """(H, W, 3) uint8 of each picture in base64, with or without a data: address in front."""
    if not isinstance(value, list) or len(value) > MOST_PICTURES:
        raise SettingsError(name, f"expected a list of at most {MOST_PICTURES} pictures in base64")
    pictures: list[np.ndarray] = []
    room = MOST_PIXELS
    for number, item in enumerate(value, 1):
        pictures.append(_picture(name, number, item, room))
        room -= pictures[-1].shape[0] * pictures[-1].shape[1]
    return pictures


def _picture(name: str, number: int, item: Any, room: int) -> np.ndarray:
    encoded = _text(name, item)
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        data = base64.b64decode(encoded, validate=True)
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            fits = picture.width * picture.height <= room
            pixels = np.asarray(picture.convert("RGB")) if fits else None
    except (
        binascii.Error,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        told = type(error).__name__
        reason = f"picture {number} is not a picture in base64 ({told})"
        raise SettingsError(name, reason) from None
    if pixels is None:
        reason = f"expected at most {MOST_PIXELS:,} pixels in all; picture {number} goes beyond"
        raise SettingsError(name, reason)
    return pixels


ANSWERS = {"policies": policies_answer, "adapt": adapt_answer, "score": score_answer}
