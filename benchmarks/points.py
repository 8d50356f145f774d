"""Clouds of points: shapes told apart however they are turned, and what packing voxels into groups saves.

Run: python benchmarks/points.py [--clouds N] [--epochs N] [--only speed]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

import plait
from plait.core.attend import attend
from plait.core.tokens import Tokens

SHAPES = ("ball", "cube", "ring", "cone", "rod")


def cloud(shape: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) points of a surface, with noise, turned anyhow."""
    a, b = rng.uniform(0, 2 * np.pi, (2, count))
    u, v, w = rng.uniform(-1, 1, (3, count))
    match shape:
        case "ball":
            x = rng.normal(size=(count, 3))
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        case "cube":
            x = np.stack([np.sign(w), u, v], 1)
            x = np.take_along_axis(x, (np.arange(3) + rng.integers(0, 3, (count, 1))) % 3, 1) * 0.75
        case "ring":
            wide = 0.75 + 0.28 * np.cos(b)
            x = np.stack([wide * np.cos(a), wide * np.sin(a), 0.28 * np.sin(b)], 1)
        case "cone":
            far = np.sqrt((w + 1) / 2)
            x = np.stack([far * np.cos(a) * 0.8, far * np.sin(a) * 0.8, 0.7 - 1.4 * far], 1)
            x[: count // 4, 2] = -0.7
        case _:
            x = np.stack([0.35 * np.cos(a), 0.35 * np.sin(a), u], 1)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return x @ turn * rng.uniform(0.8, 1.2) + rng.normal(0, 0.03, (count, 3))


def shapes(count: int, points: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(SHAPES), count)
    cells = [cloud(SHAPES[k], int(rng.integers(points // 2, points + 1)), rng).round(4).tolist() for k in kinds]
    return pa.table({"cloud": cells, "shape": [SHAPES[k] for k in kinds]})


def learn(clouds: int, points: int, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = plait.fit(
            shapes(clouds, points), target="shape", task="classify", system="flatformer", kinds={"cloud": "points"},
            epochs=epochs, precision="fp32", lr=2e-3, out=Path(folder) / "run",
        )  # fmt: skip
        found = run.evaluate(shapes(500, points, seed=1))
    print(f"{clouds} clouds of at most {points} points, {epochs} epochs; 500 others: {found.scores[0]}")


def skewed(sides: int, window: int, seed: int = 0) -> Tensor:
    """(N, 3) voxels of a scan: dense near its middle, as a sensor sees it."""
    rng = np.random.default_rng(seed)
    far = rng.exponential(sides / 12, 12_000)
    angle = rng.uniform(0, 2 * np.pi, 12_000)
    at = np.stack([far * np.cos(angle), far * np.sin(angle)], 1) + sides / 2
    at = np.unique(at[((at >= 0) & (at < sides)).all(1)].astype(np.int64), axis=0)
    return torch.from_numpy(np.concatenate([at, np.zeros((len(at), 1), np.int64)], 1))


def by_window(pos: Tensor, x: Tensor, layer, window: int) -> Tensor:
    """The same projections, with attention in each window, all padded to the fullest."""
    number = pos[:, 0] // window * 1000 + pos[:, 1] // window
    _, inverse, counts = number.unique(return_inverse=True, return_counts=True)
    most, order = int(counts.max()), inverse.argsort(stable=True)
    place = torch.arange(len(pos)) - (counts.cumsum(0) - counts)[inverse[order]]
    keep = torch.zeros(len(counts), most, dtype=torch.bool)
    wide = torch.zeros(len(counts), most, x.shape[1])
    keep[inverse[order], place], wide[inverse[order], place] = True, x[order]
    q, k = layer.qk(wide).unflatten(2, (2, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    v = layer.v(wide).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    y = layer.out(attend(q, k, v, keep=keep).transpose(1, 2).flatten(2))
    out = torch.empty_like(x)
    out[order] = y[inverse[order], place]
    return out


@torch.inference_mode()
def speed(rounds: int) -> None:
    model = plait.create_model("flatformer_waymo_1f").eval()
    layer, window = model.stack.blocks[0].mix.f, 13
    pos = skewed(468, window)
    x = torch.randn(len(pos), 128)
    fullest = int((pos[:, 0] // window * 1000 + pos[:, 1] // window).unique(return_counts=True)[1].max())
    t = Tokens(x[None], pos=pos[None])
    ratio = against(lambda: by_window(pos, x, layer, window), lambda: layer(t), rounds)
    print(
        f"{len(pos)} voxels in windows of 1 to {fullest}: padded windows take {ratio:.2f} times as long as flat groups"
    )
    counts = [len(pos), *[len(pos) // n for n in (4, 6, 8, 8, 12, 16, 16, 24, 24, 32, 32)]]
    clouds = [pos[torch.randperm(len(pos))[:n]] for n in counts]
    xs = [torch.randn(n, 128) for n in counts]
    row = Tokens(torch.cat(xs)[None], pos=torch.cat(clouds)[None], lengths=tuple(counts))
    wide = Tokens(
        torch.stack([F.pad(v, (0, 0, 0, len(pos) - len(v))) for v in xs]),
        pos=torch.stack([F.pad(p, (0, 0, 0, len(pos) - len(p))) for p in clouds]),
        keep=torch.arange(len(pos)) < torch.tensor(counts)[:, None],
    )
    block = model.stack.blocks[0]
    packed, padded = block(row).x[0].split(counts), block(wide).x
    off = max(float((p - w[: len(p)]).abs().max()) for p, w in zip(packed, padded))
    ratio = against(lambda: block(wide), lambda: block(row), rounds)
    print(f"{len(counts)} clouds of {min(counts)} to {max(counts)} voxels: padded take {ratio:.2f} times as long as")
    print(f"packed, and differ by {off:.0e}")


def against(one, other, rounds: int) -> float:
    """How often as long the one takes, in processor time, by turns."""
    ratios = []
    for _ in range(rounds + 1):
        took = []
        for f in (one, other):
            begun = time.process_time()
            f()
            took.append(time.process_time() - begun)
        ratios.append(took[0] / took[1])
    return statistics.median(ratios[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=1500)
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("speed", "learn"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "learn":
        speed(options.rounds)
    if options.only != "speed":
        learn(options.clouds, options.points, options.epochs)


if __name__ == "__main__":
    main()
