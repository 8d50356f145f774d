"""`python -m tests.parity [PATTERN]`: every published size that fits in 4 GB against its peer, one table; exit 1 if any differs."""

from __future__ import annotations

import fnmatch
import sys

import torch

import plait
from tests.parity import modules

LIMIT = 4e9  # bytes of float32 weights


def main(pattern: str = "*") -> int:
    failed = 0
    print(f"{'model':42} {'reference':44} {'parameters':>13} {'theirs':>13} {'error':>9}")
    for module in modules():
        for name in module.CASES:
            if not fnmatch.fnmatch(name, pattern):
                continue
            size = 4 * plait.model_info(name).parameters
            if size > LIMIT:
                print(f"{name:42} left out: {size / 1e9:.1f} GB of weights", flush=True)
                continue
            torch.manual_seed(0)  # some references draw their weights from the global state
            row = module.parity(name)
            failed += not row.ok
            counts = f"{row.parameters:13,} {row.reference_parameters:13,}"
            print(f"{row.name:42} {row.reference:44} {counts} {row.error:9.1e}{'' if row.ok else '  DIFFERS'}", flush=True)
    print("all agree" if not failed else f"{failed} differ")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
