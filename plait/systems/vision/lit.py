"""Less is More: Pay Less Attention in Vision Transformers. Pan, Zhuang, He, Liu, Cai, 2021. arXiv:2105.14217.

New here: no attention where it would only look nearby. The layers of the first two stages are feed-forward steps alone,
those of the last two ordinary attention over the whole map. What passes between them is the merging: four places become
one, each fetched from where the map itself says, so that a token need not be a square of the picture.

Differs: every picture size is read: filled up with zeros where need be, biases and positions resampled bicubically.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import precision
from plait.core.block import Attention, Block, DropPath, FeedForward, Pre, Stack, stage_rates
from plait.core.sizes import numbers, surely
from plait.core.tokens import Tokens, prepend, whole_grid
from plait.core.weights import Drop, Rename, Rule
from plait.parts.maps import OnTokens, flat, through, to_tokens
from plait.parts.mixers.windows import WindowAttention
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.relative import RelativeBias, offsets
from plait.parts.positions.resample import resample
from plait.parts.tokenizers.patches import PatchMap
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid


class Warp(nn.Module):
    """Places of a map fetched from where their patches say: (B, C, H, W) -> the same, the last patches filled up.

    A patch says how far down and right, for each of its places; at first nowhere. Between places lies their mixture.
    """

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.patch, self.offset = patch, nn.Conv2d(channels, 2 * patch**2, patch, patch)

    def reset(self) -> None:
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        p, (b, c) = self.patch, x.shape[:2]
        # a program for every size can tell that half of this is positive
        high, wide = ((side - 1) // p * p + p for side in x.shape[2:])
        if not all(surely(a == side) for a, side in zip((high, wide), x.shape[2:])):
            x = F.pad(x, (0, wide - x.shape[3], 0, high - x.shape[2]))
        place = torch.arange(high * wide, device=x.device)
        row, column = place // wide, place % wide
        number = (row // p * (wide // p) + column // p) * p * p + row % p * p + column % p  # patch after patch
        offset = precision.wide(flat(self.offset(x))).unflatten(2, (p * p, 2)).flatten(1, 2)
        offset = offset.index_select(1, number)  # (B, H W, 2)
        first = torch.arange(b, device=x.device)[:, None] * (high * wide)
        places, shares = [], []  # the four places around each: a bag of rows, weighed by how near they are
        for r, near_r in between(row + offset[..., 0]):
            for q, near_q in between(column + offset[..., 1]):
                inside = (r >= 0) & (r < high) & (q >= 0) & (q < wide)
                places.append(first + r.clamp(0, high - 1).long() * wide + q.clamp(0, wide - 1).long())
                shares.append(near_r * near_q * inside)
        bags, weights = (torch.stack(parts, 2).flatten(0, 1) for parts in (places, shares))  # each (B H W, 4)
        rows = F.embedding_bag(bags, flat(x).flatten(0, 1), mode="sum", per_sample_weights=weights.to(x.dtype))
        return rows.view(b, high, wide, c).permute(0, 3, 1, 2)


def between(x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The whole numbers on either side of x, each with its share: (below, 1 - rest), (above, rest)."""
    below = x.floor()
    return (below, 1 - (x - below)), (below + 1, x - below)


def merge(channels: int, width: int) -> nn.Sequential:
    """Deformable token merging: (B, C, H, W) -> (B, D, H / 2, W / 2), rounded up."""
    return nn.Sequential(Warp(channels, 2), nn.Conv2d(channels, width, 2, 2), nn.BatchNorm2d(width), nn.GELU())


class Offsets(RelativeBias):
    """Its table is resampled to other grids with the corners in common, as the authors do it."""

    def laid(self, table: Tensor, window: tuple[int, ...]) -> Tensor:
        return resample(table[None], [2 * n - 1 for n in window], align_corners=True)[0]


class GlobalAttention(WindowAttention):
    """Self-attention over a whole grid, with a learned bias per offset, resampled to other grids than `window`."""

    on_grid = True

    def __init__(self, width: int, heads: int, window: tuple[int, int]):
        super().__init__(width, heads, window)
        self.bias = Offsets(window, heads)

    def forward(self, t: Tokens) -> Tokens:
        y = self.mix(t.inside(t.x), self.resampled(*whole_grid(t).grid))
        return t.carry(y, y.x)

    def resampled(self, *grid: int) -> Tensor:
        """(1, H, N, N): the bias for this grid."""
        if numbers(*grid) and grid == self.window:
            return self.bias()
        table = self.bias.laid(self.bias.table.T.unflatten(1, [2 * n - 1 for n in self.window]), grid)
        index, count = offsets(grid).to(table.device), grid[0] * grid[1]
        return table.flatten(1).index_select(1, index.flatten()).view(1, -1, count, count)


class ClassToken(nn.Module):
    """A learned token put in front: Tokens (B, N, D) -> Tokens (B, 1 + N, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, t: Tokens) -> Tokens:
        return prepend(self.token, t)


class LIT(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K).

    image: the (H, W) that positions are learned for. heads: of every stage, 0 for one without attention. ratios:
    feed-forward widths in widths. cls: positions are learned per place, not as biases, and a class token of the last
    stage answers; all norms but the first have then the eps 1e-6.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=4, widths, depths, heads, ratios=(4, 4, 4, 4), cls=False, num_classes=1000,
        drop_path=0.0,
    ):  # fmt: skip
        stages, grid, eps = [], tuple(-(-side // patch) for side in image), 1e-6 if cls else 1e-5
        for s, (d, h, ratio, rates) in enumerate(zip(widths, heads, ratios, stage_rates(drop_path, depths))):
            grid = tuple(-(-side // 2) for side in grid) if s else grid
            blocks = []
            for drop in map(DropPath, rates):
                mix, feed = nn.Identity(), Pre(nn.LayerNorm(d, eps), FeedForward(d, ratio * d), drop)
                if h:
                    mix = Pre(nn.LayerNorm(d, eps), Attention(d, h) if cls else GlobalAttention(d, h, grid), drop)
                blocks.append(Block(mix, feed))
            stack = Stack(*blocks)
            if cls:
                head = int(s == len(widths) - 1)
                stack = nn.Sequential(*[ClassToken(d)] * head, GridPositions(grid, d, prefix=head), stack)
            stages.append(nn.Sequential(merge(widths[s - 1], d) if s else PatchMap(d, patch), OnTokens(stack)))
        super().__init__(nn.Identity(), stages, nn.LayerNorm(d, eps), d, num_classes)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the last stage, a class token first with `cls`; before the last norm."""
        losses = None
        for stage in self.stages[:-1]:
            x, losses = through(stage, x, losses)
        down, blocks = self.stages[-1]
        return blocks.f(to_tokens(down(x)).replace(losses=losses))


SWIN = dict(widths=(96, 192, 384, 768), heads=(0, 0, 12, 24))

MODEL = LIT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=2, widths=(8, 16, 24, 32))
NANO = dict(image=(64, 64), patch=2, widths=(32, 64, 128, 160))
TI = dict(widths=(64, 128, 320, 512), depths=(3, 4, 6, 3), heads=(0, 0, 5, 8))
SIZES = {
    "toy": TOY | dict(depths=(1, 1, 2, 1), heads=(0, 0, 2, 4), num_classes=10),
    "nano": NANO | dict(depths=(1, 2, 2, 2), heads=(0, 0, 4, 5), drop_path=0.05),
    "ti": TI | dict(ratios=(8, 8, 4, 4), cls=True, drop_path=0.1),
    "small": SWIN | dict(depths=(2, 2, 6, 2), drop_path=0.2),
    "medium": SWIN | dict(depths=(2, 2, 18, 2), drop_path=0.3),
    "base": dict(widths=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(0, 0, 16, 32), drop_path=0.5),
}

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OFFICIAL = IMAGENET | dict(source="official", licence="apache-2.0", crop_pct=0.875)
WEIGHTS = {
    "ti": OFFICIAL | dict(github="ziplab/LIT lit_ti"),
    "small": OFFICIAL | dict(github="ziplab/LIT lit_small"),
    "medium": OFFICIAL | dict(github="ziplab/LIT lit_medium"),
    "base": OFFICIAL | dict(github="ziplab/LIT lit_base"),
}


LEARNED = ("weight", "bias")
PATCHES = {f"{n}.{p}": f"{n}.{p}" for n in ("proj", "norm") for p in LEARNED}
MERGED = {
    f"{theirs}.{p}": f"{ours}.{p}"
    for theirs, ours in (("dconv.conv_offset", "0.offset"), ("dconv", "1"))
    for p in LEARNED
}
MERGED |= {f"norm_layer.{p}": f"2.{p}" for p in (*LEARNED, "running_mean", "running_var", "num_batches_tracked")}


def placed(s: int) -> Rule:
    """How a stage of the tiny size begins, told by its positions."""
    names = MERGED if s else PATCHES
    theirs, ours = (f"patch_embed{s + 1}.{n}" for n in names), (f"stages.{s}.0.{n}" for n in names.values())
    return Rule((f"pos_embed{s + 1}", *theirs), (f"stages.{s}.1.f.{s // 3}.table", *ours))


BIAS = "layers.{s}.blocks.{i}.attn.relative_position_"
RULES = {
    "official": [
        *(placed(s) for s in range(4)),
        *(
            rule
            for s in range(4)
            for rule in timm_blocks(f"block{s + 1}.{{i}}", f"stages.{s}.1.f.{1 + s // 3}.blocks.{{i}}")
        ),
        Rename("cls_token", "stages.3.1.f.0.token"),
        *(Rename(f"patch_embed.{n}", f"stages.0.0.{n}") for n in PATCHES),
        *(
            Rename(f"layers.{s}.downsample.{n}", f"stages.{s + 1}.0.{ours}")
            for s in range(3)
            for n, ours in MERGED.items()
        ),
        Rename(f"{BIAS}bias_table", "stages.{s}.1.f.blocks.{i}.mix.f.bias.table"),
        Drop(f"{BIAS}index"),
        *timm_blocks("layers.{s}.blocks.{i}", "stages.{s}.1.f.blocks.{i}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
