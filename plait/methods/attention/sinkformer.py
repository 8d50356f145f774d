"""Sinkformers: Transformers with Doubly Stochastic Attention. Sander, Ablin, Blondel, Peyré, 2022. arXiv:2110.11773

New here: softmax makes the rows of the attention matrix sum to one. Dividing by the sums of columns and rows in turn
(Sinkhorn) makes it
tend to a doubly stochastic matrix: each token is heard as much as it hears. One division is softmax.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.attend import noted
from plait.core.block import Attention, log_weight
from plait.core.surgery import Undo, swap_attention
from plait.core.tokens import Tokens, unpacked

FAR = -1e9  # in place of minus infinity, of which a sum over nothing would make NaN


def sinkhorn(scores: Tensor, steps: int, keep: Tensor | None = None) -> Tensor:
    """exp(scores) (B, H, N, N) after `steps` divisions, by the sums of rows, columns, rows...; computed in logarithms
    and float32.

    keep: (B, N) bool. Padding is neither heard nor hears: its rows and columns are zero.
    """
    log = scores.float()
    if keep is not None:
        real = (keep[:, :, None] & keep[:, None, :])[:, None]  # (B, 1, N, N)
        log = log.masked_fill(~real, FAR)
    for step in range(steps):
        log = log - log.logsumexp(-1 if step % 2 == 0 else -2, keepdim=True)
        if keep is not None:
            log = log.masked_fill(~real, FAR)
    return log.exp()


class SinkhornAttention(nn.Module):
    """The projections of `attention` with `sinkhorn` for its softmax: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, attention: Attention, steps: int):
        super().__init__()
        self.attention, self.steps = attention, steps

    def forward(self, t: Tokens) -> Tokens:
        unpacked(t)
        q, k, v = self.attention.project(t)  # each (B, H, N, E)
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        maps = noted(sinkhorn(scores if t.weight is None else scores + log_weight(t), self.steps, t.keep))
        return t.replace(x=self.attention.merge(maps.to(v.dtype) @ v))


def sinkformer(model: nn.Module, steps: int = 3) -> Undo:
    """Every self-attention of `model` becomes doubly stochastic, with the weights that it has.

    steps: how often rows and columns are divided, 1 being softmax. The paper takes odd numbers up to 21, so that the
    last are rows.
    Raises ValueError for an even number, and for a model without self-attention, or with a causal one (columns would
    see what is ahead).
    """
    if steps < 1 or steps % 2 == 0:
        raise ValueError(
            f"steps: got {steps}, expected an odd number, so that the rows are divided last and sum to one"
        )
    return swap_attention(
        model, lambda a: SinkhornAttention(a, steps), "whose columns would tell each token what is ahead of it"
    )
