"""Sequencer2D against timm."""

from __future__ import annotations

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.pyramids import against_timm

SYSTEM = "sequencer2d"
CASES = {f"{SYSTEM}_{size}": row["references"]["timm"] for size, row in systems()[SYSTEM].weights.items()}


def parity(name: str) -> Row:
    return against_timm(name, other=(84, 140))
