"""The layers of plain transformer encoders, built in the two residual orders that published systems use.

Both functions return a list of blocks, so that a tower whose later layers differ (BERT's second half looking at a
picture) is the sum of
two lists: `Stack(*post_norm_blocks(768, 6, 12, 3072, ...), *post_norm_blocks(768, 6, 12, 3072, ...,
cross=CrossAttention))`.
"""

from __future__ import annotations

from torch import nn

from plait.core.block import Attention, Block, DropPath, FeedForward, LayerScale, Make, Post, Pre


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
    """`depth` layers x + f(norm(x)), as in ViT and GPT.

    norm(width), mix(width, heads) and feed(width, hidden) make the modules: a class or a `partial`, such as
    `partial(nn.LayerNorm, eps=1e-6)`, `partial(Attention, causal=True)` or `partial(FeedForward, act=QuickGELU)`.
    drop_path: the last layer's rate of stochastic depth; it grows linearly from 0. scale: where a learned layer scale
    starts, if any.
    """

    def after(i: int) -> nn.Module:
        drop = DropPath(drop_path * i / max(depth - 1, 1))
        return drop if scale is None else nn.Sequential(LayerScale(width, scale), drop)

    return [
        Block(mix=Pre(norm(width), mix(width, heads), after(i)), feed=Pre(norm(width), feed(width, hidden), after(i)))
        for i in range(depth)
    ]


def post_norm_blocks(
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    *,
    norm: Make = nn.LayerNorm,
    mix: Make = Attention,
    cross: Make | None = None,
    dropout: float = 0.0,
) -> list[Block]:
    """`depth` layers norm(x + f(x)), as in BERT.

    norm, mix as in `pre_norm_blocks`. cross(width, heads) makes the cross-attention to another stream, between the two
    others.
    dropout: the rate on every branch; give the rate on attention weights with `mix=partial(Attention, dropout=...)`.
    """

    def step(f: nn.Module) -> Post:
        return Post(norm(width), f, nn.Dropout(dropout))

    def block() -> Block:
        return Block(
            mix=step(mix(width, heads)),
            feed=step(FeedForward(width, hidden)),
            cross=cross and step(cross(width, heads)),
        )

    return [block() for _ in range(depth)]
