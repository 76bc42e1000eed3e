"""What an evaluation found, as numbers: means, diversity, differences, shares of the gap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..alarms import added_text, distinct_share, most_frequent, word_pairs
from .inputs import Inputs
from .rows import Prompts
from .scoring import Values
from .settings import ORACLE, PLAIN, RowPlan
from .statistics import Resampling

LENGTHS = ((1, 4), (5, 8), (9, 12), (13, 20), (21, 40), (41, 10**9))  # CLIP tokens, both inclusive


@dataclasses.dataclass
class MeasuredRow:
    """A row of the evaluation. prompts: of each of its K training seeds (one where it is no
    policy). values: for each metric (K, N) over the N user inputs, nan where there is none."""

    plan: RowPlan
    prompts: list[Prompts]
    values: dict[str, np.ndarray]
    note: str = ""

    @classmethod
    def of(
        cls,
        plan: RowPlan,
        prompts: list[Prompts],
        found: Sequence[Sequence[Values | None]],
        metrics: Sequence[str],
        note: str = "",
    ) -> MeasuredRow:
        """found: for each training seed what each user input's candidate is worth, or None."""
        values = {
            name: np.array(
                [[math.nan if one is None else one[name] for one in seed] for seed in found]
            )
            for name in metrics
        }
        return cls(plan, prompts, values, note)


@dataclasses.dataclass
class Measured:
    """count_tokens: CLIP tokens of a text."""

    inputs: Inputs
    rows: list[MeasuredRow]
    metrics: dict[str, str]
    resampling: Resampling
    num_images: int
    count_tokens: Callable[[str], int]

    def row(self, name: str) -> MeasuredRow | None:
        """By the name that was given to it."""
        return next((row for row in self.rows if row.plan.name == name), None)

    def of_domain(self, row: MeasuredRow, metric: str, domain: str) -> np.ndarray:
        """(K, number of the domain)."""
        return row.values[metric][:, self.inputs.places_of(domain)]

    def num_failed(self, row: MeasuredRow, domain: str) -> int:
        """Candidates of the domain without a reward, over all training seeds."""
        places = self.inputs.places_of(domain)
        prompts = [some.adapted_prompts[place] for some in row.prompts for place in places]
        num_asked = sum(prompt is not None for prompt in prompts)
        return num_asked - int(np.isfinite(self.of_domain(row, "reward", domain)).sum())

    def summary(self) -> list[dict[str, Any]]:
        """One entry for each domain and row."""
        return [
            self._summary_of(row, domain) for domain in self.inputs.domains for row in self.rows
        ]

    def _summary_of(self, row: MeasuredRow, domain: str) -> dict[str, Any]:
        places = self.inputs.places_of(domain)
        by_metric = {
            name: self.resampling.mean(self.of_domain(row, name, domain)).as_json()
            for name in self.metrics
        }
        texts = [
            [(self.inputs.rows[place].user_input, some.adapted_prompts[place]) for place in places]
            for some in row.prompts
        ]
        present = [[pair for pair in part if pair[1] is not None] for part in texts]
        num_asked = sum(len(part) for part in present)
        found = {
            "domain": domain,
            "row": row.plan.name,
            "metrics": by_metric,
            "num_inputs": num_asked // len(row.prompts),
            "num_failed": self.num_failed(row, domain),
            "num_rendered": num_asked // len(row.prompts) * self.num_images,
            "left_alone_share": _mean([_left_alone(part) for part in present]),
            "diversity": self._diversity(present, domain),
            "gap_share": self._gap(row, domain),
        }
        if len(row.prompts) > 1:
            found["by_seed"] = [
                self._of_seed(row, place, domain) for place in range(len(row.prompts))
            ]
        return found

    def _of_seed(self, row: MeasuredRow, place: int, domain: str) -> dict[str, Any]:
        """The means of one training seed."""
        values = {name: some[place : place + 1] for name, some in row.values.items()}
        alone = MeasuredRow(row.plan, [row.prompts[place]], values)
        by_metric = {
            name: self.resampling.mean(self.of_domain(alone, name, domain)).as_json()
            for name in self.metrics
        }
        gap = self._gap(alone, domain)
        return {"folder": row.plan.folders[place], "metrics": by_metric, "gap_share": gap}

    def _gap(self, row: MeasuredRow, domain: str) -> dict[str, Any] | None:
        plain, ceiling = self.row(PLAIN), self.row(ORACLE)
        if plain is None or ceiling is None or row.plan.name in (PLAIN, ORACLE):
            return None
        sides = [self.of_domain(side, "reward", domain) for side in (row, plain, ceiling)]
        return self.resampling.gap_share(*sides).as_json()

    def _diversity(self, texts: Sequence[Sequence[tuple[str, str]]], domain: str) -> dict[str, Any]:
        """Of what is added, means over training seeds. Word pairs of as many as the row with the
        fewest has, but for rows that add nothing."""
        number = self._least_pairs(domain)
        additions = [
            [added_text(user_input, adapted) for user_input, adapted in part] for part in texts
        ]
        additions = [[text for text in part if text] for part in additions]
        if not all(additions):
            return {
                "distinct_additions": math.nan, "distinct_pairs": math.nan, "num_pairs": 0,
                "most_frequent": "", "most_frequent_share": math.nan,
            }  # fmt: skip
        frequent = [most_frequent(part) for part in additions]
        return {
            "distinct_additions": _mean([len(set(part)) / len(part) for part in additions]),
            "distinct_pairs": _mean(
                [distinct_share(word_pairs(part), number) for part in additions]
            ),
            "num_pairs": number,
            "most_frequent": frequent[0][0],
            "most_frequent_share": _mean([share for _, share in frequent]),
        }

    def _least_pairs(self, domain: str) -> int:
        places = self.inputs.places_of(domain)
        numbers = [
            len(
                word_pairs(
                    [
                        added_text(self.inputs.rows[place].user_input, adapted)
                        for place in places
                        if (adapted := some.adapted_prompts[place]) is not None
                    ]
                )
            )
            for row in self.rows
            for some in row.prompts
        ]
        return min((number for number in numbers if number), default=0)

    def by_length(self) -> list[dict[str, Any]]:
        """Rewards, and gains over the plain user input, by CLIP tokens of the user input."""
        tokens = np.array([self.count_tokens(row.user_input) for row in self.inputs.rows])
        plain = self.row(PLAIN)
        assert plain is not None
        found = []
        for domain in self.inputs.domains:
            places = np.array(self.inputs.places_of(domain))
            for low, high in LENGTHS:
                chosen = places[(tokens[places] >= low) & (tokens[places] <= high)]
                for row in self.rows if len(chosen) else ():
                    own, base = (r.values["reward"][:, chosen] for r in (row, plain))
                    found.append(
                        {
                            "domain": domain,
                            "tokens": [low, min(high, int(tokens[places].max()))],
                            "row": row.plan.name,
                            "num_inputs": len(chosen),
                            "reward": self.resampling.mean(own).as_json(),
                            "gain": self.resampling.difference(own, base).as_json(),
                        }
                    )
        return found

    def differences(self) -> list[dict[str, Any]]:
        """Each row minus each earlier row, by domain and metric."""
        found = []
        for domain in self.inputs.domains:
            for earlier, row in combinations(self.rows, 2):
                for metric in self.metrics:
                    estimate = self.resampling.difference(
                        self.of_domain(row, metric, domain), self.of_domain(earlier, metric, domain)
                    )
                    found.append(
                        {
                            "domain": domain,
                            "row": row.plan.name,
                            "minus": earlier.plan.name,
                            "metric": metric,
                            **estimate.as_json(),
                            "above_0": estimate.above_0,
                        }
                    )
        return found


def _left_alone(pairs: Sequence[tuple[str, str]]) -> float:
    return _mean([float(adapted == user_input) for user_input, adapted in pairs])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
