"""Does an untrained network tell how well it will learn, and do coarse patches cost an early epoch nothing?

    python benchmarks/untrained.py [--steps 200] [--seeds 3]

Sixteen small As-ViT topologies, drawn by chance from a space of kernels, windows and expansions, are measured at
initialisation and then trained on scikit-learn's handwritten digits (32 x 32); printed is Kendall's tau between each
measure and the accuracy on held-out digits. Then one of them is trained with patches twice as coarse for the first half
of its steps, beside the same network with fine patches throughout.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from sklearn.datasets import load_digits
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.parts.untrained import circle, length_distortion, ntk_condition, reader, without_norms
from plait.systems.vision.as_vit import coarsen

SPACE = {"kernel": (4, 5, 6, 7, 8), "merge": (2, 3, 4), "split": (1, 2, 4), "first": (1, 2, 4), "second": (1, 2, 4)}
BATCH = 64


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    found = load_digits()
    x = torch.from_numpy(found.images).float()[:, None].div(8).sub(1).repeat(1, 3, 1, 1)
    x, y = F.interpolate(x, (32, 32), mode="bilinear"), torch.from_numpy(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def make(choice: dict, seed: int, width: int = 16, depths=(1, 1)) -> torch.nn.Module:
    ratios, kernels = (choice["first"], choice["second"]), (choice["kernel"], choice["merge"])
    return plait.create_model(
        "as_vit_toy", width=width, depths=depths, kernels=kernels, splits=(choice["split"], 1), ratios=ratios,
        heads=(2, 4), num_classes=10, seed=seed,
    )  # fmt: skip


def train(model: torch.nn.Module, data, steps: int, seed: int, coarse: float = 0.0) -> float:
    x, y, test_x, test_y = data
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    model.train()
    for step in range(steps):
        coarsen(model, 2 if step < coarse * steps else 1)
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    coarsen(model, 1)
    with torch.no_grad():
        return (model.eval()(test_x).argmax(1) == test_y).float().mean().item()


def cost(model: torch.nn.Module, factor: int) -> int:
    coarsen(model, factor)
    with FlopCounterMode(display=False) as counter:
        with_backend(model, "eager")(torch.zeros(1, 3, 32, 32))
    coarsen(model, 1)
    return counter.get_total_flops()


def main(steps: int, seeds: int) -> None:
    data, draw = digits(), np.random.default_rng(0)
    at, along = circle((3, 32, 32), 10, torch.Generator().manual_seed(0))
    rows = []
    for n in range(16):
        choice = {name: values[draw.integers(len(values))] for name, values in SPACE.items()}
        found = []
        for seed in range(seeds):
            model = make(choice, seed).eval()
            length = length_distortion(reader(without_norms(model)), at, along)
            weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
            condition = ntk_condition(reader(model), weights, data[0][:16])
            found.append((length, condition, train(model, data, steps, seed)))
        rows.append(np.mean(found, 0))
        print(f"{n:3} {choice}: length {rows[-1][0]:.3f}, condition {rows[-1][1]:.3g}, accuracy {rows[-1][2]:.3f}")
    length, condition, accuracy = np.array(rows).T
    for name, measure in (("length distortion", length), ("-condition of the tangent kernel", -condition)):
        found = kendalltau(measure, accuracy)
        print(f"Kendall's tau of {name} with accuracy: {found.statistic:.2f} (p {found.pvalue:.3f}, 16 topologies)")
    choice = {"kernel": 8, "merge": 4, "split": 2, "first": 2, "second": 4}
    fine, half = ([train(make(choice, s, 32, (2, 2)), data, steps, s, part) for s in range(seeds)] for part in (0, 0.5))
    model = make(choice, 0, 32, (2, 2))
    share = (cost(model, 1) + cost(model, 2)) / 2 / cost(model, 1)
    print(f"coarse for half of the steps: {np.mean(half):.3f} +- {np.std(half):.3f}, {share:.2f} of the operations")
    print(f"fine throughout: {np.mean(fine):.3f} +- {np.std(fine):.3f} ({seeds} seeds, {steps} steps of {BATCH})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))
