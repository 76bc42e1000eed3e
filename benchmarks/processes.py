"""Pictures a second, rendered and scored for rewards, in one process or in several.

    python benchmarks/processes.py
    torchrun --nproc-per-node 2 benchmarks/processes.py

The same pictures either way: two candidates of each user input and the plain input, one seed each,
of which the last third was never met before. Every process warms up first. On CPUs give each the
cores that are to be compared: one for one process, two for two (OMP_NUM_THREADS=1). With --cpu-time
the processor's seconds of the busiest process count instead of the clock's, for a machine that is
shared; what processes do to each other's memory is then left out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from promptadapt_core.process_group import process_group
from promptadapt_core.reward_settings import RewardSettings
from promptadapt_core.train.rendered_reward import RenderedReward, load_renderer, load_scorer

SUBJECTS = ("cat", "dog", "house", "boat", "tree", "fox", "bird", "car")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange")
ADDITIONS = ("oil painting, warm light", "watercolor, soft colours, highly detailed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renderer", default="lab")
    parser.add_argument("--scorer", default="lab")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--user-inputs", type=int, default=64, help="1 to 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()

    clock = time.process_time if options.cpu_time else time.monotonic
    with process_group(options.device, timeout_minutes=60.0) as group:
        device = group.own_device(options.device)
        generator = load_renderer(
            options.renderer, device, batch_size=options.batch_size, num_steps=options.num_steps
        )
        scorer = load_scorer(options.scorer, device)
        texts = [f"a {colour} {subject}" for colour, subject in
                 itertools.product(COLOURS, SUBJECTS)][: options.user_inputs]  # fmt: skip
        rows = [(text, f"{text}, {addition}") for text in texts for addition in ADDITIONS]
        user_inputs, adapted_prompts = (list(column) for column in zip(*rows, strict=True))
        one_seed = RewardSettings(num_images=1)
        for number in range(options.rounds + 1):
            reward = RenderedReward(generator, scorer, one_seed, None, group)
            few = len(rows) if number else 4 * group.num_processes  # the first round warms up
            seeds = [[number]] * few
            group.gather(lambda: None)
            began = clock()
            batch = reward.reward(user_inputs[:few], adapted_prompts[:few], seeds)
            own_seconds = clock() - began
            seconds = max(group.gather(lambda: own_seconds))  # noqa: B023
            pictures = batch.num_rendered + batch.num_baselines_rendered
            if number and group.is_main:
                print(
                    f"{group.num_processes} processes: {pictures} pictures in {seconds:.1f} s, "
                    f"{pictures / seconds:.2f} a second; mean reward {batch.rewards.mean():.6f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
