"""`plait report`: new rows beside those that a run was trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, RunFolder, option, writable
from plait.cli.output import Answer, grid


def report(
    run: RunFolder,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="New rows, with or without the target.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report into this .html file.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="The table of the training; else the file that the run names."),
    ] = None,
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Tell what of new rows has drifted from those that a run was trained on, and what it scores on them.

    Each column by itself, and all together: how well a classifier tells new rows from training rows.

    $ plait report runs/pets new.csv -o drift.html
    """
    place = writable(out, (".html",)) if out else None

    import sys

    from plait.evaluate.intervals import number
    from plait.runs.console import Console
    from plait.runs.drift import drift

    console = Console(sys.stdout, quiet=quiet)
    with console.progress("rows") as progress:
        found = drift(run, table, train=train, allow_outside=allow_outside, progress=progress)
    if place:
        found.write(place)
    console.say("drift", found.sentence)
    if not quiet and not json:
        cells = []
        for c in found.columns:
            far = ("", "") if c.distance is None else (number(c.distance.value), number(c.distance.chance))
            unseen = "" if c.unseen is None else f"{c.unseen:.1%}"
            missing = f"{c.missing[0]:.1%} -> {c.missing[1]:.1%}"
            cells.append((c.column, c.what, *far, "drifted" if c.beyond else "", unseen, missing))
        grid(
            ("column", "measure", "distance", "chance", "", "never seen", "missing"),
            cells,
            right=("distance", "chance"),
        )
    for score in found.scores:
        console.say("score", str(score))
    for said in found.said:
        console.say("careful", said)
    if place:
        console.say("saved", str(place))
    return Answer({**found.to_json(), "out": place})
