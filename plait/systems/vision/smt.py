"""Scale-Aware Modulation Meet Transformer. Lin, Wu, Chen, Huang, Jin, 2023. arXiv:2307.08579.

New here: from modulation to attention as the maps get smaller. Early layers multiply each token by a summary of its
neighbours at four
scales: the channels are shared out to depthwise convolutions of 3, 5, 7 and 9, whose answers are regrouped, one of each
scale, and mixed by cheap projections. In the third stage such layers and attention take turns; the last stage only
attends.

Differs: queries, keys and values come from one product.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, DropPath, Pre, Stack, check_heads, merge_heads, split_heads
from plait.core.tokens import Tokens, mean
from plait.core.weights import Rename, Rule
from plait.parts.convs import ChannelsLast, ConvNorm, LayerNorm2d, Pointwise, Relu
from plait.parts.maps import OnMap, OnTokens
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
        mix = (
            nn.Conv2d(width, 2 * width, 1, groups=share),
            nn.BatchNorm2d(2 * width),
            nn.GELU(),
            Pointwise(2 * width, width),
        )
        self.mix = OnMap(nn.Sequential(*mix))

    def forward(self, t: Tokens) -> Tokens:
        shares = self.seen(t.x).chunk(len(KERNELS), 2)
        seen = [scale(t.replace(x=share)).x for scale, share in zip(self.scales, shares)]
        seen = torch.stack(seen, 3).flatten(2)  # regrouped: one channel of each scale side by side
        return t.replace(x=self.out(self.mix(t.replace(x=seen)).x * self.value(t.x)))


class LocalAttention(nn.Module):
    """Self-attention, to which a depthwise convolution of the values is added: Tokens of a grid (B, N, D) -> the
    same."""

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
        self.up, self.near, self.act, self.down = (
            nn.Linear(width, hidden),
            depthwise(hidden, 3),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, t: Tokens) -> Tokens:
        y = t.replace(x=self.up(t.x))
        return t.replace(x=self.down(self.act(y.x + self.near(y).x)))


def block(width: int, mix: nn.Module, ratio: int, drop: float) -> Block:
    """One pre-norm layer."""
    return Block(
        mix=Pre(Norm(width), mix, DropPath(drop)), feed=Pre(Norm(width), ConvFeed(width, ratio * width), DropPath(drop))
    )


class NormTokens(nn.Module):
    """A layer norm of Tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = Norm(width)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.norm(t.x))


class SMT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). heads: of the third and the fourth stage; kernel: of the stem's first
    convolution.

    Each stage ends in its norm, so there is none after the last.
    """

    def __init__(self, *, widths, depths, heads, ratios, kernel=3, num_classes=1000, drop_path=0.0):
        rates = iter(drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
        stages = []
        for s, (width, depth, ratio) in enumerate(zip(widths, depths, ratios)):
            attends = [s == 3 or (s == 2 and i % 2 == 1) for i in range(depth)]
            mixers = (LocalAttention(width, heads[s - 2]) if attend else Modulation(width) for attend in attends)
            blocks = Stack(*(block(width, mix, ratio, next(rates)) for mix in mixers))
            down = nn.Sequential(nn.Conv2d(widths[s - 1], width, 3, 2, 1), LayerNorm2d(width)) if s else nn.Identity()
            stages.append(nn.Sequential(down, OnTokens(nn.Sequential(blocks, NormTokens(width)))))
        first = (
            ConvNorm(3, widths[0], kernel, 2, act=Relu),
            nn.Conv2d(widths[0], widths[0], 2, 2),
            LayerNorm2d(widths[0]),
        )
        super().__init__(nn.Sequential(ChannelsLast(), *first), stages, nn.Identity(), widths[-1], num_classes)

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


def fused(public: str, ours: str) -> Rule:
    """Queries, and keys with values, to one product."""

    def back(tensors: list[Tensor]) -> list[Tensor]:
        third = len(tensors[0]) // 3
        return list(tensors[0].split([third, 2 * third]))

    return Rule((f"{public}.q.{{p}}", f"{public}.kv.{{p}}"), (f"{ours}.qkv.{{p}}",), lambda ts: [torch.cat(ts)], back)


def stage(s: int) -> list[Rule]:
    layer, mine = f"block{s + 1}.{{i}}", f"stages.{s}.1.f.0.blocks.{{i}}"
    down = [
        Rename(f"patch_embed{s + 1}.proj.{{p}}", f"stages.{s}.0.0.{{p}}"),
        Rename(f"patch_embed{s + 1}.norm.{{p}}", f"stages.{s}.0.1.{{p}}"),
    ]
    return down * bool(s) + [
        Rename(f"{layer}.norm1.{{p}}", f"{mine}.mix.norm.{{p}}"),
        Rename(f"{layer}.attn.v.{{p}}", f"{mine}.mix.f.value.{{p}}"),
        Rename(f"{layer}.attn.s.{{p}}", f"{mine}.mix.f.seen.{{p}}"),
        *(
            Rename(f"{layer}.attn.local_conv_{n + 1}.{{p}}", f"{mine}.mix.f.scales.{n}.f.{{p}}")
            for n in range(len(KERNELS))
        ),
        Rename(f"{layer}.attn.proj0.{{p}}", f"{mine}.mix.f.mix.f.0.{{p}}"),
        Rename(f"{layer}.attn.bn.{{p}}", f"{mine}.mix.f.mix.f.1.{{p}}"),
        Rename(f"{layer}.attn.proj1.{{p}}", f"{mine}.mix.f.mix.f.3.{{p}}"),
        fused(f"{layer}.attn", f"{mine}.mix.f"),
        Rename(f"{layer}.attn.local_conv.{{p}}", f"{mine}.mix.f.near.f.{{p}}"),
        Rename(f"{layer}.attn.proj.{{p}}", f"{mine}.mix.f.out.{{p}}"),
        Rename(f"{layer}.norm2.{{p}}", f"{mine}.feed.norm.{{p}}"),
        Rename(f"{layer}.mlp.fc1.{{p}}", f"{mine}.feed.f.up.{{p}}"),
        Rename(f"{layer}.mlp.dwconv.dwconv.{{p}}", f"{mine}.feed.f.near.f.{{p}}"),
        Rename(f"{layer}.mlp.fc2.{{p}}", f"{mine}.feed.f.down.{{p}}"),
        Rename(f"norm{s + 1}.{{p}}", f"stages.{s}.1.f.1.norm.{{p}}"),
    ]


RULES = {
    "official": [
        Rename("patch_embed1.conv.0.weight", "stem.1.conv.weight"),
        Rename("patch_embed1.conv.1.{p}", "stem.1.norm.{p}"),
        Rename("patch_embed1.conv.3.{p}", "stem.2.{p}"),
        Rename("patch_embed1.norm.{p}", "stem.3.{p}"),
        *(rule for s in range(4) for rule in stage(s)),
        Rename("head.{p}", "head.{p}"),
    ]
}
