"""NaLaFormer: Norm-Aware Linear Attention for Transformer Models. Meng et al., 2025. arXiv:2506.21137

New here: linear attention divides by its own sum, and the length of a query, which makes softmax sharp or blunt,
cancels out. Here it sets the power to which the query's direction is raised. And instead of cutting off what is
negative, each number becomes two, its positive and
its negative part (its size times cosine and sine of an angle that is 0 or a right one): no length is lost, and opposite
signs do not meet.

Differs: only the kernel, on the projections that the model has; the paper's backbone adds rotary and convolutional
positions and a gate.
What it divides by is at least 1e-20, not 1e-6 more: the cubes of small keys would drown in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention
from plait.core.surgery import Undo, swap
from plait.core.tokens import Tokens, refuse, unpacked
from plait.errors import PlaitError

TINY = 1e-20
CHUNK = 64  # tokens of a chunk of causal attention


def halves(x: Tensor) -> Tensor:
    """(..., E) -> (..., 2E): positive and negative parts side by side, none below zero, of the same length."""
    return torch.cat([x.relu(), (-x).relu()], -1)


def query_features(q: Tensor, power: float) -> Tensor:
    """(..., E) -> (..., 2E): the halves of the direction, to a power that grows with the length from power / 2 to 3 / 2
    power."""
    length = q.norm(dim=-1, keepdim=True)
    return halves(q / length.clamp(min=TINY)) ** (power * (0.5 + length.tanh()))


def key_features(k: Tensor) -> Tensor:
    """(..., E) -> (..., 2E): the halves of the cubes, so that long keys and their largest numbers count more."""
    return halves(k**3)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Features q, k (B, H, N, G) >= 0 and values v (B, H, N, F) -> the means of v by the weights q k^T, (B, H, N, F),
    at a cost of N."""
    return _divided(q @ (k.mT @ _counted(v)))


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `linear_attention`, each token hearing itself and those before it: chunk by chunk, all at once."""
    n = q.shape[2]
    # (B, H, M, L, ...)
    q, k, v = (F.pad(x, (0, 0, 0, -n % CHUNK)).unflatten(2, (-1, CHUNK)) for x in (q, k, _counted(v)))
    states = (k.mT @ v).cumsum(2)  # (B, H, M, G, F + 1), after each chunk
    before = F.pad(states, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    return _divided(q @ before + (q @ k.mT).tril() @ v).flatten(2, 3)[:, :, :n]


def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of the causal form: q, k (B, H, G), v (B, H, F), state (B, H, G, F + 1), zeros at first -> (B, H, F),
    the new state."""
    state = state + k[..., None] * _counted(v)[..., None, :]
    return _divided((q[..., None, :] @ state)[..., 0, :]), state


def _counted(v: Tensor) -> Tensor:
    return F.pad(v, (0, 1), value=1.0)  # the last column gathers what is divided by


def _divided(y: Tensor) -> Tensor:
    return y[..., :-1] / y[..., -1:].clamp(min=TINY)


class LinearAttend(Attend):
    """Linear attention in float32 by `features`, which a subclass has: none of them below zero."""

    backends = ("sdpa",)  # there is one way to compute it

    def __init__(self, old: Attend):
        super().__init__(causal=old.causal)

    def forward(
        self,
        t: Tokens,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        to: Tokens | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
    ) -> Tokens:
        plain_tokens(t, to, bias, scale)
        q, k = self.features(q.float(), k.float())
        v = v.float()
        if t.weight is not None:
            k = k * t.weight[:, None, :, None]
        if t.keep is not None:
            k, v = (x.masked_fill(~t.keep[:, None, :, None], 0.0) for x in (k, v))
        y = (causal_linear_attention if self.causal else linear_attention)(q, k, v)
        return t.replace(x=y.to(t.x.dtype))

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, H, N, E) as features (B, H, N, G), whose products are the weights."""
        raise NotImplementedError(f"{type(self).__name__} has no features")


def plain_tokens(t: Tokens, to: Tokens | None, bias: Tensor | None, scale: float | None) -> None:
    """Raise ValueError unless tokens attend to themselves, all to all, by their products alone."""
    unpacked(t)
    refuse(t, "memory", why="this attention keeps no keys and values")
    if t.context is not None and "allow" in t.context:
        raise PlaitError("got tokens of which some may not attend to others, expected that all may")
    if to is not None or bias is not None or scale is not None:
        raise PlaitError("got another stream, a bias or a scale, expected self-attention with the usual scores")


class NormAwareAttend(LinearAttend):
    """The features of norm-aware linear attention."""

    def __init__(self, old: Attend, power: float):
        super().__init__(old)
        self.power = power

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, H, N, E) as features (B, H, N, G), none below zero, whose products are the weights."""
        return query_features(q, self.power), key_features(k)


def nalaformer(model: nn.Module, power: float = 3.0) -> Undo:
    """Every self-attention of `model` becomes norm-aware and linear in the number of tokens, with the weights that it
    has.

    power: of a query's direction, half of it where the query is short and one and a half times where it is long.
    Raises ValueError for a power that is not above zero, and for a model without self-attention.
    """
    if power <= 0:
        raise PlaitError(f"power: got {power}, expected a number above zero, such as 3")
    return swap(model, Attend, lambda seam: NormAwareAttend(seam, power), inside=Attention)
