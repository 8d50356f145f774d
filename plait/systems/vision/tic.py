"""TiC: Exploring Vision Transformer in Convolution. Zhang, Wang, Bian, Xiong, 2023. arXiv:2310.04134.

New here: attention that is used like a convolution. A kernel slides over the map, and in it the place in the middle
asks the others; it may be dilated, or depthwise (as many heads as channels). No weight knows the size of the picture,
and the cost grows with it, not with its square. Two cheap steps widen what a place hears of: before a layer, shares of
the channels are rolled away in four directions, so that a window holds channels of places around it; between stages the
map is pooled.

Differs: the authors published the layer, not the net. As in their code, places beyond the edge are keys and values of
zero, there are no positions, and heads go into the residual unprojected; theirs has one head, and a convolution for a
feed-forward step. The net around it follows public accounts, not the paper's tables: its sizes, how far channels
are rolled (one kernel) and the pooling (the mean of four) are decided here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import FeedForward, Stack, check_heads, split_heads, stage_rates
from plait.core.tokens import Tokens, whole_grid
from plait.parts.convs import ChannelsLast, ConvNorm, Half, LayerNorm2d
from plait.parts.maps import OnTokens
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid


def around(x: Tensor, kernel: int, dilation: int) -> Tensor:
    """(B, H, W, D) -> (B * H * W, kernel * kernel, D): what stands around each place, zeros beyond the edge."""
    reach = kernel // 2 * dilation
    x = F.pad(x, (0, 0, reach, reach, reach, reach))
    # (B, H, W, D, kernel, kernel)
    x = x.unfold(1, 2 * reach + 1, 1).unfold(2, 2 * reach + 1, 1)[..., ::dilation, ::dilation]
    return x.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(0, 2)


class AttentionConv(nn.Module):
    """Each place attends to the `kernel` x `kernel` places around it, `dilation` apart: Tokens of a grid (B, N, D) ->
    the same."""

    on_grid = True

    def __init__(self, width: int, heads: int, kernel: int, dilation: int = 1):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.kernel, self.dilation = heads, kernel, dilation
        self.qkv, self.attend = nn.Linear(width, 3 * width), Attend(cross=True)

    def forward(self, t: Tokens) -> Tokens:
        whole_grid(t)
        q, kv = self.qkv(t.x).split([t.x.shape[2], 2 * t.x.shape[2]], 2)
        (q,) = split_heads(q.flatten(0, 1)[:, None], 1, self.heads)  # (B * N, heads, 1, E)
        # (B * N, heads, kernel^2, E)
        k, v = split_heads(around(kv.unflatten(1, t.grid), self.kernel, self.dilation), 2, self.heads)
        return t.replace(x=self.attend.mix(q, k, v).flatten(1).view_as(t.x))


class Roll(nn.Module):
    """Quarters of the channels `step` places down, up, right and left, around the edges: Tokens of a grid (B, N, D) ->
    the same."""

    on_grid = True

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def forward(self, t: Tokens) -> Tokens:
        whole_grid(t)
        moves = ((self.step, 1), (-self.step, 1), (self.step, 2), (-self.step, 2))
        x = t.x.unflatten(1, t.grid)
        return t.replace(x=torch.cat([part.roll(*move) for part, move in zip(x.chunk(4, 3), moves)], 3).flatten(1, 2))


class TiC(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). dilations: of a stage's layers in turn. Every second layer
    rolls."""

    def __init__(self, *, widths, depths, heads, kernel=5, dilations=(1, 2), num_classes=1000, drop_path=0.0):
        stages = []
        for s, (d, h, rates) in enumerate(zip(widths, heads, stage_rates(drop_path, depths))):
            blocks = []
            for i, drop in enumerate(rates):
                mix: nn.Module = AttentionConv(d, h, kernel, dilations[i % len(dilations)])
                mix = nn.Sequential(Roll(kernel), mix) if i % 2 else mix
                blocks.append(pre_norm(d, mix, FeedForward(d, 4 * d), drop=drop))
            pool = nn.Sequential(Half(), nn.Conv2d(widths[s - 1], d, 1), LayerNorm2d(d)) if s else nn.Identity()
            stages.append(nn.Sequential(pool, OnTokens(Stack(*blocks))))
        half = widths[0] // 2
        stem = nn.Sequential(ChannelsLast(), ConvNorm(3, half, 3, 2, act=nn.GELU), ConvNorm(half, widths[0], 3, 2))
        super().__init__(stem, stages, nn.LayerNorm(d), d, num_classes)


MODEL = TiC
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(16, 32), depths=(2, 2), heads=(2, 4), kernel=3, num_classes=10),
    "nano": dict(widths=(48, 96, 160), depths=(2, 2, 2), heads=(3, 6, 10), drop_path=0.1),
}
WEIGHTS = {}
