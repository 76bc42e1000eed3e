"""What the lab's CLIP reads beside a picture: what can be seen, and the same with one fact wrong.

Captions leave things out as user inputs do, modifiers above all: then the relevance of a picture
to a plain user input says little about the modifiers that it also shows. They name no colour that
its modifiers hide: so a red cat that became a silhouette is not what "a red cat" asked for.

A CLIP that only has to find its caption among those of other pictures hardly needs colours, for
the subjects give it away. The wrong captions are the hard negatives of NegCLIP (Yuksekgonul et al.
2022, arXiv 2210.01936, section 4): the same words, but for one fact.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from .captions import describe
from .scenes import Scene, Thing
from .vocabulary import COLOURS, HIDES_COLOURS, PLACES, SUBJECT_BY_NAME

# How often a caption leaves out what its picture shows.
NO_MODIFIERS, SOME_MODIFIERS = 0.35, 0.15
NO_PLACE, NO_COLOURS, NO_SIZES = 0.1, 0.1, 0.3


def caption_pair(scene: Scene, words: random.Random) -> tuple[str, str]:
    """(a caption of the scene's picture, the same with one fact wrong)."""
    said = user_side(scene, words)
    wrong = misdescribed(said, words, hides_colours=not HIDES_COLOURS.isdisjoint(scene.modifiers))
    wording = words.getrandbits(64)  # the same template and order for both
    right, other = (describe(one, random.Random(wording)) for one in (said, wrong))
    return right, other


def user_side(scene: Scene, words: random.Random) -> Scene:
    """The scene with less said, as people do: see NO_MODIFIERS and what follows it."""
    modifiers = scene.modifiers
    draw = words.random()
    if draw < NO_MODIFIERS:
        modifiers = ()
    elif draw < NO_MODIFIERS + SOME_MODIFIERS:
        modifiers = tuple(name for name in modifiers if words.random() < 0.5)
    colours, sizes = words.random() >= NO_COLOURS, words.random() >= NO_SIZES
    colours = colours and HIDES_COLOURS.isdisjoint(scene.modifiers)
    things = tuple(
        Thing(thing.subject, thing.colour if colours else None, thing.size if sizes else None)
        for thing in scene.things
    )
    place = scene.place if words.random() >= NO_PLACE else None
    return dataclasses.replace(scene, things=things, place=place, modifiers=modifiers)


def misdescribed(said: Scene, words: random.Random, hides_colours: bool = False) -> Scene:
    """`said` with one fact wrong: a colour, two colours exchanged, a subject or the place.

    hides_colours: the picture shows no colours, and naming any is wrong as well. A scene of no
    thing and no place comes back with a thing.
    """
    kinds = ["subject"]
    if said.place is not None:
        kinds.append("place")
    coloured = [number for number, thing in enumerate(said.things) if thing.colour is not None]
    if coloured or hides_colours:
        kinds += ["colour"] * 2
    kind = words.choice(kinds)
    if kind == "place":
        return dataclasses.replace(said, place=_another(PLACES, said.place, words))
    if not said.things:
        return dataclasses.replace(said, things=(Thing(words.choice(list(SUBJECT_BY_NAME))),))
    things = list(said.things)
    if kind == "subject":
        number = words.randrange(len(things))
        subject = _another(SUBJECT_BY_NAME, things[number].subject, words)
        things[number] = dataclasses.replace(things[number], subject=subject)
    elif not coloured:
        things = [
            dataclasses.replace(thing, colour=words.choice(list(COLOURS))) for thing in things
        ]
    else:
        things = _wrong_colours(things, coloured, words)
    return dataclasses.replace(said, things=tuple(things))


def _wrong_colours(things: list[Thing], coloured: list[int], words: random.Random) -> list[Thing]:
    """One colour replaced, or those of two things exchanged."""
    one = words.choice(coloured)
    different = [i for i in coloured if things[i].colour != things[one].colour]
    changed = list(things)
    if different and words.random() < 0.5:
        other = words.choice(different)
        changed[one] = dataclasses.replace(things[one], colour=things[other].colour)
        changed[other] = dataclasses.replace(things[other], colour=things[one].colour)
    else:
        colour = _another(COLOURS, things[one].colour, words)
        changed[one] = dataclasses.replace(things[one], colour=colour)
    return changed


def _another(names: Iterable[str], known: str | None, words: random.Random) -> str:
    return words.choice([name for name in names if name != known])
