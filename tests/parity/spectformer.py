"""SpectFormer, plain and hierarchical, against the numbers of the official code
(github.com/badripatro/SpectFormers).

The plain form's heads are a number in its code, 6, with a comment on the sizes that have others: 4 in `ti`, 12 in `b`.
It was changed accordingly; but 12 do not divide the width of `b`, which ran with the 8 that are our guess. That proves
nothing of the original's, of which only the keys are claimed.
"""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import systems
from tests.parity.compare import Row
from tests.parity.official import against

SYSTEM = "spectformer"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
UNRUN = "official, recorded; its 12 heads do not divide its width"


def parity(name: str) -> Row:
    row = against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), Path(__file__))
    return row._replace(ran="keys", reference=UNRUN) if name == "spectformer_b" else row
