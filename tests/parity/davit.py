"""DaViT against timm, on a picture that fills no window too."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import cases
from tests.parity.pyramids import against_timm

SYSTEM, CUTS = "davit", True
CASES = cases(SYSTEM)
LIMIT = 1e9  # parameters of a model that is compared whole


def parity(name: str) -> Row:
    return against_timm(name, other=(131, 180), limit=LIMIT)
