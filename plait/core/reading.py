"""The last layer of a stack, for the one token of each row that is read of it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, Block, FeedForward, Pre, Stack, bare, watched
from plait.core.tokens import Tokens, real


def read_at(stack: nn.Module, t: Tokens, at: Tensor | int) -> Tokens:
    """What `stack(t)` says of one token of each row: Tokens (B, 1, D) without a mask. at: which, (B,), or one for all.

    Nobody reads what the last layer makes of the others, so that they are only looked at there: of its products nine in
    twelve or more are left out. A layer that is not `pre_norm`'s of attention, that is watched, or whose tokens say
    more of themselves than which are real, is computed whole.
    """
    if type(stack) is Stack and len(stack.blocks) and not watched(stack):
        *others, last = stack.blocks
        if isinstance(last, Block) and _plain(last, t):
            for block in others:
                t = block(t)
            return _last(last, t, at)
    t = stack(t)
    return t.replace(x=picked(t.x, at), **ALONE)


ALONE = dict(keep=None, pos=None, grid=None, weight=None, kinds=None)  # what is known of many tokens and not of one


def picked(x: Tensor, at: Tensor | int) -> Tensor:
    """(B, N, D) -> (B, 1, D)."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    return x[torch.arange(x.shape[0], device=x.device), at][:, None]


def _plain(block: Block, t: Tokens) -> bool:
    if type(block) is not Block or block.cross is not None or "forward" in vars(block):
        return False
    mix, feed = block.mix, block.feed
    if type(mix) is not Pre or type(feed) is not Pre or type(mix.f) is not Attention or type(feed.f) is not FeedForward:
        return False
    attend = mix.f.attend
    if type(attend) is not Attend or attend.tape is not None or attend.backend != "sdpa" or attend.dropout:
        return False
    if any(field is not None for field in (t.weight, t.lengths, t.context, t.memory)):
        return False
    return not watched(block, mix, mix.f, attend, feed, feed.f)


def _last(block: Block, t: Tokens, at: Tensor | int) -> Tokens:
    mix, feed = cast(Pre, block.mix), block.feed
    f, one = cast(Attention, mix.f), t.replace(x=picked(t.x, at), **ALONE)
    inner = t.replace(x=mix.norm(t.x))
    if f.attend.causal:
        places = torch.arange(t.x.shape[1], device=t.x.device)
        past = places <= (at if isinstance(at, int) else at[:, None])
        inner = inner.replace(keep=past & real(inner))
    q, k, v = _projected(f, inner, at)
    y = f.merge(f.attend(one, q, k, v, to=inner))
    one = one.carry(y, one.x + (y.x if mix.after is None else mix.after(y.x)))
    return feed(one)


def _projected(f: Attention, t: Tokens, at: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, 1, E) of what is read, keys and values (B, G, N, E) of all."""
    if f.q_norm is not None or f.k_norm is not None or f.rotary is not None or not bare(f.qkv):
        q, k, v = f.project(t)
        return picked(q.transpose(1, 2), at).transpose(1, 2), k, v
    weight, bias = f.qkv.weight, f.qkv.bias
    width = weight.shape[0] * f.heads // (f.heads + 2 * f.kv_heads)  # of the queries
    b, c = (None, None) if bias is None else (bias[:width], bias[width:])
    q = F.linear(picked(t.x, at), weight[:width], b).unflatten(2, (f.heads, -1))
    k, v = F.linear(t.x, weight[width:], c).unflatten(2, (2, f.kv_heads, -1)).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
