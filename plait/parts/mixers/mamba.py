"""Mamba's mixer (arXiv:2312.00752) around the selective scan: whole sequences over padding, or token by token."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Make
from plait.core.precision import wide
from plait.core.tokens import Tokens, refuse
from plait.parts.mixers.scan import selective_scan, step

Kinds = tuple[tuple[int, int], ...] | Tensor  # as in `Layout`


class Layout(NamedTuple):
    """Which token is of which kind, and where the real ones are.

    kinds   ((kind, count), ...): runs of tokens, the same in all rows; or (B, N) int64, any kind in any place, which
            costs as much as all kinds together
    order   (B * N,) int64: rows of the flattened tokens with each sequence's real ones first; None: all are real
    back    (B * N,) int64: undoes it
    """

    kinds: Kinds
    order: Tensor | None = None
    back: Tensor | None = None


def layout(kinds: Kinds, keep: Tensor | None) -> Layout:
    """The layout of tokens of these kinds, of which `keep` (B, N) are real."""
    if keep is None:
        return Layout(kinds)
    order = (~keep).int().argsort(dim=1, stable=True)
    first = keep.shape[1] * torch.arange(keep.shape[0], device=keep.device)[:, None]
    return Layout(kinds, (first + order).flatten(), (first + order.argsort(dim=1)).flatten())


class State(NamedTuple):
    """What a mixer remembers: the inputs of its convolution (B, taps - 1, C), and the scan's state (B, S, C)."""

    inputs: Tensor
    hidden: Tensor


class Taps(nn.Conv1d):
    """A causal convolution per channel: (B, taps - 1 + N, C) -> (B, N, C). One of torch's would turn the tokens around:
    thirty times slower."""

    def __init__(self, channels: int, taps: int):
        super().__init__(channels, channels, taps, groups=channels)

    def reset(self) -> None:
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        y, n = cast(Tensor, self.bias), x.shape[1] - self.kernel_size[0] + 1
        for i, weight in enumerate(self.weight[:, 0].T.contiguous()):
            y = torch.addcmul(y, x[:, i : i + n], weight)
        return y


class Mamba(nn.Module):
    """The mixer: Tokens (B, N, D), with their `Layout` in the context -> Tokens (B, N, D), causal.

    linear(inside, outside, bias=) makes a projection f(x, kinds) of tokens (..., C) of these kinds. size: S, states per
    channel. taps: of the convolution. expand: C / D.
    """

    reads = ("layout",)

    def __init__(self, width: int, linear: Make, *, size: int = 16, taps: int = 4, expand: int = 2):
        super().__init__()
        inner, self.rank, self.size = expand * width, math.ceil(width / 16), size
        self.into = linear(width, 2 * inner)
        self.conv = Taps(inner, taps)
        self.choose = linear(inner, self.rank + 2 * size)
        self.pace = linear(self.rank, inner, bias=True)
        self.rates = nn.Parameter(torch.empty(inner, size))  # log of the rates of decay
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = linear(inner, width)

    def reset(self) -> None:
        nn.init.ones_(self.skip)
        self.rates.copy_(torch.arange(1, self.size + 1).log().expand_as(self.rates))

    def reset_pace(self, linear: nn.Linear) -> None:
        """Start what makes step sizes: softplus of its bias is spread over (0.001, 0.1)."""
        nn.init.uniform_(linear.weight, -(self.rank**-0.5), self.rank**-0.5)
        dt = torch.empty_like(linear.bias).uniform_(math.log(0.001), math.log(0.1)).exp()
        linear.bias.copy_(dt + (-torch.expm1(-dt)).log())

    def start(self, rows: int) -> State:
        """The state before the first token."""
        inner, taps = self.conv.in_channels, self.conv.kernel_size[0]
        return State(self.skip.new_zeros(rows, taps - 1, inner), self.skip.new_zeros(rows, self.size, inner))

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="a scan reads every token once, in order")
        return t.replace(x=self.run(t.x, t.read("layout"), t.keep, self.start(t.x.shape[0]))[0])

    def run(self, x: Tensor, layout: Layout, keep: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Tokens (B, N, D), of which `keep` (B, N) are real, after `state` -> (B, N, D), and the state after them."""
        x, gate = self.into(x, layout.kinds).chunk(2, -1)
        x, inputs = self.recent(x, layout, keep, state.inputs)
        dt, b, c = self.chosen(x, layout.kinds)
        if keep is not None:
            dt = dt.masked_fill(~keep[..., None], 0.0)
        y, hidden = selective_scan(x, dt, self.decay(), b, c, state.hidden)
        return self.out(torch.addcmul(y, x, self.skip) * F.silu(gate), layout.kinds), State(inputs, hidden)

    def step(self, x: Tensor, kinds: Tensor, state: State) -> tuple[Tensor, State]:
        """One token per row: x (B, D) of kinds (B,) -> (B, D), and the state with it."""
        x, gate = self.into(x, kinds).chunk(2, -1)
        window = torch.cat([state.inputs, x[:, None]], 1)  # (B, taps, C)
        x = F.silu(self.conv(window)[:, 0])
        dt, b, c = self.chosen(x, kinds)
        y, hidden = step(x, dt, self.decay(), b, c, state.hidden)
        return self.out(torch.addcmul(y, x, self.skip) * F.silu(gate), kinds), State(window[:, 1:], hidden)

    def decay(self) -> Tensor:
        """(S, C) rates, negative."""
        return -wide(self.rates).exp().T.contiguous()

    def chosen(self, x: Tensor, kinds: Kinds) -> tuple[Tensor, Tensor, Tensor]:
        """What each token chooses: step sizes (..., C), how it enters and how it is read, (..., S) each."""
        dt, b, c = self.choose(x, kinds).split([self.rank, self.size, self.size], -1)
        dt = self.pace(dt, kinds)
        return torch.logaddexp(dt, dt.new_zeros(())), b, c  # softplus, twice as fast

    def recent(self, x: Tensor, layout: Layout, keep: Tensor | None, past: Tensor) -> tuple[Tensor, Tensor]:
        """A causal convolution per channel over the real tokens, activated; and the last inputs of each row."""
        n, taps = x.shape[1], self.conv.kernel_size[0]
        if layout.order is not None:
            x = x.flatten(0, 1).index_select(0, layout.order).view_as(x)
        window = torch.cat([past.to(x.dtype), x], 1)  # (B, taps - 1 + N, C)
        y = F.silu(self.conv(window))
        if layout.back is None or keep is None:
            return y, window[:, n:]
        last = keep.sum(1, keepdim=True) + torch.arange(taps - 1, device=x.device)  # (B, taps - 1)
        inputs = window.gather(1, last[..., None].expand(-1, -1, window.shape[2]))
        return y.flatten(0, 1).index_select(0, layout.back).view_as(y), inputs
