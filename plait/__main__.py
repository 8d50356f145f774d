"""`python -m plait`, for where the `plait` script is not on the path."""

from __future__ import annotations

import sys

from plait.cli import main

if __name__ == "__main__":
    sys.argv[0] = "plait"
    sys.exit(main())
