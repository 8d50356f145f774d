"""Columns of a table to tokens: numbers, categories, vectors."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.errors import PlaitError


class NumberTokens(nn.Module):
    """Numbers (B, F), keep (B, F) -> Tokens (B, F, D): each number is one token, value * weight + bias with its
    column's own vectors.

    Source: the feature tokenizer of FT-Transformer (arXiv:2106.11959). A missing number's value is never read.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, width))
        self.bias = nn.Parameter(torch.empty(features, width))

    def reset(self) -> None:
        for p in (self.weight, self.bias):
            nn.init.uniform_(p, -(p.shape[1] ** -0.5), p.shape[1] ** -0.5)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        _check(x, self.weight.shape[0], "numbers")
        if keep is not None:
            x = x.masked_fill(~keep, 0.0)
        return Tokens(x[..., None] * self.weight + self.bias, keep=keep)  # (B, F, D)


class CategoryTokens(nn.Module):
    """Ids (B, F) int64, keep (B, F) -> Tokens (B, F, D): each column has rows of its own in one table.

    sizes: how many ids each column has, id 0 (missing or never seen) included. An id outside its column's range reads
    as 0.
    """

    start: Tensor  # (F,) int64: each column's first row of the table
    count: Tensor  # (F,) int64: its rows

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.sizes = tuple(sizes)
        self.table = nn.Parameter(torch.empty(sum(self.sizes), width))
        self.register_buffer("start", torch.empty(len(self.sizes), dtype=torch.long), persistent=False)
        self.register_buffer("count", torch.empty(len(self.sizes), dtype=torch.long), persistent=False)

    def reset(self) -> None:
        nn.init.uniform_(self.table, -(self.table.shape[1] ** -0.5), self.table.shape[1] ** -0.5)
        self.start.copy_(torch.tensor([0, *itertools.accumulate(self.sizes)][:-1]))
        self.count.copy_(torch.tensor(self.sizes))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        _check(x, len(self.sizes), "categories")
        known = (x >= 0) & (x < self.count)
        # (B, F, D)
        return Tokens(nn.functional.embedding(torch.where(known, x, 0) + self.start, self.table), keep=keep)


class VectorTokens(nn.Module):
    """Vectors (B, F) -> Tokens (B, 1, D): one token, a projection of the whole vector. `keep` is there for the sake of
    one call for all."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.proj = nn.Linear(features, width)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        _check(x, self.proj.in_features, "features")
        return Tokens(self.proj(x)[:, None])  # (B, 1, D)


def _check(x: Tensor, expected: int, what: str) -> None:
    if x.dim() != 2 or x.shape[1] != expected:
        raise PlaitError(
            f"got a tensor of shape {tuple(x.shape)}, expected (B, {expected}): one column for each of the {expected} "
            f"{what}"
        )
