"""Which text of an adaptation goes into which picture of a job, and which pictures are kept.

A host renders; this says what, and in which order.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .infotext import picture_values
from .job_settings import DIFFERENT, KEEP_ALL, KEEP_OFF, JobSettings

PLAIN_RANK = 0  # of the plain input among the candidates
ROW = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")  # lists of the host's


class Rendering(NamedTuple):
    """One call of the host's renderer. rank: of the candidate, from 1; PLAIN_RANK for the plain
    input. first_image: place of its first picture in the job; its seed is so much higher."""

    text: str
    rank: int
    first_image: int
    num_images: int


class Version(NamedTuple):
    """A rendered picture: of which candidate, and for which image of the job."""

    rank: int
    image: int


@dataclass
class Picture:
    """A rendered picture in the host's hands. image: PIL. infotext: what it remembers. row: its
    entries in the host's lists, by their names in ROW. job: the host's, which rendered it. score:
    of `keep_best`, None without."""

    image: Any
    infotext: str
    version: Version
    row: dict[str, Any]
    job: Any
    score: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        return {**self.version._asdict(), **(self.score or {})}


class ImageText(NamedTuple):
    """What one image of a job is rendered from, and what its picture remembers."""

    text: str
    pairs: dict[str, str]


def without_comments(text: str) -> str:
    """A prompt without what the hosts leave out where a setting of theirs says so: from # to the
    end of the line. They would leave out what was added there, too."""
    left = re.sub(r"(^|\n)#[^\n]*(\n|$)", "\n", text)
    left = re.sub(r"#[^\n]*(\n|$)", "\n", left)
    return text if left == text else left.strip()


def candidate_for(settings: JobSettings, num_candidates: int, image: int) -> int:
    """The rank of the candidate for an image of the job, counted from 0. Where there are fewer
    candidates than were asked for, the last one stands in, or their turn begins again."""
    if settings.images == DIFFERENT:
        return (settings.rank - 1 + image) % num_candidates + 1
    return min(settings.rank, num_candidates)


def num_batches(settings: JobSettings, num_images: int, batches_each: int) -> int:
    """How many batches the host renders, if all candidates are found. batches_each: in which it
    renders num_images pictures."""
    if settings.keep_best != KEEP_OFF:
        return (1 + settings.candidates_wanted(num_images)) * batches_each
    return num_images if settings.images == DIFFERENT else batches_each


def renderings(
    settings: JobSettings, user_input: str, candidates: Sequence[str], num_images: int
) -> list[Rendering]:
    """What to render for a job of num_images pictures. candidates: the texts, best first. With
    keep_best the plain input comes first, so that a candidate has to be better to win."""
    if settings.keep_best != KEEP_OFF:
        texts = [user_input, *(text for text in candidates if text != user_input)]
        return [Rendering(text, rank, 0, num_images) for rank, text in enumerate(texts)]
    if settings.images == DIFFERENT and len(candidates) > 1:
        ranks = [candidate_for(settings, len(candidates), i) for i in range(num_images)]
        return [Rendering(candidates[rank - 1], rank, i, 1) for i, rank in enumerate(ranks)]
    rank = candidate_for(settings, len(candidates), 0)
    return [Rendering(candidates[rank - 1], rank, 0, num_images)]


def job_of(rendering: Rendering, job: Any, num_images: int) -> Any:
    """The host's job for one rendering. job: the host's of all num_images pictures, its seeds
    known; it stays as it is. Several pictures to start from serve in turn."""
    one = copy.copy(job)
    one.prompt = rendering.text
    if getattr(job, "hr_prompt", "") == job.prompt:
        one.hr_prompt = rendering.text
    if rendering.num_images < num_images:
        one.batch_size = one.n_iter = 1
        one.seed += rendering.first_image if job.subseed_strength == 0 else 0
        one.subseed += rendering.first_image
        begins = getattr(job, "init_images", None) or []
        if len(begins) > 1:
            one.init_images = [begins[rendering.first_image % len(begins)]]
    return one


def pictures_of(rendering: Rendering, job: Any, processed: Any) -> list[Picture]:
    """The pictures that the host made of a rendering, without its grid and masks. processed: its
    images, their infotexts and the lists of ROW, all from index_of_first_image on."""
    first = processed.index_of_first_image
    shown, told = processed.images[first:], processed.infotexts[first:]
    if len(shown) > len(told):
        shown = [image for image in shown if "parameters" in image.info] or shown
    found = []
    for i in range(min(len(shown), len(told))):  # interrupted, it tells of more than it made
        version = Version(rendering.rank, rendering.first_image + i)
        row = {name: getattr(processed, name)[i] for name in ROW}
        found.append(Picture(shown[i], told[i], version, row, job))
    return found


def replaced(texts: Sequence[str], old: Sequence[str], new: Sequence[str]) -> list[str]:
    """New texts where a text is the old one of its place; others stay."""
    return [n if text == o else text for text, o, n in zip(texts, old, new, strict=True)]


def kept(settings: JobSettings, versions: Sequence[Version], rewards: Sequence[float]) -> list[int]:
    """The numbers of the pictures that are returned, in their order: sorted by reward, or the best
    of each image of the job. Of equals the first wins."""
    order = sorted(range(len(versions)), key=lambda number: -rewards[number])
    if settings.keep_best == KEEP_ALL:
        return order
    best: dict[int, int] = {}
    for number in order:
        best.setdefault(versions[number].image, number)
    return [best[image] for image in sorted(best)]


def told(versions: Sequence[Version], rewards: Sequence[float], chosen: Sequence[int]) -> list[str]:
    """One sentence for each image of the job: what won, and against what."""
    lines = []
    for image in sorted({version.image for version in versions}):
        numbers = [n for n in range(len(versions)) if versions[n].image == image]
        winner = max(numbers, key=lambda n: rewards[n])
        plain = [rewards[n] for n in numbers if versions[n].rank == PLAIN_RANK]
        against = f", the plain input {plain[0]:.2f}" if plain else ""
        rank = versions[winner].rank
        name = f"candidate {rank}" if rank != PLAIN_RANK else "the plain input"
        if winner in chosen:
            lines.append(
                f"image {image + 1}: {name} is best, reward {rewards[winner]:.2f}{against}"
            )
    return lines


def pairs_of(
    settings: JobSettings, found: Any, rank: int, image_seed: int, num_images: int
) -> dict[str, str]:
    """What a picture of the candidate of that rank remembers. found: an AdaptedInput of a job of
    num_images pictures, the first of which has the seed image_seed."""
    used = settings.for_adapter(image_seed, num_images)
    adaptation = found.adaptation
    return picture_values(
        settings, adaptation.user_input, rank, used["seed"], used["num_candidates"],
        adaptation.gate, found.policy_hash,
    )  # fmt: skip


def inputs_of_images(
    typed: Iterable[str], shown: Sequence[str], styled: Callable[[str], str]
) -> list[tuple[str, Callable[[str], str]]]:
    """(user input, how its adapted prompt gets its style) of each image of a job that the host has
    set up. typed: by the person. shown: what is to be rendered. styled: puts the host's styles on.

    Where another extension has changed the text, such as filled in wildcards, that is the input;
    blank space, which comments leave behind, is no change."""
    return [
        (text, styled) if styled(text).strip() == there.strip() else (there, str)
        for text, there in zip(typed, shown, strict=True)
    ]


def texts_of_images(
    settings: JobSettings,
    inputs: Sequence[tuple[str, Callable[[str], str]]],
    found: Mapping[str, Any],
    image_seed: int,
) -> list[ImageText]:
    """The text of each image. inputs: of `inputs_of_images`. found: an AdaptedInput by input."""
    chosen = []
    for image, (user_input, styled) in enumerate(inputs):
        one = found[user_input]
        rank = candidate_for(settings, len(one.texts), image)
        pairs = pairs_of(settings, one, rank, image_seed, len(inputs))
        chosen.append(ImageText(styled(one.texts[rank - 1]), pairs))
    return chosen
