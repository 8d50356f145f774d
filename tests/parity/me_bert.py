"""ME-BERT on transformers' BERT: the first tokens of a text that answers, the first of one that asks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.parity import late
from tests.parity.compare import Row

SYSTEM = "me_bert"
CASES = {f"{SYSTEM}_{size}": f"google-bert/bert-{size}-uncased" for size in ("base", "large")}
VIEWS = 8


def wanted(ours, read, ids, keep):
    x = read(ids, keep)
    which = torch.arange(VIEWS).expand(len(x), -1)
    which = torch.where(which < keep.sum(1, keepdim=True), which, 0)  # the shortest text has seven tokens
    many = F.normalize(x.gather(1, which[..., None].expand(-1, -1, x.shape[2])), dim=-1)
    asks = F.normalize(x[:, :1], dim=-1).expand_as(many)
    return [(v / VIEWS**0.5).flatten(1) for v in (asks, many)]


def parity(name: str) -> Row:
    return late.parity(name, CASES[name], lambda ours: 0, wanted)
