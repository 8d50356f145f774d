"""The layers of transformer encoders, built in the two residual orders that published systems use.

`pre_norm` is one layer of given parts. `pre_norm_blocks` and `post_norm_blocks` are the lists of plain towers, so that
one whose later layers differ (BERT's second half looking at a picture) is the sum of two:
`Stack(*post_norm_blocks(768, 6, 12, 3072), *post_norm_blocks(768, 6, 12, 3072, cross=CrossAttention))`.
"""

from __future__ import annotations

from torch import nn

from plait.core.block import Attention, Block, DropPath, FeedForward, LayerScale, Make, Post, Pre, drop_rates


def after(width: int, drop: float, scale: float | None = None) -> nn.Module:
    """What a branch passes before it is added: a learned factor per channel, where `scale` says at what it starts, and
    stochastic depth of rate `drop`."""
    path = DropPath(drop)
    return path if scale is None else nn.Sequential(LayerScale(width, scale), path)


def pre_norm(
    width: int, mix: nn.Module, feed: nn.Module,
    *, norm: Make = nn.LayerNorm, drop: float = 0.0, scale: float | None = None,
) -> Block:  # fmt: skip
    """A layer x + f(norm(x)) whose steps f are `mix`, then `feed`.

    norm(width) makes the norms. drop, scale: as in `after`.
    """

    steps = (Pre(norm(width), f, after(width, drop, scale)) for f in (mix, feed))
    return Block(*steps)


def pre_norm_blocks(
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    *,
    norm: Make = nn.LayerNorm,
    mix: Make = Attention,
    feed: Make = FeedForward,
    drop_path: float = 0.0,
    scale: float | None = None,
) -> list[Block]:
    """`depth` layers `pre_norm`, as in ViT and GPT.

    norm(width), mix(width, heads) and feed(width, hidden) make the modules: a class or a `partial`, such as
    `partial(nn.LayerNorm, eps=1e-6)`, `partial(Attention, causal=True)` or `partial(FeedForward, act=QuickGELU)`.
    drop_path: the last layer's rate of stochastic depth; it grows linearly from 0. scale: as in `pre_norm`.
    """
    return [
        pre_norm(width, mix(width, heads), feed(width, hidden), norm=norm, drop=rate, scale=scale)
        for rate in drop_rates(drop_path, depth)
    ]


def post_norm_blocks(
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    *,
    norm: Make = nn.LayerNorm,
    mix: Make = Attention,
    feed: Make = FeedForward,
    cross: Make | None = None,
    dropout: float = 0.0,
) -> list[Block]:
    """`depth` layers norm(x + f(x)), as in BERT.

    norm, mix, feed as in `pre_norm_blocks`. cross(width, heads) makes the cross-attention to another stream, between
    the others. dropout: on every branch; that on attention weights comes with `mix=partial(Attention, dropout=...)`.
    """

    def step(f: nn.Module) -> Post:
        return Post(norm(width), f, nn.Dropout(dropout))

    def block() -> Block:
        between = cross and step(cross(width, heads))
        return Block(mix=step(mix(width, heads)), feed=step(feed(width, hidden)), cross=between)

    return [block() for _ in range(depth)]
