"""Pictures of mixed sizes: packed in one row against padded to the largest of the batch, the same model and weights,
taking turns.

    python benchmarks/packing.py [--rounds 5] [--batches 3] [--width 256] [--depth 4] [--threads 1]

Sizes are drawn as photographs have them: common aspect ratios upright or lying, areas spread log-normally, between 4
and 400 patches. Two
ways of padding are measured: pictures padded to the largest height and width of the batch, and (`tokens`) only the
sequences of tokens padded to the longest, which wastes least. Both have masks; the packed answers are checked against
them first. The figure is padded time /
packed time, so above 1 packing is faster: medians over the rounds of CPU time (`--threads 2` for wall time with more).
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import plait
from plait.core.tokens import Tokens
from plait.systems.vision.univitar import UniViTAR

PATCH = 14
ASPECTS = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (5, 4), (2, 1), (1, 2)]


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """(height, width) of `count` pictures, whole patches."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        patches = min(400.0, max(4.0, math.exp(draw.gauss(math.log(110), 0.6))))
        w, h = draw.choice(ASPECTS)
        high = max(1, round(math.sqrt(patches * h / w)))
        found.append((PATCH * high, PATCH * max(1, round(patches / high))))
    return found


def packed(model: UniViTAR, pictures: list[Tensor]) -> Tensor:
    """(B, D): each picture's vector."""
    return model.pool(model.packed(pictures))


def padded(model: UniViTAR, pictures: list[Tensor]) -> Tensor:
    """The same, each picture padded with zeros to the largest height and width."""
    height, width = (max(p.shape[i] for p in pictures) for i in (1, 2))
    x = torch.zeros(len(pictures), 3, height, width)
    keep = torch.zeros(len(pictures), height // PATCH, width // PATCH, dtype=torch.bool)
    for i, p in enumerate(pictures):
        x[i, :, : p.shape[1], : p.shape[2]] = p
        keep[i, : p.shape[1] // PATCH, : p.shape[2] // PATCH] = True
    _, turns = model.places(x)
    return model.pool(model.stack(Tokens(model.stem(x), keep=keep.flatten(1), pos=turns)))


def tokens(model: UniViTAR, pictures: list[Tensor]) -> Tensor:
    """The same, only the sequences of tokens padded to the longest."""
    parts = [model.stem(p[None])[0] for p in pictures]
    x = pad_sequence(parts, batch_first=True)
    turns = pad_sequence([model.places(p)[1] for p in pictures], batch_first=True)
    lengths = torch.tensor([len(p) for p in parts])
    return model.pool(model.stack(Tokens(x, keep=torch.arange(x.shape[1]) < lengths[:, None], pos=turns)))


def run(f, model: UniViTAR, pictures: list[Tensor], train: bool) -> None:
    if not train:
        with torch.no_grad():
            f(model, pictures)
        return
    model.zero_grad(set_to_none=True)
    f(model, pictures).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("batches", 3), ("batch", 16), ("width", 256), ("depth", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    width = options.width
    shape = dict(patch=PATCH, width=width, depth=options.depth, heads=width // 64, hidden=8 * width // 3, num_classes=0)
    model = plait.create_model("univitar_nano", **shape)
    ways = (packed, padded, tokens)
    print(
        f"{'batch':>5} {'run':8} {'tokens':>7} {'packed ms':>10} {'padded / packed':>16} {'tokens / packed':>16}",
        flush=True,
    )
    everything: dict[tuple[str, str], list[float]] = {}
    for b in range(options.batches):
        g = torch.Generator().manual_seed(b)
        pictures = [torch.rand(3, h, w, generator=g) for h, w in sizes(options.batch, b)]
        with torch.no_grad():
            answers = [f(model, pictures) for f in ways]
        for other in answers[1:]:
            torch.testing.assert_close(answers[0], other, rtol=1e-4, atol=1e-5)
        for what, train in (("forward", False), ("step", True)):
            spent: dict[str, list[float]] = {f.__name__: [] for f in ways}
            for i in range(options.rounds + 1):
                for f in ways if i % 2 else ways[::-1]:
                    begun = clock()
                    run(f, model, pictures, train)
                    if i:  # the first turn warms up
                        spent[f.__name__].append(clock() - begun)
            middle = {name: statistics.median(times) for name, times in spent.items()}
            ratios = {name: middle[name] / middle["packed"] for name in ("padded", "tokens")}
            for name, r in ratios.items():
                everything.setdefault((what, name), []).append(r)
            count = sum(p.shape[1] * p.shape[2] // PATCH**2 for p in pictures)
            figures = f"{1e3 * middle['packed']:10.1f} {ratios['padded']:16.2f} {ratios['tokens']:16.2f}"
            print(f"{b:5} {what:8} {count:7} {figures}", flush=True)
    for (what, name), ratios in everything.items():
        print(f"{what}, against {name}: median {statistics.median(ratios):.2f}, lowest {min(ratios):.2f}")


if __name__ == "__main__":
    main()
