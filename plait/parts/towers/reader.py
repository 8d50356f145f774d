"""What encoders of words alone have in common: they read a whole text, and its first token answers for it."""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.heads.words import WordHead
from plait.parts.tokenizers.text_embedding import TextEmbedding


class Reader(nn.Module):
    """Token ids (B, N) -> logits (B, K), by way of `tokens`, `pool` and `head`.

    A system adds text_embedding, stack, head, which is `nn.Identity()` with `num_classes=0`, and mlm, the masked-word
    head, or None. beyond: parts that only its own answers need.
    """

    takes = ("text",)
    fits = ("vocab",)
    classifier = ("head.",)
    beyond: tuple[str, ...] = ("head",)
    width: int
    text_embedding: TextEmbedding
    stack: Stack
    head: nn.Module
    mlm: WordHead | None

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real) -> Tokens (B, N, D)."""
        return self.stack(self.text_embedding(ids, keep))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the first token."""
        return t.x[:, 0]

    def words(self, t: Tokens) -> Tensor:
        """(B, N, V) logits of the masked-word head. Raises PlaitError where it was not built."""
        if self.mlm is None:
            name = type(self).__name__
            raise PlaitError(f"this {name} has no masked-word head: got mlm=False, build it with mlm=True")
        return self.mlm(t.x, self.text_embedding.table)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(ids, keep)))


def hidden_head(width: int, classes: int, act: type[nn.Module] = nn.Tanh) -> nn.Module:
    """(B, D) -> (B, K) by way of a layer of its own; what comes in goes out where there are no classes."""
    if not classes:
        return nn.Identity()
    return nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, classes))
