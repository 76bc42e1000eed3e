"""Tells sexually explicit text and text that sexualises children. Plain lists. Text only."""

from __future__ import annotations

import re

from .patterns import Pattern

_EXPLICIT = (
    "anal|anus|areola[es]*|ass|asshole|bdsm|bimbo|blowjobs?|bondage|boob(?:s|ies|y)?|bukkake|"
    "busty|butt|buttocks|buttplug|camel ?toe|cleavages?|clit(?:oris)?|cock|coitus|condoms?|"
    "copulat\\w+|creampie|cum|cumming|cumshot|cunnilingus|cunt|deepthroat|dildos?|dominatrix|"
    "ecchi|ejaculat\\w+|erections?|erotic\\w*|escorts?|fellatio|femboy|fetish\\w*|fornicat\\w+|"
    "fuck\\w*|futanari|g ?string|gangbang|genital\\w*|guro|handjob|hentai|horny|incest|"
    "intercourse|jizz|kamasutra|kinky|labia|lewd|lingerie|lolicon?|loli|lolita|masturbat\\w+|"
    "milf|naked|nipples?|nsfw|nude|nudes|nudity|nudist|onlyfans|orgasm\\w*|orgy|panties|penis\\w*|"
    "phallus|playboy|porn\\w*|prostitut\\w+|pubic|pussy|rape|raped|rapist|rule ?34|scrotum|"
    "semen|sex|sexual\\w*|sexy|sexiest|shibari|shota|slut\\w*|sperm|strapon|stripper|stripping|"
    "striptease|testicles?|threesome|thong|titties|tits?|titty|topless|tentacle sex|twerking|"
    "undressed|undressing|upskirt|vagina\\w*|voluptuous|vore|vulva|whore|xxx|yaoi|"
    "bare (?:breasts?|chested wom[ae]n|bottom|butt)|big (?:breasts?|bust)|huge breasts?|"
    "large (?:breasts?|bust)|breasts?|without clothes|no clothes|wearing nothing|unclothed"
)
# "naked mole rat" and the like: harmless, and common in real prompts.
_HARMLESS = Pattern(
    r"\bnaked (?:mole|eye)|\b(?:cock|cockatoo) (?:a doodle|fight)|\bchicken breasts?\b|"
    r"\bturkey breasts?\b|\brobin(?:'s)? breast\b|\btit(?:mouse)?\b(?= bird)|\bblue tits?\b|"
    r"\bgreat tits?\b|\bbreast (?:plate|armou?r|stroke)s?\b|\bsex and the city\b|\bmass effect\b",
    re.IGNORECASE,
)
_CHILDREN = Pattern(
    r"\b(?:child(?:ren|ish)?|kids?|toddlers?|bab(?:y|ies)|infants?|teen(?:s|age|ager|agers)?|"
    r"preteen|under ?age|minors?|school ?(?:girl|boy)s?|little (?:girl|boy)s?|"
    r"young (?:girl|boy)s?|girls?|boys?|loli|shota|(?:[1-9]|1[0-7])[ -]?(?:years?[ -]?old|yo))\b",
    re.IGNORECASE,
)
_SEXUALISING = Pattern(
    r"\b(?:seductive\w*|sensual\w*|sultry|provocative\w*|bikinis?|underwear|undies|bra|"
    r"swim ?suits?|swim ?wear|flirt\w*|skimpy|scantily|revealing|tight (?:dress|clothes|clothing)|"
    r"latex|thighs?|curvy|curvaceous|hot(?=,|$| girl| boy)|alluring|tempting|aroused?|arousing|"
    r"barely (?:dressed|clothed)|see[- ]through|transparent (?:dress|"
    r"clothes|clothing)|wet t-?shirt|"
    r"spread(?:ing)? (?:her |his )?legs|bedroom eyes|garters?|stockings|fishnets?|corset)\b",
    re.IGNORECASE,
)
_GORE = (
    "decapitat\\w+|disembowel\\w*|dismember\\w*|entrails|eviscerat\\w+|gore|gory|guts|"
    "mutilat\\w+|beheaded|beheading|necrophilia|snuff film"
)
_EXPLICIT_OR_GORE = Pattern(rf"\b(?:{_EXPLICIT}|{_GORE})\b", re.IGNORECASE)


def is_explicit(text: str) -> bool:
    """Whether `text` names nudity, sex or gore, or puts sexualising words beside words for the
    young. Errs towards True: it decides what the data leaves out, never what a user may type."""
    text = _HARMLESS.sub(" ", text)
    if _EXPLICIT_OR_GORE.search(text):
        return True
    return bool(_CHILDREN.search(text) and _SEXUALISING.search(text))
