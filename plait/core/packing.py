"""Several sequences in one row, without padding.

A packed `Tokens` has x (1, S, D) and `lengths`, how many tokens each sequence has, in order; S is their sum. Linear
layers and norms, which take each token on its own, need not know; attention stays inside each sequence (`attend(...,
lengths=)`), so that packing costs the sum of the squared lengths and no token of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from plait.core.tokens import Tokens
from plait.errors import PlaitError


def pack(sequences: Sequence[Tensor]) -> Tokens:
    """[(N_1, D), (N_2, D), ...] -> Tokens (1, N_1 + N_2 + ..., D)."""
    if not sequences:
        raise PlaitError("got no sequences to pack, expected at least one")
    return Tokens(torch.cat(list(sequences))[None], lengths=tuple(s.shape[0] for s in sequences))


def unpack(t: Tokens) -> list[Tensor]:
    """The features of each sequence, [(N_1, D), (N_2, D), ...]: views, not copies."""
    if t.lengths is None:
        raise PlaitError("got Tokens of one sequence a row, expected a packed one (with lengths)")
    return list(t.x[0].split(t.lengths))


def owners(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(S,) which sequence each token belongs to: 0, 0, 0, 1, 1, 2, ..."""
    counts = torch.tensor(lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))


def each(
    f: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], *, keep, bias, **how
) -> Tensor:
    """Attention `f` inside each sequence: (1, H, S, E) -> (1, H, S, F). Neighbours of one length go together, as a
    batch."""
    outs, begin = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        end = begin + count * length
        # (count, H, length, E)
        part = (x[0, :, begin:end].unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v))
        own_keep = None if keep is None else keep[0, begin:end].view(count, length)
        own_bias = None if bias is None else bias[0, :, :, begin:end].unflatten(2, (count, length)).permute(2, 0, 1, 3)
        # (count * length, H, F)
        outs.append(f(*part, keep=own_keep, bias=own_bias, **how).transpose(1, 2).flatten(0, 1))
        begin = end
    return torch.cat(outs).transpose(0, 1)[None]


def check(q: Tensor, k: Tensor, lengths: tuple[int, ...], keep: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError where attention to packed sequences is asked for what is not packed so."""
    if q.shape[0] != 1 or q.shape[-2] != k.shape[-2] or q.shape[-2] != sum(lengths):
        got = f"q {tuple(q.shape)}, k {tuple(k.shape)} and {len(lengths)} lengths that sum to {sum(lengths)}"
        raise PlaitError(
            f"packed attention: got {got}, expected one row, whose tokens the lengths count, in q and in k"
        )
    s = k.shape[-2]
    if keep is not None and keep.dim() != 2:
        raise PlaitError(
            f"packed attention: got keep {tuple(keep.shape)}, expected (1, {s}): a mask for each query is not packed"
        )
    if bias is not None and (bias.dim() != 4 or bias.shape[0] != 1 or tuple(bias.shape[2:]) != (1, s)):
        raise PlaitError(
            f"packed attention: got bias {tuple(bias.shape)}, expected (1, 1 or H, 1, {s}): the same for all queries"
        )
