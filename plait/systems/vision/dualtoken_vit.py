"""DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion. Chu, Chen, Chen, Wang, Wu, Huang,
Qian, 2023. arXiv:2309.12424.

New here: a few global tokens live through the whole net, one for each place of a coarse grid, so that they know where
they are. In every layer a convolution makes the local part; its map, halved step by step down to that grid and
attending to itself, is summed with the global tokens by weight; what a mixer makes of the sum is the next layer's
global tokens, and what every place asks for its global part.

Differs: no code was published. As the paper says, stem, merging and the gate behind the feed-forward step are
LightViT's (arXiv:2207.05557) and the convolution is ConvNeXt's. Decided here, where public accounts of it do not say:
the sum's weight is learned, one number for each layer; the local and the global part are added; the mixer's widths;
classes are read from the mean token; widths and depths are such that the published multiply-adds are met.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, CrossAttention, DropPath, FeedForward, Pre, stage_rates
from plait.core.tokens import Tokens, refuse, whole_grid
from plait.parts.convs import ChannelsLast, ConvNorm, Half, LayerNorm2d
from plait.parts.maps import to_map, to_tokens
from plait.parts.mixers.convnext import ConvLayer, depthwise
from plait.parts.mixers.windows import pad_to, to_windows
from plait.parts.towers.pyramid import Pyramid


class Reduce(nn.Module):
    """Tokens of a grid (B, N, D) -> Tokens of side x side places: convolved and halved `steps` times, resampled."""

    on_grid = True

    def __init__(self, width: int, steps: int, side: int):
        super().__init__()
        halve = (nn.Sequential(ConvNorm(width, width, 3, groups=width, act=nn.GELU), Half()) for _ in range(steps))
        self.steps, self.side = nn.Sequential(*halve), side

    def forward(self, t: Tokens) -> Tokens:
        return to_tokens(F.interpolate(self.steps(to_map(t)), size=(self.side, self.side), mode="bilinear"))


class Mixer(nn.Module):
    """The global tokens' own layer: mixed among themselves, then each on its own. Tokens (B, G, D) -> the same."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.norm, self.across = nn.LayerNorm(width), FeedForward(count, count)
        self.along, self.last = FeedForward(width, width // 2), nn.LayerNorm(width)

    def forward(self, g: Tokens) -> Tokens:
        y = self.across(g.inside(self.norm(g.x).mT))
        x = g.x + y.x.mT
        y = self.along(y.replace(x=self.last(x)))
        return g.carry(y, x + y.x)


class DualAttention(nn.Module):
    """Local Tokens (B, N, D), global (B, G, D) in their context -> what is added to them, and the new global ones."""

    gives, reads = ("stream",), ("whole",)

    def __init__(self, width: int, heads: int, steps: int, side: int):
        super().__init__()
        self.norm, self.reduce, self.attend = nn.LayerNorm(width), Reduce(width, steps, side), Attention(width, heads)
        self.share, self.mixer = nn.Parameter(torch.empty(1)), Mixer(width, side * side)
        self.broadcast = CrossAttention(width, heads)

    def reset(self) -> None:
        nn.init.zeros_(self.share)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="its attention reads a map that is made anew")
        g, t = t.read("whole"), t.replace(x=self.norm(t.x))
        seen, share = self.attend(self.reduce(t)), self.share.sigmoid()
        g = self.mixer(g.with_losses(seen).replace(x=share * g.x + (1 - share) * seen.x))
        t, g = t.with_losses(g), g.replace(losses=None)
        return self.broadcast(t.reading(stream=g, whole=g))


class GatedFeed(FeedForward):
    """A feed-forward step whose channels are weighed by the whole picture, and places by themselves and the picture."""

    def __init__(self, width: int, hidden: int):
        super().__init__(width, hidden)
        thin = width // 4
        self.norm, self.whole, self.own = nn.LayerNorm(width), nn.Linear(width, thin), nn.Linear(width, thin)
        self.channel, self.place = nn.Linear(thin, width), nn.Linear(2 * thin, 1)

    def forward(self, t: Tokens) -> Tokens:
        t = super().forward(t)
        x = self.norm(t.x)
        whole, own = F.gelu(self.whole(x.mean(1, keepdim=True))), F.gelu(self.own(x))
        place = self.place(torch.cat([own, whole.expand_as(own)], 2)).sigmoid()  # (B, N, 1)
        return t.replace(x=t.x * (self.channel(whole).sigmoid() * place))


class DualBlock(Block):
    """One layer: local tokens by a convolution, global ones beside them, both in one, then the feed-forward step."""

    def __init__(self, local: nn.Module, mix: DualAttention, feed: nn.Module, drop: float):
        super().__init__(mix, feed)
        self.local, self.after = local, DropPath(drop)

    def forward(self, t: Tokens) -> Tokens:
        t = self.local(t)
        seen = self.mix(t)
        return self.feed(t.carry(seen, t.x + self.after(seen.x)).reading(whole=seen.read("whole")))


class Merge(nn.Module):
    """Four neighbours become one, and all tokens wider: Tokens of a grid (B, N, C) with global ones (B, G, C) in their
    context -> the same of half the grid, rounded up, (B, N / 4, D) and (B, G, D)."""

    on_grid, reads = True, ("whole",)

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm, self.four = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, width, bias=False)
        self.most = nn.Linear(channels, width, bias=False)
        self.wider = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width, bias=False))

    def forward(self, t: Tokens) -> Tokens:
        g, x = t.read("whole"), pad_to(whole_grid(t).x.unflatten(1, t.grid), (2, 2))
        four, grid = to_windows(x, (2, 2)), (x.shape[1] // 2, x.shape[2] // 2)  # (B * H/2 * W/2, 4, C)
        y = self.four(self.norm(four.flatten(1))) + self.most(four.amax(1))
        y = y.view(x.shape[0], grid[0] * grid[1], -1)
        return t.replace(x=y, grid=grid).reading(whole=g.replace(x=self.wider(g.x)))


class Stage(nn.Module):
    """Local tokens, with global ones in their context, through layers, after what makes both coarser and wider."""

    def __init__(self, merge: nn.Module, layers: list[DualBlock]):
        super().__init__()
        self.merge, self.layers = merge, nn.ModuleList(layers)

    def forward(self, t: Tokens) -> Tokens:
        t = self.merge(t)
        for layer in self.layers:
            t = layer(t)
        return t


class DualTokenViT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). side: of the global tokens' grid. stride: of the stem. hidden: ratios."""

    def __init__(self, *, stride=8, widths, depths, heads, hidden, side=7, num_classes=1000, drop_path=0.0):
        def block(width: int, heads: int, hidden: int, steps: int, drop: float) -> DualBlock:
            local = ConvLayer(depthwise(width, width, 7), drop)
            feed = Pre(nn.LayerNorm(width), GatedFeed(width, hidden * width), DropPath(drop))
            return DualBlock(local, DualAttention(width, heads, steps, side), feed, drop)

        half, stages = widths[0] // 2, []
        fine = (ConvNorm(half, half, 3, s, groups=half, act=nn.GELU) for s in (1, 1, 2))
        proj = nn.Conv2d(half, widths[0], 3, stride // 4, 1), LayerNorm2d(widths[0])
        for s, (d, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            layers = [block(d, heads[s], hidden[s], len(widths) - 1 - s, rate) for rate in rates]
            stages.append(Stage(Merge(widths[s - 1], d) if s else nn.Identity(), layers))
        stem = nn.Sequential(ChannelsLast(), ConvNorm(3, half, 3, 2, act=nn.GELU), *fine, *proj)
        super().__init__(stem, stages, nn.LayerNorm(d), d, num_classes)
        self.whole = nn.Parameter(torch.empty(1, side * side, widths[0]))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.whole, std=0.02)

    def streams(self, x: Tensor) -> list[Tokens]:
        """Each stage's Tokens (B, H_i * W_i, C_i), finest first, the global ones (B, G, C_i) as their "whole"."""
        t, found = to_tokens(self.stem(x)).reading(whole=Tokens(self.whole)), []
        for stage in self.stages:
            t = stage(t)
            found.append(t)
        return found

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first."""
        return [to_map(t) for t in self.streams(x)]

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the last stage with their grid, before the last norm."""
        return self.streams(x)[-1].replace(context=None)


ALL = dict(heads=(2, 4, 8), hidden=(8, 4, 4))

MODEL = DualTokenViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
NANO = dict(stride=4, widths=(32, 64, 128), depths=(1, 2, 2), heads=(1, 2, 4))
SIZES = {
    "toy": dict(stride=4, widths=(16, 32), depths=(1, 1), heads=(2, 4), hidden=(2, 2), side=4, num_classes=10),
    "nano": NANO | dict(hidden=(4, 4, 4), side=4, drop_path=0.1),
    "tiny": ALL | dict(widths=(48, 96, 192), depths=(2, 4, 4), drop_path=0.1),
    "small": ALL | dict(widths=(64, 128, 256), depths=(2, 6, 4), drop_path=0.1),
}
WEIGHTS = {}
