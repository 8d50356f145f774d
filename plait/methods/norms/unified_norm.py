"""Unified Normalization for Accelerating and Stabilizing Transformers. Yang, Zhang, Xie, Ren, Zhang, Pu, 2022.
arXiv:2208.01313

New here: a batch norm that transformers can be trained with. Tokens are divided by their root mean square over the
batch, smoothed over the last few batches by a geometric mean; the gradient's statistics are smoothed too. A batch in
which the means of the window differ too much, as outliers make them, is not smoothed. In evaluation the norm is a fixed
scale, which `fold_norms` puts into the linear layer that follows.

Differs: padding is left out of all statistics. Norms outside of residual steps, which do not know it, change in models
of pictures alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, FeedForward, Post, Pre
from plait.core.surgery import Undo, swap, together, with_weights
from plait.core.tokens import Tokens
from plait.errors import PlaitError

FIRST = {Attention: "qkv", CrossAttention: "q", FeedForward: "up"}  # the only layer that reads what is normed


class Affine(nn.Module):
    """x * weight + bias: what is left of a norm with fixed statistics where it has no linear layer to go into."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class MaskedPre(Pre):
    """As `Pre`, with a norm that is told which tokens are real: norm(x, keep)."""

    def forward(self, t: Tokens) -> Tokens:
        y = self.f(t.replace(x=self.norm(t.x, t.keep)))
        return t.carry(y, t.x + (y.x if self.after is None else self.after(y.x)))

    def fold(self) -> nn.Module:
        """The step with its norm, an `Affine` by then, in the first layer of `f` where that is known."""
        name = getattr(self.f, "first", None) or FIRST.get(type(self.f))
        if name is None:
            return Pre(self.norm, self.f, self.after)
        layer: nn.Linear = self.f.get_submodule(name)
        bias = layer.weight @ self.norm.bias
        bias = bias if layer.bias is None else layer.bias + bias
        self.f.set_submodule(name, with_weights(layer, layer.weight * self.norm.weight, bias))
        return Pre(nn.Identity(), self.f, self.after)


class MaskedPost(Post):
    """As `Post`, with a norm that is told which tokens are real. What it gives also goes on as it is: it folds into a
    scale of its own."""

    def forward(self, t: Tokens) -> Tokens:
        y = self.f(t)
        return t.carry(y, self.norm(t.x + (y.x if self.after is None else self.after(y.x)), t.keep))

    def fold(self) -> nn.Module:
        return Post(self.norm, self.f, self.after)


def swap_norms(model: nn.Module, make: Callable[[nn.LayerNorm], nn.Module]) -> Undo:
    """Put make(norm), called as (x, keep=None), where layer norms over channels stand: in residual steps, and in models
    of pictures alone everywhere. Returns the undo; raises ValueError for a model that has none."""

    def fits(norm: nn.Module | None) -> bool:
        return (
            type(norm) is nn.LayerNorm
            and len(norm.normalized_shape) == 1
            and norm.weight is not None
            and norm.bias is not None
        )

    def step(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module | None]:
        return lambda old: kind(make(old.norm), old.f, old.after) if fits(old.norm) else None

    steps = [m for m in model.modules() if type(m) in (Pre, Post) and fits(m.norm)]
    inside = {id(m.norm) for m in steps}
    changes = [
        partial(swap, model, old, step(new))
        for old, new in ((Pre, MaskedPre), (Post, MaskedPost))
        if old in map(type, steps)
    ]
    everywhere = tuple(getattr(model, "takes", ())) == ("image",)
    alone = {id(m) for m in model.modules() if everywhere and fits(m)} - inside
    if alone or not changes:
        changes.append(partial(swap, model, nn.LayerNorm, lambda norm: make(norm) if id(norm) in alone else None))
    return together(changes)


def average(x: Tensor, keep: Tensor | None) -> Tensor:
    """(C,): the mean of the real tokens of x (..., C); keep (...) bool. Of none it is zero."""
    x = x.flatten(0, -2)
    if keep is None:
        return x.mean(0)
    keep = keep.flatten()[:, None]
    return x.masked_fill(~keep, 0.0).sum(0) / keep.sum().clamp(min=1)


class Scale(torch.autograd.Function):
    """x * scale * weight + bias, whose gradient knows that `scale` comes from x by smoothed statistics, which it keeps
    up to date."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, ratio, keep, record, slot, smooth, skip, momentum):
        z = x * scale
        ctx.save_for_backward(z, weight, scale, ratio, keep, slot, smooth, skip)
        ctx.record, ctx.momentum = record, momentum
        return torch.addcmul(bias, z, weight)

    @staticmethod
    def backward(ctx, grad):
        z, weight, scale, ratio, keep, slot, smooth, skip = ctx.saved_tensors
        window, moving = ctx.record
        g = grad * (weight * ratio)
        now = average(g * z, keep)
        window.copy_(torch.where(slot, torch.where(skip, moving, now), window))
        now = torch.where(smooth, window.mean(0), now)
        moving.lerp_(now, 1 - ctx.momentum)
        along = torch.where(skip, now, moving)
        rest = [None] * 8
        return (g - along * z) * scale, (grad * z).flatten(0, -2).sum(0) * ratio, grad.flatten(0, -2).sum(0), *rest


class UnifiedNorm(nn.Module):
    """Tokens (..., C), keep (...) bool -> (..., C), with the gain and bias of the layer norm `old`.

    Statistics are those of one batch until `warmup` batches were seen, then smoothed over `window` of them.
    """

    seen: Tensor  # (1,) int64
    square: Tensor  # (C,)
    squares: Tensor  # (window, C)
    slope: Tensor
    slopes: Tensor

    def __init__(self, old: nn.LayerNorm, window: int, warmup: int, filtration: bool, momentum: float):
        super().__init__()
        width = old.normalized_shape[0]
        self.old, self.warmup, self.filtration, self.momentum, self.eps = old, warmup, filtration, momentum, 1e-5
        self.register_buffer("seen", torch.empty(1, dtype=torch.int64))
        self.register_buffer("square", torch.empty(width))
        self.register_buffer("squares", torch.empty(window, width))
        self.register_buffer("slope", torch.empty(width))
        self.register_buffer("slopes", torch.empty(window, width))

    def reset(self) -> None:
        for buffer in (self.seen, self.squares, self.slope, self.slopes):
            buffer.zero_()
        self.square.fill_(1.0)

    def fold(self) -> Affine:
        return Affine(self.old.weight * (self.square + self.eps).rsqrt(), self.old.bias)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if not self.training:
            return torch.addcmul(self.old.bias, x, self.old.weight * (self.square + self.eps).rsqrt())
        with torch.no_grad():
            scale, ratio, slot, smooth, skip = self.observe(average(x.float().square(), keep))
        record = (self.slopes, self.slope)
        return Scale.apply(
            x, self.old.weight, self.old.bias, scale, ratio, keep, record, slot, smooth, skip, self.momentum
        )

    def observe(self, now: Tensor) -> tuple[Tensor, ...]:
        """Take in a batch's mean squares (C,): the scale to use, its ratio to the running one, and how the gradient's
        are to be treated."""
        self.seen += 1
        count, warm = self.squares.shape[0], self.seen >= self.warmup
        slot = (torch.arange(count, device=now.device) == self.seen % count)[:, None]
        spread = self.squares.sqrt().var()
        squares = torch.where(slot, now, self.squares)
        apart = (squares.mean(0) - squares.log().mean(0).exp() > count * spread).any()
        skip = warm & apart & self.filtration  # (1,): an outlier is in this batch
        self.squares.copy_(torch.where(slot & skip, self.square, squares))
        smooth = (self.seen > count) & warm & ~skip
        square = torch.where(smooth, self.squares.log().mean(0).exp(), now)
        scale = (square + self.eps).rsqrt()
        ratio = ((self.square + self.eps).rsqrt() / scale).clamp(1 / 5, 5)
        ratio = torch.where((self.seen > max(1000, self.warmup)) & ~skip, ratio, 1.0)
        self.square.lerp_(square, 1 - self.momentum)
        return scale, ratio, slot, smooth, skip


def unified_norm(
    model: nn.Module, window: int = 4, warmup: int = 4000, filtration: bool = True, momentum: float = 0.9
) -> Undo:
    """The layer norms of `model` become unified norms with their gain and bias. To be trained so: the statistics are
    others.

    window: over how many batches statistics are smoothed, from `warmup` batches on. filtration: of batches with
    outliers; the paper leaves it out for texts. momentum: of the running statistics. At the end `fold_norms` takes the
    norms away.
    Raises ValueError for a window below 2, and for a model without layer norms.
    """
    if window < 2:
        raise PlaitError(f"window: got {window}, expected 2 or more batches to smooth over")
    return swap_norms(model, lambda norm: UnifiedNorm(norm, window, warmup, filtration, momentum))
