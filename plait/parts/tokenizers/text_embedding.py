"""Token ids to BERT's input."""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.parts.positions.learned import SequencePositions
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import Make


class TextEmbedding(nn.Module):
    """Words, their places and the kinds of their segments, normed: ids (B, N) int64 -> Tokens (B, N, D), as in BERT
    (arXiv:1810.04805).

    vocab: number of word pieces. length: the longest text. kinds: number of kinds of segments, which 0 leaves out.
    norm(width) and positions(length, width) make the norm and what tells places.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        width: int,
        norm: Make,
        *,
        kinds: int = 2,
        dropout: float = 0.0,
        positions: Make = SequencePositions,
    ):
        super().__init__()
        self.words, self.positions = WordTokens(vocab, width), positions(length, width)
        self.kinds = nn.Embedding(kinds, width) if kinds else None
        self.norm, self.drop = norm(width), nn.Dropout(dropout)

    @property
    def table(self) -> Tensor:
        """(V, D): the word vectors."""
        return self.words.table.weight

    def forward(self, ids: Tensor, keep: Tensor | None = None, kinds: Tensor | None = None) -> Tokens:
        """keep (B, N) bool, None: all real. kinds (B, N) int64, None: all of the first kind."""
        return self._normed(self.positions(self.words(ids, keep)), ids.new_zeros(1, 1) if kinds is None else kinds)

    def at(self, ids: Tensor, keep: Tensor | None, places: Tensor, kind: int) -> Tokens:
        """The same of words that stand at `places`, (B, N) or (N,), in segments of one kind."""
        return self._normed(self.positions(self.words(ids, keep), places), ids.new_full((1, 1), kind))

    def _normed(self, t: Tokens, kinds: Tensor) -> Tokens:
        x = t.x if self.kinds is None else t.x + self.kinds(kinds)
        return t.replace(x=self.drop(self.norm(x)))
