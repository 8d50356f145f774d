"""Reviving Shift Equivariance in Vision Transformers. Ding, Soselia, Armstrong, Su, Huang, 2023. arXiv:2306.07470

New here: whatever cuts a map into patches or windows first rolls it, so that the places with the largest norm, of those
that lie a stride apart, come to the corners. A moved picture is then cut as before, and with positions from circular
convolutions the answer stays the same.

Differs: the windows that Swin shifts lie half a window off the anchor, and see across the seam of the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.surgery import Undo, swap, together
from plait.core.tokens import Tokens, unpacked
from plait.errors import PlaitError
from plait.parts.maps import flat, to_map
from plait.parts.mixers.windows import InWindows, WindowAttention
from plait.parts.positions.conditional import ConditionalPositions
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchMap, PatchTokens
from plait.systems.vision.pvt import ReducedAttention
from plait.systems.vision.swin import Merge, ShiftedWindowAttention

Pair = tuple[int, int]


def anchor(x: Tensor, stride: Pair) -> Tensor:
    """Maps (B, C, H, W) -> (B, 2) int64, the row and column below `stride` from which every `stride`-th place has the
    largest norm.

    The norm is the sum of absolute values: after a layer norm the squares of all tokens have the same sum, and rounding
    would choose.
    Raises ValueError where the strides do not divide the sides, so that the last places would be followed by nothing.
    """
    h, w = x.shape[-2:]
    if h % stride[0] or w % stride[1]:
        raise PlaitError(
            f"a map of {h} x {w} does not divide into {stride[0]} x {stride[1]} places: choose another size of pictures"
        )
    energy = x.abs().sum(1).unflatten(2, (-1, stride[1])).unflatten(1, (-1, stride[0])).sum((1, 3))  # (B, *stride)
    best = energy.flatten(1).argmax(1)
    return torch.stack([best // stride[1], best % stride[1]], 1)


def roll(x: Tensor, by: Tensor) -> Tensor:
    """Maps (B, C, H, W), each rolled so that its place `by` (B, 2), a row and a column, comes to the corner."""
    h, w = x.shape[-2:]
    rows, columns = ((torch.arange(side, device=x.device) + by[:, i, None]) % side for i, side in enumerate((h, w)))
    index = (rows[:, :, None] * w + columns[:, None]).flatten(1)  # (B, H W)
    return x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (h, w))


class AnchoredMap(nn.Module):
    """`f` of an anchored map (B, C, H, W); a moved map gives moved places."""

    def __init__(self, f: nn.Module, stride: Pair):
        super().__init__()
        self.f, self.stride = f, stride

    def forward(self, x: Tensor) -> Tensor | Tokens:
        return self.f(roll(x, anchor(x, self.stride)))


class AnchoredTokens(nn.Module):
    """`f` of Tokens of a grid (B, N, D), anchored and rolled back. shift: how many places further the corner lies."""

    on_grid = True

    def __init__(self, f: nn.Module | Callable[[Tokens], Tokens], stride: Pair, shift: Pair = (0, 0)):
        super().__init__()
        self.f, self.stride = f, stride
        self.shift = shift

    def forward(self, t: Tokens) -> Tokens:
        unpacked(t)
        x = to_map(t)
        by = anchor(x, self.stride) + torch.tensor(self.shift, device=x.device)
        y = to_map(self.f(t.replace(x=flat(roll(x, by)))))
        return t.replace(x=flat(roll(y, -by)))


class Unshifted(nn.Module):
    """A `ShiftedWindowAttention` that reads plain windows: Tokens (B, N, D) -> the same."""

    def __init__(self, f: ShiftedWindowAttention):
        super().__init__()
        self.f = f

    def forward(self, t: Tokens) -> Tokens:
        return WindowAttention.forward(self.f, t)


class CircularPositions(nn.Module):
    """x + a depthwise convolution of it over the grid as a ring, which has no edges: Tokens (B, N, D) -> the same;
    special tokens pass."""

    on_grid = True

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, t: Tokens) -> Tokens:
        x, half = to_map(t), self.conv.kernel_size[0] // 2
        x = x + F.conv2d(
            F.pad(x, (half,) * 4, mode="circular"), self.conv.weight, self.conv.bias, groups=self.conv.groups
        )
        x = x.flatten(2).transpose(1, 2)
        return t.replace(x=torch.cat([t.x[:, : t.prefix], x], 1) if t.prefix else x)


def anchored() -> dict[type[nn.Module], Callable[[nn.Module], nn.Module]]:
    """What cuts maps, and what is put in its place."""
    return {
        PatchTokens: lambda m: AnchoredMap(m, (m.patch, m.patch)),
        PatchMap: lambda m: AnchoredMap(m, m.proj.kernel_size),
        Merge: lambda m: AnchoredMap(m, (2, 2)),
        InWindows: lambda m: AnchoredTokens(m, m.size),
        ReducedAttention: lambda m: AnchoredTokens(m, m.shrink.stride),
        WindowAttention: lambda m: AnchoredTokens(m, m.window),
        ShiftedWindowAttention: lambda m: AnchoredTokens(Unshifted(m), m.window, (m.window[0] // 2, m.window[1] // 2)),
    }


def polyphase_anchoring(model: nn.Module, kernel: int | None = 3) -> Undo:
    """The answers of `model` do not change when its picture moves around a ring: cuts are anchored, positions come from
    convolutions.

    kernel: odd side of the circular depthwise convolutions, new ones in place of learned positions; those that there
    are become circular.
    With None positions stay as they are, and only the cuts follow the picture.
    The sides of pictures are to be multiples of all cuts. Raises ValueError for a model that cuts nothing, for one that
    reads a single
    size, and for one with convolutions that are neither cuts nor positions: they would still tell where the picture
    lies. What else a
    model may know of places is not looked for: `consistency` measures it.
    """
    if kernel is not None and kernel % 2 == 0:
        raise PlaitError(f"kernel: got {kernel}, expected an odd number or None")

    def ring(positions: GridPositions) -> nn.Module:
        width = positions.table.shape[-1]
        return CircularPositions(nn.Conv2d(width, width, kernel, groups=width))

    if getattr(model, "multiple", 1) is None:
        raise PlaitError(
            f"{type(model).__name__} reads pictures of one size, each place by weights of its own: "
            "choose one of any size"
        )
    changes = anchored()
    known = (*changes, ConditionalPositions)
    inside = {id(part) for m in model.modules() if type(m) in known for part in m.modules()}
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d) and id(m) not in inside and (set(m.stride) != {1} or set(m.kernel_size) != {1}):
            raise PlaitError(
                f"{type(model).__name__} has the convolution {name}, which knows borders: "
                "choose one of patches and windows"
            )
    if not any(type(m) in changes for m in model.modules()):
        raise PlaitError(
            f"{type(model).__name__} cuts no picture into patches that could be anchored: choose a model that does"
        )
    if kernel is not None:
        changes |= {GridPositions: ring, ConditionalPositions: lambda m: CircularPositions(m.conv)}
    there = {type(m) for m in model.modules()}
    return together(partial(swap, model, kind, make) for kind, make in changes.items() if kind in there)


@torch.no_grad()
def consistency(model: nn.Module, x: Tensor, shifts: list[Pair]) -> float:
    """The share of pictures (B, 3, H, W) and circular shifts, (rows, columns), for which the answer's class stays that
    of the original."""
    said = model(x).argmax(1)
    return sum((model(x.roll(shift, (2, 3))).argmax(1) == said).float().mean().item() for shift in shifts) / len(shifts)
