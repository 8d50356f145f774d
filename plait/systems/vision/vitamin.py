"""ViTamin: Designing Scalable Vision Models in the Vision-Language Era. Chen et al., 2024. arXiv:2404.02132.

New here: a picture tower made for pairs of pictures and texts. A convolutional stem and two stages of inverted
bottlenecks with layer norms bring the picture to a sixteenth of its size, then transformer layers of one resolution
read it, whose feed-forward is gated and half as wide. The answer is the mean of all places. `vitamin_clip` has the text
tower beside it, and the files: of these the picture's tower is read, and its projection as the head.

Differs: other picture sizes than `image` are read, learned positions resampled; the xlarge sizes have none.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.schemes import FAN_OUT, VIT, Paper, evenly
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Rule, under
from plait.errors import PlaitError
from plait.parts.convs import LayerNorm2d, Pointwise
from plait.parts.maps import to_tokens
from plait.parts.positions.learned import GridPositions
from plait.parts.towers.backbone import Backbone, norm_of_mean
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks

Norm = partial(nn.LayerNorm, eps=1e-6)
Norm2d = partial(LayerNorm2d, eps=1e-6)


class Bottleneck(nn.Module):
    """x + narrow(depthwise(wide(norm(x)))), four times as wide between: (B, C, H, W) -> (B, C', H/stride, W/stride),
    rounded up. A stride of 2 averages what goes past; another number of channels projects it."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        wide = 4 * out
        self.norm, self.up, self.down = Norm2d(channels), Pointwise(channels, wide), Pointwise(wide, out)
        self.deep, self.act = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.GELU()
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False) if stride == 2 else nn.Identity()
        self.past = Pointwise(channels, out) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.act(self.deep(self.act(self.up(self.norm(x))))))
        return self.past(self.pool(x)) + y


class ConvTokens(nn.Module):
    """The stem and both stages: (B, 3, H, W) -> Tokens (B, H/16 * W/16, D) with their grid, sides rounded up."""

    def __init__(self, channels: tuple[int, int], depths: tuple[int, int], width: int):
        super().__init__()
        a, b = channels
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, 2, 1), Norm2d(a), nn.GELU(), nn.Conv2d(a, a, 3, 1, 1))

        def stage(out: int, depth: int) -> nn.Sequential:
            return nn.Sequential(Bottleneck(a, out, 2), *(Bottleneck(out, out, 1) for _ in range(depth - 1)))

        self.stages = nn.Sequential(*map(stage, channels, depths))
        self.norm, self.proj = Norm2d(b), nn.Conv2d(b, width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tokens:
        return to_tokens(self.proj(self.norm(self.stages(self.stem(x)))))


class NormedGeGLU(nn.Module):
    """down(gelu(gate(x)) * up(x)) of x normed once more: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = Norm(width)
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, t: Tokens) -> Tokens:
        x = self.norm(t.x)
        return t.replace(x=self.down(F.gelu(self.gate(x)) * self.up(x)))


class ViTamin(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), or the pooled features with `num_classes=0`.

    channels, depths: of the two convolutional stages. positions: learned for `image`, or none at all.
    """

    multiple = 1
    fits = ("image",)
    pool = norm_of_mean

    def __init__(
        self, *, image=(224, 224), channels, depths=(2, 4), width, depth, heads, positions=True,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width = width
        self.stem = ConvTokens(tuple(channels), tuple(depths), width)
        self.positions = GridPositions((-(-image[0] // 16), -(-image[1] // 16)), width) if positions else nn.Identity()
        how = dict(norm=Norm, feed=NormedGeGLU, drop_path=drop_path)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 2 * width, **how))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the grid."""
        return self.stack(self.positions(self.stem(x)))


SMALL = dict(channels=(64, 128), width=384, depth=14, heads=6, num_classes=768)
BASE = dict(channels=(128, 256), width=768, depth=14, heads=12, num_classes=768)
LARGE = dict(channels=(160, 320), width=1024, depth=31, heads=16, num_classes=768)
LARGE2 = LARGE | dict(num_classes=1024)
XLARGE = dict(channels=(192, 384), width=1152, depth=32, heads=16, positions=False, num_classes=1152)
I256 = dict(image=(256, 256))
I336 = dict(image=(336, 336))
I384 = dict(image=(384, 384))

PAPER = Paper((("stem.proj.*", evenly), *FAN_OUT, *VIT))

MODEL = ViTamin
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), channels=(8, 16), depths=(1, 2), width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), channels=(32, 64), width=160, depth=5, heads=5, drop_path=0.1),
    "small_224": SMALL,
    "base_224": BASE,
    "large_224": LARGE,
    "large_256": LARGE | I256,
    "large_336": LARGE | I336,
    "large_384": LARGE | I384,
    "large2_224": LARGE2,
    "large2_256": LARGE2 | I256,
    "large2_336": LARGE2 | I336,
    "large2_384": LARGE2 | I384,
    "xlarge_256": XLARGE | I256,
    "xlarge_336": XLARGE | I336,
    "xlarge_384": XLARGE | I384,
}
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
JHU = SEEN | dict(source="open_clip", file="pytorch_model.bin", licence="mit", crop_pct=1.0)
CROP = JHU | dict(crop_pct=0.9)
WEIGHTS = {
    "small_224": CROP | dict(hub="jienengchen/ViTamin-S-LTT", timm="vitamin_small_224"),
    "base_224": CROP | dict(hub="jienengchen/ViTamin-B-LTT", timm="vitamin_base_224"),
    "large_224": CROP | dict(hub="jienengchen/ViTamin-L-224px", timm="vitamin_large_224"),
    "large_256": JHU | dict(hub="jienengchen/ViTamin-L-256px", timm="vitamin_large_256"),
    "large_336": JHU | dict(hub="jienengchen/ViTamin-L-336px", timm="vitamin_large_336"),
    "large_384": JHU | dict(hub="jienengchen/ViTamin-L-384px", timm="vitamin_large_384"),
    "large2_224": CROP | dict(hub="jienengchen/ViTamin-L2-224px", timm="vitamin_large2_224"),
    "large2_256": JHU | dict(hub="jienengchen/ViTamin-L2-256px", timm="vitamin_large2_256"),
    "large2_336": JHU | dict(hub="jienengchen/ViTamin-L2-336px", timm="vitamin_large2_336"),
    "large2_384": JHU | dict(hub="jienengchen/ViTamin-L2-384px", timm="vitamin_large2_384"),
    "xlarge_256": JHU | dict(hub="jienengchen/ViTamin-XL-256px", timm="vitamin_xlarge_256"),
    "xlarge_336": JHU | dict(hub="jienengchen/ViTamin-XL-336px", timm="vitamin_xlarge_336"),
    "xlarge_384": JHU | dict(hub="jienengchen/ViTamin-XL-384px", timm="vitamin_xlarge_384"),
}
TAGS = {
    "small_224.datacomp1b_clip": dict(hub="jienengchen/ViTamin-S", num_classes=384),
    "base_224.datacomp1b_clip": dict(hub="jienengchen/ViTamin-B", num_classes=512),
}


def unbiased(ts: list[Tensor]) -> list[Tensor]:
    """A classifier without its bias, which must be zero."""
    if not ts[1].is_meta and ts[1].any():
        raise PlaitError("a bias of the head has no place in this layout: save the weights in another")
    return ts[:1]


PROJECTED = Rule(
    ("visual.head.proj.weight",),
    ("head.weight", "head.bias"),
    lambda ts: [ts[0], ts[0].new_zeros(len(ts[0]))],
    unbiased,
)
STEM, LAYER, BOTTLENECK = "patch_embed.backbone", "patch_embed.backbone.stages.{s}.{i}", "stem.stages.{s}.{i}"
TIMM = [
    Rename("pos_embed", "positions.table"),
    Rename(f"{STEM}.stem.conv1.{{p}}", "stem.stem.0.{p}"),
    Rename(f"{STEM}.stem.norm1.{{p}}", "stem.stem.1.{p}"),
    Rename(f"{STEM}.stem.conv2.{{p}}", "stem.stem.3.{p}"),
    Rename(f"{LAYER}.shortcut.expand.{{p}}", f"{BOTTLENECK}.past.{{p}}"),
    Rename(f"{LAYER}.pre_norm.{{p}}", f"{BOTTLENECK}.norm.{{p}}"),
    Rename(f"{LAYER}.conv1_1x1.{{p}}", f"{BOTTLENECK}.up.{{p}}"),
    Rename(f"{LAYER}.conv2_kxk.{{p}}", f"{BOTTLENECK}.deep.{{p}}"),
    Rename(f"{LAYER}.conv3_1x1.{{p}}", f"{BOTTLENECK}.down.{{p}}"),
    Rename(f"{STEM}.pool.norm.{{p}}", "stem.norm.{p}"),
    Rename(f"{STEM}.pool.proj.{{p}}", "stem.proj.{p}"),
    Rename("blocks.{i}.mlp.norm.{p}", "stack.blocks.{i}.feed.f.norm.{p}"),
    Rename("blocks.{i}.mlp.w0.{p}", "stack.blocks.{i}.feed.f.gate.{p}"),
    Rename("blocks.{i}.mlp.w1.{p}", "stack.blocks.{i}.feed.f.up.{p}"),
    Rename("blocks.{i}.mlp.w2.{p}", "stack.blocks.{i}.feed.f.down.{p}"),
    *timm_blocks(),
    Rename("fc_norm.{p}", "norm.{p}"),
    Rename("head.{p}", "head.{p}"),
]
RULES = {
    "timm": TIMM,
    "open_clip": [PROJECTED, *under(TIMM, "visual.trunk."), Drop("text.{rest*}"), Drop("logit_scale")],
}
