"""What refinement gains over the plain input in the lab, for each method at equal pictures.

    python benchmarks/refine.py [--policy lab] [--num-inputs 50] [--num-rounds 4]
        [--num-candidates 8] [--methods policy,best_of_n,grpo,ppo] [--seed 0]

User inputs of both domains, made with a seed of their own. The row "policy" is the policy's first
answer alone. Gains are means over user inputs with 95% bootstrap intervals; "beside best_of_n" are
paired differences on the same inputs. The search counts the pictures that it searched with; the
columns "unseen" render the answers anew with other seeds, which tells what is left of the luck.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.intervals import bootstrap
from promptadapt_core.lab.writers import mixed_user_inputs
from promptadapt_core.picture_memory import PictureMemory
from promptadapt_core.refine.outcome import Refinement
from promptadapt_core.refine.refining import Refiner
from promptadapt_core.refine.settings import METHODS, RefineSettings
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.rewards import Rewarder
from promptadapt_core.settings import add_flags, given
from promptadapt_core.train.rendered_reward import load_renderer, load_scorer

INPUT_SEED = 771  # of the user inputs: no other set of the project is made with it
UNSEEN_SEED = 5  # of the pictures that answers are judged by
NUM_UNSEEN = 4
POLICY = "policy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="lab")
    parser.add_argument("--num-inputs", type=int, default=50)
    parser.add_argument("--methods", default=",".join((POLICY, *reversed(METHODS))))
    parser.add_argument("--relevance-weight", type=float, default=3.0)
    parser.add_argument("--num-steps", type=int, default=8)
    add_flags(parser, RefineSettings)
    arguments = parser.parse_args()
    generator = load_renderer("lab", "cpu", num_steps=arguments.num_steps, batch_size=8)
    scorer = load_scorer("lab", "cpu")
    terms = RewardSettings(relevance_weight=arguments.relevance_weight, num_images=1)
    rewarder = Rewarder(generator, scorer, terms)
    unseen = Rewarder(
        generator, scorer, RewardSettings(relevance_weight=arguments.relevance_weight,
                                          num_images=NUM_UNSEEN, image_seed=UNSEEN_SEED)
    )  # fmt: skip
    adapter, memory = PromptAdapter.load(arguments.policy), PictureMemory(2**32)
    user_inputs = mixed_user_inputs(arguments.num_inputs, INPUT_SEED)
    base = RefineSettings(**given(RefineSettings, arguments))
    rows: dict[str, np.ndarray] = {}
    for method in arguments.methods.split(","):
        settings = {**vars(base), "method": method}
        if method == POLICY:
            settings |= {"method": "best_of_n", "num_rounds": 1, "num_candidates": 1}
        found, began = [], time.monotonic()
        for user_input in user_inputs:
            refiner = Refiner(
                adapter, rewarder, user_input, RefineSettings(**settings), memory=memory
            )
            refinement = refiner.run()
            best = refinement.best.reward - refinement.plain.reward
            found.append(
                (best, refinement.gain, _unseen(unseen, refinement), refinement.num_images)
            )
        rows[method] = np.array(found)
        seconds = (time.monotonic() - began) / len(user_inputs)
        _tell(method, rows[method], rows.get("best_of_n"), seconds)


def _unseen(rewarder: Rewarder, refinement: Refinement) -> float:
    """Gain of the answer with seeds that the search did not see."""
    user_input, text = refinement.user_input, refinement.adapted_prompt
    seeds = rewarder.settings.seeds_of(user_input)
    batch = rewarder.reward([user_input] * 2, [user_input, text], [seeds] * 2)
    return float(batch.rewards[1] - batch.rewards[0])


def _tell(name: str, rows: np.ndarray, best_of_n: np.ndarray | None, seconds: float) -> None:
    line = f"{name:10}"
    for column, told in ((1, "gain"), (2, "unseen")):
        line += f"  {told} {_mean(rows[:, column])}"
        if best_of_n is not None and best_of_n is not rows:
            line += f" beside best_of_n {_mean(rows[:, column] - best_of_n[:, column])}"
    accepted = (rows[:, 1] > 0).mean()
    print(f"{line}  accepted {accepted:.0%}  pictures {rows[:, 3].mean():.1f}  {seconds:.1f} s")


def _mean(values: np.ndarray) -> str:
    low, high = bootstrap(lambda places: float(values[places].mean()), len(values), seed=0)
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
