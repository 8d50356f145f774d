"""The unit of every tower: attention or another mixer, then a feed-forward step, each with its residual.

`Block` is what FSDP wraps, what is checkpointed, compiled, frozen, tapped and pruned. Where the norm stands is a
choice of wrapper (`Pre`, `Post`), not a flag; what mixes and what feeds are modules passed in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import attend
from plait.core.tokens import Tokens, unpacked


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, causal: bool = False, dropout: float = 0.0):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        q, k, v = self.project(t)
        drop = self.dropout if self.training else 0.0
        y = attend(q, k, v, keep=t.keep, bias=log_weight(t), causal=self.causal, dropout=drop, lengths=t.lengths)
        return t.replace(x=self.merge(y))

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        """Queries, keys and values of the tokens, each (B, H, N, E)."""
        return heads_of(self.qkv(t.x), 3, self.heads)

    def merge(self, y: Tensor) -> Tensor:
        """What each head gathered, (B, H, N, E) -> (B, N, D)."""
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Queries from one stream (B, N, D), keys and values from another (B, M, C): -> Tokens (B, N, D)."""

    def __init__(
        self, width: int, heads: int, *, context_width: int | None = None, qkv_bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(context_width or width, 2 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tokens, context: Tokens) -> Tokens:
        unpacked(t, context)
        (q,) = heads_of(self.q(t.x), 1, self.heads)  # (B, H, N, E)
        k, v = heads_of(self.kv(context.x), 2, self.heads)  # each (B, H, M, E)
        drop = self.dropout if self.training else 0.0
        y = attend(q, k, v, keep=context.keep, bias=log_weight(context), dropout=drop)
        return t.replace(x=self.out(y.transpose(1, 2).flatten(2)))


def heads_of(x: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """The fused projections (B, N, count * D) apart and cut into heads: `count` tensors (B, H, N, E)."""
    return tuple(part.transpose(1, 2) for part in x.unflatten(2, (count, heads, -1)).unbind(2))


def check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(
            f"width {width} does not divide into {heads} heads: choose a number of heads that divides the width"
        )


def log_weight(t: Tokens) -> Tensor | None:
    """(B, 1, 1, N) additive bias log(weight): a token that stands for n source tokens is attended to n times."""
    return None if t.weight is None else t.weight.clamp(min=1e-6).log()[:, None, None, :]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class FeedForward(nn.Module):
    """Two linear layers with an activation between: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int, *, act: type[nn.Module] = nn.GELU, dropout: float = 0.0):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, hidden), act(), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, t: Tokens) -> Tokens:
        x = self.up(t.x)
        # The hidden layer is the largest tensor of a model: without a gradient, and with nobody watching, it is changed
        # where it lies.
        alone = type(self.act) is nn.GELU and not (
            torch.is_grad_enabled() or self.up._forward_hooks or self.act._forward_pre_hooks
        )
        x = torch.ops.aten.gelu_(x, approximate=self.act.approximate) if alone else self.act(x)
        return t.replace(x=self.down(self.drop(x)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drops the branch of whole samples while training, keeping its
    expectation."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        stay = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * stay / (1.0 - self.rate)


class LayerScale(nn.Module):
    """A learned factor per channel on a branch (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, start: float = 1e-5):
        super().__init__()
        self.start, self.gamma = start, nn.Parameter(torch.empty(width))

    def reset(self) -> None:
        nn.init.constant_(self.gamma, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Pre(nn.Module):
    """x + after(f(norm(x))). `after` acts on the branch alone: dropout, stochastic depth, a learned scale."""

    def __init__(self, norm: nn.Module, f: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.norm, self.f, self.after = norm, f, after

    def forward(self, t: Tokens, *context: Tokens) -> Tokens:
        y = self.f(t.replace(x=self.norm(t.x)), *context).x
        return t.replace(x=t.x + (y if self.after is None else self.after(y)))


class Post(nn.Module):
    """norm(x + after(f(x))), the order of the original transformer and of BERT."""

    def __init__(self, norm: nn.Module, f: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.norm, self.f, self.after = norm, f, after

    def forward(self, t: Tokens, *context: Tokens) -> Tokens:
        y = self.f(t, *context).x
        return t.replace(x=self.norm(t.x + (y if self.after is None else self.after(y))))


class Block(nn.Module):
    """One layer: `mix` among the tokens, optionally `cross` to another stream, then `feed` each token.

    Each of the three is a residual step (`Pre` or `Post`).
    """

    def __init__(self, mix: nn.Module, feed: nn.Module, cross: nn.Module | None = None):
        super().__init__()
        self.mix, self.cross, self.feed = mix, cross, feed

    def forward(self, t: Tokens, context: Tokens | None = None) -> Tokens:
        t = self.mix(t)
        if self.cross is not None:
            if context is None:
                raise ValueError(
                    "this block looks at another stream: got no context, expected Tokens as the second argument"
                )
            t = self.cross(t, context)
        return self.feed(t)


class Stack(nn.Module):
    """Blocks in order, all given the same context."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, t: Tokens, context: Tokens | None = None) -> Tokens:
        for block in self.blocks:
            t = block(t, context)
        return t
