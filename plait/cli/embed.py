"""`plait embed`: a vector per row."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, RunFolder, option, writable
from plait.cli.output import Answer, bad_cells, counted


def embed(
    run: RunFolder,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table, or a folder of pictures or sounds.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Where the vectors go: .parquet, .csv or .jsonl.")
    ],
    device: str = option("device"),
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Write a unit vector per row.

    For a run of --task retrieve and a published model, of each input that the table has; for others, of the whole row.

    $ plait embed runs/shop photos/ -o vectors.parquet
    """
    place = writable(out)

    import sys

    from plait.runs.console import Console
    from plait.runs.devices import pick_device
    from plait.runs.saved import load

    model, console = load(run, device=pick_device(device)), Console(sys.stdout, quiet=quiet)
    with console.progress("rows") as progress:
        vectors = model.embed(table, out=place, allow_outside=allow_outside, progress=progress)
    bad = model.last_bad
    empty = sum(vectors.column(name).null_count for name in vectors.column_names if name.startswith("vector"))
    for sentence in model.last_said:
        console.say("careful", sentence)
    if bad.count():
        console.say("careful", f"{bad_cells(bad.by_reason())}; {counted(empty, 'vector')} null")
    widths = {f.name: f.type.list_size for f in vectors.schema if f.name.startswith("vector")}
    what = ", ".join(f"{name} of {width}" for name, width in widths.items())
    console.say("saved", f"{place}: {counted(len(vectors), 'row')}, {what}")
    data = {"run": run, "table": table, "out": place, "rows": len(vectors), "widths": widths, "null": empty}
    return Answer(data | {"bad_cells": bad.count(), "bad": bad.by_reason()})
