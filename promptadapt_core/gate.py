"""When to leave a prompt alone.

Rewriting can lower alignment (GenEval 2, four of six models), and a prompt that its author has
engineered already gains little: it is left alone, with the reason. The thresholds were chosen on
the validation split of real prompts; README, "Figures", has what they do on the test split.
"""

from __future__ import annotations

from typing import NamedTuple

from . import modifiers

ENGINEERED_MODIFIERS = 3  # this many modifiers make a prompt engineered, whatever its length
ENGINEERED_SHARE = 0.4  # or two, where they are this share of the words
ROOM_TOKENS = 4  # fewer CLIP tokens than this left in the budget hold no modifier


class GateDecision(NamedTuple):
    """`adapt` or leave alone, and why."""

    adapt: bool
    reason: str


def has_room(num_clip_tokens: int, token_budget: int) -> GateDecision:
    """Whether anything can be added within the budget at all."""
    if num_clip_tokens + ROOM_TOKENS > token_budget:
        return GateDecision(
            False, f"it has {num_clip_tokens} tokens already and the token budget is {token_budget}"
        )
    return GateDecision(True, "")


def decide(plain: str, num_clip_tokens: int, token_budget: int) -> GateDecision:
    """Decide for one plain user input (its syntax already taken off)."""
    room = has_room(num_clip_tokens, token_budget)
    if not room.adapt:
        return room
    found = modifiers.trim(plain)
    num_modifiers = len(found.modifiers) + len(found.artists)
    words = len(plain.split())
    share = sum(len(part.split()) for part in found.modifiers + found.artists) / max(words, 1)
    if num_modifiers >= ENGINEERED_MODIFIERS or (num_modifiers == 2 and share >= ENGINEERED_SHARE):
        named = ", ".join((found.modifiers + found.artists)[:3])
        return GateDecision(False, f"it is engineered already ({named})")
    return GateDecision(True, "")
