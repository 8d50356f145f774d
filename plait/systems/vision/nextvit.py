"""Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Industrial Scenarios. Li et al., 2022.
arXiv:2207.05501.

New here: a transformer of steps that deployment engines run well. Most layers mix places by a grouped convolution,
group for group like heads; each stage ends (a long one: every fifth layer) in a layer of two paths: three quarters of
the channels attend to keys averaged over runs of tokens, and from their answer a convolution makes the remaining
quarter. All norms are batch norms, all activations ReLU.

Differs: keys and values come from one product. Runs of tokens in reading order are averaged, as the authors' code does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, DropPath, merge_heads, split_heads, stage_rates
from plait.core.init import trunc_normal
from plait.core.schemes import LINEAR, Paper, trunc
from plait.core.surgery import fold_before
from plait.core.tokens import Tokens
from plait.core.weights import Join, Rename
from plait.parts.convs import ChannelsLast, ConvNorm, Half, Pointwise, Relu, Skip, beside
from plait.parts.maps import only_map, to_map, to_tokens
from plait.parts.towers.layouts import conv_norm
from plait.parts.towers.pyramid import Pyramid


class Feed(nn.Module):
    """A batch norm and two convolutions of one place. norm: the batch norm; public weights of attention layers call it
    otherwise, there it stands in a sequence."""

    def __init__(self, width: int, ratio: int, norm: nn.Module):
        super().__init__()
        self.norm, self.up, self.down = norm, Pointwise(width, ratio * width), Pointwise(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x))))

    def fold(self) -> nn.Module:
        norm = self.norm[0] if isinstance(self.norm, nn.Sequential) else self.norm
        return nn.Sequential(fold_before(norm, self.up), nn.ReLU(), self.down)


class Averaged(nn.Module):
    """Attention to keys that average `run` tokens in reading order: (B, C, H, W) -> the same. head: channels of one."""

    def __init__(self, width: int, head: int, run: int):
        super().__init__()
        self.head, self.run, self.attend = head, run, Attend()
        self.norm, self.mean_norm = nn.BatchNorm2d(width), nn.BatchNorm1d(width) if run > 1 else nn.Identity()
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        t = to_tokens(self.norm(x))
        seen = t.x if self.run == 1 else self.mean_norm(F.avg_pool1d(t.x.mT.contiguous(), self.run)).mT
        (q,) = split_heads(self.q(t.x), 1, t.x.shape[2] // self.head)  # (B, heads, N, E)
        k, v = split_heads(self.kv(seen), 2, t.x.shape[2] // self.head)  # each (B, heads, N / run, E)
        t = self.attend(t, q, k, v, to=Tokens(seen))
        return only_map(t.replace(x=self.out(merge_heads(t.x))))

    def fold(self) -> nn.Module:
        if isinstance(self.norm, nn.Identity):  # is folded already
            return self
        if self.run > 1:
            self.kv = fold_before(self.mean_norm, self.kv)
        # an average of normed tokens is a normed average
        self.q, self.kv = fold_before(self.norm, self.q), fold_before(self.norm, self.kv)
        self.norm = self.mean_norm = nn.Identity()
        return self


def convolved(width: int, head: int, drop: float) -> Skip:
    """Grouped convolution, group for group of `head` channels, then a mixture of the groups; with its residual."""
    mix = nn.Sequential(ConvNorm(width, width, 3, groups=width // head, act=Relu), Pointwise(width, width, bias=False))
    return Skip(mix, DropPath(drop))


def resized(channels: int, width: int, halves: bool) -> nn.Module:
    """From the layer before to this one's width and grid."""
    if halves:
        return nn.Sequential(Half(), ConvNorm(channels, width))
    return nn.Identity() if channels == width else nn.Sequential(nn.Identity(), ConvNorm(channels, width))


class Convolve(nn.Module):
    """What a layer of convolution does before its feed-forward step."""

    def __init__(self, channels: int, width: int, halves: bool, head: int, drop: float):
        super().__init__()
        self.resize, self.convolve = resized(channels, width, halves), convolved(width, head, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self.resize(x))


class TwoPaths(nn.Module):
    """Attention over three quarters of the channels, and beside its answer the remaining quarter, convolved from it."""

    def __init__(self, channels: int, width: int, halves: bool, head: int, run: int, drop: float):
        super().__init__()
        most = width // 4 * 3
        self.resize = resized(channels, most, halves)
        self.attend = Skip(Averaged(most, head, run), DropPath(0.75 * drop))
        self.rest, self.convolve = ConvNorm(most, width - most), convolved(width - most, head, 0.25 * drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.resize(x))
        return beside(x, self.convolve(self.rest(x)))


class NextViT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K).

    widths: of each stage's convolution layers; ends: of its attention layers, none in the first. runs: how many tokens
    each stage's keys are averages of. head: channels of a head and of a convolution's group.
    """

    scheme = {nn.Linear: trunc_normal}

    def __init__(
        self, *, widths, ends, depths, runs=(16, 4, 1), stem=(64, 32, 64), head=32, num_classes=1000, drop_path=0.0
    ):
        a, b, c = stem
        steps = ((3, a, 2), (a, b, 1), (b, c, 1), (c, c, 2))
        stages, before = [], c
        for s, rates in enumerate(stage_rates(drop_path, depths)):
            layers = []
            for n, drop in enumerate(rates):
                width, halves = widths[s], s > 0 and n == 0
                if s and (n + 1) % min(depths[s], 5) == 0:
                    width = ends[s - 1]
                    mix = TwoPaths(before, width, halves, head, runs[s - 1], drop)
                    feed = Feed(width, 2, nn.Sequential(nn.BatchNorm2d(width)))
                else:
                    mix, feed = Convolve(before, width, halves, head, drop), Feed(width, 3, nn.BatchNorm2d(width))
                layers.append(Block(mix=mix, feed=Skip(feed, DropPath(drop))))  # a block that maps flow through
                before = width
            stages.append(nn.Sequential(*layers))
        first = nn.Sequential(ChannelsLast(), *(ConvNorm(i, o, 3, stride, act=Relu) for i, o, stride in steps))
        super().__init__(first, stages, nn.BatchNorm2d(before), before, num_classes)

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the normed map."""
        return self.norm(to_map(t)).mean((2, 3))


ALL = dict(widths=(96, 192, 384, 768), ends=(256, 512, 1024))
SMALL = ALL | dict(depths=(3, 4, 10, 3), drop_path=0.1)
BASE = ALL | dict(depths=(3, 4, 20, 3), drop_path=0.2)
LARGE = ALL | dict(depths=(3, 4, 30, 3), drop_path=0.2)

PAPER = Paper((("Conv2d.weight", trunc(0.02)), *LINEAR))

MODEL = NextViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(widths=(16, 24, 32), ends=(32, 64), depths=(1, 2, 2))
SIZES = {
    "toy": TOY | dict(runs=(4, 1), stem=(8, 8, 16), head=8, num_classes=10),
    "nano": dict(widths=(32, 64, 96), ends=(64, 128), depths=(1, 2, 5), runs=(4, 1), stem=(32, 16, 32), head=16),
    "small": SMALL,
    "small_384": SMALL,
    "base": BASE,
    "base_384": BASE,
    "large": LARGE,
    "large_384": LARGE,
}

CROP = dict(image=(224, 224), crop_pct=0.95)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WHOLE = TIMM | dict(image=(384, 384), crop_pct=1.0)
WEIGHTS = {
    "small": TIMM | dict(hub="timm/nextvit_small.bd_in1k"),
    "small_384": WHOLE | dict(hub="timm/nextvit_small.bd_in1k_384", timm="nextvit_small.bd_in1k_384"),
    "base": TIMM | dict(hub="timm/nextvit_base.bd_in1k"),
    "base_384": WHOLE | dict(hub="timm/nextvit_base.bd_in1k_384", timm="nextvit_base.bd_in1k_384"),
    "large": TIMM | dict(hub="timm/nextvit_large.bd_in1k"),
    "large_384": WHOLE | dict(hub="timm/nextvit_large.bd_in1k_384", timm="nextvit_large.bd_in1k_384"),
}
TAGS = {
    "small.bd_ssld_6m_in1k": dict(),
    "small_384.bd_ssld_6m_in1k_384": dict(),
    "base.bd_ssld_6m_in1k": dict(),
    "base_384.bd_ssld_6m_in1k_384": dict(),
    "large.bd_ssld_6m_in1k": dict(),
    "large_384.bd_ssld_6m_in1k_384": dict(),
}


THEIRS, OURS = "stages.{s}.blocks.{i}", "stages.{s}.{i}"
RULES = {
    "timm": [
        *(rule for n in range(4) for rule in conv_norm(f"stem.{n}", f"stem.{n + 1}", "norm")),
        *conv_norm(f"{THEIRS}.patch_embed", f"{OURS}.mix.resize.1", "norm"),
        Rename(f"{THEIRS}.norm1.{{p}}", f"{OURS}.mix.attend.f.norm.{{p}}"),
        Rename(f"{THEIRS}.e_mhsa.norm.{{p}}", f"{OURS}.mix.attend.f.mean_norm.{{p}}"),
        Rename(f"{THEIRS}.e_mhsa.q.{{p}}", f"{OURS}.mix.attend.f.q.{{p}}"),
        Join([f"{THEIRS}.e_mhsa.{n}.{{p}}" for n in "kv"], f"{OURS}.mix.attend.f.kv.{{p}}"),
        Rename(f"{THEIRS}.e_mhsa.proj.{{p}}", f"{OURS}.mix.attend.f.out.{{p}}"),
        *conv_norm(f"{THEIRS}.projection", f"{OURS}.mix.rest", "norm"),
        Rename(f"{THEIRS}.mhca.group_conv3x3.weight", f"{OURS}.mix.convolve.f.0.conv.weight"),
        Rename(f"{THEIRS}.mhca.norm.{{p}}", f"{OURS}.mix.convolve.f.0.norm.{{p}}"),
        Rename(f"{THEIRS}.mhca.projection.weight", f"{OURS}.mix.convolve.f.1.weight"),
        Rename(f"{THEIRS}.norm.{{p}}", f"{OURS}.feed.f.norm.{{p}}"),
        Rename(f"{THEIRS}.norm2.{{p}}", f"{OURS}.feed.f.norm.0.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ]
}
