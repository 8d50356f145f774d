"""Tokens that merge (`tome`) against all of them: the same model, weights and pictures, taking turns.

    python benchmarks/merging.py [--size vit_base_patch16_224] [--batch 8] [--rounds 5] [--threads 1]

Told are the share of the tokens that is left at the end and on average over the layers' feed-forward steps, and the
time of a forward pass as a share of the full model's: medians over the rounds, of CPU time with one thread. Weights are
random, which changes nothing in what is computed; how much an answer suffers is for trained ones to say.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import plait
from plait.methods.token_reduction.tome import MergingBlock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="vit_base_patch16_224")
    for name, value in (("batch", 8), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    model = plait.create_model(options.size).eval()
    x = torch.rand(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(f"{options.size}, {options.batch} pictures of 224 x 224")
    print(f"{'r':>4} {'left at the end':>16} {'on average':>11} {'seconds':>8} {'of the full':>12}", flush=True)
    for r in (8, 13, 15):
        spent: dict[int, list[float]] = {0: [], r: []}
        seen: list[int] = []
        for turn in range(options.rounds + 1):
            for count in (0, r) if turn % 2 else (r, 0):
                undo = plait.apply_method(model, "tome", r=r) if count else None
                blocks = [m for m in model.modules() if isinstance(m, MergingBlock)]
                hooks = [b.feed.register_forward_pre_hook(lambda m, a: seen.append(a[0].x.shape[1])) for b in blocks]
                begun = clock()
                with torch.no_grad():
                    model(x)
                if turn:  # the first one warms up
                    spent[count].append(clock() - begun)
                for hook in hooks:
                    hook.remove()
                if undo:
                    undo()
        with torch.no_grad():
            full = model.tokens(x[:1]).x.shape[1]
        last, middle = seen[-1] / full, statistics.mean(seen) / full
        slow, fast = (statistics.median(spent[count]) for count in (0, r))
        print(f"{r:4} {last:16.2f} {middle:11.2f} {fast:8.2f} {fast / slow:12.2f}", flush=True)


if __name__ == "__main__":
    main()
