"""UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
Recognition. Ding, Zhang, Ge, Zhao, Song, Yue, Shan, 2024. arXiv:2311.15599.

New here: a few kernels of 13 x 13 see far, and depth comes from cheap 3 x 3 layers. While training, a large kernel is a
sum of itself and of small kernels with gaps, which learn sparse patterns; `fold_norms` makes one kernel of the sum.
What is no picture is laid out as one: spectrograms, frames side by side, series folded to a map.

Differs: laying out is left to the caller: pictures of three channels are all that is read here.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import DropPath, Layer, stage_rates
from plait.core.surgery import fold_after, with_weights
from plait.core.weights import Rename, View
from plait.parts.convs import ChannelsLast, LayerNorm2d, MapScale, SqueezeExcite
from plait.parts.maps import to_map, to_tokens
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.pyramid import Pyramid

Norm2d = partial(LayerNorm2d, eps=1e-6)
GAPS = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))  # (kernel, dilation) beside a kernel of 13


def depthwise(width: int, kernel: int, gap: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, padding=gap * (kernel - 1) // 2, dilation=gap, groups=width, bias=False)


class Dilated(nn.Module):
    """A depthwise convolution of 13 x 13 and smaller ones with gaps, each with its norm, summed: a map -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.ModuleList(depthwise(width, k, r) for k, r in ((13, 1), *GAPS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in self.convs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.convs[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:]):
            y = y + norm(conv(x))
        return y

    def fold(self) -> nn.Module:
        large, *others = (fold_after(conv, norm) for conv, norm in zip(self.convs, self.norms))
        weight, bias = large.weight, large.bias
        for conv in others:
            (k, _), (r, _) = conv.kernel_size, conv.dilation
            spread = weight.new_zeros(*conv.weight.shape[:2], r * (k - 1) + 1, r * (k - 1) + 1)
            spread[..., ::r, ::r] = conv.weight
            weight, bias = weight + F.pad(spread, [6 - r * (k - 1) // 2] * 4), bias + conv.bias
        return with_weights(large, weight, bias)


class ResponseNorm(nn.Module):
    """Channels compete: each is weighed by its size over the whole picture against the others' (ConvNeXt V2,
    arXiv:2301.00808): (B, N, D) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def reset(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x * (self.gamma * (size / (size.mean(2, keepdim=True) + 1e-6)) + 1) + self.beta


class LargeKernelBlock(Layer):
    """Look around, weigh the channels, feed each place, with one residual: (B, C, H, W) -> the same; a layer that maps
    flow through. kernel: 13 or 3."""

    on_grid = True

    def __init__(self, width: int, kernel: int, drop: float):
        super().__init__()
        self.look = Dilated(width) if kernel == 13 else depthwise(width, kernel)
        self.norm, self.squeeze = nn.BatchNorm2d(width), SqueezeExcite(width, width // 4)
        self.up, self.act, self.respond = nn.Linear(width, 4 * width), nn.GELU(), ResponseNorm(4 * width)
        self.down, self.last = nn.Linear(4 * width, width, bias=False), nn.BatchNorm2d(width)
        self.after = nn.Sequential(MapScale(width, 1e-6), DropPath(drop))

    def forward(self, x: Tensor) -> Tensor:
        t = to_tokens(self.squeeze(self.norm(self.look(x))))
        y = to_map(t.replace(x=self.down(self.respond(self.act(self.up(t.x))))))
        return x + self.after(self.last(y))

    def fold(self) -> nn.Module:
        if isinstance(self.norm, nn.Identity):  # is folded already
            return self
        self.look, self.down = fold_after(self.look, self.norm), fold_after(self.down, self.last)
        self.norm = self.last = nn.Identity()
        return self


class UniRepLKNet(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). widths: of each stage; kernels: of each stage's layers, 13 or 3."""

    attends = False
    pool = norm_of_mean

    def __init__(self, *, widths, kernels, num_classes=1000, drop_path=0.0):
        half, first = widths[0] // 2, widths[0]
        halve = nn.Conv2d(3, half, 3, 2, 1), Norm2d(half), nn.GELU(), nn.Conv2d(half, first, 3, 2, 1), Norm2d(first)
        stages = []
        for s, (d, rates) in enumerate(zip(widths, stage_rates(drop_path, [len(sizes) for sizes in kernels]))):
            down = nn.Sequential(nn.Conv2d(widths[s - 1], d, 3, 2, 1), Norm2d(d)) if s else nn.Identity()
            blocks = (LargeKernelBlock(d, k, drop) for k, drop in zip(kernels[s], rates))
            stages.append(nn.Sequential(down, nn.Sequential(*blocks)))
        super().__init__(
            nn.Sequential(ChannelsLast(), *halve), stages, nn.LayerNorm(widths[-1], eps=1e-6), widths[-1], num_classes
        )


SIX = dict(kernels=((3, 3), (13, 13), (13, 13, 13, 13, 13, 13), (13, 13)))
EIGHT = dict(kernels=((3, 3), (13, 13), (13, 13, 13, 13, 13, 13, 13, 13), (13, 13)))
T18 = (13, 3, 13, 3, 13, 3, 13, 3, 13, 3, 13, 3, 13, 3, 13, 3, 13, 3)
T27 = (13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3, 13, 3, 3)
DEEP = dict(kernels=((3, 3, 3), (13, 13, 13), T27, (13, 13, 13)))

MODEL = UniRepLKNet
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(8, 16, 32), kernels=((3,), (13,), (13, 3)), num_classes=10),
    "nano": dict(widths=(32, 64, 128), kernels=((3, 3), (13, 13), (13, 3, 13, 3)), drop_path=0.05),
    "a": SIX | dict(widths=(40, 80, 160, 320)),
    "f": SIX | dict(widths=(48, 96, 192, 384)),
    "p": SIX | dict(widths=(64, 128, 256, 512), drop_path=0.1),
    "n": EIGHT | dict(widths=(80, 160, 320, 640), drop_path=0.1),
    "t": dict(widths=(80, 160, 320, 640), kernels=((3, 3, 3), (13, 13, 13), T18, (13, 13, 13)), drop_path=0.2),
    "s": DEEP | dict(widths=(96, 192, 384, 768), drop_path=0.4),
    "b": DEEP | dict(widths=(128, 256, 512, 1024)),
    "l": DEEP | dict(widths=(192, 384, 768, 1536)),
    "xl": DEEP | dict(widths=(256, 512, 1024, 2048)),
}

OFFICIAL = dict(source="official", licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "a": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_a"),
    "f": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_f"),
    "p": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_p"),
    "n": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_n"),
    "t": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_t"),
    "s": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_s"),
    "b": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_b"),
    "l": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_l"),
    "xl": OFFICIAL | dict(github="AILab-CVC/UniRepLKNet unireplknet_xl"),
}
THEIRS, OURS = "stages.{s}.{i}", "stages.{s}.1.{i}"
RULES = {
    "official": [
        *(Rename(f"downsample_layers.0.{n}.{{p}}", f"stem.{n + 1}.{{p}}") for n in (0, 1, 3, 4)),
        Rename("downsample_layers.{s}.{n}.{p}", "stages.{s}.0.{n}.{p}"),
        Rename(f"{THEIRS}.dwconv.lk_origin.weight", f"{OURS}.look.convs.0.weight"),
        Rename(f"{THEIRS}.dwconv.origin_bn.{{p}}", f"{OURS}.look.norms.0.{{p}}"),
        *(Rename(f"{THEIRS}.dwconv.dil_conv_k{k}_{r}.weight", f"{OURS}.look.convs.{r}.weight") for k, r in GAPS),
        *(Rename(f"{THEIRS}.dwconv.dil_bn_k{k}_{r}.{{p}}", f"{OURS}.look.norms.{r}.{{p}}") for k, r in GAPS),
        Rename(f"{THEIRS}.dwconv.weight", f"{OURS}.look.weight"),
        Rename(f"{THEIRS}.norm.{{p}}", f"{OURS}.norm.{{p}}"),
        Rename(f"{THEIRS}.se.{{n}}.{{p}}", f"{OURS}.squeeze.{{n}}.{{p}}"),
        Rename(f"{THEIRS}.pwconv1.1.{{p}}", f"{OURS}.up.{{p}}"),
        View(f"{THEIRS}.act.1.gamma", f"{OURS}.respond.gamma", (-1,), (1, 1, 1, -1)),
        View(f"{THEIRS}.act.1.beta", f"{OURS}.respond.beta", (-1,), (1, 1, 1, -1)),
        Rename(f"{THEIRS}.pwconv2.0.weight", f"{OURS}.down.weight"),
        Rename(f"{THEIRS}.pwconv2.2.{{p}}", f"{OURS}.last.{{p}}"),
        Rename(f"{THEIRS}.gamma", f"{OURS}.after.0.gamma"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
