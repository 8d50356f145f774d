"""ViT against timm."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import against_timm, cases

SYSTEM, CUTS = "vit", True
CASES = cases(SYSTEM)
LIMIT = 1e9  # parameters of a model that is compared whole


def parity(name: str) -> Row:
    return against_timm(name, CASES[name], LIMIT)
