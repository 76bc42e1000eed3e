"""What is in a scene, in words, and back: `read(describe(scene, generator)) == scene`.

The renderer learns from what `describe` writes, so `read` understands these words and no others:
a word that the renderer never saw changes nothing in the picture. Things, relation and place come
early, because the text encoder knows the order of the first 24 tokens only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from ..settings import SettingsError
from .scenes import Scene, Thing, weighted
from .vocabulary import COLOURS, MODIFIERS, PLACES, SIZES, SUBJECT_BY_NAME

# {content}: things and place. {modifiers}: nothing, or each after a comma.
TEMPLATES = {
    "label": ("{content}{modifiers}",),
    "plain": ("{content}{modifiers}",),
    "caption": (
        "there is {content}{modifiers}",
        "here is {content}{modifiers}",
        "this is {content}{modifiers}",
        "we see {content}{modifiers}",
        "a picture of {content}{modifiers}",
    ),
    "request": (
        "draw {content}{modifiers}",
        "please draw {content}{modifiers}",
        "show me {content}{modifiers}",
        "make {content}{modifiers}",
        "i want {content}{modifiers}",
        "i would like {content}{modifiers}",
    ),
    "question": (
        "can you draw {content}{modifiers}?",
        "could you show me {content}{modifiers}?",
        "what would {content} look like{modifiers}?",
        "how would {content} look{modifiers}?",
    ),
}
STYLES = tuple(TEMPLATES)
HELD_OUT_STYLES = ("question",)  # never in what the writers write
SHARES = ((0, 0.31), (1, 0.29), (2, 0.24), (3, 0.09), (4, 0.07))  # by place in STYLES

RELATION_FORMS = {
    "beside": ("beside", "next to"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "behind": ("behind",),
}
# In front of the content, where the first modifier has such a form: "a watercolor of a cat".
LEADS = {
    "watercolor": ("a watercolor of", "a watercolor painting of"),
    "oil painting": ("an oil painting of",),
    "pixel art": ("pixel art of",),
    "line art": ("line art of",),
    "pencil sketch": ("a pencil sketch of",),
    "stained glass": ("a stained glass picture of",),
    "paper cutout": ("a paper cutout of",),
    "woodcut": ("a woodcut of",),
    "comic book": ("a comic book picture of",),
    "close-up": ("a close-up of",),
    "wide shot": ("a wide shot of",),
    "silhouette": ("a silhouette of",),
}
LEAD_SHARE = 0.5  # of the scenes whose first modifier has a lead
PLACE_FIRST_SHARE = 0.12  # "by the sea, a red cat"
ARTICLES = ("a", "an")
OTHER_WORDS = ("and", ",")

_PLACE_BY_NOUN = {place.split()[-1]: place for place in PLACES}
_RELATION_BY_WORDS = {
    words: relation for relation, forms in RELATION_FORMS.items() for words in forms
}


def describe(scene: Scene, generator: random.Random, style: str | None = None) -> str:
    """The scene in words, lower case. style: one of STYLES, None: mostly label, plain, caption.

    The modifiers keep their order. Raises SettingsError("style", ...) for an unknown style.
    """
    if style is None:
        style = STYLES[weighted(generator, SHARES)]
    if style not in TEMPLATES:
        raise SettingsError("style", f"expected one of {', '.join(STYLES)}, got {style!r}")
    if not scene.things:
        return ", ".join((*([scene.place] if scene.place else []), *scene.modifiers))
    modifiers = list(scene.modifiers)
    template = generator.choice(TEMPLATES[style])
    lead = ""
    if modifiers and modifiers[0] in LEADS and generator.random() < LEAD_SHARE:
        lead = _lead(modifiers.pop(0), style, generator)
        template = template.replace("a picture of ", "")
    content = lead + _content(scene, style, bool(lead), generator)
    return template.format(content=content, modifiers="".join(f", {name}" for name in modifiers))


def _lead(modifier: str, style: str, generator: random.Random) -> str:
    lead = generator.choice(LEADS[modifier])
    if style != "label":
        return f"{lead} "
    without_article = lead.removeprefix("a ").removeprefix("an ")
    return generator.choice((f"{without_article} ", f"{modifier}, "))


def _content(scene: Scene, style: str, has_lead: bool, generator: random.Random) -> str:
    """Things and place. Place first only where a text may begin with it."""
    things = _things(scene, style != "label", generator)
    if scene.place is None:
        return things
    if style == "label":
        orders = (f"{things}, {scene.place}", f"{things} {scene.place}")
        content = generator.choice(orders)
    else:
        content = f"{things} {scene.place}"
    may_turn = style in ("label", "plain") and not has_lead
    if may_turn and generator.random() < PLACE_FIRST_SHARE:
        return f"{scene.place}, {things}"
    return content


def _things(scene: Scene, articles: bool, generator: random.Random) -> str:
    phrases = [_thing(thing, articles) for thing in scene.things]
    if len(phrases) > 1 and scene.relation is not None:
        relation = generator.choice(RELATION_FORMS[scene.relation])
        phrases[:2] = [f"{phrases[0]} {relation} {phrases[1]}"]
    return " and ".join(phrases)


def _thing(thing: Thing, articles: bool) -> str:
    words = " ".join(word for word in (thing.size, thing.colour, thing.subject) if word)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}" if articles else words


def _one_of(names: Iterable[str]) -> str:
    """A pattern; the longest first, so that "black and white" goes before "black"."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return "|".join(re.escape(name).replace(r"\-", "[- ]") for name in longest_first)


# Every alternative is a bounded number of words, so that a search takes linear time.
_FINDING = re.compile(
    rf"""(?<!\w)(?:
      (?P<modifier>{_one_of(modifier.name for modifier in MODIFIERS)})
    | (?P<adjectives>(?:(?:{_one_of((*COLOURS, *SIZES))})[ ]){{0,2}})
      (?P<subject>{_one_of(SUBJECT_BY_NAME)})
    | (?P<relation>{_one_of(_RELATION_BY_WORDS)})
    | (?P<place>{_one_of(_PLACE_BY_NOUN)})
    )(?!\w)""".replace("\\ ", "[ ]"),
    re.VERBOSE,
)


def read(text: str) -> Scene:
    """The scene that a text describes; what is unknown is passed over, and nothing raises.

    Things are the first three subjects, each with the colour and the size directly before it. The
    relation stands between the first two. The place is the first one named, in full ("by the
    sea") or by its noun. Modifiers are in the order said, each once. Takes linear time.
    """
    things: list[Thing] = []
    relation = place = None
    modifiers: dict[str, None] = {}
    for found in _FINDING.finditer(" ".join(text.lower().split())):
        kind, words = found.lastgroup, found.group()
        if kind == "modifier":
            modifiers[_MODIFIER_BY_WORDS.get(words, words)] = None
        elif kind == "relation":
            if len(things) == 1 and relation is None:
                relation = _RELATION_BY_WORDS[words]
        elif kind == "place":
            place = place or _PLACE_BY_NOUN[words]
        elif len(things) < 3:
            things.append(_read_thing(found["subject"], found["adjectives"].split()))
    if len(things) < 2:
        relation = None
    return Scene(tuple(things), relation, place, tuple(modifiers))


_MODIFIER_BY_WORDS = {modifier.name.replace("-", " "): modifier.name for modifier in MODIFIERS}


def _read_thing(subject: str, adjectives: list[str]) -> Thing:
    """The adjective nearest to the subject counts, of each sort."""
    colours = [word for word in adjectives if word in COLOURS]
    sizes = [word for word in adjectives if word in SIZES]
    return Thing(subject, colours[-1] if colours else None, sizes[-1] if sizes else None)


def world_words() -> tuple[str, ...]:
    """Every word and punctuation mark that `describe` can write, sorted."""
    return tuple(sorted({word for text in _all_texts() for word in _words(text)}))


def _words(text: str) -> list[str]:
    """ "close-up" and "8k" are one word each."""
    return re.findall(r"[\w-]+|[^\w\s]", text)


def _all_texts() -> Iterator[str]:
    for templates in TEMPLATES.values():
        yield from (template.format(content="", modifiers="") for template in templates)
    for forms in (*RELATION_FORMS.values(), *LEADS.values()):
        yield from forms
    yield from (*SUBJECT_BY_NAME, *COLOURS, *SIZES, *PLACES, *ARTICLES, *OTHER_WORDS)
    yield from (modifier.name for modifier in MODIFIERS)
