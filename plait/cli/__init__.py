"""The command line: one file per command, each importing what is heavy only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 ok, 1 a defect, 2 usage, 3 data, 4 a required score not met, 130
    interrupted."""
    # libgomp's threads spin at each barrier: one more busy process on the machine was seen to cost 30 times the time. A
    # bounded spin costs a few percent where the cores are free, and must be asked for before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.platform == "linux":  # Arrow's other allocators hold half a table more than there is
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    try:
        from plait.cli.shell import run

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # before or after the command proper
        return INTERRUPTED
