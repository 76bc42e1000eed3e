"""Takes the asking off a request: "can you draw a cat on a roof?" asks for "a cat on a roof".

An image model draws words, and "can you draw" is nothing to see. Only what is plainly an address
to somebody goes; a prompt that merely begins with a verb ("make love not war") stays as it is.
"""

from __future__ import annotations

import re

from .patterns import Pattern

_PICTURE = (
    r"(?:(?:an?|the|some|this)\s+)?(?:picture|image|pic|drawing|artwork|visual)s?\s+"
    r"(?:of|showing|with|that\s+shows?)\s+"
)
_VERB = (
    r"(?:draw|paint|make|create|generate|render|sketch|illustrate|design|show|give|imagine|"
    r"visuali[sz]e|produce)"
)
_PLAIN_VERB = r"(?:draw|generate|create|render|illustrate|visuali[sz]e)"
_POLITE = r"(?:please|pls|kindly|hi|hey|hello)[,!]?\s+"
_REQUEST = Pattern(
    rf"\s*(?:{_POLITE})*(?:"
    rf"(?:can|could|would|will)\s+you\s+(?:please\s+)?{_VERB}\s+(?:(?:for\s+)?me\s+)?"
    rf"|i(?:'d\s+like|\s+would\s+(?:like|love)|\s+want|\s+need)\s+"
    rf"(?:you\s+to\s+{_VERB}\s+(?:me\s+)?|to\s+see\s+|(?=(?:an?|the|some|two|three)\s))"
    rf"|{_VERB}\s+me\s+"
    rf"|(?<=\s){_VERB}\s+(?=(?:an?|the|some)\s)"
    rf"|{_PLAIN_VERB}\s+(?=(?:an?|the|some)\s)"
    rf")(?:{_PICTURE})?(?=\S)",
    re.IGNORECASE,
)
# Each looks behind itself first: a long run of marks is read once, not from each of its marks.
_MARKS_AT_END = Pattern(r"(?<![\s.!?])[\s.!?]+\Z")
_THANKS_AT_END = Pattern(r"(?<![\s,])[\s,]+(?:please|pls|thanks|thank\s+you)\Z", re.IGNORECASE)


def without_asking(user_input: str) -> str:
    """What a request asks for; the same text where nothing is asked. Never empty for a text that
    is not: a request for nothing stays as it is."""
    found = _REQUEST.match(user_input)
    if not found:
        return user_input
    asked = _THANKS_AT_END.sub("", _MARKS_AT_END.sub("", user_input[found.end() :]))
    return asked if re.search(r"\w", asked) else user_input
