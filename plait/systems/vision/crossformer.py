"""CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention. Wang, Yao, Chen, Lin, Cai, He, Liu,
2021. arXiv:2108.00154.

New here: tokens of several scales at once, each the outputs of convolutions of several kernels around one place; layers
that read groups of neighbours in turn with layers that read places a fixed interval apart; biases from a small network.

Differs: every picture size is read. What does not divide is filled up below and at the right, pictures and maps with
zeros, groups with places that nobody sees. Along a side no longer than a group, all places are one group in either kind
of layer. The `pp` sizes are CrossFormer++ (arXiv:2303.06908): groups that grow with depth, and after every third layer
a convolution that cools the activations down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import FeedForward, Stack, check_heads, merge_heads, split_heads, stage_rates
from plait.core.sizes import numbers, surely
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Rename, Rule
from plait.parts.convs import LayerNorm2d, beside
from plait.parts.maps import OnMap, OnTokens
from plait.parts.mixers.windows import pad_map
from plait.parts.positions.relative import offsets
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid


class CrossScale(nn.Module):
    """Each place seen through several kernels, the first of which is the stride: (B, C, H, W) -> (B, D, H / stride,
    W / stride), rounded up. A kernel has half the channels of the one before it, the last as many as that."""

    def __init__(self, channels: int, width: int, kernels: tuple[int, ...]):
        super().__init__()
        self.stride, last = kernels[0], len(kernels) - 1
        shares = [width // 2 ** min(i + 1, last) for i in range(len(kernels))]
        self.eyes = nn.ModuleList(
            nn.Conv2d(channels, d, k, self.stride, (k - self.stride) // 2) for d, k in zip(shares, kernels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = pad_map(x, (self.stride, self.stride))
        return beside(*(eye(x) for eye in self.eyes))


class DynamicBias(nn.Module):
    """What a network says of the offset of two places in a group: () -> (1, H, side^2, side^2), for attention."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.side, layers = side, [nn.Linear(2, width)]
        for out in (width, width, heads):
            layers += nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)
        self.net = nn.Sequential(*layers)
        self.register_buffer("steps", torch.empty((2 * side - 1) ** 2, 2), persistent=False)
        self.register_buffer("index", torch.empty(side**4, dtype=torch.int64), persistent=False)

    def reset(self) -> None:
        step = torch.arange(1 - self.side, self.side)
        self.steps.copy_(torch.cartesian_prod(step, step))
        self.index.copy_(offsets((self.side, self.side)).flatten())

    def forward(self) -> Tensor:
        return self.net(self.steps).T.index_select(1, self.index).view(1, -1, self.side**2, self.side**2)


class Comb:
    """One side of a grid in groups of `size` places, each `interval` after the last; one group if it is no longer.

    places: (groups, size) int64, those beyond the side are nobody's.
    """

    def __init__(self, side: int, size: int, interval: int, device: torch.device):
        known = numbers(side)  # if not, a program for every side makes more groups than a short one fills
        self.side, self.size = side, size
        self.step = 1 + (interval - 1) * ((side if known else torch.full((), side, device=device)) > size)
        self.span = size * self.step
        step = self.step if known else interval
        self.count = (side + size * step - 1) // (size * step) * step
        groups = torch.arange(self.count, device=device)
        starts = groups // self.step * self.span + groups % self.step
        self.places = starts[:, None] + torch.arange(size, device=device) * self.step

    def full(self) -> bool:
        """Whether every place is somebody's; False where a program is made that cannot tell."""
        return surely(self.count * self.size == self.side)

    def find(self) -> tuple[Tensor, Tensor]:
        """For each place of the side its group and where in it, (side,) int64 each."""
        places = torch.arange(self.side, device=self.places.device)
        return places // self.span * self.step + places % self.step, places % self.span // self.step


class GroupAttention(nn.Module):
    """Self-attention in groups of `side` x `side` places, `interval` apart: Tokens of a grid (B, N, D) -> the same."""

    on_grid = True

    def __init__(self, width: int, heads: int, side: int, interval: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.side, self.interval, self.attend = heads, side, interval, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = DynamicBias(width // 16, heads, side)

    def forward(self, t: Tokens) -> Tokens:
        b, d, area, keep = t.x.shape[0], t.x.shape[2], self.side**2, None
        high, wide = (Comb(n, self.side, self.interval, t.x.device) for n in whole_grid(t).grid)
        row, column = high.places[:, None, :, None], wide.places[None, :, None, :]
        # (rows, columns, side, side)
        index = row.clamp(max=high.side - 1) * wide.side + column.clamp(max=wide.side - 1)
        if not (high.full() and wide.full()):
            keep = (row < high.side) & (column < wide.side)
            keep = keep.view(1, -1, area).expand(b, -1, -1).flatten(0, 1)
        x = t.x.index_select(1, index.flatten()).view(-1, area, d)
        q, k, v = split_heads(self.qkv(x), 3, self.heads)  # each (M, H, area, E)
        y = self.attend(t.inside(q, keep=keep), q, k, v, bias=self.bias())
        (row, down), (column, right) = high.find(), wide.find()
        back = (row[:, None] * wide.count + column) * area + down[:, None] * self.side + right
        x = self.out(merge_heads(y.x)).view(b, -1, d)
        return t.carry(y, x.index_select(1, back.flatten()))


def cool(width: int) -> OnMap:
    """A convolution and a norm that replace the tokens, and with them the sum that has grown over the layers."""
    return OnMap(nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), LayerNorm2d(width)))


class CrossFormer(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). width: of the first stage, doubled by each further one.

    kernels: of the stem. groups, intervals: of each stage's layers, which read neighbours and places apart in turn.
    cooling: after how many layers of a stage they are cooled, but not after its last; None: never.
    """

    def __init__(
        self, *, kernels=(4, 8, 16, 32), width, depths, heads, groups, intervals, cooling=None, num_classes=1000,
        drop_path=0.0,
    ):  # fmt: skip
        stages = []
        for s, rates in enumerate(stage_rates(drop_path, depths)):
            d, blocks = width * 2**s, []
            for i, rate in enumerate(rates):
                mix = GroupAttention(d, heads[s], groups[s], intervals[s] if i % 2 else 1)
                block = pre_norm(d, mix, FeedForward(d, 4 * d), drop=rate)
                if cooling is not None and (i + 1) % cooling == 0 and i + 1 < len(rates):
                    block.feed = nn.Sequential(block.feed, cool(d))
                blocks.append(block)
            down = nn.Sequential(LayerNorm2d(d // 2), CrossScale(d // 2, d, (2, 4))) if s else nn.Identity()
            stages.append(nn.Sequential(down, OnTokens(Stack(*blocks))))
        # large kernels learn ten times faster with channels first
        stem = nn.Sequential(CrossScale(3, width, kernels), LayerNorm2d(width))
        super().__init__(stem, stages, nn.LayerNorm(d), d, num_classes)


SEVEN = dict(groups=(7, 7, 7, 7), intervals=(8, 4, 2, 1))
GROWING = dict(groups=(4, 4, 14, 7), intervals=(4, 2, 1, 1), cooling=3)
NARROW = dict(width=64, heads=(2, 4, 8, 16))
MIDDLE = dict(width=96, heads=(3, 6, 12, 24))
WIDE = dict(width=128, heads=(4, 8, 16, 32))
DEEP = dict(depths=(2, 2, 18, 2))

MODEL = CrossFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(kernels=(4, 8), width=64, depths=(2, 3), heads=(2, 4), groups=(4, 4))
NANO = dict(kernels=(2, 4, 8, 16), width=48, depths=(2, 2, 2), heads=(2, 4, 8))
SIZES = {
    "toy": TOY | dict(intervals=(3, 2), cooling=2, num_classes=10),
    "nano": NANO | dict(groups=(4, 4, 4), intervals=(8, 4, 2), drop_path=0.05),
    "tiny": NARROW | SEVEN | dict(depths=(1, 1, 8, 6), drop_path=0.1),
    "small": MIDDLE | SEVEN | dict(depths=(2, 2, 6, 2), drop_path=0.2),
    "base": MIDDLE | SEVEN | DEEP | dict(drop_path=0.3),
    "large": WIDE | SEVEN | DEEP | dict(drop_path=0.5),
    "pp_small": NARROW | GROWING | DEEP | dict(drop_path=0.2),
    "pp_base": MIDDLE | GROWING | DEEP | dict(drop_path=0.3),
    "pp_large": WIDE | GROWING | DEEP | dict(drop_path=0.5),
    "pp_huge": WIDE | GROWING | dict(depths=(6, 6, 18, 2), drop_path=0.5),
}

CROP = dict(image=(224, 224), crop_pct=0.875)
OFFICIAL = CROP | dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "tiny": OFFICIAL | dict(github="cheerss/CrossFormer cros_tiny_patch4_group7_224"),
    "small": OFFICIAL | dict(github="cheerss/CrossFormer cros_small_patch4_group7_224"),
    "base": OFFICIAL | dict(github="cheerss/CrossFormer cros_base_patch4_group7_224"),
    "large": OFFICIAL | dict(github="cheerss/CrossFormer cros_large_patch4_group7_224"),
    "pp_small": OFFICIAL | dict(github="cheerss/CrossFormer cros_pp_small_patch4_group_const_224"),
    "pp_base": OFFICIAL | dict(github="cheerss/CrossFormer cros_pp_base_patch4_group_const_224"),
    "pp_large": OFFICIAL | dict(github="cheerss/CrossFormer cros_pp_large_patch4_group_const_224"),
    "pp_huge": OFFICIAL | dict(github="cheerss/CrossFormer cros_pp_huge_patch4_group_const_224"),
}

THEIRS, OURS = "layers.{s}.blocks.{i}", "stages.{s}.1.f.blocks.{i}"
BIAS = {"pos_proj": 0, "pos1.0": 1, "pos1.2": 3, "pos2.0": 4, "pos2.2": 6, "pos3.0": 7, "pos3.2": 9}
COOLED = {
    "ex_conv": "feed.1.f.0",
    "ex_ln": "feed.1.f.1",
    "norm2": "feed.0.norm",
    "mlp.fc1": "feed.0.f.up",
    "mlp.fc2": "feed.0.f.down",
}
RULES = {
    "official": [
        Rename("patch_embed.projs.{k}.{p}", "stem.0.eyes.{k}.{p}"),
        Rename("patch_embed.norm.{p}", "stem.1.{p}"),
        *(Rename(f"layers.{s}.downsample.norm.{{p}}", f"stages.{s + 1}.0.0.{{p}}") for s in range(3)),
        *(
            Rename(f"layers.{s}.downsample.reductions.{{k}}.{{p}}", f"stages.{s + 1}.0.1.eyes.{{k}}.{{p}}")
            for s in range(3)
        ),
        *(
            Rename(f"{THEIRS}.attn.pos.{theirs}.{{p}}", f"{OURS}.mix.f.bias.net.{n}.{{p}}")
            for theirs, n in BIAS.items()
        ),
        Rule(  # together: a cooled layer is told by its convolution
            tuple(f"{THEIRS}.{theirs}.{{p}}" for theirs in COOLED),
            tuple(f"{OURS}.{ours}.{{p}}" for ours in COOLED.values()),
        ),
        *timm_blocks(THEIRS, OURS),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
