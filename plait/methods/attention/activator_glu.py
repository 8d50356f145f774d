"""Activator: GLU Activations as The Core Functions of a Vision Transformer. Abdullah and Aydin, 2024. arXiv:2405.15953

New here: no attention. Two projections of the same input, one through GELU, each normed, are multiplied number by
number and projected back; this gated unit stands where attention stood, and, if wanted, where the MLP stood too.

Differs: the public code gates the channels of each token alone, so that no token hears another before they are pooled.
Here the unit that takes the place of attention runs along the tokens, for every channel, and the one that takes the
place of the MLP along the channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.block import FeedForward
from plait.core.surgery import Undo, swap, swap_attention, together
from plait.core.tokens import Tokens, unpacked
from plait.errors import PlaitError
from plait.parts.tokenizers.patch_embed import PatchEmbed


class GatedUnit(nn.Module):
    """norm(GELU(a)) * norm(b), projected back, of two projections a and b: (..., size) -> (..., size)."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.up, self.act, self.norm, self.down = (
            nn.Linear(size, 2 * hidden),
            nn.GELU(),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, size),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1)
        return self.down(self.norm(self.act(a)) * self.norm(b))


class GatedTokens(nn.Module):
    """A gated unit along `count` tokens, the same for every channel: Tokens (B, count, D) -> the same. Padding counts
    as zeros."""

    def __init__(self, count: int, hidden: int):
        super().__init__()
        self.count, self.unit = count, GatedUnit(count, hidden)

    def forward(self, t: Tokens) -> Tokens:
        unpacked(t)
        if t.x.shape[1] != self.count or t.weight is not None:
            what = "weighed tokens" if t.weight is not None else f"{t.x.shape[1]} tokens"
            raise PlaitError(
                f"got {what}, expected {self.count} that weigh the same: apply activator_glu with tokens= their number"
            )
        x = t.x if t.keep is None else t.x.masked_fill(~t.keep[..., None], 0.0)
        return t.replace(x=self.unit(x.mT).mT)


class GatedChannels(nn.Module):
    """A gated unit along the channels of each token: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.unit = GatedUnit(width, hidden)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.unit(t.x))


def activator_glu(model: nn.Module, tokens: int = 0, ratio: float = 2.0, feeds: bool = False) -> Undo:
    """A gated unit along the tokens takes the place of every self-attention of `model`, which from then on reads one
    number of tokens.

    tokens: how many, special ones counted; 0 takes what the model's positions are learned for. ratio: hidden width by
    that number.
    feeds: whether gated units along the channels, `ratio` times as wide, take the place of the MLPs too.
    Raises ValueError where the number is not known, for a model without self-attention (or MLPs), or with a causal
    attention.
    """
    count = tokens or _learned(model)

    def mixers() -> Undo:
        why = "and a gated unit along the tokens looks ahead"
        return swap_attention(model, lambda _: GatedTokens(count, int(ratio * count)), why)

    def channels() -> Undo:
        return swap(model, FeedForward, lambda f: GatedChannels(f.up.in_features, int(ratio * f.up.in_features)))

    return together([mixers, channels] if feeds else [mixers])


def _learned(model: nn.Module) -> int:
    eyes = [m for m in model.modules() if isinstance(m, PatchEmbed) and hasattr(m.positions, "table")]
    if len(eyes) != 1:
        raise PlaitError(
            f"tokens: {type(model).__name__} does not say how many it reads: give tokens=, special ones counted"
        )
    return eyes[0].positions.table.shape[1]
