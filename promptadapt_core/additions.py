"""What a policy may add to a user input: the rules, while decoding and once more after it.

Decoding asks `may_follow` for every token it is about to choose, so that beams are not spent on
text that would be refused. `accepted` is the guarantee: whatever a policy wrote, only modifiers
that pass every rule reach the adapted prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from . import mediums, modifiers, prompts
from .settings import SettingsError

MAX_WORDS = 8  # content words; what is longer is a sentence, not a modifier


class AdditionRules:
    """The rules for one user input.

    `user_text` is the plain user input: what it says already is not added again. `min_modifiers`
    are wanted before the end may come; 0 for an input that is long already. With `backtracks`
    decoding keeps alternatives (beams), so a refused modifier may be blocked on the spot; a
    single sample would be driven into odd words, so there it is only left out afterwards.
    """

    def __init__(
        self,
        user_text: str,
        *,
        ban: Sequence[str] = (),
        artists: bool = False,
        min_modifiers: int = 0,
        backtracks: bool = True,
    ):
        self._said = set(prompts.content_words(user_text))
        self._medium = mediums.medium(user_text)
        self._ban = banned_pattern(ban)
        self._artists = artists
        self._min_modifiers = min_modifiers
        self._backtracks = backtracks
        self._verdicts: dict[str, bool] = {}

    def may_follow(self, completion_text: str, token_text: str) -> bool:
        """Whether decoding may choose this token next; "" stands for the end token."""
        if token_text and "," not in token_text:
            return not any(mark in token_text for mark in "\n<>()[]{}|\\")
        earlier = modifiers.split_modifiers(completion_text + token_text.split(",")[0])
        if not token_text and not self.enough(self.accepted(earlier)):
            return False
        if not earlier or completion_text.rstrip().endswith(","):
            return not token_text  # an empty modifier
        if not self._backtracks:
            return True
        return self._fits(earlier[-1], earlier[:-1])

    def enough(self, additions: Sequence[str]) -> bool:
        """Whether these are as many as are wanted."""
        return len(additions) >= self._min_modifiers

    def accepted(self, additions: Sequence[str]) -> list[str]:
        """The additions that pass every rule, in order, each once."""
        kept: list[str] = []
        for addition in additions:
            if self._fits(addition, kept):
                kept.append(addition)
        return kept

    def _fits(self, addition: str, earlier: Sequence[str]) -> bool:
        return (
            self._passes(addition)
            and not self._repeats(addition, earlier)
            and not mediums.clashes(addition, self._medium, earlier)
        )

    def _repeats(self, addition: str, earlier: Sequence[str]) -> bool:
        """Whether it says nothing new: all of its words stand in the user's text or in what was
        added before ("concept art painting" after "concept art" and "oil painting")."""
        said = self._said.union(*(prompts.content_words(other) for other in earlier))
        return said.issuperset(prompts.content_words(addition))

    def _passes(self, addition: str) -> bool:
        verdict = self._verdicts.get(addition)
        if verdict is None:
            verdict = self._verdicts[addition] = self._judge(addition)
        return verdict

    def _judge(self, addition: str) -> bool:
        if not addition.isprintable() or "\ufffd" in addition:  # bytes that are no character
            return False
        words = prompts.content_words(addition)
        if len(words) > MAX_WORDS or len(set(words)) < len(words):  # a policy that goes in circles
            return False
        if self._ban and any(map(self._ban.search, (addition, modifiers.clean(addition)))):
            return False
        if modifiers.is_explicit(addition) or not modifiers.is_modifier(addition):
            return False
        return self._artists or not modifiers.find_artists(addition, thorough=True)


def banned_pattern(ban: Sequence[str]) -> re.Pattern[str] | None:
    """Finds any banned word or phrase as whole words, whatever its case and spacing; "_" and "-"
    are spacing too."""
    phrases = []
    for phrase in ban:
        words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", phrase))
        if not words:
            raise SettingsError("ban", f"expected a word or phrase, got {phrase!r}")
        phrases.append(r"[\W_]*".join(re.escape(word) for word in words))
    if not phrases:
        return None
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(phrases)})(?![^\W_])", re.IGNORECASE)


def trim_to_budget(
    additions: Sequence[str], render: Callable[[list[str]], tuple[str, int]], token_budget: int
) -> tuple[list[str], str, int]:
    """Drop additions from the end until the adapted prompt fits the budget.

    `render(additions)` gives the adapted prompt and its number of CLIP tokens. Returns the
    additions left, the adapted prompt and its number of tokens; with no additions left it may
    still be over the budget, for the user's own words are never cut.
    """
    left = list(additions)
    adapted_prompt, num_tokens = render(left)
    while left and num_tokens > token_budget:
        left.pop()
        adapted_prompt, num_tokens = render(left)
    return left, adapted_prompt, num_tokens
