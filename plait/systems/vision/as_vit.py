"""Auto-scaling Vision Transformers without Training (As-ViT). Chen, Huang, Du, Song, Wang, Zhou, 2022.
arXiv:2202.11921.

New here: a pyramid whose kernels, windows, expansions and heads were found without training, by how much an untrained
network stretches a circle in the space of its pictures (`plait.parts.untrained`), and whose widths and depths were
grown from 8 channels by the same measure. Windows are shares of the grid, a half or a quarter of each side, and not
of so many places; they never shift. Patches overlap, also where the grid is halved.

Differs: every picture of a multiple of the sides that its windows ask for is read, with windows that grow with it. The
coarse patches of the first epochs are `coarsen(model, 2)`, which changes no weight; a schedule for them is not here.
"""

from __future__ import annotations

from math import lcm

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, FeedForward, Stack, stage_rates
from plait.core.sizes import numbers
from plait.core.tokens import Tokens, sides, whole_grid
from plait.core.weights import Rename, Rule
from plait.errors import PlaitError
from plait.parts.convs import LayerNorm2d
from plait.parts.maps import OnTokens
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid

STRIDE, WIDEST = 4, 1024


def surround(x: Tensor, kernel: int, stride: int) -> Tensor:
    """A map (B, C, H, W) with zeros around, so that kernels give H / stride places; the odd one lies behind."""
    before, behind = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return F.pad(x, (before, behind, before, behind))


class Split(nn.Module):
    """`f` of Tokens, such as an `Attention`, inside each of `parts` x `parts` windows: Tokens of a grid (B, N, D) ->
    the same. Raises PlaitError where the grid does not divide."""

    on_grid = True

    def __init__(self, f: nn.Module, parts: int):
        super().__init__()
        self.f, self.parts = f, parts

    def forward(self, t: Tokens) -> Tokens:
        p, (h, w) = self.parts, sides(whole_grid(t))
        if numbers(h, w) and (h % p or w % p):
            raise PlaitError(f"a grid of {h} x {w} does not divide into {p} x {p} windows: resize the pictures")
        x = t.x.unflatten(1, (p, h // p, p, w // p)).transpose(2, 3)  # (B, p, p, h, w, D)
        y = self.f(t.inside(x.flatten(3, 4).flatten(0, 2), grid=(h // p, w // p)))
        x = y.x.view(-1, p, p, h // p, w // p, y.x.shape[-1]).transpose(2, 3)
        return t.carry(y, x.flatten(1, 4))


class Patches(nn.Module):
    """Patches of `kernel` pixels a side every STRIDE of them, normed: (B, 3, H, W) -> (B, D, H / 4, W / 4)."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, width, kernel, STRIDE), LayerNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _), (step, _) = self.proj.kernel_size, self.proj.stride, self.proj.dilation
        return self.norm(self.proj(surround(x, step * (kernel - 1) + 1, stride)))


class Merge(nn.Module):
    """Overlapping squares of `kernel` places, normed and projected: (B, C, H, W) -> (B, D, H / 2, W / 2)."""

    def __init__(self, width: int, out: int, kernel: int):
        super().__init__()
        self.split, self.norm = nn.Unfold(kernel, stride=2), nn.LayerNorm(kernel**2 * width)
        self.proj = nn.Linear(kernel**2 * width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2] // 2, x.shape[3] // 2
        x = self.split(surround(x, self.split.kernel_size, 2)).mT  # (B, h * w, C * kernel^2)
        return self.proj(self.norm(x)).unflatten(1, (h, w)).permute(0, 3, 1, 2)


class AsViT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). Sides are multiples of what the stages and their windows ask for.

    width: of the first stage, doubled by each further one up to WIDEST. kernels: of the patches, then of each merge.
    splits: windows along a side, of each stage; heads, ratios, depths: of each stage.
    """

    classifier = ("head.2.",)

    def __init__(self, *, width, depths, kernels, splits, ratios, heads, num_classes=1000, drop_path=0.0):
        stages, widths = [], [min(WIDEST, width * 2**s) for s in range(len(depths))]
        for s, (d, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            layers = (layer(d, heads[s], splits[s], ratios[s], rate) for rate in rates)
            merge = Merge(widths[s - 1], d, kernels[s]) if s else nn.Identity()
            stages.append(nn.Sequential(merge, OnTokens(Stack(*layers))))
        super().__init__(Patches(width, kernels[0]), stages, nn.LayerNorm(d), d, num_classes)
        if num_classes:
            self.head = nn.Sequential(nn.Linear(d, d), nn.Tanh(), self.head)
        self.multiple = lcm(*(STRIDE * 2**s * p for s, p in enumerate(splits)))


def layer(width: int, heads: int, split: int, ratio: int, drop: float) -> Block:
    mix = Attention(width, heads)
    return pre_norm(width, mix if split == 1 else Split(mix, split), FeedForward(width, ratio * width), drop=drop)


def coarsen(model: AsViT, factor: int) -> None:
    """Patches every `factor` times STRIDE pixels, of every `factor`-th pixel: the same weights on a grid `factor` times
    as coarse, for the first epochs. The grid's sides must still divide; 1 takes it back."""
    proj = model.stem.proj
    proj.stride, proj.dilation = (STRIDE * factor, STRIDE * factor), (factor, factor)


# stage by stage: kernels, windows along a side, expansions; heads of a stage are 4, 8, 16 and 32
SEED = dict(kernels=(8, 4, 4, 4), splits=(2, 1, 1, 1), ratios=(3, 2, 4, 6), heads=(4, 8, 16, 32))

MODEL = AsViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SMALL = dict(kernels=(8, 4, 4), splits=(2, 1, 1), ratios=(3, 2, 4))
SIZES = {
    "toy": dict(width=8, depths=(1, 2), kernels=(7, 3), splits=(2, 1), ratios=(3, 2), heads=(1, 2), num_classes=10),
    "nano": SMALL | dict(width=48, depths=(2, 2, 2), heads=(2, 4, 8), drop_path=0.1),
    "large": SEED | dict(width=180, depths=(5, 2, 5, 2)),
}

WEIGHTS = {}

PIECES = {"norm1": "mix.norm", "mlps.0.0": "feed.norm", "mlps.0.1.fc1": "feed.f.up", "mlps.0.1.fc2": "feed.f.down"}


def official(model: AsViT) -> list[Rule]:
    """Theirs gives attention inside windows the names of any other."""
    rules: list[Rule] = [Rename(f"{n}.{{p}}", f"{n}.{{p}}") for n in ("norm", "head.0", "head.2")]
    rules += [Rename(f"patch_embed.{n}.{{p}}", f"stem.{n}.{{p}}") for n in ("proj", "norm")]
    for s, stage in enumerate(model.stages):
        theirs, ours = f"layers.{s}.blocks.{{i}}", f"stages.{s}.1.f.blocks.{{i}}"
        f = "mix.f.f" if isinstance(stage[1].f.blocks[0].mix.f, Split) else "mix.f"
        pieces = PIECES | {"attn.qkv": f"{f}.qkv", "attn.proj": f"{f}.out"}
        rules += [Rename(f"{theirs}.{a}.{{p}}", f"{ours}.{b}.{{p}}") for a, b in pieces.items()]
        if s:
            rules += [
                Rename(f"layers.{s - 1}.downsample.{a}.{{p}}", f"stages.{s}.0.{b}.{{p}}")
                for a, b in {"norm": "norm", "reduction": "proj"}.items()
            ]
    return rules


RULES = {"official": official}
