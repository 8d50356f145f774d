"""`plait compare`: two runs on the same rows."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, option
from plait.cli.output import Answer, grid


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/pets.")],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="That of a run with the same target.")],
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="Rows with the target; else those that both runs kept for their reports."),
    ] = None,
    most: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="How many rows are listed.")] = 10,
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Tell which of two runs is better on the same rows, by how much, and where they differ most.

    The gain is that of the second, row by row, with the 95% interval of a paired bootstrap.

    $ plait compare runs/pets runs/pets-2 new.csv
    """
    import sys

    from plait.evaluate.intervals import number
    from plait.runs.compare import compare as look
    from plait.runs.console import Console

    console = Console(sys.stdout, quiet=quiet)
    with console.progress("rows") as progress:
        found = look(first, second, table, most=most, allow_outside=allow_outside, progress=progress)
    if not quiet and not json:
        other = {s.name: s for s in found.b.scores}
        cells = [(s.name, *(_score(x) for x in (s, other[s.name]))) for s in found.a.scores if s.name in other]
        grid(("score", first, second), cells)
        low, high = found.gain.low, found.gain.high
        sure = "no more than noise" if low <= 0 <= high else f"{second if low > 0 else first} is better"
        told = f"{found.gain.value:+.3f} [{low:+.3f}, {high:+.3f}] by row, p {number(found.p)}: {sure}"
        console.say("gain", f"{told}   {len(found.a.index):,} rows")
        if found.rows:
            rows = [(r["row"], r["truth"], *(_cell(r[k]) for k in ("a", "b")), f"{r['gain']:+.3g}") for r in found.rows]
            grid(("row", "truth", first, second, "lower loss"), rows, right=("row", "lower loss"))
    return Answer({"run": first, "other": second, "table": table, **found.to_json()})


def _score(score) -> str:
    from plait.evaluate.intervals import number

    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"


def _cell(cell: object) -> object:
    from plait.evaluate.intervals import number

    return number(cell) if isinstance(cell, float) else "" if cell is None else cell
