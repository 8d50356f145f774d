"""The command line: one file per command, each importing what is heavy only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 ok, 1 a defect, 2 usage, 3 data, 4 a required score not met, 130 interrupted."""
    try:
        from plait.cli.shell import run

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # before or after the command proper
        return INTERRUPTED
