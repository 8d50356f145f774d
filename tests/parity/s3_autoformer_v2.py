"""S3 against the numbers of the official code (github.com/microsoft/Cream, AutoFormerV2/model/SSS.py)."""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "s3_autoformer_v2"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
