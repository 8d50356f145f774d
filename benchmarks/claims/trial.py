"""What the trials of claims share: the record of a trial, pictures to learn, and a contest of models on them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims.verdict import Rule, judge
from plait.core.attend import Attend, with_backend
from plait.core.catalog import build
from plait.core.init import initialise

RESULTS = Path(__file__).parents[2] / "docs" / "measured" / "claims"
ROWS, SIDE, FAR = 64, 32, 2  # of a batch; of the canvas; a digit from its middle
Arm = Callable[[], nn.Module]  # on the meta device


class Trial(NamedTuple):
    """how: data, sizes and steps, in a sentence. measure: what a figure is. run(seed) -> each arm's figure.
    cost() -> what each arm costs, in words and numbers."""

    how: str
    measure: str
    rules: tuple[Rule, ...]
    run: Callable[[int], dict[str, float]]
    cost: Callable[[], dict[str, dict[str, float]]] = dict
    seeds: int = 3


def record(name: str, trial: Trial) -> None:
    """Run a trial, print its figures and verdicts, and keep them in docs/measured/claims."""
    start = time.process_time()
    found = [trial.run(seed) for seed in range(trial.seeds)]
    arms = {arm: [round(figures[arm], 5) for figures in found] for arm in found[0]}
    spent = round(time.process_time() - start)
    print(f"{name}: {trial.measure}; {spent} s of CPU", flush=True)
    for arm, figures in arms.items():
        print(f"  {arm:>32}  {statistics.mean(figures):8.4f}  {figures}")
    for rule in trial.rules:
        said = judge(rule, arms)
        holds = "holds" if said.holds else "does not hold"
        print(f"  {rule.first} {rule.by} than {rule.second}: {said.mean:+.4f} +- {said.error:.4f}, {holds}", flush=True)
    row = dict(how=trial.how, measure=trial.measure, rules=trial.rules, arms=arms, cost=trial.cost(), seconds=spent)
    (RESULTS / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Handwritten digits (n, 16, 16) from 0 to 1 and their classes (n,): 1,400 to learn from, 397 to be tested with."""
    found = load_digits()
    x = F.interpolate(torch.from_numpy(found.images).float()[:, None] / 16, scale_factor=2, mode="bilinear")[:, 0]
    y, order = torch.from_numpy(found.target), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def placed(x: Tensor, g: torch.Generator, height: int = SIDE, width: int = SIDE) -> Tensor:
    """Digits (B, 16, 16) on a noisy canvas, up to `FAR` pixels from its middle: (B, 3, height, width)."""
    canvas = 0.25 * torch.rand(len(x), height, width, generator=g)
    middle = ((side - 16) // 2 for side in (height, width))
    top, left = (m + torch.randint(-FAR, FAR + 1, (len(x), 1, 1), generator=g) for m in middle)
    there = torch.arange(16)
    canvas[torch.arange(len(x))[:, None, None], top + there[:, None], left + there] += x
    return (canvas - 0.25)[:, None].repeat(1, 3, 1, 1) * 2


@cache
def unseen(height: int = SIDE, width: int = SIDE) -> tuple[Tensor, Tensor]:
    """Every digit of the test at three places: pictures (1191, 3, height, width) and classes."""
    *_, x, y = digits()
    return placed(x.repeat(3, 1, 1), torch.Generator().manual_seed(99), height, width), y.repeat(3)


def batches(steps: int, seed: int, sizes: Sequence[tuple[int, int]]) -> Iterable[tuple[Tensor, Tensor]]:
    """Pictures of the `sizes` in turn, and classes: the same for every arm of a seed."""
    g = torch.Generator().manual_seed(seed)
    x, y, *_ = digits()
    for step in range(steps):
        rows = torch.randint(len(x), (ROWS,), generator=g)
        yield placed(x[rows], g, *sizes[step % len(sizes)]), y[rows]


def train(
    model: nn.Module,
    steps: int,
    seed: int,
    *,
    rate: float = 3e-3,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda model, x, y: F.cross_entropy(model(x), y),
    after: Callable[[nn.Module], None] = lambda model: None,
    sizes: Sequence[tuple[int, int]] = ((SIDE, SIDE),),
) -> nn.Module:
    """AdamW with a rate that rises and falls once; back comes the model in evaluation."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for x, y in batches(steps, seed, sizes):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after(model)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = [(model(a).argmax(1) == b).sum() for a, b in zip(x.split(200), y.split(200))]
    return float(sum(right)) / len(y)


def arm(name: str, change: Callable[[nn.Module], object] = lambda model: None, **arguments) -> Arm:
    """The size `name` for ten classes, changed before it has weights."""

    def make() -> nn.Module:
        model = build(name, num_classes=10, **arguments)
        change(model)
        return model

    return make


def cost(arms: dict[str, Arm], side: int = SIDE) -> dict[str, dict[str, float]]:
    """Parameters, and thousand multiply-adds of products for one picture."""
    told = {}
    for name, make in arms.items():
        model = initialise(make()).eval()
        parameters = sum(p.numel() for p in model.parameters())
        if all("eager" in m.backends for m in model.modules() if isinstance(m, Attend)):
            model = with_backend(model, "eager")  # products in fused kernels go uncounted
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, side, side))
        told[name] = {"parameters": parameters, "kMACs": round(counter.get_total_flops() / 2e3)}
    return told


def contest(arms: dict[str, Arm], *rules: Rule, steps: int, rate: float = 3e-3, how: str = "", **options) -> Trial:
    """Models that learn digits on a canvas of 32 x 32, by the share of 1,191 others that they name."""

    def run(seed: int) -> dict[str, float]:
        learnt = {
            n: train(initialise(make(), seed=seed), steps, seed, rate=rate, **options) for n, make in arms.items()
        }
        return {name: accuracy(model, *unseen()) for name, model in learnt.items()}

    said = f"digits on 32 x 32, {steps} steps of {ROWS}" + (f", {how}" if how else "")
    return Trial(said, "accuracy", rules, run, lambda: cost(arms))
