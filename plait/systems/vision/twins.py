"""Twins: Revisiting the Design of Spatial Attention in Vision Transformers. Chu, Tian, Wang, Zhang, Ren, Wei, Xia,
Shen, 2021. arXiv:2104.13840.

New here: two plain recipes for a pyramid. PCPVT is PVT with positions made by a convolution, which is all that it
lacked. SVT reads windows in one layer and in the next asks one summary of every patch of the picture, so that windows
talk without being shifted.

Differs: pictures that do not divide into patches are filled up with zeros.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from plait.core.block import Attention, FeedForward, Stack, stage_rates
from plait.core.schemes import FAN_OUT, VIT, Paper
from plait.core.weights import Rename, Rule
from plait.parts.maps import OnTokens
from plait.parts.mixers.windows import InWindows
from plait.parts.positions.conditional import ConditionalPositions
from plait.parts.tokenizers.patches import PatchMap
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid
from plait.systems.vision.pvt import reduced

Norm = partial(nn.LayerNorm, eps=1e-6)


class Twins(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). Sides are multiples of all patches together; others are filled up with
    zeros.

    patches: of the stem, then of each stage's map. ratios: by how much the sides of what a global layer asks are
    reduced. hidden: the feed-forward widths in widths. window: the side of the windows that every second layer reads,
    beginning with the first; None: every layer is global.
    """

    def __init__(
        self, *, patches=(4, 2, 2, 2), widths, depths, heads, hidden=(4, 4, 4, 4), ratios=(8, 4, 2, 1), window=None,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        stages, channels = [], 3
        for s, (d, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            blocks = []
            for i, drop in enumerate(rates):
                if window is not None and i % 2 == 0:
                    mix = InWindows(Attention(d, heads[s]), (window, window))
                else:
                    mix = reduced(d, heads[s], ratios[s], nn.LayerNorm)
                blocks.append(pre_norm(d, mix, FeedForward(d, hidden[s] * d), norm=Norm, drop=drop))
            blocks[0].feed = nn.Sequential(blocks[0].feed, ConditionalPositions(d))
            stages.append(nn.Sequential(PatchMap(d, patches[s], channels), OnTokens(Stack(*blocks))))
            channels = d
        super().__init__(nn.Identity(), stages, Norm(d), d, num_classes)
        self.multiple = math.prod(patches)


PCPVT = dict(widths=(64, 128, 320, 512), heads=(1, 2, 5, 8), hidden=(8, 8, 4, 4))
TOY = dict(patches=(2, 2, 2, 2), heads=(1, 2, 4, 8), ratios=(4, 2, 2, 1), window=2)

PAPER = Paper((*FAN_OUT, *VIT), {"svt_small": 0.2, "pcpvt_small": 0.2, "*_base": 0.3, "*_large": 0.5})

MODEL = Twins
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": TOY | dict(widths=(8, 8, 16, 16), depths=(2, 2, 1, 2), num_classes=10),
    "nano": TOY | dict(widths=(24, 48, 96, 128), depths=(2, 2, 2, 2), drop_path=0.1),
    "pcpvt_small": PCPVT | dict(depths=(3, 4, 6, 3)),
    "pcpvt_base": PCPVT | dict(depths=(3, 4, 18, 3)),
    "pcpvt_large": PCPVT | dict(depths=(3, 8, 27, 3)),
    "svt_small": dict(widths=(64, 128, 256, 512), depths=(2, 2, 10, 4), heads=(2, 4, 8, 16), window=7),
    "svt_base": dict(widths=(96, 192, 384, 768), depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), window=7),
    "svt_large": dict(widths=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=7),
}

CROP = dict(image=(224, 224), crop_pct=0.9)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "pcpvt_small": TIMM | dict(hub="timm/twins_pcpvt_small.in1k"),
    "pcpvt_base": TIMM | dict(hub="timm/twins_pcpvt_base.in1k"),
    "pcpvt_large": TIMM | dict(hub="timm/twins_pcpvt_large.in1k"),
    "svt_small": TIMM | dict(hub="timm/twins_svt_small.in1k"),
    "svt_base": TIMM | dict(hub="timm/twins_svt_base.in1k"),
    "svt_large": TIMM | dict(hub="timm/twins_svt_large.in1k"),
}

THEIRS, OURS = "blocks.{s}.{i}", "stages.{s}.1.f.blocks.{i}"
FIRST, MINE = "blocks.{s}.0", "stages.{s}.1.f.blocks.0"
LAST, PLAIN = "blocks.3.{i}", "stages.3.1.f.blocks.{i}"  # the stage that reduces nothing
RULES = {
    "timm": [
        Rename("patch_embeds.{s}.{p}.{q}", "stages.{s}.0.{p}.{q}"),
        Rename("pos_block.{s}.proj.0.{p}", f"{MINE}.feed.1.conv.{{p}}"),
        Rule(  # together: the output layer of windows is told by its qkv
            (f"{THEIRS}.attn.qkv.{{p}}", f"{THEIRS}.attn.proj.{{p}}"),
            (f"{OURS}.mix.f.f.qkv.{{p}}", f"{OURS}.mix.f.f.out.{{p}}"),
        ),
        Rule(
            (f"{LAST}.attn.q.{{p}}", f"{LAST}.attn.kv.{{p}}"),
            (f"{PLAIN}.mix.f.qkv.{{p}}",),
            lambda ts: [torch.cat(ts)],
            lambda ts: list(ts[0].split([len(ts[0]) // 3, 2 * len(ts[0]) // 3])),
        ),
        Rename(f"{THEIRS}.attn.q.{{p}}", f"{OURS}.mix.f.q.{{p}}"),
        Rename(f"{THEIRS}.attn.kv.{{p}}", f"{OURS}.mix.f.kv.{{p}}"),
        Rename(f"{THEIRS}.attn.sr.{{p}}", f"{OURS}.mix.f.shrink.{{p}}"),
        Rename(f"{THEIRS}.attn.norm.{{p}}", f"{OURS}.mix.f.norm.{{p}}"),
        Rename(f"{THEIRS}.attn.proj.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.norm1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{FIRST}.norm2.{{p}}", f"{MINE}.feed.0.norm.{{p}}"),
        Rename(f"{FIRST}.mlp.fc1.{{p}}", f"{MINE}.feed.0.f.up.{{p}}"),
        Rename(f"{FIRST}.mlp.fc2.{{p}}", f"{MINE}.feed.0.f.down.{{p}}"),
        Rename(f"{THEIRS}.norm2.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ],
}
