"""Models made smaller, pruned by half and with weights of 8 bits, against the model as it was, taking turns.

    python benchmarks/shrinking.py [--size vit_base_patch16_224] [--batch 8] [--rounds 5] [--threads 1]

Told are the bytes of the weights and the time of a forward pass as shares of the full model's (medians over the rounds,
of CPU time with one thread), and how far the answers are off. Weights are random: what pruning costs a trained model,
and what training gives back, is not told by that.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import plait

WAYS = (("taylor_pruning", {"share": 0.5}), ("int8", {}), ("int8", {"activations": True}))


def room(model: torch.nn.Module) -> int:
    return sum(t.nbytes for t in model.state_dict().values())


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

    @torch.no_grad()
    def timed() -> tuple[float, torch.Tensor]:
        begun = clock()
        y = model(x)
        return clock() - begun, y

    print(f"{'method':34} {'bytes':>6} {'time':>6} {'off by':>7}", flush=True)
    (_, full), size = timed(), room(model)
    for name, how in WAYS:
        ratios = []
        for _ in range(options.rounds):
            before, _ = timed()
            undo = plait.apply_method(model, name, **how)
            timed()  # warms up
            after, y = timed()
            share = room(model) / size
            undo()
            ratios.append(after / before)
        said = f"{name} {how or ''}"
        off = float((y - full).norm() / full.norm())
        print(f"{said:34} {share:6.2f} {statistics.median(ratios):6.2f} {off:7.3f}", flush=True)


if __name__ == "__main__":
    main()
