"""Poly-encoders on transformers' BERT: what codes find by softmax of their products with a text that asks, the first
token of one that answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.parity import late
from tests.parity.compare import Row

SYSTEM = "poly_encoder"
CODES = {"base_16": 16, "base_64": 64, "base_360": 360}
CASES = {f"{SYSTEM}_{size}": "google-bert/bert-base-uncased" for size in CODES}


def wanted(ours, read, ids, keep):
    x = read(ids, keep)
    codes = ours.codes.table
    weights = (codes @ x.mT).masked_fill(~keep[:, None], -torch.inf).softmax(-1)  # (B, V, N)
    found = F.normalize(weights @ x, dim=-1)
    answers = F.normalize(x[:, :1], dim=-1).expand_as(found)
    return [(v / len(codes) ** 0.5).flatten(1) for v in (found, answers)]


def parity(name: str) -> Row:
    return late.parity(name, CASES[name], lambda ours: CODES[name.removeprefix(f"{SYSTEM}_")] * 768, wanted)
