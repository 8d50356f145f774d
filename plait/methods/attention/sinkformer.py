"""Sinkformers: Transformers with Doubly Stochastic Attention. Sander, Ablin, Blondel, Peyré, 2022. arXiv:2110.11773

New here: softmax makes the rows of the attention matrix sum to one. Dividing by the sums of columns and rows in turn
(Sinkhorn) makes it
tend to a doubly stochastic matrix: each token is heard as much as it hears. One division is softmax.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend, pair_mask, repeated
from plait.core.surgery import Undo, swap_attend
from plait.core.tokens import Tokens, refuse, unpacked
from plait.errors import PlaitError

FAR = -1e9  # in place of minus infinity, of which a sum over nothing would make NaN


def sinkhorn(scores: Tensor, steps: int, keep: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """exp(scores) (B, H, N, M) after `steps` divisions, by the sums of rows, columns, rows...; computed in logarithms
    and float32.

    keep: (B, 1, N or 1, M) bool, which pairs are real. Padding is neither heard nor hears: its rows and columns are
    zero. weight: (B, N), how many tokens each of N = M stands for, as a row and as a column.
    """
    log, many = scores.float(), None if weight is None else weight.float().clamp(min=1e-6).log()[:, None]
    if keep is not None:
        log = log.masked_fill(~keep, FAR)
    for step in range(steps):
        side, sums = (-1, -2) if step % 2 == 0 else (-2, -1)
        log = log - (log if many is None else log + many.unsqueeze(sums)).logsumexp(side, keepdim=True)
        if keep is not None:
            log = log.masked_fill(~keep, FAR)
    return (log if many is None else log + many.unsqueeze(-2)).exp()


class SinkhornAttend(Attend):
    """`sinkhorn` for softmax, between any projections."""

    backends = ("sdpa", "eager")

    def __init__(self, old: Attend, steps: int):
        super().__init__(dropout=old.dropout)
        self.steps = steps

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
        unpacked(t)
        refuse(t, "memory", why="its columns would change with every token that comes after")
        if t.context is not None and "allow" in t.context:
            raise PlaitError(
                "got tokens of which some may not attend to others, expected that all may: sums run over all"
            )
        keep, weight = (t if to is None else to).keep, t.weight if to is None else None
        if to is not None:
            refuse(to, "weight", why="it would have to weigh the queries too")
        if keep is not None:
            keep = keep[:, None, None, :] if to is not None else (keep[:, :, None] & keep[:, None])[:, None]
        maps = self.maps(q, k, keep=keep, bias=bias, scale=scale, weight=weight)
        if self.tape is not None:
            self.tape.append(maps)
        dropout = self.dropout if self.training else 0.0
        return t.replace(x=F.dropout(maps, dropout).to(v.dtype) @ repeated(v, q.shape[1]))

    def maps(
        self,
        q: Tensor,
        k: Tensor,
        *,
        keep: Tensor | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
        causal: bool = False,
        weight: Tensor | None = None,
    ) -> Tensor:
        scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ repeated(k, q.shape[1]).mT
        if keep is not None and keep.dim() < 4:
            keep = pair_mask(keep)
        return sinkhorn(scores if bias is None else scores + bias, self.steps, keep, weight)


def sinkformer(model: nn.Module, steps: int = 3) -> Undo:
    """Every self-attention of `model` that is not causal becomes doubly stochastic, with the weights that it has.

    steps: how often rows and columns are divided, 1 being softmax. The paper takes odd numbers up to 21, so that the
    last are rows.
    Raises ValueError for an even number, and for a model without self-attention, or with a causal one (columns would
    see what is ahead).
    """
    if steps < 1 or steps % 2 == 0:
        raise PlaitError(
            f"steps: got {steps}, expected an odd number, so that the rows are divided last and sum to one"
        )
    why = "whose columns would tell each token what is ahead of it"
    return swap_attend(model, lambda seam: SinkhornAttend(seam, steps), why)
