"""Methods against the part whose place they take, in one small ViT, and doubly stochastic attention on clouds."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from benchmarks.claims.trial import ROWS, Trial, accuracy, arm, contest, train, unseen
from benchmarks.claims.verdict import Rule
from benchmarks.points import SHAPES, cloud
from plait.core.attend import Attend
from plait.core.block import Attention, Stack
from plait.core.init import initialise
from plait.core.surgery import swap
from plait.core.tokens import Tokens
from plait.methods.attention.ecoformer import fitting
from plait.methods.attention.nalaformer import LinearAttend
from plait.methods.norms.slab import advance
from plait.methods.norms.unified_norm import swap_norms
from plait.parts.towers.encoder import pre_norm_blocks

STEPS = 300
SMALL = dict(patch=4, depth=4)


class PlainLinear(LinearAttend):
    """Linear attention by elu(x) + 1 (arXiv:2006.16236), which knows no norms."""

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.elu(q) + 1, F.elu(k) + 1


class BatchNorm(nn.BatchNorm1d):
    """The usual batch norm over the channels of tokens (..., C)."""

    def reset(self) -> None:
        self.reset_parameters()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


def batch_norms(model: nn.Module) -> None:
    swap_norms(model, lambda norm: BatchNorm(norm.normalized_shape[0]))


def method(name: str, **options):
    return lambda model: plait.apply_method(model, name, **options)


def codes() -> Trial:
    """EcoFormer: a trained ViT goes on with codes instead of softmax, learnt or left to chance."""

    def run(seed: int) -> dict[str, float]:
        base = train(initialise(arm("vit_toy", patch=4)(), seed=seed), STEPS, seed)
        told = {"softmax": accuracy(base, *unseen())}
        for name in ("learnt codes", "chance codes"):
            model = copy.deepcopy(base)
            plait.apply_method(model, "ecoformer")
            if name == "learnt codes":
                with torch.no_grad(), fitting(model, seed):
                    model(unseen()[0][:32])
            told[name] = accuracy(train(model, 60, seed, rate=1e-3), *unseen())
        return told

    rules = (Rule("learnt codes", "near", "softmax", 0.02), Rule("learnt codes", "higher", "chance codes"))
    how = f"a ViT of two layers, digits on 32 x 32, {STEPS} steps of {ROWS}; then codes of 16 bits and 60 steps more"
    return Trial(how, "accuracy", rules, run)


class Points(nn.Module):
    """Clouds (B, N, 3) -> logits (B, K), by a plain encoder of their points and the mean of its tokens."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 32), nn.Linear(32, len(SHAPES))
        self.stack = Stack(*pre_norm_blocks(32, 3, 2, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stack(Tokens(self.stem(x))).x.mean(1))


def clouds() -> Trial:
    """Sinkformer: the same encoder of points with softmax and with doubly stochastic attention."""

    def some(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        kinds = rng.integers(0, len(SHAPES), count)
        x = np.stack([cloud(SHAPES[kind], 64, rng) for kind in kinds])
        return torch.from_numpy(x).float(), torch.from_numpy(kinds)

    def run(seed: int) -> dict[str, float]:
        told, test = {}, some(1000, np.random.default_rng(99))
        for name in ("doubly stochastic", "softmax"):
            with torch.device("meta"):
                model = Points()
            model = initialise(model, seed=seed)
            if name != "softmax":
                plait.apply_method(model, "sinkformer", steps=5)
            rng = np.random.default_rng(seed)
            optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
            for _ in range(STEPS):
                x, y = some(ROWS, rng)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
            told[name] = accuracy(model.eval(), *test)
        return told

    how = f"five shapes as clouds of 64 points, turned anyhow, {STEPS} steps of {ROWS}"
    return Trial(how, "accuracy on 1,000 clouds", (Rule("doubly stochastic", "higher", "softmax"),), run)


TRIALS = {
    "vit": contest(
        {
            "as it is": arm("vit_toy", **SMALL),
            "dual patch norm": arm("vit_toy", method("dual_patchnorm"), **SMALL),
            "batch norm": arm("vit_toy", batch_norms, **SMALL),
            "unified norm": arm("vit_toy", method("unified_norm", warmup=50), **SMALL),
            "fading norm": arm("vit_toy", method("slab", steps=200, kernel=None), **SMALL),
            "linear": arm("vit_toy", lambda m: swap(m, Attend, PlainLinear, inside=Attention), **SMALL),
            "norm-aware linear": arm("vit_toy", method("nalaformer"), **SMALL),
            "gated tokens": arm("vit_toy", method("activator_glu", ratio=1.3), **SMALL),
        },
        Rule("dual patch norm", "higher", "as it is"),
        Rule("dual patch norm", "near", "as it is", 0.01),
        Rule("unified norm", "near", "as it is", 0.01),
        Rule("unified norm", "higher", "batch norm"),
        Rule("fading norm", "near", "as it is", 0.01),
        Rule("fading norm", "higher", "batch norm"),
        Rule("norm-aware linear", "higher", "linear"),
        Rule("gated tokens", "near", "as it is", 0.02),
        steps=STEPS,
        how="a ViT of four layers, 32 wide",
        after=advance,
    ),
    "ecoformer": codes(),
    "sinkformer": clouds(),
}
