"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification. Chen, Fan, Panda, 2021.
arXiv:2103.14899.

New here: two vision transformers read one picture at two patch sizes and trade only their class tokens. Each of them
visits the other branch, asks its patches, by a single query in O(N), and brings back what it saw.

Differs: other picture sizes than `image` are read too; the coarse branch's picture shrinks in proportion, to whole
patches. `tokens`, which the paper does not need, gives the fine grid with both branches' features side by side, the
coarse ones resampled to it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, CrossAttention, DropPath, FeedForward, Layer, Stack, stage_rates
from plait.core.schemes import VIT, Paper, trunc
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Join, Rename
from plait.parts.maps import flat, to_map, to_tokens
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks

Norm = partial(nn.LayerNorm, eps=1e-6)


class Swap(nn.Module):
    """The fusion step: the class token of `mine` asks the patches of `other` and comes home with the answer."""

    def __init__(self, width: int, other: int, heads: int, drop: float):
        super().__init__()
        self.go = nn.Sequential(Norm(width), nn.GELU(), nn.Linear(width, other))
        self.norm = Norm(other)
        self.cross = CrossAttention(other, heads)
        self.drop = DropPath(drop)
        self.back = nn.Sequential(Norm(other), nn.GELU(), nn.Linear(other, width))

    def forward(self, mine: Tokens, other: Tokens) -> Tokens:
        cls = self.go(mine.x[:, :1])  # (B, 1, D'), D' the other's width
        seen = other.replace(x=self.norm(torch.cat([cls, other.x[:, 1:]], 1)))  # (B, 1 + N', D')
        said = self.cross(mine.inside(seen.x[:, :1]).reading(stream=seen))
        return mine.carry(said, torch.cat([self.back(cls + self.drop(said.x)), mine.x[:, 1:]], 1))


def layer(width: int, heads: int, hidden: int, drop: float) -> Block:
    return pre_norm(width, Attention(width, heads), FeedForward(width, hidden), norm=Norm, drop=drop)


class Round(Layer):
    """Each branch reads on its own, then both swap at once: the fine Tokens, with the coarse ones in the context."""

    reads = ("coarse",)

    def __init__(self, widths, depths, heads, hidden, drops: list[float]):
        super().__init__()
        a, b = widths
        self.stacks = nn.ModuleList(
            Stack(*(layer(w, heads, h, drop) for drop in drops[:depth])) for w, h, depth in zip(widths, hidden, depths)
        )
        self.swaps = nn.ModuleList([Swap(a, b, heads, drops[-1]), Swap(b, a, heads, drops[-1])])

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="its two branches would share it")
        fine, coarse = self.stacks[0](t), self.stacks[1](t.read("coarse"))
        fine, coarse = self.swaps[0](fine, coarse), self.swaps[1](coarse, fine)
        return fine.with_losses(coarse).reading(coarse=coarse.replace(losses=None))


class ConvTokens(nn.Module):
    """The stem of the dagger variants: (B, 3, H, W) -> Tokens, three convolutions of (kernel, stride, padding)."""

    def __init__(self, width: int, layers: tuple[tuple[int, int, int], ...]):
        super().__init__()
        channels = (3, width // 4, width // 2, width)
        a, b, c = (nn.Conv2d(i, o, *how) for i, o, how in zip(channels, channels[1:], layers))
        self.proj = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)

    def forward(self, x: Tensor) -> Tokens:
        return to_tokens(self.proj(x))


class CrossViT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), the mean of both branches' heads.

    image, coarse: the (H, W) that the fine and the coarse branch were made for; the model itself scales its input for
    the coarse one. Pairs are (fine, coarse); depths has a pair for each round of reading and swapping. stems:
    convolutions instead of patch projections.
    """

    on_grid = True  # the places of both branches are laid on one another
    fits, classifier, beyond = ("image",), ("heads.",), ("heads",)

    def __init__(
        self, *, image=(240, 240), coarse=(224, 224), patches=(12, 16), widths, depths, heads, ratio=4, stems=None,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.image, self.coarse, self.patch = sum(widths), tuple(image), tuple(coarse), patches[1]
        self.multiple = patches[0]
        kind, hows = (PatchTokens, patches) if stems is None else (ConvTokens, stems)
        self.eyes = nn.ModuleList(
            PatchEmbed(kind(w, how), (size[0] // p, size[1] // p), w)
            for size, p, w, how in zip((image, coarse), patches, widths, hows)
        )
        hidden, drops = [ratio * w for w in widths], stage_rates(drop_path, [max(pair) for pair in depths])
        self.rounds = nn.ModuleList(Round(widths, pair, heads, hidden, rates) for pair, rates in zip(depths, drops))
        self.norms = nn.ModuleList(Norm(w) for w in widths)
        self.heads = nn.ModuleList(nn.Linear(w, num_classes) for w in widths if num_classes)

    def read(self, x: Tensor) -> list[Tokens]:
        """The fine branch's tokens after each round, with the coarse one's in their context."""
        t, found = self.eyes[0](x).reading(coarse=self.eyes[1](self.scale_image(x))), []
        for step in self.rounds:
            t = step(t)
            found.append(t)
        return found

    def streams(self, t: Tokens) -> tuple[Tokens, Tokens]:
        """The fine and the coarse branch's normed tokens, a class token first."""
        fine, coarse = t.replace(context=None), t.read("coarse")
        return fine.replace(x=self.norms[0](fine.x)), coarse.replace(x=self.norms[1](coarse.x))

    def scale_image(self, x: Tensor) -> Tensor:
        """What the coarse branch sees: the picture scaled as `coarse` is to `image`, then down to whole patches."""
        size = [side * c // i // self.patch * self.patch for side, c, i in zip(x.shape[2:], self.coarse, self.image)]
        return x if size == list(x.shape[2:]) else F.interpolate(x, size=size, mode="bicubic", align_corners=False)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D1 + D2) on the fine grid: class tokens and places of both branches."""
        return self.laid(self.read(x)[-1])

    def seen(self, x: Tensor, layers: tuple[int, ...] = ()) -> list[Tensor]:
        """The maps (B, D1 + D2, h, w) after the last round, or after some."""
        found = self.read(x)
        return [to_map(self.laid(found[n])) for n in layers or (-1,)]

    def laid(self, t: Tokens) -> Tokens:
        """Both branches on the fine grid, normed."""
        fine, coarse = self.streams(t)
        places = flat(F.interpolate(to_map(coarse), size=fine.grid, mode="bilinear", align_corners=False))  # (B, N, D2)
        return fine.replace(x=torch.cat([fine.x, torch.cat([coarse.x[:, :1], places], 1)], 2))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D1 + D2): both class tokens."""
        return t.x[:, 0]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        classes = [t.x[:, 0] for t in self.streams(self.read(x)[-1])]
        if not self.heads:
            return torch.cat(classes, 1)
        return (self.heads[0](classes[0]) + self.heads[1](classes[1])) / 2


TINY = dict(widths=(96, 192), depths=((1, 4), (1, 4), (1, 4)), heads=3)
SMALL = dict(widths=(192, 384), depths=((1, 4), (1, 4), (1, 4)), heads=6)
BASE = dict(widths=(384, 768), depths=((1, 4), (1, 4), (1, 4)), heads=12)
NINE = dict(widths=(128, 256), depths=((1, 3), (1, 3), (1, 3)), heads=4, ratio=3)
FIFTEEN = dict(widths=(192, 384), depths=((1, 5), (1, 5), (1, 5)), heads=6, ratio=3)
EIGHTEEN = dict(widths=(224, 448), depths=((1, 6), (1, 6), (1, 6)), heads=7, ratio=3)
DAGGER = dict(stems=(((7, 4, 3), (3, 3, 0), (3, 1, 1)), ((7, 4, 3), (3, 2, 1), (3, 2, 1))))
BIG = dict(image=(408, 408), coarse=(384, 384))

PAPER = Paper((("*cls", trunc(0.02)), *VIT), {"*": 0.1})

MODEL = CrossViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), coarse=(24, 24), patches=(4, 8), widths=(16, 32))
NANO = dict(image=(64, 64), coarse=(64, 64), patches=(4, 8), widths=(96, 192))
SIZES = {
    "toy": TOY | dict(depths=((1, 2), (1, 1)), heads=2, num_classes=10),
    "nano": NANO | dict(depths=((1, 2), (1, 2), (1, 2)), heads=3, drop_path=0.1),
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "9": NINE,
    "15": FIFTEEN,
    "18": EIGHTEEN,
    "9_dagger": NINE | DAGGER,
    "15_dagger": FIFTEEN | DAGGER,
    "18_dagger": EIGHTEEN | DAGGER,
    "15_dagger_408": FIFTEEN | DAGGER | BIG,
    "18_dagger_408": EIGHTEEN | DAGGER | BIG,
}

TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875)
WHOLE = TIMM | dict(crop_pct=1.0)
WEIGHTS = {
    "tiny": TIMM | dict(hub="timm/crossvit_tiny_240.in1k"),
    "small": TIMM | dict(hub="timm/crossvit_small_240.in1k"),
    "base": TIMM | dict(hub="timm/crossvit_base_240.in1k"),
    "9": TIMM | dict(hub="timm/crossvit_9_240.in1k"),
    "15": TIMM | dict(hub="timm/crossvit_15_240.in1k"),
    "18": TIMM | dict(hub="timm/crossvit_18_240.in1k"),
    "9_dagger": TIMM | dict(hub="timm/crossvit_9_dagger_240.in1k"),
    "15_dagger": TIMM | dict(hub="timm/crossvit_15_dagger_240.in1k"),
    "18_dagger": TIMM | dict(hub="timm/crossvit_18_dagger_240.in1k"),
    "15_dagger_408": WHOLE | dict(hub="timm/crossvit_15_dagger_408.in1k"),
    "18_dagger_408": WHOLE | dict(hub="timm/crossvit_18_dagger_408.in1k"),
}
RULES = {
    "timm": [
        Rename("cls_token_{b}", "eyes.{b}.cls"),
        Rename("cls_token.{b}", "eyes.{b}.cls"),  # the authors' own spelling, in older files
        Rename("pos_embed_{b}", "eyes.{b}.positions.table"),
        Rename("pos_embed.{b}", "eyes.{b}.positions.table"),
        Rename("patch_embed.{b}.proj.{rest*}", "eyes.{b}.stem.proj.{rest*}"),
        *timm_blocks("blocks.{i}.blocks.{b}.{j}", "rounds.{i}.stacks.{b}.blocks.{j}"),
        Rename("blocks.{i}.projs.{b}.{rest*}", "rounds.{i}.swaps.{b}.go.{rest*}"),
        Rename("blocks.{i}.fusion.{b}.norm1.{p}", "rounds.{i}.swaps.{b}.norm.{p}"),
        Rename("blocks.{i}.fusion.{b}.attn.wq.{p}", "rounds.{i}.swaps.{b}.cross.q.{p}"),
        Join(
            ["blocks.{i}.fusion.{b}.attn.wk.{p}", "blocks.{i}.fusion.{b}.attn.wv.{p}"],
            "rounds.{i}.swaps.{b}.cross.kv.{p}",
        ),
        Rename("blocks.{i}.fusion.{b}.attn.proj.{p}", "rounds.{i}.swaps.{b}.cross.out.{p}"),
        Rename("blocks.{i}.revert_projs.{b}.{rest*}", "rounds.{i}.swaps.{b}.back.{rest*}"),
        Rename("norm.{b}.{p}", "norms.{b}.{p}"),
        Rename("head.{b}.{p}", "heads.{b}.{p}"),
    ],
}
