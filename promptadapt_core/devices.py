"""The device a setting names, and when it is full."""

from __future__ import annotations

import torch

from .settings import SettingsError


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps", ...

    "auto" is CUDA (or ROCm, which torch calls CUDA too), then MPS, then the CPU. Raises
    SettingsError("device", ...) for a name torch does not know or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # "meta" makes tensors too, yet holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0][:200]
        raise SettingsError("device", f"{name!r} cannot be used here: {reason}") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    known = ("out of memory", "not enough memory", "can't allocate memory")
    return any(part in text for part in known)
