"""DuoFormer against the numbers of public code (github.com/AliSerwat/Refactored-DuoFormer, a refactoring of the
authors' own), timm 0.9.16.

Its model of ResNet-18 and two scales ran as it is. The others find no maps there; they ran with the maps that the
authors' code takes, of children 4 to 7. Its last norm is computed and never used, which was checked: it stands neither
in the counts nor in the digests.
"""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "duoformer"
CASES = {f"{SYSTEM}_{size}": "official" for size in systems()[SYSTEM].weights}


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
