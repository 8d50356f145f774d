"""ResNet against timm."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import cases
from tests.parity.pyramids import against_timm

SYSTEM = "resnet"
CASES = cases(SYSTEM)


def parity(name: str) -> Row:
    return against_timm(name, before=1)
