"""ENDX on transformers' BERT: the vectors of each side, which is read alone. What reads both together, in training, has
no public code: tests/systems/test_endx_gam.py."""

from __future__ import annotations

import torch.nn.functional as F

from tests.parity import late
from tests.parity.compare import Row

SYSTEM = "endx_gam"
CASES = {f"{SYSTEM}_base": "google-bert/bert-base-uncased"}


def wanted(ours, read, ids, keep):
    mean = (read(ids, keep) * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    return [F.normalize(mean, dim=-1)] * 2


def parity(name: str) -> Row:
    return late.parity(name, CASES[name], lambda ours: 0, wanted)
