"""Scale-Aware Modulation Meet Transformer. Lin, Wu, Chen, Huang, Jin, 2023. arXiv:2307.08579.

New here: from modulation to attention as the maps get smaller. Early layers multiply each token by a summary of its
neighbours at four scales: the channels are shared out to depthwise convolutions of 3, 5, 7 and 9, whose answers are
regrouped, one of each scale, and mixed by cheap projections. In the third stage such layers and attention take turns;
the last stage only attends.

Differs: queries, keys and values come from one product. `s` has two last layers, as the released code has (22.6 M
parameters, and the 4.7 G multiply-adds of the paper); the 20.5 M of the paper are those of one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Stack, check_heads, merge_heads, split_heads, stage_rates
from plait.core.tokens import Tokens, mean
from plait.core.weights import Join, Rename, under
from plait.parts.convs import ChannelsLast, ConvNorm, LayerNorm2d, Pointwise, Relu
from plait.parts.maps import OnMap, OnTokens
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)
KERNELS = (3, 5, 7, 9)


def depthwise(width: int, kernel: int) -> OnMap:
    return OnMap(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width))


class Modulation(nn.Module):
    """Tokens times what stands around them at four scales: Tokens of a grid (B, N, D) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        check_heads(width, len(KERNELS))
        share = width // len(KERNELS)
        self.value, self.seen, self.out = (nn.Linear(width, width) for _ in range(3))
        self.scales = nn.ModuleList(depthwise(share, k) for k in KERNELS)
        wider = nn.Conv2d(width, 2 * width, 1, groups=share), nn.BatchNorm2d(2 * width)
        self.mix = OnMap(nn.Sequential(*wider, nn.GELU(), Pointwise(2 * width, width)))

    def forward(self, t: Tokens) -> Tokens:
        shares = self.seen(t.x).chunk(len(KERNELS), 2)
        seen = [scale(t.replace(x=share)).x for scale, share in zip(self.scales, shares)]
        seen = torch.stack(seen, 3).flatten(2)  # regrouped: one channel of each scale side by side
        return t.replace(x=self.out(self.mix(t.replace(x=seen)).x * self.value(t.x)))


class LocalAttention(nn.Module):
    """Self-attention plus a depthwise convolution of the values: Tokens of a grid (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.near, self.attend = heads, depthwise(width, 3), Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        qkv = self.qkv(t.x)
        q, k, v = split_heads(qkv, 3, self.heads)  # each (B, H, N, E)
        near = self.near(t.replace(x=qkv.chunk(3, 2)[2])).x
        t = self.attend(t, q, k, v)
        return t.replace(x=self.out(merge_heads(t.x) + near))


class ConvFeed(nn.Module):
    """A feed-forward step with a depthwise convolution in its wide space."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.near = nn.Linear(width, hidden), depthwise(hidden, 3)
        self.act, self.down = nn.GELU(), nn.Linear(hidden, width)

    def forward(self, t: Tokens) -> Tokens:
        y = t.replace(x=self.up(t.x))
        return t.replace(x=self.down(self.act(y.x + self.near(y).x)))


class NormTokens(nn.Module):
    """A layer norm of Tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = Norm(width)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.norm(t.x))


class SMT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). Each stage ends in its norm, so there is none after the last.

    heads: of the third and the fourth stage; kernel: of the stem's first convolution.
    """

    def __init__(self, *, widths, depths, heads, ratios, kernel=3, num_classes=1000, drop_path=0.0):
        stages = []
        for s, (d, ratio, rates) in enumerate(zip(widths, ratios, stage_rates(drop_path, depths))):
            blocks = []
            for i, drop in enumerate(rates):
                attends = s == 3 or (s == 2 and i % 2 == 1)
                mix = LocalAttention(d, heads[s - 2]) if attends else Modulation(d)
                blocks.append(pre_norm(d, mix, ConvFeed(d, ratio * d), norm=Norm, drop=drop))
            down = nn.Sequential(nn.Conv2d(widths[s - 1], d, 3, 2, 1), LayerNorm2d(d)) if s else nn.Identity()
            stages.append(nn.Sequential(down, OnTokens(nn.Sequential(Stack(*blocks), NormTokens(d)))))
        first, c = ConvNorm(3, widths[0], kernel, 2, act=Relu), widths[0]
        stem = nn.Sequential(ChannelsLast(), first, nn.Conv2d(c, c, 2, 2), LayerNorm2d(c))
        super().__init__(stem, stages, nn.Identity(), widths[-1], num_classes)

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean token."""
        return mean(t)


HEADS = dict(heads=(8, 16))
SLIM = HEADS | dict(widths=(64, 128, 256, 512), ratios=(4, 4, 4, 2))
WIDE = HEADS | dict(ratios=(8, 6, 4, 2), kernel=7)

MODEL = SMT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(8, 16, 32), depths=(1, 1, 2), heads=(4,), ratios=(2, 2, 2), num_classes=10),
    "nano": dict(widths=(32, 64, 128), depths=(1, 2, 4), heads=(4,), ratios=(4, 4, 3)),
    "t": SLIM | dict(depths=(2, 2, 8, 1), drop_path=0.1),
    "s": SLIM | dict(depths=(3, 4, 18, 2), drop_path=0.2),
    "b": WIDE | dict(widths=(64, 128, 256, 512), depths=(4, 6, 28, 2), drop_path=0.3),
    "l": WIDE | dict(widths=(96, 192, 384, 768), depths=(4, 6, 28, 4), drop_path=0.5),
}

OFFICIAL = dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "t": OFFICIAL | dict(github="AFeng-x/SMT smt_t"),
    "s": OFFICIAL | dict(github="AFeng-x/SMT smt_s"),
    "b": OFFICIAL | dict(github="AFeng-x/SMT smt_b"),
    "l": OFFICIAL | dict(github="AFeng-x/SMT smt_l"),
}
LAYER = {
    "norm1.{p}": "mix.norm.{p}",
    "attn.v.{p}": "mix.f.value.{p}",
    "attn.s.{p}": "mix.f.seen.{p}",
    **{f"attn.local_conv_{n + 1}.{{p}}": f"mix.f.scales.{n}.f.{{p}}" for n in range(len(KERNELS))},
    "attn.proj0.{p}": "mix.f.mix.f.0.{p}",
    "attn.bn.{p}": "mix.f.mix.f.1.{p}",
    "attn.proj1.{p}": "mix.f.mix.f.3.{p}",
    "attn.local_conv.{p}": "mix.f.near.f.{p}",
    "attn.proj.{p}": "mix.f.out.{p}",
    "norm2.{p}": "feed.norm.{p}",
    "mlp.fc1.{p}": "feed.f.up.{p}",
    "mlp.dwconv.dwconv.{p}": "feed.f.near.f.{p}",
    "mlp.fc2.{p}": "feed.f.down.{p}",
}
BLOCK = [*(Rename(*names) for names in LAYER.items()), Join(["attn.q.{p}", "attn.kv.{p}"], "mix.f.qkv.{p}", (1, 2))]
RULES = {
    "official": [
        Rename("patch_embed1.conv.0.weight", "stem.1.conv.weight"),
        Rename("patch_embed1.conv.1.{p}", "stem.1.norm.{p}"),
        Rename("patch_embed1.conv.3.{p}", "stem.2.{p}"),
        Rename("patch_embed1.norm.{p}", "stem.3.{p}"),
        *(Rename(f"patch_embed{s + 1}.proj.{{p}}", f"stages.{s}.0.0.{{p}}") for s in range(1, 4)),
        *(Rename(f"patch_embed{s + 1}.norm.{{p}}", f"stages.{s}.0.1.{{p}}") for s in range(1, 4)),
        *(rule for s in range(4) for rule in under(BLOCK, f"block{s + 1}.{{i}}.", f"stages.{s}.1.f.0.blocks.{{i}}.")),
        *(Rename(f"norm{s + 1}.{{p}}", f"stages.{s}.1.f.1.norm.{{p}}") for s in range(4)),
        Rename("head.{p}", "head.{p}"),
    ]
}
