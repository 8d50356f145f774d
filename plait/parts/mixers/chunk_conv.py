"""Depthwise convolutions in time that also run chunk by chunk (Zipformer, arXiv:2310.11230).

`past` is what a convolution keeps of the chunks before, (B, kernel // 2, D), or None where the whole sequence is there
at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.parts.swoosh import ScaledLinear, SwooshR


class Depthwise(nn.Conv1d):
    """A depthwise convolution of (B, N, D) in its own order: on the CPU a 2-D one in channels-last memory takes a
    quarter of the time. edge: the zeros at either end."""

    def __init__(self, width: int, kernel: int, edge: int):
        super().__init__(width, width, kernel, groups=width)
        self.edge = edge

    def reset(self) -> None:
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        maps = x.transpose(1, 2)[..., None]
        y = F.conv2d(maps, self.weight[..., None], self.bias, padding=(self.edge, 0), groups=self.groups)
        return y[..., 0].transpose(1, 2)


class SameConv(Depthwise):
    """One that sees both ways, for whole sequences."""

    def __init__(self, width: int, kernel: int):
        super().__init__(width, kernel, kernel // 2)


class ChunkConv(nn.Module):
    """A depthwise convolution of (B, N, D) that sees the past, and the future no further than the end of its own chunk.

    The sum of a causal one of half the kernel and one within the chunk, the latter scaled by the place in the chunk (at
    most a kernel from either end). past: (B, kernel // 2, D) or None.
    """

    def __init__(self, width: int, kernel: int, chunk: int):
        super().__init__()
        self.chunk, self.kernel = chunk, kernel
        self.causal = Depthwise(width, (kernel + 1) // 2, 0)
        self.within = Depthwise(width, kernel, kernel // 2)
        self.edges = nn.Parameter(torch.empty(2, width, kernel))

    def reset(self) -> None:
        nn.init.zeros_(self.edges)

    def scale(self) -> Tensor:
        """(chunk, D): what each place of a chunk is multiplied by."""
        more = max(0, self.chunk - self.kernel)
        begin, end = self.edges[0, :, : self.chunk], self.edges[1, :, -self.chunk :]
        return (1.0 + F.pad(begin, (0, more)) + F.pad(end, (more, 0))).T

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        b, n, half = x.shape[0], x.shape[1], self.kernel // 2
        whole = F.pad(x, (0, 0, half, 0)) if past is None else torch.cat([past, x], 1)
        # (B * chunks, chunk, D)
        pieces = F.pad(x, (0, 0, 0, -n % self.chunk)).unflatten(1, (-1, self.chunk)).flatten(0, 1)
        y = (self.within(pieces) * self.scale()).unflatten(0, (b, -1)).flatten(1, 2)
        return self.causal(whole) + y[:, :n], None if past is None else whole[:, -half:]


class Convolution(nn.Module):
    """Gated, convolved in time, Swoosh: (B, N, D), keep (B, N) or None -> (B, N, D)."""

    def __init__(self, width: int, conv: SameConv | ChunkConv):
        super().__init__()
        self.up, self.conv, self.act, self.out = (
            nn.Linear(width, 2 * width),
            conv,
            SwooshR(),
            ScaledLinear(width, width, 0.05),
        )

    def forward(self, x: Tensor, keep: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = F.glu(self.up(x), 2)
        if keep is not None:
            x = x.masked_fill(~keep[..., None], 0.0)
        if isinstance(self.conv, ChunkConv):
            x, past = self.conv(x, past)
        else:
            x = self.conv(x)
        return self.out(self.act(x)), past
