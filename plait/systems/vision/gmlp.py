"""Pay Attention to MLPs. Liu, Dai, So, Le, 2021. arXiv:2105.08050.

New here: a transformer without attention and without positions. A layer is one widened feed-forward step in which half
of the hidden channels gate the other half, after a fixed linear map over the tokens. The gate starts at one, so that
each layer begins as a plain feed-forward step and learns to mix. With `thin` (aMLP) a single thin head of attention
joins each gate.

Differs: this is the vision form; the masked language model is left out, though aMLP was made for it. The map over the
tokens has a size, so that pictures of one size alone are read.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, DropPath, Pre, Stack, merge_heads, split_heads
from plait.core.schemes import FAINT, ONE, ZERO, Paper, lecun, xavier
from plait.core.tokens import Tokens, mean, refuse
from plait.core.weights import Rename
from plait.parts.positions.resample import bound
from plait.parts.tokenizers.patches import OfSize, PatchTokens
from plait.parts.towers.backbone import Backbone

Norm = partial(nn.LayerNorm, eps=1e-6)


class SpatialGate(nn.Module):
    """(B, N, 2 C) -> (B, N, C): the first half times a linear map, over the `count` tokens, of the second, normed; and
    `more` (B, N, C) beside that map."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)  # timm's has another eps here than elsewhere
        self.weight, self.bias = nn.Parameter(torch.empty(count, count)), nn.Parameter(torch.empty(count))

    def reset(self) -> None:
        nn.init.normal_(self.weight, std=1e-6)
        nn.init.ones_(self.bias)

    def refit(self, key: str, tensor: Tensor) -> None:
        if key in ("weight", "bias"):
            raise bound("the map over the places of a picture", tensor)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        value, gate = x.chunk(2, -1)
        weight = self.weight.expand(x.shape[0], -1, -1)  # a plain product would turn the tokens round and back
        gate = torch.baddbmm(self.bias[:, None], weight, self.norm(gate))
        return value * (gate if more is None else gate + more)


class TinyAttention(nn.Module):
    """One head of width `thin`: Tokens (B, N, D) -> (B, N, C)."""

    def __init__(self, width: int, thin: int, out: int):
        super().__init__()
        self.qkv, self.attend, self.out = nn.Linear(width, 3 * thin, bias=False), Attend(), nn.Linear(thin, out)

    def forward(self, t: Tokens) -> Tensor:
        return self.out(merge_heads(self.attend(t, *split_heads(self.qkv(t.x), 3, 1)).x))


class GatedFeed(nn.Module):
    """The whole layer between its norm and its residual, both mixer and feed-forward: Tokens (B, N, D) -> the same."""

    def __init__(self, width: int, hidden: int, count: int, thin: int = 0):
        super().__init__()
        self.up, self.act = nn.Linear(width, hidden), nn.GELU()
        self.tiny = TinyAttention(width, thin, hidden // 2) if thin else None
        self.gate, self.down = SpatialGate(hidden // 2, count), nn.Linear(hidden // 2, width)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "keep", "weight", "lengths", "memory", why="each place has weights of its own")
        more = None if self.tiny is None else self.tiny(t)
        return t.replace(x=self.down(self.gate(self.act(self.up(t.x)), more)))


class GMLP(Backbone):
    """Pictures (B, 3, H, W) of just the size `image` -> logits (B, K). thin: width of the head of attention that joins
    each gate, 0 for none."""

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=16, width, depth=30, hidden=None, thin=0, num_classes=1000, drop_path=0.0
    ):
        super().__init__()
        self.width, self.exact, self.attends = width, OfSize(image), thin > 0
        self.stem = PatchTokens(width, patch)
        count = image[0] // patch * (image[1] // patch)

        def step() -> Pre:
            return Pre(Norm(width), GatedFeed(width, hidden or 6 * width, count, thin), DropPath(drop_path))

        self.stack = Stack(*(Block(mix=step(), feed=nn.Identity()) for _ in range(depth)))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) with their grid, normed."""
        t = self.stack(self.stem(self.exact(x)))
        return t.replace(x=self.norm(t.x))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the tokens."""
        return mean(t)


PAPER = Paper(
    (
        ("*.gate.weight", FAINT),
        ("*.gate.bias", ONE),
        ("head.*", ZERO),
        ("Linear.weight", xavier),
        ("Linear.bias", FAINT),
        ("Conv2d.weight", lecun),
        ("Conv2d.bias", ZERO),
    ),
    {"ti16*": 0.0, "s16*": 0.05, "b16*": 0.2},
)

MODEL = GMLP
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, hidden=96, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=128, depth=8, drop_path=0.1),
    "amlp_nano": dict(image=(64, 64), patch=8, width=128, depth=8, hidden=640, thin=64, drop_path=0.1),
    "ti16_224": dict(width=128),
    "s16_224": dict(width=256),
    "b16_224": dict(width=512),
}
TIMM = dict(licence="apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.875)
WEIGHTS = {
    "ti16_224": dict(timm="gmlp_ti16_224"),
    "s16_224": TIMM | dict(hub="timm/gmlp_s16_224.ra3_in1k"),
    "b16_224": dict(timm="gmlp_b16_224"),
}
RULES = {
    "timm": [
        Rename("stem.proj.{p}", "stem.proj.{p}"),
        Rename("blocks.{i}.norm.{p}", "stack.blocks.{i}.mix.norm.{p}"),
        Rename("blocks.{i}.mlp_channels.fc1.{p}", "stack.blocks.{i}.mix.f.up.{p}"),
        Rename("blocks.{i}.mlp_channels.gate.norm.{p}", "stack.blocks.{i}.mix.f.gate.norm.{p}"),
        Rename("blocks.{i}.mlp_channels.gate.proj.{p}", "stack.blocks.{i}.mix.f.gate.{p}"),
        Rename("blocks.{i}.mlp_channels.fc2.{p}", "stack.blocks.{i}.mix.f.down.{p}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
