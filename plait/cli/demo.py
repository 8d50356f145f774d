"""`plait demo`: the whole way on a sample that is drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli import INTERRUPTED
from plait.cli.options import Json, Quiet
from plait.cli.output import Answer


def demo(
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Where everything goes.")] = "demo",
    minutes: Annotated[float | None, typer.Option(help="A time budget for training.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Train and search on a sample drawn here.

    Nothing is downloaded; it takes a few minutes on a laptop.

    $ plait demo --out demo
    """
    import sys

    from plait.runs.console import Console
    from plait.runs.demo import demo as play
    from plait.train.memory import keep_memory

    keep_memory()
    found = play(Path(out), Console(sys.stdout, quiet=quiet), minutes=minutes)
    return Answer(found, INTERRUPTED if found.get("stopped") == "interrupted" else 0)
