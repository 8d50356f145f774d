"""The unit of every tower: attention or another mixer, then a feed-forward step, each with its residual.

`Layer` is what FSDP wraps, what is checkpointed, compiled, frozen, tapped and pruned. Where the norm stands is a
choice of wrapper (`Pre`, `Post`), not a flag; what mixes and what feeds are modules passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.memory import KeyValue, Page
from plait.core.tokens import Tokens, real, unpacked
from plait.errors import PlaitError

Make = Callable[..., nn.Module]


class Layer(nn.Module):
    """Tokens -> Tokens: the unit that is sharded, recomputed, compiled by region, tapped, pruned and left early.

    All that leaves it is in the value that it returns. It and its parts say in literals what they read of the context
    (`reads`), what of it they give each other (`gives`), and whether they are bound to the grid (`on_grid`).
    """

    reads: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    on_grid = False

    def forward(self, t: Tokens) -> Tokens:
        raise NotImplementedError(f"{type(self).__name__} has no forward(t: Tokens) -> Tokens")


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection: Tokens (B, N, D) -> Tokens (B, N, D).

    kv_heads: of keys and values, a divisor of `heads` (grouped queries). head_width: E, D / heads unless given.
    qk_norm(E) makes a norm of each head's queries and one of its keys. rotary(q, k, t) turns them, (B, N, H, E) and
    (B, N, G, E), by where their tokens stand. out_bias: whether the projection after the heads are merged has one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_width: int | None = None,
        qkv_bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        qk_norm: Make | None = None,
        rotary: nn.Module | None = None,
        out_bias: bool = True,
    ):
        super().__init__()
        if head_width is None:
            check_heads(width, heads)
        e, self.heads, self.kv_heads = head_width or width // heads, heads, kv_heads or heads
        check_heads(heads, self.kv_heads)
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * e, bias=qkv_bias)
        self.q_norm = None if qk_norm is None else qk_norm(e)
        self.k_norm = None if qk_norm is None else qk_norm(e)
        self.rotary = rotary
        self.attend = Attend(causal=causal, dropout=dropout)
        self.out = nn.Linear(heads * e, width, bias=out_bias)

    def forward(self, t: Tokens) -> Tokens:
        return self.merge(self.attend(t, *self.project(t)))

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        """Queries (B, H, N, E), keys and values (B, G, N, E) of the tokens."""
        h, g, x = self.heads, self.kv_heads, self.qkv(t.x)
        if g == h:
            q, k, v = x.unflatten(2, (3, h, -1)).unbind(2)  # (B, N, H, E)
        else:
            q, k, v = x.unflatten(2, (h + 2 * g, -1)).split([h, g, g], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, k, t)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def merge(self, t: Tokens) -> Tokens:
        """What each head gathered, x (B, H, N, E), as tokens (B, N, D)."""
        return t.replace(x=self.out(merge_heads(t.x)))


class CrossAttention(nn.Module):
    """Queries from the tokens (B, N, D), keys and values from a stream of their context (B, M, C): -> Tokens (B, N, D).

    stream: its name in the context. With a memory the stream is projected once and remembered.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context_width: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        stream: str = "stream",
    ):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.stream, self.reads = heads, stream, (stream,)
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(context_width or width, 2 * width, bias=qkv_bias)
        self.attend = Attend(dropout=dropout, cross=True)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        other, page = t.read(self.stream), t.memory
        unpacked(t, other)
        (q,) = split_heads(self.q(t.x), 1, self.heads)  # (B, H, N, E)
        pair = None if page is None else page.streams.get(self.stream)
        k, v = self.keys_and_values(other.x) if pair is None else pair
        t = self.attend(t, q, k, v, to=other)
        page = page if page is None or pair is not None else page.holding(self.stream, (k, v))
        return t.replace(x=self.out(merge_heads(t.x)), memory=page)

    def keys_and_values(self, x: Tensor) -> KeyValue:
        """Of the stream (B, M, C): (B, H, M, E) each."""
        k, v = split_heads(self.kv(x), 2, self.heads)
        return k, v


def split_heads(x: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """The fused projections (B, N, count * D) apart and cut into heads: `count` tensors (B, H, N, E)."""
    return tuple(part.transpose(1, 2) for part in x.unflatten(2, (count, heads, -1)).unbind(2))


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, E) -> (B, N, H * E)."""
    return x.transpose(1, 2).flatten(2)


def check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise PlaitError(
            f"width {width} does not divide into {heads} heads: choose a number of heads that divides the width"
        )


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
        alone = type(self.act) is nn.GELU and not (torch.is_grad_enabled() or watched(self.act, self.up))
        x = torch.ops.aten.gelu_(x, approximate=self.act.approximate) if alone else self.act(x)
        return t.replace(x=self.down(self.drop(x)))


def watched(*modules: nn.Module) -> bool:
    """Whether somebody looks at what goes into one of these or comes out."""
    return any(m._forward_pre_hooks or m._forward_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


def bare(layer: nn.Linear) -> bool:
    """Whether its weights are all that it is: no adapter, nothing of eight bits, nobody watching. Else it is called."""
    return type(layer) is nn.Linear and not watched(layer)


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


def drop_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth's rate of each of `depth` layers: it grows linearly from 0 to the last layer's `rate`."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def stage_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """`drop_rates` over all layers of a pyramid, stage by stage."""
    rates = iter(drop_rates(rate, sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


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

    def forward(self, t: Tokens) -> Tokens:
        y = self.f(t.replace(x=self.norm(t.x)))
        return t.carry(y, t.x + (y.x if self.after is None else self.after(y.x)))


class Post(nn.Module):
    """norm(x + after(f(x))), the order of the original transformer and of BERT."""

    def __init__(self, norm: nn.Module, f: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.norm, self.f, self.after = norm, f, after

    def forward(self, t: Tokens) -> Tokens:
        y = self.f(t)
        return t.carry(y, self.norm(t.x + (y.x if self.after is None else self.after(y.x))))


class Block(Layer):
    """The usual layer: `mix` among the tokens, optionally `cross` to another stream, then `feed` each token.

    Each of the three is a residual step (`Pre` or `Post`).
    """

    def __init__(self, mix: nn.Module, feed: nn.Module, cross: nn.Module | None = None):
        super().__init__()
        self.mix, self.cross, self.feed = mix, cross, feed

    def forward(self, t: Tokens) -> Tokens:
        t = self.mix(t)
        return self.feed(t if self.cross is None else self.cross(t))


def wanted(module: nn.Module) -> set[str]:
    """What `module` and its parts read of the context and do not give each other: a module's `gives` names that."""
    inside = {name for child in module.children() for name in wanted(child)}
    return (inside - set(getattr(module, "gives", ()))) | set(getattr(module, "reads", ()))


def bound_to_grid(module: nn.Module) -> bool:
    """Whether it reads every place of the grid, so that the number of its tokens must not change."""
    return any(getattr(m, "on_grid", False) for m in module.modules())


class Stack(nn.Module):
    """Layers in order: Tokens -> Tokens. Each gets its page of the tokens' memory, if they have one.

    gives: what the tokens' context will give its layers to read. Raises ValueError where a layer reads what nobody
    gives, or something is given that nobody reads.
    """

    def __init__(self, *blocks: nn.Module, gives: tuple[str, ...] = ()):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        reads = {name for block in blocks for name in wanted(block)}
        if missing := sorted(reads - set(gives)):
            raise PlaitError(f"its layers read {', '.join(missing)}, which nobody gives: name it in gives=")
        if idle := sorted(set(gives) - reads):
            raise PlaitError(f"{', '.join(idle)} is given, and none of its layers reads it: leave it out of gives=")

    def forward(self, t: Tokens) -> Tokens:
        if t.memory is not None:
            return self._remembering(t)
        for block in self.blocks:
            t = block(t)
            if not isinstance(t, Tokens):
                raise PlaitError(
                    f"a layer gave a {type(t).__name__}, expected Tokens: torch's checkpoint with use_reentrant=True "
                    "loses their gradients; use_reentrant=False, or plait.core.recompute.recompute, keep them"
                )
        return t

    def without_last(self, t: Tokens, count: int) -> Tokens:
        """As `forward`, but for the last `count` layers: what a layer further down makes of the tokens."""
        if t.memory is not None or not 0 <= count < len(self.blocks):
            raise PlaitError(f"got {count} layers to leave out of {len(self.blocks)}, expected fewer, and no memory")
        for block in self.blocks[: len(self.blocks) - count]:
            t = block(t)
        return t

    def _remembering(self, t: Tokens) -> Tokens:
        start = t.memory.start
        pages: tuple[dict[str, KeyValue], ...] = t.memory.pages or ({},) * len(self.blocks)
        found: list[dict[str, KeyValue]] = []
        allow = None if t.context is None else t.context.get("allow")
        memory, keep = t.memory.open(real(t), allow)
        if t.keep is None and allow is None and not t.memory.pages:
            keep = None  # all are real, and the first: no mask of N x N is needed
        for block, page in zip(self.blocks, pages, strict=True):
            t = block(t.replace(memory=Page(page, keep, start)))
            found.append(t.memory.streams)
        return t.replace(memory=memory._replace(pages=tuple(found)))
