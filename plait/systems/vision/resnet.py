"""ResNet: Deep Residual Learning for Image Recognition. He et al., 2015. arXiv:1512.03385.

New here: layers learn what to add to what they were given. Each step is x + f(x) (a projection of x where the grid or
the width changes), so that a hundred layers and more can be trained; in deep ones f narrows to a quarter of the width
for its 3 x 3 convolution.

Differs: a stage halves its grid in the 3 x 3 convolution, not in the first, as all published weights do (ResNet-B).
`dilated` leaves the last stage at the grid of the one before and spreads its kernels instead, as detectors use it
(DC5).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.schemes import FAN_OUT, ZERO, Paper, Rule, evenly
from plait.core.weights import Rename
from plait.parts.convs import ChannelsLast, ConvNorm, Relu
from plait.parts.towers.pyramid import Pyramid


class Residual(nn.Module):
    """relu(short(x) + f(x)) on maps: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, f: nn.Module, short: nn.Module):
        super().__init__()
        self.f, self.short = f, short

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x) + self.short(x), inplace=True)


def layer(channels: int, width: int, stride: int, deep: bool) -> Residual:
    """From `channels` to `width`; deep: with a bottleneck of a quarter of it."""
    if deep:
        inner = width // 4
        steps = [
            ConvNorm(channels, inner, act=Relu),
            ConvNorm(inner, inner, 3, stride, act=Relu),
            ConvNorm(inner, width),
        ]
    else:
        steps = [ConvNorm(channels, width, 3, stride, act=Relu), ConvNorm(width, width, 3)]
    same = channels == width and stride == 1
    return Residual(nn.Sequential(*steps), nn.Identity() if same else ConvNorm(channels, width, 1, stride))


def dilate(stage: nn.Sequential) -> None:
    """The stage no longer halves, and its kernels reach as far as they would have: all but the first layer's."""
    for n, block in enumerate(stage):
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3) and n:
                conv.padding = conv.dilation = (2, 2)


class ResNet(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). widths: of the stages; deep: whether their layers have bottlenecks."""

    attends = False

    def __init__(
        self, *, depths, widths=(64, 128, 256, 512), deep=False, stem=64, dilated=False, num_classes=1000
    ):  # fmt: skip
        stages, before = [], stem
        for s, (depth, width) in enumerate(zip(depths, widths)):
            width = 4 * width if deep else width
            stages.append(nn.Sequential(*(
                layer(width if n else before, width, 1 if n or not s else 2, deep) for n in range(depth)
            )))  # fmt: skip
            before = width
        if dilated:
            dilate(stages[-1])
        first = nn.Sequential(ChannelsLast(), ConvNorm(3, stem, 7, 2, act=Relu), nn.MaxPool2d(3, 2, 1))
        super().__init__(first, stages, nn.Identity(), before, num_classes)


def still(model: ResNet) -> tuple[Rule, ...]:
    """Each layer begins as its short cut: what is added ends in a norm of factor nought."""
    last = len(model.stages[0][0].f) - 1
    return ((f"stages.*.f.{last}.norm.weight", ZERO), *FAN_OUT, ("Linear.*", evenly))


DEEP = dict(deep=True)

PAPER = Paper(still)

MODEL = ResNet
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem=8, num_classes=10),
    "nano": dict(depths=(1, 1, 1, 1), widths=(32, 64, 128, 192), stem=32),
    "18": dict(depths=(2, 2, 2, 2)),
    "34": dict(depths=(3, 4, 6, 3)),
    "50": DEEP | dict(depths=(3, 4, 6, 3)),
    "50_dc5": DEEP | dict(depths=(3, 4, 6, 3), dilated=True),
    "101": DEEP | dict(depths=(3, 4, 23, 3)),
    "101_dc5": DEEP | dict(depths=(3, 4, 23, 3), dilated=True),
    "152": DEEP | dict(depths=(3, 8, 36, 3)),
}

TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image=(224, 224))
WHOLE = TIMM | dict(crop_pct=0.95)
WEIGHTS = {
    "18": WHOLE | dict(hub="timm/resnet18.a1_in1k"),
    "34": WHOLE | dict(hub="timm/resnet34.a1_in1k"),
    "50": WHOLE | dict(hub="timm/resnet50.a1_in1k"),
    "101": WHOLE | dict(hub="timm/resnet101.a1h_in1k"),
    "152": WHOLE | dict(hub="timm/resnet152.a1h_in1k"),
}
TV = dict(crop_pct=0.875, interpolation="bilinear", licence="bsd-3-clause")
TV2 = dict(crop_pct=0.875, interpolation="bilinear", image=(176, 176), licence="bsd-3-clause")
FB = dict(crop_pct=0.875, interpolation="bilinear", licence="cc-by-nc-4.0")
A3 = dict(image=(160, 160))
CUT = dict(crop_pct=0.875)
TAGS = {
    "18.a2_in1k": dict(),
    "18.a3_in1k": A3,
    "18.tv_in1k": TV,
    "18.fb_ssl_yfcc100m_ft_in1k": FB,
    "18.fb_swsl_ig1b_ft_in1k": FB,
    "18.gluon_in1k": CUT,
    "34.a2_in1k": dict(),
    "34.a3_in1k": A3,
    "34.bt_in1k": CUT,
    "34.ra4_e3600_r224_in1k": dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9),
    "34.tv_in1k": TV,
    "34.gluon_in1k": CUT,
    "50.a1h_in1k": dict(crop_pct=0.9, image=(176, 176)),
    "50.a2_in1k": dict(),
    "50.a3_in1k": A3,
    "50.b1k_in1k": dict(),
    "50.b2k_in1k": dict(),
    "50.c1_in1k": dict(),
    "50.c2_in1k": dict(),
    "50.d_in1k": dict(),
    "50.ram_in1k": CUT,
    "50.am_in1k": CUT,
    "50.ra_in1k": CUT,
    "50.bt_in1k": CUT,
    "50.tv_in1k": TV,
    "50.tv2_in1k": TV2,
    "50.bamboo": dict(crop_pct=1.0, num_classes=0, licence="none stated"),
    "50.fb_ssl_yfcc100m_ft_in1k": FB,
    "50.fb_swsl_ig1b_ft_in1k": FB,
    "50.gluon_in1k": CUT,
    "101.a1_in1k": dict(),
    "101.a2_in1k": dict(),
    "101.a3_in1k": A3,
    "101.tv_in1k": TV,
    "101.tv2_in1k": TV2,
    "101.gluon_in1k": CUT,
    "152.a1_in1k": dict(),
    "152.a2_in1k": dict(),
    "152.a3_in1k": A3,
    "152.tv_in1k": TV,
    "152.tv2_in1k": TV2,
    "152.gluon_in1k": CUT,
}


STEPS = [(f"layer{s + 1}.{{i}}.{{}}{n + 1}", f"stages.{s}.{{i}}.f.{n}") for s in range(4) for n in range(3)]
SHORT = [(f"layer{s + 1}.{{i}}.downsample.{{}}", f"stages.{s}.{{i}}.short") for s in range(4)]
BODY = [
    Rename("conv1.weight", "stem.1.conv.weight"),
    Rename("bn1.{p}", "stem.1.norm.{p}"),
    *(Rename(theirs.replace("{}", "conv") + ".weight", f"{ours}.conv.weight") for theirs, ours in STEPS),
    *(Rename(theirs.replace("{}", "bn") + ".{p}", f"{ours}.norm.{{p}}") for theirs, ours in STEPS),
    *(Rename(theirs.replace("{}", "0") + ".weight", f"{ours}.conv.weight") for theirs, ours in SHORT),
    *(Rename(theirs.replace("{}", "1") + ".{p}", f"{ours}.norm.{{p}}") for theirs, ours in SHORT),
]
RULES = {"timm": [*BODY, Rename("fc.{p}", "head.{p}")]}
