"""Systems of pictures, each against itself without what is new in it: another module in the novelty's place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn

from benchmarks import untrained
from benchmarks.claims.trial import ROWS, SIDE, Trial, accuracy, arm, contest, cost, train, unseen
from benchmarks.claims.verdict import Rule
from plait.core.block import split_heads
from plait.core.init import initialise
from plait.core.surgery import swap
from plait.core.tokens import Tokens
from plait.parts.convs import ConvNorm, Skip
from plait.parts.maps import to_map, to_tokens
from plait.parts.mixers.windows import WindowAttention
from plait.parts.untrained import circle, length_distortion, reader, without_norms
from plait.systems.vision import resformer
from plait.systems.vision.as_vit import coarsen
from plait.systems.vision.crate import CRATE, coding_rate
from plait.systems.vision.dualtoken_vit import DualAttention
from plait.systems.vision.fcaformer import FcaBlock
from plait.systems.vision.fmvit import Mix, Reduced, convolved
from plait.systems.vision.maformer import Fusion
from plait.systems.vision.vit_resnas import Reduce


def become(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Every `old` of the model is a `new`, a subclass with the same parts that does something else."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


class Anew(DualAttention):
    """Global tokens that each layer takes of its own map alone: those of the layer before count for nothing."""

    def reset(self) -> None:
        nn.init.constant_(self.share, -30.0)


class Twice(nn.Module):
    """One of MAFormer's two steps, done again in place of the other: twice the windows, or twice the whole map."""

    gives = ("stream",)

    def __init__(self, old: Fusion, *, fine: bool):
        super().__init__()
        self.distil = None if fine else old.distil
        width, heads = old.ask.out.in_features, old.ask.heads
        self.first = old.local if fine else old.ask
        self.second = WindowAttention(width, heads, old.local.window) if fine else type(old.ask)(width, heads)

    def forward(self, t: Tokens) -> Tokens:
        stream = {} if self.distil is None else {"stream": self.distil(t)}
        first = self.first(t.reading(**stream))
        second = self.second(first.reading(**stream))
        return t.carry(second, first.x + second.x)


def without_cross_tokens(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, FcaBlock):
            block.merge = block.mix.f.recall = None


def faster_branches(model: nn.Module) -> nn.Module:
    """The factors of the branches, which the paper starts at 1e-6 for 300 epochs, at a tenth."""
    for module in model.modules():
        if hasattr(module, "gamma"):
            module.start = 0.1
    return model


class Whole(nn.Module):
    """FMViT's last layer of a stage with all channels in one of its two paths."""

    def __init__(self, path: nn.Module):
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


def unsplit(attends: bool) -> Callable[[nn.Module], object]:
    def one(old: Mix) -> nn.Module:
        attention, width = old.low[1].f, old.low[0].conv.out_channels + old.high[0].conv.out_channels
        head, ratio = attention.q.conv.out_channels // attention.heads, 2
        step = Skip(Reduced(width, head, ratio), nn.Identity()) if attends else convolved(width, head, 0.0)
        return Whole(nn.Sequential(ConvNorm(width, width), step))

    return lambda model: swap(model, Mix, one)


class Strided(Reduce):
    """ViT-ResNAS's reduction without its residual: what the strided convolution says, and nothing of what was there."""

    def forward(self, t: Tokens) -> Tokens:
        normed = t.replace(x=self.norm(t.x))
        new = self.positions(to_tokens(self.conv(to_map(normed))))
        x = torch.cat([self.cls(normed.x[:, : t.prefix]), new.x], 1)
        return new.with_losses(t).replace(x=x, prefix=t.prefix)


def held_out(arms: dict, rule: Rule, steps: int) -> Trial:
    """As `contest`, by the cross-entropy of the unseen."""

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        x, y = unseen()
        return float(F.cross_entropy(torch.cat([model(part) for part in x.split(200)]), y))

    def run(seed: int) -> dict[str, float]:
        return {name: loss(train(initialise(make(), seed=seed), steps, seed)) for name, make in arms.items()}

    how = f"digits on 32 x 32, {steps} steps of {ROWS}"
    return Trial(how, "cross-entropy", (rule,), run, lambda: cost(arms))


def shown(x: Tensor, height: int, width: int | None = None) -> Tensor:
    """Pictures (B, 3, H, W) at another size."""
    return F.interpolate(x, size=(height, width or height), mode="bilinear", antialias=True, align_corners=False)


def resolutions() -> Trial:
    """ResFormer, which each step reads at three resolutions, at two that it has never seen."""
    learnt, unknown = (48, 32, 24), (16, 64)

    def together(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return sum(resformer.losses(model, [shown(x, side) for side in learnt], y).values())

    def each(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(model(shown(x, side)), y) for side in learnt]).mean()

    arms = {
        "ResFormer at three": ("resformer_toy", together),
        "ViT at three": ("vit_toy", each),
        "ViT at one": ("vit_toy", lambda model, x, y: F.cross_entropy(model(x), y)),
    }

    def run(seed: int) -> dict[str, float]:
        told = {}
        x, y = unseen()
        for name, (size, loss) in arms.items():
            model = train(initialise(arm(size)(), seed=seed), 300, seed, loss=loss)
            told[name] = sum(accuracy(model, shown(x, side), y) for side in unknown) / len(unknown)
        return told

    rules = (Rule("ResFormer at three", "higher", "ViT at one"), Rule("ResFormer at three", "higher", "ViT at three"))
    how = "digits on 32 x 32, 300 steps of 64, read at 48, 32 and 24 pixels or at 32"
    return Trial(how, "accuracy at 16 and 64 pixels", rules, run)


def larger() -> Trial:
    """CPVT and a ViT with learned positions, on pictures half as large again as those that they learnt from."""
    arms = {"conditional": arm("cpvt_toy", cls=False, patch=4), "learned table": arm("vit_toy", patch=4)}

    def run(seed: int) -> dict[str, float]:
        told, (x, y) = {}, unseen()
        for name, make in arms.items():
            model = train(initialise(make(), seed=seed), 300, seed)
            told[name] = accuracy(model, x, y) - accuracy(model, shown(x, 48), y)
        return told

    how = "digits on 32 x 32, 300 steps of 64, then shown at 48 x 48; the table is resampled"
    return Trial(how, "accuracy lost", (Rule("conditional", "lower", "learned table"),), run, lambda: cost(arms))


def depths() -> Trial:
    """CRATE's two quantities in its first and last layer, after training."""

    @torch.no_grad()
    def run(seed: int) -> dict[str, float]:
        with torch.enable_grad():
            model = train(initialise(arm("crate_toy", patch=4, depth=6)(), seed=seed), 300, seed)
        assert isinstance(model, CRATE)
        rates, shares = [], []
        t = model.patch_embed(unseen()[0][:200])
        for block in model.stack.blocks:
            t = block.mix(t)
            onto = block.mix.f
            (w,) = split_heads(onto.onto(t.x), 1, onto.heads)
            rates.append(float(coding_rate(w.flatten(0, 1)).mean()))
            t = block.feed(t)
            shares.append(float((t.x > 0).float().mean()))
        x, y = unseen()
        return {
            "rate, first layer": rates[0],
            "rate, last layer": rates[-1],
            "not zero, first layer": shares[0],
            "not zero, last layer": shares[-1],
            "accuracy": accuracy(model, x, y),
        }

    rules = tuple(Rule(f"{what}, last layer", "lower", f"{what}, first layer") for what in ("rate", "not zero"))
    how = "digits on 32 x 32, 300 steps of 64, six layers"
    return Trial(how, "coding rate in the subspaces after attention; share of numbers that are not zero", rules, run)


def native() -> Trial:
    """UniViTAR, first on squares and then on pictures as they are, against itself on pictures made square."""
    tall, wide, odd = (40, 24), (24, 40), ((20, 48), (48, 20))
    sizes = [(SIDE, SIDE)] * 100 + [(SIDE, SIDE), tall, wide] * 67
    arms = {"as they are": lambda x: x, "made square": lambda x: shown(x, SIDE)}

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, view in arms.items():

            def loss(model: nn.Module, x: Tensor, y: Tensor, view=view) -> Tensor:
                return F.cross_entropy(model(view(x)), y)

            model = initialise(arm("univitar_toy", patch=4)(), seed=seed)
            model = train(model, 300, seed, loss=loss, sizes=sizes)
            told[name] = sum(accuracy(model, view(unseen(*size)[0]), unseen(*size)[1]) for size in odd) / len(odd)
        return told

    how = "digits on 32 x 32, then also 40 x 24 and 24 x 40, 300 steps of 64"
    rule = Rule("as they are", "higher", "made square")
    return Trial(how, "accuracy on 20 x 48 and 48 x 20", (rule,), run)


def ranked() -> Trial:
    """Kendall's tau between what sixteen small As-ViTs tell before they are trained and what they then learn."""

    def run(seed: int) -> dict[str, float]:
        draw = np.random.default_rng(seed)
        curve = circle((3, SIDE, SIDE), 10, torch.Generator().manual_seed(seed))
        lengths, learnt = [], []
        for _ in range(16):
            choice = {name: values[draw.integers(len(values))] for name, values in untrained.SPACE.items()}
            model = untrained.make(choice, seed)
            lengths.append(length_distortion(reader(without_norms(model.eval())), *curve))
            learnt.append(accuracy(train(model, 150, seed), *unseen()))
        return {"length distortion": float(kendalltau(lengths, learnt).statistic), "an order by chance": 0.0}

    how = "a seed draws 16 nets; each learns digits on 32 x 32 for 150 steps of 64"
    rule = Rule("length distortion", "higher", "an order by chance")
    return Trial(how, "Kendall's tau of the measure and the accuracy", (rule,), run)


def coarse() -> Trial:
    """As-ViT with patches twice as coarse for half of its steps, and without."""
    steps, fine = 300, arm("as_vit_toy", width=16, heads=(2, 4))
    arms = {"coarse for half": 2, "fine": 1}

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, factor in arms.items():
            model, step = initialise(fine(), seed=seed), count(1)
            coarsen(model, factor)
            train(model, steps, seed, after=lambda m, step=step: coarsen(m, 1) if next(step) == steps // 2 else None)
            told[name] = accuracy(model, *unseen())
        return told

    rule = Rule("coarse for half", "near", "fine", 0.02)
    how = f"digits on 32 x 32, {steps} steps of {ROWS}"
    grids = {"coarse patches": arm("as_vit_toy", lambda m: coarsen(m, 2), width=16, heads=(2, 4)), "fine patches": fine}
    return Trial(how, "accuracy", (rule,), run, lambda: cost(grids))


DUAL = dict(depths=(2, 2))
WIDER = dict(widths=(10, 20, 20, 40))  # twice the windows cost less than windows and the whole map
SPECTRAL = dict(patch=4, widths=(32,), depths=(4,), heads=(2,), ratios=(4,))
TRIALS = {
    "cct": contest(
        {
            "CCT": arm("cct_toy"),
            "CVT": arm("cct_toy", patch=4, depth=4),
            "ViT-Lite": arm("cct_toy", patch=4, depth=4, cls=True),
        },
        Rule("CCT", "higher", "ViT-Lite"),
        Rule("CVT", "higher", "ViT-Lite"),
        steps=150,
    ),
    "dualtoken_vit": contest(
        {
            "global tokens": arm("dualtoken_vit_toy", **DUAL),
            "none that last": arm("dualtoken_vit_toy", lambda m: become(m, DualAttention, Anew), **DUAL),
        },
        Rule("global tokens", "higher", "none that last"),
        steps=150,
    ),
    "maformer": contest(
        {
            "fused": arm("maformer_toy"),
            "windows alone": arm("maformer_toy", lambda m: swap(m, Fusion, lambda old: Twice(old, fine=True)), **WIDER),
            "whole map alone": arm("maformer_toy", lambda m: swap(m, Fusion, lambda old: Twice(old, fine=False))),
        },
        Rule("fused", "higher", "windows alone"),
        Rule("fused", "higher", "whole map alone"),
        steps=200,
    ),
    "fcaformer": contest(
        {
            "cross tokens": arm("fcaformer_toy", faster_branches),
            "none": arm("fcaformer_toy", lambda m: without_cross_tokens(faster_branches(m))),
        },
        Rule("cross tokens", "higher", "none"),
        steps=150,
        how="branches start at a tenth",
    ),
    "fmvit": contest(
        {
            "split": arm("fmvit_toy"),
            "all attend": arm("fmvit_toy", unsplit(True)),
            "all convolved": arm("fmvit_toy", unsplit(False)),
        },
        Rule("split", "higher", "all attend"),
        Rule("split", "higher", "all convolved"),
        steps=100,
    ),
    "spectformer": contest(
        {
            "half of each": arm("spectformer_toy", spectral=(2,), **SPECTRAL),
            "all filter": arm("spectformer_toy", spectral=(4,), **SPECTRAL),
            "all attend": arm("spectformer_toy", spectral=(0,), **SPECTRAL),
        },
        Rule("half of each", "higher", "all filter"),
        Rule("half of each", "higher", "all attend"),
        steps=300,
    ),
    "vit_resnas": held_out(
        {"residual": arm("vit_resnas_toy"), "strided": arm("vit_resnas_toy", lambda m: become(m, Reduce, Strided))},
        Rule("residual", "lower", "strided"),
        steps=200,
    ),
    "resformer": resolutions(),
    "cpvt": larger(),
    "crate": depths(),
    "univitar": native(),
    "as_vit_measure": ranked(),
    "as_vit_coarse": coarse(),
}
