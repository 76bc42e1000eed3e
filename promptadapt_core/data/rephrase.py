"""Main content in other words, by rules.

People type labels ("cat, roof"), captions ("there is a cat on a roof"), requests ("can you draw
a cat on a roof?") and careless text. Each rule gives one such phrasing.
"""

from __future__ import annotations

import random
import re

from ..prompts import content_words

_ARTICLES = frozenset("a an the".split())
_COUNTS = frozenset("two three four five six seven many several some".split())
_DETERMINERS = frozenset("this that these those my our your his her its their".split())
_MEDIUM = re.compile(  # "a highly detailed oil painting of ..."
    r"(?:(?:an?|the)\s+)?(?:(?!(?:of|in|on|with|and|at|from|by|for|the|an?|as|is)\b)[\w-]+\s+){0,4}"
    r"(portrait|painting|photo|photograph|picture|image|drawing|sketch|illustration|render|"
    r"rendering|poster|shot|view|closeup|close-up|close up|still|art|artwork|cover|scene)"
    r"(?=$|,|\s+(?:of|in|from|with|showing|featuring|depicting)\b)",
    re.IGNORECASE,
)
_BREAKS = frozenset(  # a label breaks at these words
    "of in on at with by from to into over under above below near behind beside between through "
    "during and for as wearing holding riding sitting standing walking inside outside around "
    "against across while who that which is are has having".split()
)
_CAPTIONS = (
    "a picture of {main}",
    "picture of {main}",
    "an image of {main}",
    "an image showing {main}",
    "image of {main}",
    "this is {main}",
    "a scene with {main}",
    "it shows {main}",
)
_REQUESTS = (
    "can you draw {main}?",
    "can you make {main}",
    "could you create {main}?",
    "can you show me {main}?",
    "please make {main}",
    "please draw {main}",
    "draw {main}",
    "make {main}",
    "create {main}",
    "generate {main}",
    "show me {main}",
    "I want {main}",
    "i want to see {main}",
    "I would like {main}",
    "I need a picture of {main}",
    "give me {main}, please",
)


def rephrasings(main: str, source: random.Random) -> list[str]:
    """Two or fewer phrasings of `main`, not equal to it or each other.

    One is spoken (a caption or a request), one is terse or careless.
    """
    spoken = caption(main, source) if source.random() < 0.4 else request(main, source)
    shapes = [label, without_articles, careless]
    source.shuffle(shapes)
    short = next((text for text in (shape(main, source) for shape in shapes) if text), "")
    return [text for text in dict.fromkeys((spoken, short)) if text and text != main]


def caption(main: str, source: random.Random) -> str:
    """The main content as a sentence or title under a picture."""
    first = main.split()[0].lower()
    if first in ("a", "an") and source.random() < 0.4:
        return _finish(f"there is {in_sentence(main)}", source)
    if first in _COUNTS and source.random() < 0.4:
        return _finish(f"there are {in_sentence(main)}", source)
    if _MEDIUM.match(main):
        template = source.choice(("this is {main}", "here is {main}", "it is {main}"))
    else:
        template = source.choice(_CAPTIONS)
    return _finish(template.format(main=in_sentence(main)), source)


def request(main: str, source: random.Random) -> str:
    """The main content as a question or an order."""
    templates = _REQUESTS
    if _MEDIUM.match(main):  # "draw a photo of ..." is odd
        templates = tuple(
            text for text in templates if "draw" not in text and "picture" not in text
        )
    return source.choice(templates).format(main=in_sentence(main))


def label(main: str, source: random.Random) -> str:
    """The noun groups alone: "a cat on a roof" -> "cat, roof"; "" when there is only one."""
    groups: list[list[str]] = [[]]
    for word in re.findall(r"[^\s,.;:!?]+|[,.;:!?]", main):
        lowered = word.lower()
        if lowered in _BREAKS or not any(map(str.isalnum, word)):
            groups.append([])
        elif lowered not in _ARTICLES:
            groups[-1].append(word)
    texts = [" ".join(group) for group in groups if content_words(" ".join(group))]
    if len(texts) < 2 or len(texts) > 6:
        return ""
    separator = source.choice((", ", ", ", ", ", " "))
    return separator.join(dict.fromkeys(texts)).lower()


def without_articles(main: str, source: random.Random) -> str:
    """ "a cat on a roof" -> "cat on roof"; "" when there was no article."""
    words = main.split()
    kept = [word for word in words if word.lower() not in _ARTICLES]
    if len(kept) == len(words) or not kept:
        return ""
    return " ".join(kept)


def careless(main: str, source: random.Random) -> str:
    """Another case or end: lower case, a capital first letter, a full stop."""
    choices = [main.lower(), main[0].upper() + main[1:] + ".", main.replace(",", "").lower()]
    changed = [text for text in choices if text != main]
    return source.choice(changed) if changed else ""


def in_sentence(main: str) -> str:
    """The main content inside a sentence: "portrait of x" gets its article, and an article or
    number at the start is not capital; names are left as they are."""
    first, _, rest = main.partition(" ")
    if first.lower() in _ARTICLES | _COUNTS | _DETERMINERS:
        return f"{first.lower()} {rest}".strip()
    medium = _MEDIUM.match(main)
    if medium and medium.group(1).lower() not in ("art", "artwork") and not first[0].isdigit():
        return f"{'an' if first[0].lower() in 'aeiou' else 'a'} {main}"
    return main


def _finish(text: str, source: random.Random) -> str:
    """Some people end a caption as a sentence."""
    if source.random() < 0.3:
        text += "."
    if source.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text
