"""FMViT: A multiple-frequency mixing Vision Transformer. Tan, Geng, Xie, 2023. arXiv:2311.05707.

New here: a net trained wide and deployed narrow. Each stage ends in a layer that shares its channels out by frequency:
a part attends, which smooths, the rest is convolved, which sharpens, and from stage to stage the first part grows.
Every convolution is trained as a sum of several with different numbers of groups; they fold into the one with the
fewest. Attention asks a map reduced by a convolution and a mean, which fold into one too.

Differs: no code was published; this follows public accounts of the method, not the paper's tables. Sizes, shares and
groups are ours, and where the parts stand. No frequencies are computed to split by: what attends smooths and what is
convolved sharpens because of what they are. Stem, resizing and the order of layers are Next-ViT's (arXiv:2207.05501).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, DropPath, check_heads, merge_heads, split_heads, stage_rates
from plait.core.surgery import factors, fold_after, with_weights
from plait.errors import PlaitError
from plait.parts.branches import Branches
from plait.parts.convs import ChannelsLast, ConvNorm, Relu, Skip, beside
from plait.parts.maps import only_map, to_tokens
from plait.parts.mixers.windows import pad_map
from plait.parts.towers.pyramid import Pyramid
from plait.systems.vision.nextvit import NextViT, resized


class MultiGroup(Branches):
    """A sum of convolutions that differ in their groups, each normed, and of the normed input where shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, groups: tuple[int, ...]):
        super().__init__((channels, out, 1, groups[0]), (kernel,))
        self.convs.extend(ConvNorm(channels, out, kernel, groups=g) for g in groups[1:])

    def fold(self) -> nn.Module:
        fewest = min(conv.groups for conv in self.convs)
        self.convs = nn.ModuleList(regrouped(conv, fewest) for conv in self.convs)
        return super().fold()


def regrouped(conv: nn.Conv2d, groups: int) -> nn.Conv2d:
    """The same convolution with fewer groups, zeros where it had none: `groups` must divide its own."""
    ratio, (channels, out) = conv.groups // groups, (conv.in_channels, conv.out_channels)
    own = conv.weight.unflatten(0, (groups, ratio, -1))  # (groups, ratio, out, in, k, k)
    weight = own.new_zeros(*own.shape[:3], ratio, *own.shape[3:])
    for i in range(ratio):
        weight[:, i, :, i] = own[:, i]
    new = nn.Conv2d(channels, out, conv.kernel_size, 1, conv.padding, groups=groups, device="meta")
    return with_weights(new, weight.flatten(3, 4).flatten(0, 2), conv.bias)


def convolved(width: int, head: int, drop: float) -> Skip:
    """Places mixed in groups of one head's and of two heads' channels, then the groups; with its residual."""
    heads = width // head
    places = MultiGroup(width, width, 3, (heads, heads // 2) if heads % 2 == 0 else (heads, 1))
    return Skip(nn.Sequential(places, nn.ReLU(), nn.Conv2d(width, width, 1, bias=False)), DropPath(drop))


def feed(width: int, head: int, ratio: int, drop: float) -> Skip:
    """Two convolutions of one place, each the sum of one of all channels and one of a head's, with their residual."""
    groups, wide = (1, width // head), ratio * width
    up, down = MultiGroup(width, wide, 1, groups), MultiGroup(wide, width, 1, groups)
    return Skip(nn.Sequential(up, nn.ReLU(), down), DropPath(drop))


class Fill(nn.Module):
    """Zeros below and at the right, so that both sides are multiples of `ratio`."""

    def __init__(self, ratio: int):
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return pad_map(x, (self.ratio, self.ratio))


class Reduce(nn.Module):
    """A strided depthwise convolution plus the mean of the places, both normed: (B, C, H, W) -> (B, C, H/r, W/r)."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, ratio, ratio, groups=width, bias=False), nn.BatchNorm2d(width)
        self.mean_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.mean_norm(F.avg_pool2d(x, self.conv.stride))

    def fold(self) -> nn.Module:
        conv, (scale, shift) = fold_after(self.conv, self.norm), factors(self.mean_norm)
        return with_weights(conv, conv.weight + scale.view(-1, 1, 1, 1) / conv.stride[0] ** 2, conv.bias + shift)


class Reduced(nn.Module):
    """Attention of every place to a reduced map: (B, C, H, W) -> the same. head: channels of each head."""

    def __init__(self, width: int, head: int, ratio: int):
        super().__init__()
        check_heads(width, width // head)
        self.heads, self.attend = width // head, Attend()
        self.reduce = nn.Sequential(Fill(ratio), Reduce(width, ratio)) if ratio > 1 else nn.Identity()
        self.q, self.kv, self.out = ConvNorm(width, width), ConvNorm(width, 2 * width), ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        t, seen = to_tokens(self.q(x)), to_tokens(self.kv(self.reduce(x)))
        (q,), (k, v) = split_heads(t.x, 1, self.heads), split_heads(seen.x, 2, self.heads)
        t = self.attend(t, q, k, v, to=seen)
        return self.out(only_map(t.replace(x=merge_heads(t.x))))


class Mix(nn.Module):
    """The share `low` of the channels attends, the rest is convolved, and both are added: (B, C, H, W) -> the same."""

    def __init__(self, width: int, head: int, low: float, ratio: int, drop: float):
        super().__init__()
        share = max(1, round(width * low / head)) * head
        if not share < width:
            raise PlaitError(
                f"the share {low} of {width} channels in heads of {head} leaves none to convolve: choose a smaller one"
            )
        self.low = nn.Sequential(ConvNorm(width, share), Skip(Reduced(share, head, ratio), DropPath(drop)))
        self.high = nn.Sequential(ConvNorm(width, width - share), convolved(width - share, head, drop))

    def forward(self, x: Tensor) -> Tensor:
        return x + beside(self.low(x), self.high(x))


class FMViT(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). head: channels of a head and of a convolution's smallest
    group.

    Of each stage but the first: lows: the share of channels that attends; ratios: of the sides of the map to those of
    what it asks.
    """

    def __init__(self, *, stem, widths, depths, lows, ratios, head=32, hidden=3, num_classes=1000, drop_path=0.0):
        a, b, c = stem
        steps = ((3, a, 2), (a, b, 1), (b, c, 1), (c, c, 2))
        stages, before = [], c
        for s, (width, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            layers = [resized(before, width, s > 0)]
            for n, drop in enumerate(rates, 1):
                mixes = s > 0 and n % min(len(rates), 5) == 0
                mix = Mix(width, head, lows[s - 1], ratios[s - 1], drop) if mixes else convolved(width, head, drop)
                layers.append(Block(mix=mix, feed=feed(width, head, hidden, drop)))  # a block that maps flow through
            stages.append(nn.Sequential(*layers))
            before = width
        first = nn.Sequential(ChannelsLast(), *(ConvNorm(i, o, 3, stride, act=Relu) for i, o, stride in steps))
        super().__init__(first, stages, nn.BatchNorm2d(before), before, num_classes)

    pool = NextViT.pool


MODEL = FMViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(stem=(8, 8, 16), widths=(16, 32), depths=(1, 2), lows=(0.5,))
NANO = dict(stem=(32, 16, 32), widths=(32, 64, 128), depths=(1, 2, 3))
SIZES = {
    "toy": TOY | dict(ratios=(2,), head=8, hidden=2, num_classes=10),
    "nano": NANO | dict(lows=(0.25, 0.5), ratios=(2, 1), head=16, hidden=2),
}
WEIGHTS = {}
