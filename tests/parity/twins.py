"""Twins against timm, on a picture whose grids fill no windows and no patches of summaries too."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import cases
from tests.parity.pyramids import against_timm

SYSTEM = "twins"
CASES = cases(SYSTEM)


def parity(name: str) -> Row:
    return against_timm(name, other=(160, 224))
