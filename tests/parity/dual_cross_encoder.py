"""Dual-Cross-Encoder on transformers' BERT: a text that asks, and one that answers, read behind each of ten pieces of
its own words, which are put together here once more, row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.parity import late
from tests.parity.compare import Row

SYSTEM = "dual_cross_encoder"
CASES = {f"{SYSTEM}_base": "google-bert/bert-base-uncased"}
VIEWS, PIECE = 10, 8


def wanted(ours, read, ids, keep):
    asks = F.normalize(read(ids, keep)[:, :1], dim=-1).expand(-1, VIEWS, -1)
    rows = []
    for row, n in zip(ids.tolist(), keep.sum(1).tolist(), strict=True):
        text, room = row[:n], max(n - 2 - PIECE, 0)
        starts = [1 + room * view // (VIEWS - 1) for view in range(VIEWS)]
        behind = [[text[0], *text[s : min(s + PIECE, n - 1)], text[-1], *text[1:]] for s in starts]
        one = torch.tensor(behind)
        rows.append(F.normalize(read(one, torch.ones_like(one, dtype=torch.bool))[:, 0], dim=-1))
    return [(v / VIEWS**0.5).flatten(1) for v in (asks, torch.stack(rows))]


def parity(name: str) -> Row:
    return late.parity(name, CASES[name], lambda ours: 0, wanted)
