"""The picture half of BEiT-3 against timm."""

from __future__ import annotations

from tests.parity.compare import Row
from tests.parity.pictures import against_timm, cases

SYSTEM = "vit_beit3"
CASES = cases(SYSTEM)


def parity(name: str) -> Row:
    return against_timm(name, CASES[name])
