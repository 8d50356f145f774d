"""As-ViT against the numbers of the official code (github.com/VITA-Group/AsViT, lib/models/cell_infers/transformer.py),
which searches and grows, and whose largest size is the one that is told."""

from __future__ import annotations

from pathlib import Path

from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "as_vit"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", "large")}


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
