"""A Mamba mixer against attention of the same width at several lengths: forward, and forward with backward, taking
turns.

    python benchmarks/scan.py [--rounds 7] [--lengths 512 2048 8192] [--width 256] [--kinds 2] [--rows 1]

One thread, float32, no mask. The mixer is that of `mixture_of_mamba` (16 states per channel, twice the width inside,
its kinds in two runs); attention is plait's, 64 wide heads, torch's fused kernel. Milliseconds are medians of CPU time,
which other processes disturb least; the figure is attention / mixer, so above 1 the mixer is faster. The mixer is first
checked against its own steps, token by token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from plait.core.block import Attention
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.mixers.mamba import Layout
from plait.systems.unified.mixture_of_mamba import MambaMixture


def milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def check(mixer: MambaMixture, width: int, kinds: int) -> None:
    """Raise AssertionError where the whole is not what the steps give."""
    x, state = torch.randn(2, 40, width), mixer.start(2)
    runs = ((0, 25), (kinds - 1, 15))
    with torch.no_grad():
        whole = mixer(Tokens(x).reading(layout=Layout(runs))).x
        for n in range(40):
            kind = torch.full((2,), 0 if n < 25 else kinds - 1)
            y, state = mixer.step(x[:, n], kind, state)
            torch.testing.assert_close(y, whole[:, n], rtol=1e-5, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--kinds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"):
        mixer, attention = MambaMixture(a.width, a.kinds), Attention(a.width, max(1, a.width // 64))
    mixer, attention = initialise(mixer), initialise(attention)
    check(mixer, a.width, a.kinds)
    print(f"width {a.width}, {a.rows} rows, {a.kinds} kinds, CPU milliseconds, medians of {a.rounds}")
    for n in a.lengths:
        runs = dict(layout=Layout(((0, n // 2), (a.kinds - 1, n - n // 2))))

        def forward(model, context):
            with torch.inference_mode():
                model(Tokens(torch.randn(a.rows, n, a.width)).reading(**context))

        def training(model, context):
            t = Tokens(torch.randn(a.rows, n, a.width, requires_grad=True)).reading(**context)
            model(t).x.sum().backward()
            model.zero_grad(set_to_none=True)

        for name, work in (("forward", forward), ("forward and backward", training)):
            taken: dict[str, list[float]] = {"attention": [], "mixer": []}
            for turn in range(a.rounds + 1):
                pair = milliseconds(lambda: work(attention, {})), milliseconds(lambda: work(mixer, runs))
                for key, spent in zip(taken, pair):
                    taken[key] += [spent] if turn else []  # the first turn warms up
            theirs, ours = (statistics.median(v) for v in taken.values())
            print(
                f"{n:6d} tokens  {name:21s} attention {theirs:8.1f}  mixer {ours:8.1f}  ratio {theirs / ours:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
