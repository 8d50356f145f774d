"""What growth by parameter tokens saves: a TokenFormer of characters from scratch, beside a smaller one that is grown
to its size and goes on, and beside the smaller one that goes on for as many operations without. The text is Python's
own help, some 460,000 characters of English.

Run: python benchmarks/token_growth.py [--steps N] [--share S] [--seeds N ...]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import plait

LENGTH, ROWS, WIDTH, FACTOR = 64, 8, 48, 4
SMALL = dict(vocab=128, length=LENGTH, width=WIDTH, depth=2, heads=2, count=WIDTH, feed_count=4 * WIDTH)
LARGE = SMALL | dict(count=FACTOR * WIDTH, feed_count=4 * FACTOR * WIDTH)


def text() -> tuple[Tensor, Tensor]:
    """Characters to learn from, and every tenth piece of 2,048 to be tested with."""
    said = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    pieces = torch.tensor(list(said)).split(2048)
    return torch.cat([p for i, p in enumerate(pieces) if i % 10]), torch.cat(pieces[::10])


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def windows(ids: Tensor, rows: int, g: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - LENGTH, (rows, 1), generator=g)
    return ids[starts + torch.arange(LENGTH + 1)]


def learn(model: nn.Module, ids: Tensor, steps: int, seed: int, rate: float) -> float:
    """AdamW, the rate falling to a tenth along a cosine. Returns the floating point operations that it took."""
    g = torch.Generator().manual_seed(seed)
    best = torch.optim.AdamW(model.train().parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in best.param_groups:
            down = 0.55 + 0.45 * math.cos(math.pi * step / steps)
            group["lr"] = rate * min(1, (step + 1) / (0.05 * steps)) * down
        loss(model, windows(ids, ROWS, g)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        best.step()
        best.zero_grad()
    with FlopCounterMode(display=False) as counter:
        loss(model, windows(ids, ROWS, g)).backward()
    best.zero_grad()
    return steps * counter.get_total_flops()


@torch.no_grad()
def told(model: nn.Module, ids: Tensor) -> float:
    g = torch.Generator().manual_seed(0)
    return float(loss(model.eval(), windows(ids, 256, g)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the small model, and of the large one from scratch")
    parser.add_argument("--share", type=float, default=0.4, help="of these that the grown model goes on for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rate", type=float, default=3e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (ids, other), begun = text(), time.process_time()
    print(f"{len(ids):,} characters to learn from; {ROWS} x {LENGTH} a step")
    for seed in options.seeds:
        small = plait.create_model("tokenformer_nano", seed=seed, **SMALL)
        first = learn(small, ids, options.steps, seed, options.rate)
        model, before = copy.deepcopy(small), told(small, other)
        plait.apply_method(model, "token_growth", factor=FACTOR, seed=seed)
        after = told(model, other)
        then = learn(model, ids, round(options.share * options.steps), 1000 + seed, options.rate)
        learn(small, ids, round(options.steps * then / first), 1000 + seed, options.rate)
        grown, same, spent = told(model, other), told(small, other), first + then
        print(f"  seed {seed}: small {before:.4f}, grown {after:.4f}, and at its end {grown:.4f}, "
              f"{spent / 1e12:.3f} TFLOP; as many without growth {same:.4f}", flush=True)  # fmt: skip
        scratch = plait.create_model("tokenformer_nano", seed=seed, **LARGE)
        whole = learn(scratch, ids, options.steps, seed, options.rate)
        print(f"  seed {seed}: from scratch {told(scratch, other):.4f}, {whole / 1e12:.3f} TFLOP; "
              f"the grown one took {spent / whole:.2f} of it", flush=True)  # fmt: skip
    print(f"{time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main()
