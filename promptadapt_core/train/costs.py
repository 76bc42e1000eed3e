"""What a run will cost, by its parts: how it is told in sentences, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import runs

RENDERING, SCORING, PLAIN = "rendering", "scoring", "plain inputs"
REWARD_PARTS = (RENDERING, SCORING, PLAIN)  # inside renderer and scorer
MOST_SECONDS = 100 * 365 * 86400.0  # what a duration can be told up to


@dataclasses.dataclass(frozen=True)
class Part:
    """number: how often it is done, at most; unit: what is done, singular. seconds_each: measured
    by the probe. repeats: whether candidates that say the same cost it once."""

    name: str
    number: float
    unit: str
    seconds_each: float
    repeats: bool = False

    @property
    def seconds(self) -> float:
        return min(self.number * self.seconds_each, MOST_SECONDS)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "number": round(self.number), "unit": self.unit,
            "seconds_each": self.seconds_each, "seconds": self.seconds,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Probe:
    """What the plan was measured on. num_pictures of num_steps sampling steps each, batch_size at
    once (0 where nothing is known of it), of the planned_steps and planned_batch of the run."""

    seconds: float
    num_candidates: int = 0
    num_pictures: int = 0
    batch_size: int = 0
    planned_batch: int = 0
    num_steps: int = 0
    planned_steps: int = 0

    def sentence(self) -> str:
        parts = []
        if self.num_pictures:
            steps = f" of {self.num_steps} steps" if self.num_steps else ""
            batch = f", {self.batch_size} at once" if self.batch_size else ""
            parts.append(f"{self.num_pictures} pictures{steps}{batch}")
        if self.num_candidates:
            parts.append(f"{self.num_candidates:,} candidates")
        text = f"measured in {runs.duration(self.seconds)}" + (": " if parts else "")
        text += " and ".join(parts)
        less = []
        if self.num_steps < self.planned_steps:
            less.append(f"the time of {self.planned_steps} steps is computed from fewer")
        if self.batch_size < self.planned_batch:
            less.append(
                f"the run renders {self.planned_batch} at once, which is quicker on a GPU and "
                "needs more memory"
            )
        return "; ".join([text, *less])


@dataclasses.dataclass(frozen=True)
class Plan:
    """Still to come. counts: what the first sentence names, by name. parts: of the time.
    rendered_share: pictures that the candidates of the probe need, of those they would need if all
    were different: how often the policy repeats itself now. memory_bytes: peak of the process, or
    of the GPU; 0 where it is not known. disk_bytes: of the run folder at most, while it saves."""

    trainer: str
    counts: dict[str, int]
    first_sentence: str
    parts: tuple[Part, ...]
    rendered_share: float
    memory_bytes: int
    disk_bytes: int
    probe: Probe

    @property
    def seconds(self) -> float:
        """At most: as if no candidate repeated another."""
        return sum(part.seconds for part in self.parts)

    @property
    def seconds_now(self) -> float:
        """If candidates repeat each other as often as they do now."""
        return sum(
            part.seconds * (self.rendered_share if part.repeats else 1.0) for part in self.parts
        )

    @property
    def reward_share(self) -> float:
        """Share of the time inside renderer and scorer, 0 to 1."""
        inside = sum(part.seconds for part in self.parts if part.name in REWARD_PARTS)
        return inside / self.seconds if self.seconds else 0.0

    def sentences(self) -> list[str]:
        """For the start of a run."""
        about = f"expected, from a probe: at most about {runs.duration(self.seconds)}"
        return [self.first_sentence, f"{about}, {self._share()}{self._sizes()}"]

    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        rows = [
            (part.name, f"{part.number:,.0f} x", f"{seconds_text(part.seconds_each)} a {part.unit}",
             runs.duration(part.seconds))
            for part in self.parts
        ]  # fmt: skip
        rows.append(("all, without repeats", "", "", runs.duration(self.seconds)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            f"  {name:<{widths[0]}}  {number:>{widths[1]}}  {each:<{widths[2]}}  "
            f"{together:>{widths[3]}}"
            for name, number, each, together in rows
        ]
        lines = [self.first_sentence, *table]
        if self.rendered_share < 1.0:
            lines.append(
                f"about {runs.duration(self.seconds_now)} if the policy goes on repeating itself "
                f"as now: {self.rendered_share:.0%} of the pictures are different ones, and "
                "repeats are rendered once; a policy that learns repeats itself more"
            )
        lines.append(f"{self._share()}{self._sizes()}")
        lines.append(self.probe.sentence())
        lines.append("other work on this machine changes the time; nothing was kept of the probe")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer,
            **self.counts,
            "seconds_at_most": self.seconds,
            "seconds_as_the_policy_repeats_itself_now": self.seconds_now,
            "rendered_share_now": self.rendered_share,
            "renderer_and_scorer_share": self.reward_share,
            "parts": [part.as_json() for part in self.parts],
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "probe": dataclasses.asdict(self.probe),
        }

    def _share(self) -> str:
        inside = any(part.name in REWARD_PARTS for part in self.parts)
        return f"renderer and scorer {self.reward_share:.0%} of it" if inside else "no pictures"

    def _sizes(self) -> str:
        memory = f", memory {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else ""
        return f"{memory}, disk {self.disk_bytes / 2**30:.2f} GiB at most"


def seconds_text(seconds: float) -> str:
    """ "12.3 s", "0.45 s", "1.2 ms": three digits at most."""
    if seconds >= 0.1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms"
