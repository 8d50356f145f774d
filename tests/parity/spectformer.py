"""SpectFormer, plain and hierarchical, against the numbers of the official code
(github.com/badripatro/SpectFormers)."""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "spectformer"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
