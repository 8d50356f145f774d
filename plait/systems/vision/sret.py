"""Sliced Recursive Transformer. Shen, Liu, Xing, 2021. arXiv:2111.05297.

New here: depth without parameters. Every block runs twice or more in a row; between its loops stands a small
feed-forward step of its own, and every residual weighs both of its sides. What the loops cost, attention in slices
saves: tokens attend within groups of neighbours in one loop and within fewer groups of scattered tokens in the next,
after which they return to their places.

Differs: in evaluation tokens are scattered by dealing them out to the groups in turn, where the official code draws at
random and so never answers the same twice; in training they are drawn. Stochastic depth drops slices of a picture.
Other picture sizes are read. Learning from a teacher's answers alone, as the authors do, is the trainer's matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from math import isqrt

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Block, DropPath, FeedForward
from plait.core.sizes import numbers
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Rename, Rule, Tied
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast
from plait.parts.maps import OnTokens
from plait.parts.positions.learned import GridPositions
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)


class Weighed(nn.Module):
    """a x + b after(f(norm(x))), a and b learned: Tokens (B, N, D) -> the same."""

    def __init__(self, norm: nn.Module, f: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.norm, self.f, self.after = norm, f, after
        self.stay, self.add = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        nn.init.ones_(self.stay)
        nn.init.ones_(self.add)

    def forward(self, t: Tokens) -> Tokens:
        y = self.f(t.replace(x=self.norm(t.x)))
        return t.carry(y, t.x * self.stay + (y.x if self.after is None else self.after(y.x)) * self.add)


def dealt(places: Tensor, groups: int) -> Tensor:
    """(N,) in the order in which they lie when they are dealt out to the groups in turn, N a multiple of `groups`."""
    return places.view(-1, groups).T.flatten()


class Recursion(nn.Module):
    """One block, run in a loop for each of `groups` and followed by the step that is that loop's own: Tokens (B, N, D)
    -> the same.

    groups: into how many slices each loop cuts the tokens, N being a multiple of each. In the first a slice is a run of
    neighbours, later it takes tokens from everywhere: drawn in training, dealt out in evaluation.
    """

    def __init__(self, block: Block, groups: Sequence[int], steps: Iterable[nn.Module]):
        super().__init__()
        self.block, self.groups, self.steps = block, tuple(groups), nn.ModuleList(steps)

    def forward(self, t: Tokens) -> Tokens:
        for i, (groups, step) in enumerate(zip(self.groups, self.steps)):
            t = step(self.block(t) if groups == 1 else self.sliced(t, groups, scatter=i > 0))
        return t

    def sliced(self, t: Tokens, groups: int, scatter: bool) -> Tokens:
        """The block in slices, each a row, all put back where they were. Gathered: a program for all pictures cannot
        divide N."""
        (b, n, d), size = whole_grid(t).x.shape, t.x.shape[1] // groups
        if numbers(n) and n % groups:
            raise PlaitError(
                f"got {n} tokens for {groups} slices, expected a multiple: resize pictures to multiples of "
                "the model's `multiple`"
            )
        order = torch.arange(groups * size, device=t.x.device)
        back = order.new_zeros(n)
        if scatter:
            order = torch.randperm(n, device=t.x.device) if self.training else dealt(order, groups)
        y = self.block(t.inside(t.x.index_select(1, order).view(b * groups, size, d)))
        back = back.index_copy(0, order, torch.arange(groups * size, device=t.x.device))
        return t.carry(y, y.x.view(b, groups * size, d).index_select(1, back))


class SReT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K).

    image: the (H, W) that positions are learned for. head: width of a head. blocks: how many there are in each stage.
    groups: for each stage the number of slices in every loop. ratio, between: feed-forward widths in widths, in blocks
    and between loops.
    """

    fits = ("image",)
    pool = norm_of_mean

    def __init__(
        self, *, image=(224, 224), head=32, heads=(2, 4, 8), blocks=(2, 5, 3), groups=((8, 2), (4, 1), (1, 1)),
        ratio=3.6, between=1, num_classes=1000, drop_path=0.1,
    ):  # fmt: skip
        def recursion(d: int, heads: int, groups: tuple[int, ...], drop: float) -> Recursion:
            mix = Weighed(Norm(d), Attention(d, heads), DropPath(drop))
            feed = Weighed(Norm(d), FeedForward(d, int(ratio * d)), DropPath(drop))
            steps = [Weighed(Norm(d), FeedForward(d, int(between * d))) for _ in groups]
            return Recursion(Block(mix, feed), groups, steps)

        widths, loops = [head * h for h in heads], [len(g) for g in groups]
        total, stages = sum(b * n for b, n in zip(blocks, loops)), []
        for s, d in enumerate(widths):
            before = sum(b * n for b, n in zip(blocks[:s], loops))
            drops = [drop_path * (before + i) / total for i in range(blocks[s])]
            stack = nn.Sequential(*(recursion(d, heads[s], groups[s], drop) for drop in drops))
            down = nn.Conv2d(widths[s - 1], d, 3, 2, 1, groups=widths[s - 1]) if s else nn.Identity()
            stages.append(nn.Sequential(down, OnTokens(stack)))
        first, stem = widths[0], [ChannelsLast()]
        for a, b in ((3, first // 2), (first // 2, first), (first, first)):
            stem += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        stem.append(OnTokens(GridPositions((image[0] // 8, image[1] // 8), first)))
        super().__init__(nn.Sequential(*stem), stages, Norm(d), d, num_classes)
        step = 8 * 2 ** (len(widths) - 1)  # then every stage's grid divides into its slices
        self.multiple = next(
            m for m in count(step, step) if all((m >> 3 + s) ** 2 % g == 0 for s, gs in enumerate(groups) for g in gs)
        )


WHOLE = dict(groups=((1, 1), (1, 1), (1, 1)))
S = dict(head=42, heads=(3, 6, 12), ratio=3, between=2)

MODEL = SReT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), head=8, heads=(2, 4), blocks=(1, 1))
SIZES = {
    "toy": TOY | dict(groups=((4, 2), (1, 1)), ratio=1.8, num_classes=10),
    "nano": dict(image=(64, 64), heads=(2, 4), blocks=(2, 3), groups=((4, 2), (1, 1)), ratio=3),
    "t": dict(),
    "lt": dict(ratio=4),
    "lt_16_14": dict(ratio=4, groups=((16, 1), (14, 1), (1, 1))),
    "s": S,
    "t_whole": WHOLE,
    "lt_whole": WHOLE | dict(ratio=4),
    "s_whole": S | WHOLE,
    "t_whole_384": WHOLE | dict(image=(384, 384)),
    "s_whole_384": S | WHOLE | dict(image=(384, 384)),
    "s_whole_512": S | WHOLE | dict(image=(512, 512)),
}

OFFICIAL = dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "t": OFFICIAL | dict(github="szq0214/SReT SReT_T"),
    "lt": OFFICIAL | dict(github="szq0214/SReT SReT_LT"),
    "lt_16_14": OFFICIAL | dict(github="szq0214/SReT SReT_LT [16-14-1,1-1-1]"),
    "s": OFFICIAL | dict(github="szq0214/SReT SReT_S"),
    "t_whole": OFFICIAL | dict(github="szq0214/SReT SReT_T_wo_slice"),
    "lt_whole": OFFICIAL | dict(github="szq0214/SReT SReT_LT_wo_slice"),
    "s_whole": OFFICIAL | dict(github="szq0214/SReT SReT_S_wo_slice"),
    "t_whole_384": OFFICIAL | dict(github="szq0214/SReT SReT_T_wo_slice, 384"),
    "s_whole_384": OFFICIAL | dict(github="szq0214/SReT SReT_S_wo_slice_finetune_384"),
    "s_whole_512": OFFICIAL | dict(github="szq0214/SReT SReT_S_wo_slice, 512"),
}


BLOCK = {
    "norm1.{p}": "mix.norm.{p}",
    "attn.qkv.{p}": "mix.f.qkv.{p}",
    "attn.proj.{p}": "mix.f.out.{p}",
    "norm2.{p}": "feed.norm.{p}",
    "mlp.fc1.{p}": "feed.f.up.{p}",
    "mlp.fc2.{p}": "feed.f.down.{p}",
    "coefficient1.bias": "mix.stay",
    "coefficient2.bias": "mix.add",
    "coefficient3.bias": "feed.stay",
    "coefficient4.bias": "feed.add",
}
STEP = {
    "norm1.{p}": "norm.{p}",
    "mlp.fc1.{p}": "f.up.{p}",
    "mlp.fc2.{p}": "f.down.{p}",
    "coefficient1.bias": "stay",
    "coefficient2.bias": "add",
}
THEIRS, OURS = "transformers.{s}.blocks.", "stages.{s}.1.f."
RULES = {
    "official": [
        *(Rename(f"patch_embed.conv{i + 1}.{{p}}", f"stem.{3 * i + 1}.{{p}}") for i in range(3)),
        *(Rename(f"patch_embed.bn{i + 1}.{{p}}", f"stem.{3 * i + 2}.{{p}}") for i in range(3)),
        Rule(  # a square map to (1, H * W, D)
            ("pos_embed",),
            ("stem.10.f.table",),
            lambda ts: [ts[0].flatten(2).mT.contiguous()],
            lambda ts: [ts[0].mT.unflatten(2, (isqrt(ts[0].shape[1]), -1)).contiguous()],
        ),  # fmt: skip
        *(  # a block of two loops, which the public layout has once for each loop
            Tied([f"{THEIRS}{4 * i}.{a}", f"{THEIRS}{4 * i + 2}.{a}"], f"{OURS}{i}.block.{b}")
            for i in range(5)
            for a, b in BLOCK.items()
        ),
        *(
            Rename(f"{THEIRS}{4 * i + 1 + 2 * n}.{a}", f"{OURS}{i}.steps.{n}.{b}")
            for i in range(5)
            for n in (0, 1)
            for a, b in STEP.items()
        ),
        *(Rename(f"pools.{s}.conv.{{p}}", f"stages.{s + 1}.0.{{p}}") for s in range(2)),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
