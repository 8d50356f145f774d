"""A few learned tokens read many, so that a picture takes as few places among words as one likes."""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.attend import Attend
from plait.core.block import FeedForward, Make, Stack, check_heads, merge_heads
from plait.core.tokens import Tokens, join, refuse
from plait.parts.positions.learned import Learned
from plait.parts.towers.encoder import pre_norm_blocks


class LatentAttention(nn.Module):
    """Tokens (B, N, D) look at a stream of their context (B, M, D), which is normed here, and at themselves: -> Tokens
    (B, N, D).

    kv_heads: of keys and values, a divisor of `heads`. head_width: E, D / heads unless given. bias: of all projections.
    """

    def __init__(
        self, width: int, heads: int, *, kv_heads: int | None = None, head_width: int | None = None,
        norm: Make = nn.LayerNorm, bias: bool = False, stream: str = "stream",
    ):  # fmt: skip
        super().__init__()
        if head_width is None:
            check_heads(width, heads)
        e, self.heads, self.kv_heads = head_width or width // heads, heads, kv_heads or heads
        check_heads(heads, self.kv_heads)
        self.stream, self.reads = stream, (stream,)
        self.norm = norm(width)
        self.q = nn.Linear(width, heads * e, bias=bias)
        self.kv = nn.Linear(width, 2 * self.kv_heads * e, bias=bias)
        self.attend = Attend(cross=True)
        self.out = nn.Linear(heads * e, width, bias=bias)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="what stands for a picture is made of all of it at once")
        other = t.read(self.stream)
        seen = join(*(Tokens(x, keep=s.keep, weight=s.weight, lengths=s.lengths)
                      for x, s in ((self.norm(other.x), other), (t.x, t))))  # fmt: skip
        q = self.q(t.x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, N, E)
        k, v = (x.transpose(1, 2) for x in self.kv(seen.x).unflatten(2, (2, self.kv_heads, -1)).unbind(2))
        t = self.attend(t, q, k, v, to=seen)
        return t.replace(x=self.out(merge_heads(t.x)))


class Latents(Learned):
    """Small at first, so that what they find is heard beside them: at the size of the tokens, a small model does not
    learn to look."""

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)


class Resampler(nn.Module):
    """Tokens (B, M, D), any number of them -> Tokens (B, `count`, D), normed: what as many learned ones found.

    heads, kv_heads, head_width: of `LatentAttention`. hidden: the width of the feed-forward. norm(width), feed(width,
    hidden) make the modules. Source: Flamingo (arXiv:2204.14198); of Idefics2 (arXiv:2405.02246) the grouped queries.
    """

    def __init__(
        self, count: int, width: int, depth: int, heads: int, hidden: int, *, kv_heads: int | None = None,
        head_width: int | None = None, norm: Make = nn.LayerNorm, feed: Make = FeedForward,
    ):  # fmt: skip
        super().__init__()
        self.latents = Latents(count, width)
        mix = partial(LatentAttention, kv_heads=kv_heads, head_width=head_width, norm=norm)
        self.stack = Stack(
            *pre_norm_blocks(width, depth, heads, hidden, norm=norm, mix=mix, feed=feed), gives=("stream",)
        )
        self.norm = norm(width)

    def forward(self, t: Tokens) -> Tokens:
        latents = self.latents()
        out = self.stack(Tokens(latents.expand(t.x.shape[0], -1, -1)).reading(stream=t))
        return Tokens(self.norm(out.x)).with_losses(t, out)
