"""Token ids to word vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.sizes import readable
from plait.core.tokens import Tokens, check_mask
from plait.errors import PlaitError


class WordTokens(nn.Module):
    """A learned vector per word piece: ids (B, N) int64 below `vocab`, keep (B, N) bool -> Tokens (B, N, D)."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.table = nn.Embedding(vocab, width)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        check_ids(ids, self.table.num_embeddings)
        check_mask(keep, *ids.shape)
        return Tokens(self.table(ids), keep=keep)


def cut(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Ids and keep (B, N) up to the longest text, and whether each text surely begins a row and has no holes. Looked at
    on the CPU alone, and outside of programs, as others would have to wait; elsewhere they are as they were."""
    if not readable(keep) or keep.device.type != "cpu" or not keep.numel():
        return ids, keep, False
    n = max(1, int((keep.any(0) * torch.arange(1, keep.shape[1] + 1)).amax()))
    ids, keep = ids[:, :n], keep[:, :n]
    return ids, keep, bool(keep[:, 0].all() and (keep[:, 1:] <= keep[:, :-1]).all())


def check_ids(ids: Tensor, vocab: int) -> None:
    """Raise PlaitError unless ids are (B, N) whole numbers below `vocab`; how large they are is looked at on the CPU
    alone, as other devices would have to be waited for."""
    if ids.dim() != 2 or ids.is_floating_point():
        raise PlaitError(f"got ids {tuple(ids.shape)} of {ids.dtype}, expected (B, N) of torch.int64")
    if readable(ids) and ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= vocab:
            raise PlaitError(
                f"got ids from {int(low)} to {int(high)}, expected 0 to {vocab - 1}: the vocabulary is another"
            )
