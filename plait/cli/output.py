"""What commands give back and how it is printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from plait.core.printed import clean

__all__ = ["Answer", "as_json", "bad_cells", "clean", "counted", "grid", "lines"]

WIDE = 160  # columns, where there is no terminal to ask


class Answer(NamedTuple):
    """What a command found (for --json), its exit code, and what standard error should say where that is not 0."""

    data: dict
    code: int = 0
    complaint: str = ""


def as_json(value: Any) -> str:
    """One line of strict JSON in ASCII: numbers of any library become plain ones, and those that are not finite
    null."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def grid(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table that folds its cells to the terminal's width. right: columns set at the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(Text(clean(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of one line per row, whatever the width: for long lists, and for other programs to read."""
    cells = [[clean(c) for c in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def bad_cells(found: dict[str, int]) -> str:
    """{reason: cells} as one line."""
    return f"{counted(sum(found.values()), 'bad cell')}: " + "; ".join(
        f"{n:,} x {clean(why)}" for why, n in found.items()
    )


def counted(n: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
