"""HorNet against the numbers of the official code (github.com/raoyongming/HorNet, hornet.py), convolutions and global
filters."""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "hornet"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
