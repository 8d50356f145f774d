"""UniViTAR: Unified Vision Transformer with Native Resolution. Qiao et al., 2025. arXiv:2504.01792.

New here: pictures keep their size and shape. Each is cut into as many patches as it has, several are packed into one
row without padding, and attention stays inside each. Positions are angles of row and column, so none is learned and
none is resampled. The layers are a modern language model's: RMS norms, a gated feed-forward with a norm inside, layer
scale, and norms on queries and keys. A picture is a clip of one frame shown twice, so clips are read by the same
weights: every two frames become one layer of patches.

Differs: the published model gives tokens and nothing else; `pool` takes their mean, and with `num_classes` a norm and a
linear layer read it. The authors' order is kept: queries and keys are turned first and normed after, over all heads at
once. Of the published sizes only 0.3b's numbers stand in the code. Those of 0.6b and 1b follow from the published
parameter counts and the same rule for the hidden width (two thirds of 4 D, rounded up to a multiple of 128), and their
numbers of heads are a guess, which nothing public settles: they name no weights, and nothing of them is claimed.
Training in stages, the sigmoid loss and distillation are not here, nor is stochastic depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, LayerScale, Pre, Stack, check_heads
from plait.core.init import xavier_uniform
from plait.core.packing import pack
from plait.core.tokens import Tokens, mean
from plait.core.weights import Rename
from plait.errors import PlaitError
from plait.parts.positions.rotary import GridRotary, turn
from plait.parts.tokenizers.patches import patch_grid
from plait.parts.towers.backbone import Backbone

Norm = partial(nn.RMSNorm, eps=1e-6)


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are turned by `t.pos`, as `turn` takes it, then normed: Tokens (B, N, D) ->
    the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.attend = heads, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, t: Tokens) -> Tokens:
        b, n, d = t.x.shape
        qkv = self.qkv(t.x).view(b, n, 3, self.heads, d // self.heads)  # (B, N, 3, H, E)
        q, k = turn(qkv[:, :, :2], t.pos).flatten(3).unbind(2)  # each (B, N, D)
        q, k = (norm(x).view(b, n, self.heads, -1).transpose(1, 2) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
        t = self.attend(t, q, k, qkv[:, :, 2].transpose(1, 2))
        return t.replace(x=self.out(t.x.transpose(1, 2).reshape(b, n, d)))


class NormedSwiGLU(nn.Module):
    """down(norm(silu(gate(x)) * up(x))): Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.norm, self.down = Norm(hidden), nn.Linear(hidden, width)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.down(self.norm(F.silu(self.gate(t.x)) * self.up(t.x))))


class TwoFrames(nn.Conv3d):
    """A convolution of two frames (B, 3, T, H, W), or of a picture (B, 3, H, W) as if it were both."""

    def __init__(self, width: int, patch: int):
        super().__init__(3, width, (2, patch, patch), (2, patch, patch))

    def reset(self) -> None:
        xavier_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 5:
            return super().forward(x)
        return F.conv2d(x, self.weight.sum(2), self.bias, self.stride[1:])


class Tubelets(nn.Module):
    """Clips (B, T, 3, H, W) -> (B, T/2 * H/P * W/P, D), every two frames one layer of patches; pictures (B, 3, H, W) ->
    (B, H/P * W/P, D), as if shown twice."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.patch, self.proj = patch, TwoFrames(width, patch)

    def forward(self, x: Tensor) -> Tensor:
        patch_grid(x, self.patch)
        if x.dim() == 4:
            return self.proj(x).flatten(2).transpose(1, 2)
        if x.shape[1] % 2:
            raise PlaitError(
                f"a clip of {x.shape[1]} frames: expected an even number, as two frames make one layer of patches"
            )
        return self.proj(x.transpose(1, 2)).flatten(2).transpose(1, 2)  # (B, D, t, h, w) -> (B, N, D)


class UniViTAR(Backbone):
    """Pictures (B, 3, H, W) of any multiple of the patch -> logits (B, K). `packed` takes pictures and clips of
    different sizes at once. hidden: the feed-forward's width; scale: where layer scale starts."""

    scheme = {nn.Conv3d: xavier_uniform}

    def __init__(self, *, patch=14, width, depth, heads, hidden, scale=0.1, num_classes=0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.norm = nn.Identity()  # the published tokens are as they are
        self.stem, self.rotary = Tubelets(width, patch), GridRotary(width // heads)

        def step(f: nn.Module) -> Pre:
            return Pre(Norm(width), f, LayerScale(width, scale))

        def layer() -> Block:
            return Block(step(RotaryAttention(width, heads)), step(NormedSwiGLU(width, hidden)))

        self.stack = Stack(*(layer() for _ in range(depth)))
        self.head = nn.Sequential(Norm(width), nn.Linear(width, num_classes)) if num_classes else nn.Identity()

    def places(self, x: Tensor) -> tuple[tuple[int, int], Tensor]:
        """The grid (rows, columns) of a picture or clip (..., H, W), and the turns (N, 2, E/2) of its tokens, frame
        after frame."""
        grid = patch_grid(x, self.multiple)
        turns = self.rotary(grid)
        return grid, turns if x.dim() < 5 else turns.repeat(x.shape[1] // 2, 1, 1)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the grid; clips (B, T, 3, H, W) -> Tokens (B, T/2 * N, D)."""
        grid, turns = self.places(x)
        return self.stack(Tokens(self.stem(x), pos=turns, grid=grid if x.dim() == 4 else None))

    def packed(self, pictures: Sequence[Tensor]) -> Tokens:
        """Pictures (3, H, W) or clips (T, 3, H, W), each of its own size -> one packed row (1, N_1 + N_2 + ..., D),
        without padding.

        `pool` gives a vector for each, `plait.core.packing.unpack` each one's tokens: as if each had been alone.
        """
        t = pack([self.stem(x[None])[0] for x in pictures])
        return self.stack(t.replace(pos=torch.cat([self.places(x[None])[1] for x in pictures])))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the tokens; of a packed row (count, D), each picture's."""
        return mean(t)


MODEL = UniViTAR
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(patch=8, width=32, depth=2, heads=2, hidden=64, num_classes=10),
    "nano": dict(patch=8, width=128, depth=5, heads=4, hidden=384, num_classes=1000),
    "0.3b": dict(width=1024, depth=24, heads=16, hidden=2816),
    "0.6b": dict(width=1280, depth=32, heads=16, hidden=3456),  # heads guessed
    "1b": dict(width=1920, depth=32, heads=24, hidden=5120),  # heads guessed
}
OFFICIAL = dict(source="official", licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "0.3b": OFFICIAL | dict(hub="MM-MVR/UniViTAR-0.3B"),
}
THEIRS, OURS = "encoder.layers.{i}", "stack.blocks.{i}"
RULES = {
    "official": [
        Rename("embeddings.patch_embedding.{p}", "stem.proj.{p}"),
        Rename(f"{THEIRS}.norm1.weight", f"{OURS}.mix.norm.weight"),
        Rename(f"{THEIRS}.attn.qkv.weight", f"{OURS}.mix.f.qkv.weight"),
        Rename(f"{THEIRS}.attn.proj.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.attn.q_norm.weight", f"{OURS}.mix.f.q_norm.weight"),
        Rename(f"{THEIRS}.attn.k_norm.weight", f"{OURS}.mix.f.k_norm.weight"),
        Rename(f"{THEIRS}.ls1", f"{OURS}.mix.after.gamma"),
        Rename(f"{THEIRS}.norm2.weight", f"{OURS}.feed.norm.weight"),
        Rename(f"{THEIRS}.mlp.fc1.{{p}}", f"{OURS}.feed.f.gate.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc3.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.mlp.norm.weight", f"{OURS}.feed.f.norm.weight"),
        Rename(f"{THEIRS}.mlp.fc2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename(f"{THEIRS}.ls2", f"{OURS}.feed.after.gamma"),
        Rename("head.{p*}", "head.{p*}"),
    ]
}
