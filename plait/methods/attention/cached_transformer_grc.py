"""Cached Transformers: Improving Transformers with Differentiable Memory Cache. Zhang et al., 2023. arXiv:2312.12742

New here: every self-attention has a cache of tokens that outlives the input. What it says of an input is drawn into the
cache through the gates of a recurrent unit, the tokens attend to the cache so renewed, and each head has a learned
share of that in its answer.

A forward pass changes nothing: it renews the cache for its own answer, and forgets. The caches themselves go on only
inside `advancing`:

    with advancing(model):  # in training, each step; in evaluation not at all, or along the segments of a text
        loss = objective(model(x))

Differs: the cache has a given length, and a row of tokens is read at as many places spread evenly over its real tokens;
the public code takes the length of the first input it sees. An empty cache holds a faint code of its places, not zeros,
from which the gate that forgets could learn nothing. The convolutional positions of the public code are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention
from plait.core.surgery import Undo, swap_attention
from plait.core.tokens import Tokens, unpacked
from plait.errors import PlaitError

BY_HAND = "its caches go on only in steps that are trained inside `advancing(model)`"


class Cache(nn.Module):
    """`length` tokens of `width` C, and the gates by which they take up new ones: (B, length, C) -> the cache renewed,
    (B, length, C)."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.forget, self.update, self.add = (nn.Linear(2 * width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("tokens", torch.empty(1, length, width))

    def reset(self) -> None:
        """Empty it."""
        place, channel = (torch.arange(1, n + 1, device=self.tokens.device) for n in self.tokens.shape[1:])
        self.tokens = 0.02 * torch.sin(place[:, None] * channel)[None]

    def forward(self, news: Tensor) -> Tensor:
        old = self.tokens.expand_as(news)
        both = torch.cat([old, news], -1)
        forget, update = self.forget(both).sigmoid(), self.update(both).sigmoid()
        new = self.norm(F.gelu(self.add(torch.cat([forget * old, news], -1))))
        return update * new + (1 - update) * old


class CachedAttention(nn.Module):
    """`attention` and attention to a cache that it renews, mixed head by head: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, attention: Attention, length: int, width: int):
        super().__init__()
        self.attention, self.cache = attention, Cache(length, width)
        self.cross = CrossAttention(
            width, attention.heads, qkv_bias=attention.qkv.bias is not None, dropout=attention.attend.dropout
        )
        self.share = nn.Parameter(torch.empty(attention.heads))

    def reset(self) -> None:
        nn.init.constant_(self.share, -1.0)  # before the sigmoid: 0.27 of the cache

    def forward(self, t: Tokens) -> Tokens:
        unpacked(t)
        length, width = self.cache.tokens.shape[1:]
        t = self.attention(given := t)
        y = t.x  # (B, N, D)
        said = y[..., :width]
        places = spread(t, length)[..., None].expand(-1, -1, width)
        cache = Tokens(self.cache(said.gather(1, places)))
        t = self.cross(t.replace(x=given.x[..., :width]).reading(stream=cache))
        seen = t.x.unflatten(2, (len(self.share), -1))
        share = self.share.sigmoid()[:, None]  # (H, 1)
        y = y.unflatten(2, (len(self.share), -1))  # (B, N, H, E), of which the first channels hear the cache
        return given.carry(t, ((1 - share) * y + F.pad(share * seen, (0, y.shape[3] - seen.shape[3]))).flatten(2))


def spread(t: Tokens, count: int) -> Tensor:
    """(B, count) places spread evenly over the real tokens of each row, by their weights; repeated where `count` is
    more than there are."""
    weight = t.x.new_ones(t.x.shape[:2], dtype=torch.float32) if t.weight is None else t.weight.float()
    upto = (weight if t.keep is None else weight * t.keep).cumsum(1)  # (B, N)
    begins = torch.arange(count, device=upto.device) * upto[:, -1:] / count
    return torch.searchsorted(upto, begins.contiguous(), right=True).clamp(max=upto.shape[1] - 1)


def together(cache: Tensor) -> Tensor:
    """(B, length, C) -> (1, length, C): the batch leaves one cache, its mean. As the paper does."""
    return cache.mean(0, keepdim=True)


def apart(cache: Tensor) -> Tensor:
    """(B, length, C) -> the same: each row goes on with its own, as the next segment of its text. The batch may not
    change then."""
    return cache


@contextmanager
def advancing(model: nn.Module, keep: Callable[[Tensor], Tensor] = together) -> Iterator[None]:
    """Each forward pass inside leaves its renewed caches behind, cut off from its gradients; `keep` says what of the
    batch's."""

    def take(cache: Cache, _: tuple, renewed: Tensor) -> None:
        cache.tokens = keep(renewed.detach())

    hooks = [m.register_forward_hook(take) for m in _caches(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def forget(model: nn.Module) -> None:
    """Empty all caches, as before a new text."""
    for cache in _caches(model):
        cache.reset()


def _caches(model: nn.Module) -> list[Cache]:
    if found := [m for m in model.modules() if isinstance(m, Cache)]:
        return found
    raise PlaitError(f"{type(model).__name__} has no caches: apply the method cached_transformer_grc first")


def cached_transformer_grc(model: nn.Module, length: int = 64, ratio: float = 0.5) -> Undo:
    """Every self-attention of `model`, with the weights that it has, gets a cache of `length` tokens of `ratio` times
    its width.

    Raises ValueError for a ratio by which a head has no whole number of channels, and for a model without
    self-attention, or with a causal one (the cache is renewed with the whole input before it is looked at, and would
    tell each token what is ahead).
    """
    if length < 1 or not 0 < ratio <= 1:
        raise PlaitError(
            f"length and ratio: got {length} and {ratio}, expected at least one token and a ratio above 0 and up to 1"
        )

    def make(a: Attention) -> nn.Module:
        width = a.qkv.in_features * ratio
        if width % a.heads:
            raise PlaitError(
                f"ratio: got {ratio} of width {a.qkv.in_features}, expected one that leaves {a.heads} heads whole "
                "channels"
            )
        return CachedAttention(a, length, int(width))

    return swap_attention(model, make, "and a cache renewed by the whole input tells what is ahead")
