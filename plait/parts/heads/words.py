"""Which word stands in a place?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.parts.towers.encoder import Make


class WordHead(nn.Module):
    """BERT's word head (arXiv:1810.04805): features (..., D) and the word table (V, D) -> logits (..., V) of the word
    at each place.

    The table is the tokenizer's own, handed in with every call, so that no parameter exists twice. norm(width) makes
    the norm.
    """

    def __init__(self, width: int, vocab: int, norm: Make):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), norm(width)
        self.bias = nn.Parameter(torch.empty(vocab))

    def reset(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


def first_place(x: Tensor, hidden: Tensor) -> Tensor:
    """(B, D): of features x (B, M, D) each row's first place that `hidden` (B, N), N <= M, marks; its leading one where
    it marks none."""
    return x[torch.arange(x.shape[0], device=x.device), hidden.int().argmax(1)]
