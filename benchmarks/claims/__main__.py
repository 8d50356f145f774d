"""Tries what papers say that their systems learn, in small: each against itself without the novelty.

    python -m benchmarks.claims [PATTERN ...]

Figures go to docs/measured/claims, from which `python docs/claims.py` makes its table. The rule stands in verdict.py.
"""

from __future__ import annotations

import argparse
import fnmatch

import torch

from benchmarks.claims import methods, mining, pairs, pictures, rankers, recalls, sequences, speed, texts
from benchmarks.claims.trial import record

TRIALS = pictures.TRIALS | methods.TRIALS | pairs.TRIALS | sequences.TRIALS
TRIALS |= speed.TRIALS | texts.TRIALS | rankers.TRIALS | recalls.TRIALS | mining.TRIALS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="*", default=["*"], help=f"of {', '.join(sorted(TRIALS))}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, trial in TRIALS.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.pattern):
            record(name, trial)


if __name__ == "__main__":
    main()
