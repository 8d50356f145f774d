"""Stages of several frame rates, down and up again as in a U-Net, over a whole sequence or as it comes (Zipformer,
arXiv:2310.11230).

`pasts` holds what each layer of a stage keeps of the chunks before (a tuple that begins with keys (B, L, ...)), or None
for each where the whole sequence is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Layer
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.mixers.shared_weights import compact_positions
from plait.parts.tokenizers.frame_stem import FrameStem, stem_keep

AHEAD = 13  # frames of features that the stem reads beyond those it answers for


class Bypass(nn.Module):
    """x + scale * (y - x), a learned scale per channel. In training y is left out of a share `skip` of the rows."""

    def __init__(self, width: int, skip: float = 0.0):
        super().__init__()
        self.skip, self.scale = skip, nn.Parameter(torch.empty(width))

    def reset(self) -> None:
        nn.init.constant_(self.scale, 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale: Tensor = self.scale
        if self.training and self.skip > 0.0:
            scale = scale * (torch.rand(x.shape[0], 1, 1, device=x.device) >= self.skip)
        return x + (y - x) * scale


class Halve(nn.Module):
    """Every `stride` frames become one, a learned average; the last real frame stands for those missing in its
    group."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride, self.share = stride, nn.Parameter(torch.empty(stride))

    def reset(self) -> None:
        nn.init.zeros_(self.share)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            last = (keep.sum(1) - 1).clamp(min=0)[:, None, None]  # (B, 1, 1)
            x = torch.where(keep[..., None], x, x.gather(1, last.expand(-1, 1, x.shape[2])))
        spare = -x.shape[1] % self.stride
        if spare:
            x = torch.cat([x, x[:, -1:].expand(-1, spare, -1)], 1)
        return (x.unflatten(1, (-1, self.stride)) * self.share.softmax(0)[:, None]).sum(2)


class Stage(nn.Module):
    """Layers at one frame rate: (B, N, D), keep (B, N) or None, see -> (B, N, D), and their pasts.

    positions: width of a position's vector. The layers read far, the positions, and see, the masks of the keys.
    """

    def __init__(self, blocks: list[Layer], positions: int):
        super().__init__()
        self.blocks, self.positions = nn.ModuleList(blocks), positions

    def forward(self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list) -> tuple[Tensor, list]:
        before = 0 if pasts[0] is None else pasts[0][0].shape[1]
        far = compact_positions(x.shape[1], before, self.positions, x.device)
        t, after = Tokens(x, keep=keep).reading(far=far, see=see), []
        for block, past in zip(self.blocks, pasts):
            t = block(t.replace(memory=past))
            after.append(t.memory)
        return t.x, after


class Slower(nn.Module):
    """A stage `stride` times slower than what comes in, and a bypass around it."""

    def __init__(self, inner: Stage, width: int, stride: int):
        super().__init__()
        self.inner, self.stride, self.halve, self.bypass = inner, stride, Halve(stride), Bypass(width)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.inner.blocks

    def forward(self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list) -> tuple[Tensor, list]:
        s = self.stride
        few = None if keep is None else keep[:, ::s]
        see = see if see is None else see[:, ::s] if see.dim() == 2 else see[:, ::s, ::s]
        y, pasts = self.inner(self.halve(x, keep), few, see, pasts)
        return self.bypass(x, y.repeat_interleave(s, 1)[:, : x.shape[1]]), pasts


class Stream(NamedTuple):
    """Where a stream stands: the last features (B, 13, mels) and which are real, frames of the stem, which of the left
    context is real, and what each layer of each stage keeps."""

    features: Tensor
    keep: Tensor
    stem: Tensor
    real: Tensor
    blocks: list[list[Any]]


class FramePyramid(nn.Module):
    """Features (B, T, mels) -> Tokens (B, N, D), one for every `down` frames of the stem, D the widest stage's width.

    stages: the layers of each; they have `begin(x, left)`, what they keep before a stream x begins. widths, strides:
    of each stage. chunk, left: the frames of a chunk and how many before it are seen, None: all at once.
    """

    def __init__(
        self, stem: FrameStem, stages: list[list[Layer]], widths: tuple[int, ...], strides: tuple[int, ...],
        positions: int, down: int, chunk: int | None, left: int | None,
    ):  # fmt: skip
        super().__init__()
        if chunk is None and left is not None:
            raise PlaitError(f"got left={left} without chunk: only a model that reads chunks sees so much before each")
        if chunk is not None and (chunk % max(strides) or not left or left % chunk or chunk % down):
            raise PlaitError(
                f"chunk {chunk}, left {left}: chunk must be a multiple of {max(strides)} and {down}, left one of it"
            )
        self.widths, self.width, self.strides, self.down = widths, max(widths), strides, down
        self.chunk, self.left, self.stem, self.halve = chunk, left, stem, Halve(down)
        self.stages = nn.ModuleList()
        for blocks, width, s in zip(stages, widths, strides, strict=True):
            stage = Stage(blocks, positions)
            self.stages.append(stage if s == 1 else Slower(stage, width, s))

    def encode(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """Features (B, T, mels), T >= 9, keep (B, T) -> Tokens (B, N, D)."""
        x, _ = self.stem(x, keep, None)
        keep = see = None if keep is None else stem_keep(keep)
        if self.chunk is not None and self.left is not None:
            chunk = torch.arange(x.shape[1], device=x.device) // self.chunk
            apart = chunk[:, None] - chunk
            near = (apart >= 0) & (apart <= self.left // self.chunk)
            see = near.expand(x.shape[0], -1, -1) if see is None else near & see[:, None]
        return self._stages(x, keep, see, [[None] * len(layers) for layers in self._layers()])[0]

    def _layers(self) -> list[Sequence[Any]]:
        """Those of each stage."""
        return [cast(Sequence[Any], stage.blocks) for stage in self.stages]

    def _stages(self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list) -> tuple[Tokens, list]:
        outs, after = [], []
        for stage, width, past in zip(self.stages, self.widths, pasts):
            x = x[..., :width] if width <= x.shape[2] else F.pad(x, (0, width - x.shape[2]))
            x, past = stage(x, keep, see, past)
            outs.append(x)
            after.append(past)
        for earlier in reversed(outs[:-1]):  # each channel is the last stage's that has it
            x = torch.cat([x, earlier[..., x.shape[2] :]], 2) if earlier.shape[2] > x.shape[2] else x
        return Tokens(self.halve(x, keep), keep=None if keep is None else keep[:, :: self.down]), after

    def begin(self, x: Tensor) -> Stream:
        """The first 13 frames of features (B, 13, mels), 4 of them silence -> where the stream stands. Raises
        ValueError for a model without `chunk`."""
        if self.chunk is None or self.left is None or x.shape[1] != AHEAD:
            raise PlaitError(
                f"got {x.shape[1]} frames, chunk={self.chunk}: "
                f"a stream begins with {AHEAD} frames, for a model with a chunk"
            )
        blocks = [[k.begin(x, self.left // s) for k in layers] for layers, s in zip(self._layers(), self.strides)]
        keep = x.new_ones(x.shape[:2], dtype=torch.bool)
        return Stream(x, keep, self.stem.begin(x), x.new_zeros(x.shape[0], self.left, dtype=torch.bool), blocks)

    def stream(self, x: Tensor, state: Stream, keep: Tensor | None = None) -> tuple[Tokens, Stream]:
        """The next 2 * chunk frames of features (B, 2 * chunk, mels) -> the chunk's Tokens (B, chunk / down, D), and
        the new state.

        keep: (B, 2 * chunk), False beyond the end of the sound; two more chunks of such frames bring out what is still
        inside.
        """
        if self.chunk is None or self.left is None or x.shape[1] != 2 * self.chunk:
            expected = f"2 * chunk = {2 * self.chunk}" if self.chunk else "a model with a chunk"
            raise PlaitError(f"got {x.shape[1]} frames, expected {expected}: fill the last ones up with keep=False")
        keep = x.new_ones(x.shape[:2], dtype=torch.bool) if keep is None else keep
        features, real = torch.cat([state.features, x], 1), torch.cat([state.keep, keep], 1)
        y, stem = self.stem(features, real, state.stem)
        keep = stem_keep(real)[:, : self.chunk]
        see = torch.cat([state.real, keep], 1)
        t, blocks = self._stages(y, keep, see, state.blocks)
        return t, Stream(features[:, -AHEAD:], real[:, -AHEAD:], stem, see[:, -self.left :], blocks)
