"""Token ids to word vectors."""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens


class WordTokens(nn.Module):
    """A learned vector per word piece: ids (B, N) int64 below `vocab`, keep (B, N) bool -> Tokens (B, N, D)."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.table = nn.Embedding(vocab, width)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return Tokens(self.table(ids), keep=keep)
