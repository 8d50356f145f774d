"""`python -m tests.parity [PATTERN] [--record]`: every published size against its peer, one table; exit 1 if any
differs. Sizes over 4 GB are left out, unless their module has CUTS: it then compares fewer layers of them, and says so.

--record also writes the rows to docs/measured/parity/SYSTEM.json, from which the pages of docs/systems are made.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

import torch

import plait
from tests.parity import modules

LIMIT = 4e9  # bytes of float32 weights
MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "parity"


def record(system: str, rows: dict[str, dict]) -> None:
    """Put rows {size: figures} beside those that are known already."""
    path = MEASURED / f"{system}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted({**known, **rows}.items())), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    failed = compared = 0
    print(f"{'model':42} {'reference':44} {'parameters':>13} {'theirs':>13} {'error':>9}")
    for module in modules():
        for name in module.CASES:
            if not fnmatch.fnmatch(name, options.pattern):
                continue
            size = 4 * plait.model_info(name).parameters
            if size > LIMIT and not getattr(module, "CUTS", False):
                print(f"{name:42} left out: {size / 1e9:.1f} GB of weights", flush=True)
                continue
            torch.manual_seed(0)  # some references draw their weights from the global state
            row = module.parity(name)
            compared, failed = compared + 1, failed + (not row.ok)
            counts = f"{row.parameters:13,} {row.reference_parameters:13,}"
            print(f"{row.name:42} {row.reference:44} {counts} {row.told:>9}{'' if row.ok else '  DIFFERS'}", flush=True)
            if options.record:
                error = None if row.ran == "keys" else float(f"{row.error:.1e}")
                figures = dict(reference=row.reference, parameters=row.parameters, ran=row.ran, error=error)
                record(module.SYSTEM, {row.name: figures})
    if not compared:
        print(f"nothing was compared: no case in tests/parity matches {options.pattern!r}, or all are too large")
    else:
        print("all agree" if not failed else f"{failed} differ")
    return int(failed > 0 or not compared)


if __name__ == "__main__":
    sys.exit(main())
