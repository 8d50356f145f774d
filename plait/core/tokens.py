"""The one value that flows between tokenizers, towers, fusions and heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """A batch of token sequences: a native pytree, so compile, export and FSDP2 accept it.

    x       (B, N, D) features
    keep    (B, N) bool, True = real; None: all are real
    pos     (B, N, ...) or (N, ...) coordinates of the tokens; None: not known
    grid    (rows, columns) of the tokens after the first `prefix`; None: no grid
    weight  (B, N) how many source tokens each one stands for; None: one each
    prefix  count of leading special tokens (class, distillation, register)
    lengths of the sequences that lie one after another in the only row (B = 1), see `core/packing.py`; None: a sequence
    a row
    """

    x: Tensor
    keep: Tensor | None = None
    pos: Tensor | None = None
    grid: tuple[int, int] | None = None
    weight: Tensor | None = None
    prefix: int = 0
    lengths: tuple[int, ...] | None = None

    def replace(self, **changes) -> Tokens:
        """A copy with some fields replaced; parts return this and never mutate."""
        return self._replace(**changes)

    def body(self) -> Tensor:
        """(B, N - prefix, D): the tokens that are not special."""
        return self.x[:, self.prefix :] if self.prefix else self.x


def prepend(special: Tensor, tokens: Tokens) -> Tokens:
    """Put learned special tokens (1 or B, S, D) in front; they are always real and weigh one."""
    unpacked(tokens)
    batch, count = tokens.x.shape[0], special.shape[1]
    x = torch.cat([special.expand(batch, -1, -1).to(tokens.x.dtype), tokens.x], 1)  # (B, S + N, D)
    keep, weight = tokens.keep, tokens.weight
    if keep is not None:
        keep = torch.cat([keep.new_ones(batch, count), keep], 1)
    if weight is not None:
        weight = torch.cat([weight.new_ones(batch, count), weight], 1)
    return tokens.replace(x=x, keep=keep, weight=weight, pos=None, prefix=tokens.prefix + count)


def join(*streams: Tokens) -> Tokens:
    """One sequence of all streams' tokens (B, N1 + N2 + ..., D); a missing mask counts as all real."""
    unpacked(*streams)
    x = torch.cat([t.x for t in streams], 1)
    if all(t.keep is None for t in streams):
        return Tokens(x)
    keep = [t.keep if t.keep is not None else t.x.new_ones(t.x.shape[:2], dtype=torch.bool) for t in streams]
    return Tokens(x, keep=torch.cat(keep, 1))


def unpacked(*streams: Tokens) -> None:
    """Raise ValueError for a packed row, where a step would mix its sequences."""
    if any(t.lengths is not None for t in streams):
        raise ValueError(
            "got a packed row of several sequences, expected one sequence a row: unpack it first (plait.core.packing)"
        )


def mean(tokens: Tokens) -> Tensor:
    """(B, D): the mean of the real tokens that are not special, by their weights; zeros where none is real. Of a packed
    row, (count, D)."""
    if tokens.lengths is not None:
        if tokens.prefix or tokens.keep is not None or tokens.weight is not None:
            raise ValueError(
                "got a packed row with special tokens, a mask or weights, expected bare sequences: unpack it first"
            )
        return torch.stack([mean(Tokens(x)) for x in tokens.x.split(tokens.lengths, 1)], 1)[0]
    x = tokens.body()
    if tokens.keep is None and tokens.weight is None:
        return x.mean(1)
    share = x.new_ones(x.shape[:2])
    if tokens.keep is not None:
        share = share * tokens.keep[:, tokens.prefix :]
        x = x.masked_fill(~tokens.keep[:, tokens.prefix :, None], 0.0)  # garbage, even NaN, must not leak
    if tokens.weight is not None:
        share = share * tokens.weight[:, tokens.prefix :]
    return (x * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp(min=1e-6)
