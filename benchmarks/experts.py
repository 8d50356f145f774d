"""Experts of a small V-MoE on handwritten digits: who is idle with and without the losses, and what upcycling a trained
dense model brings at equal steps.

Run: python benchmarks/experts.py [--steps N] [--seeds N] [--only busy]
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import plait
from plait.parts.experts import MixtureOfExperts

SIZE = dict(image=(16, 16), patch=4, depth=4, heads=4, num_classes=10)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (n, 3, 16, 16) and classes to learn from and to be tested with."""
    found = load_digits()
    x = torch.from_numpy(found.images).float()[:, None].div(16).sub(0.5).repeat(1, 3, 1, 1)
    x, y = F.interpolate(x, scale_factor=2), torch.from_numpy(found.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def learn(model: nn.Module, data: tuple, steps: int, seed: int, *, rate: float = 1e-3, losses: bool = True) -> None:
    """AdamW, batches of 64, the rate falling to nothing."""
    x, y, *_ = data
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the routers' noise
    best = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    for step in range(steps):
        for group in best.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        index = torch.randint(len(y), (64,), generator=g)
        t = model.train().tokens(x[index])
        loss = F.cross_entropy(model.head(model.pool(t)), y[index], label_smoothing=0.1)
        if losses:
            loss = loss + sum((t.losses or {}).values())
        best.zero_grad()
        loss.backward()
        best.step()


@torch.no_grad()
def told(model: nn.Module, data: tuple) -> tuple[float, float]:
    """The loss and the accuracy on the test pictures."""
    _, _, x, y = data
    logits = model.eval()(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())


@torch.no_grad()
def shares(model: nn.Module, data: tuple) -> list[list[float]]:
    """Of each mixture, the share of all choices that each expert gets."""
    found: list[list[float]] = []

    def note(mixture: MixtureOfExperts, inputs: tuple) -> None:
        x = inputs[0].x
        gates, _ = mixture.router(x, torch.ones(x.shape[:2], dtype=torch.bool))
        chosen = gates.topk(mixture.router.chosen, -1).indices.flatten()
        found.append((torch.bincount(chosen, minlength=gates.shape[-1]) / len(chosen)).tolist())

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, MixtureOfExperts)]
    model.eval()(data[2])
    for hook in hooks:
        hook.remove()
    return found


def busy(data: tuple, steps: int, seeds: int, rate: float, experts: int) -> None:
    print(
        f"busy: two mixtures of {experts} experts, 1 chosen, {steps} steps at {rate}; dead: below 1% of an even share"
    )
    for losses in (True, False):
        for seed in range(seeds):
            model = plait.create_model(
                "vmoe_nano", seed=seed, **SIZE, width=64, sparse=(1, 3), experts=experts, chosen=1
            )
            for mixture in (m for m in model.modules() if isinstance(m, MixtureOfExperts)):
                mixture.router.share = 0.005 if losses else 0.0
            learn(model, data, steps, seed, rate=rate, losses=losses)
            found, (loss, right) = shares(model, data), told(model, data)
            dead = [sum(s < 0.01 / experts for s in row) for row in found]
            print(f"  losses {losses!s:5} seed {seed}: dead {dead}, least shares {[f'{min(r):.4f}' for r in found]}, "
                  f"loss {loss:.3f}, accuracy {right:.3f}", flush=True)  # fmt: skip


def upcycled(data: tuple, steps: int, seeds: int, width: int) -> None:
    print(f"upcycled: a ViT of width {width} after {steps} steps goes on, dense and with 8 experts in two layers")
    gains = []
    for seed in range(seeds):
        model = plait.create_model("vit_nano", seed=seed, **SIZE, width=width, drop_path=0.0)
        learn(model, data, steps, seed)
        start, other = told(model, data), copy.deepcopy(model)
        plait.apply_method(other, "sparse_upcycling", last=1.0, seed=seed)
        begun = told(other, data)
        for m in (model, other):
            learn(m, data, steps, 1000 + seed, rate=5e-4)
        ends = told(model, data), told(other, data)
        gains.append(ends[0][0] - ends[1][0])
        what = zip(("dense", "upcycled", "dense at the end", "upcycled at the end"), (start, begun, *ends))
        print("  " + "   ".join(f"{name} {loss:.4f} ({right:.3f})" for name, (loss, right) in what), flush=True)
    mean = sum(gains) / len(gains)
    print(f"  loss that upcycling saves: {mean:.4f}, of {', '.join(f'{g:.4f}' for g in gains)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3, help="of the runs that are watched for idle experts")
    parser.add_argument("--experts", type=int, default=16, help="in these")
    parser.add_argument("--width", type=int, default=64, help="of the model that is upcycled")
    parser.add_argument("--only", choices=("busy", "upcycled"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, begun = digits(), time.process_time()
    if options.only != "upcycled":
        busy(data, options.steps, options.seeds, options.rate, options.experts)
    if options.only != "busy":
        upcycled(data, options.steps, options.seeds, options.width)
    print(f"{time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main()
