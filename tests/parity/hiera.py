"""Hiera against timm, at the size that its positions are for: timm's do not reach further."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import cases
from tests.parity.pyramids import against_timm

SYSTEM = "hiera"
CASES = cases(SYSTEM)


def parity(name: str) -> Row:
    return against_timm(name, other=None)
