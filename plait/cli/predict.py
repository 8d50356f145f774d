"""`plait predict`: an answer per row."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait.cli.options import Classes, Json, Quiet, RunFolder, Template, class_names, option, writable
from plait.cli.output import Answer, bad_cells, counted, grid
from plait.errors import UsageError

PRINTED = 20  # rows at most


def predict(
    run: RunFolder,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="Rows to answer; columns may be missing, the target too. Or one picture or sound."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where the answers go: .parquet, .csv or .jsonl."),
    ] = None,
    classes: Classes = None,
    template: Template = None,
    none: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Rows of no class: a row that is no nearer than these has none.")
    ] = None,
    beam: Annotated[int, typer.Option(metavar="NUMBER", help="For written texts: beginnings followed at once.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="For generated pictures: how strongly a row is followed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="NUMBER", help="For generated pictures: of sampling.")] = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="For generated pictures: another for others.")] = 0,
    show: Annotated[
        bool, typer.Option("--show", help="For boxes: also write the pictures with them drawn in.")
    ] = False,
    interval: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Also between what the truth lies (or which classes it is one of) in 90% of rows."
        ),
    ] = None,
    device: str = option("device"),
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Write one answer per row.

    The answers are in the table's order; the column `unread` names the cells of a row that could not be read. Up to 50
    classes have a column each, p(CLASS), more have the likeliest five; a name that TABLE has already gets a "_" more.
    Of at most 20 rows answers are printed where no --out is given.

    $ plait predict runs/pets new.csv -o answers.parquet

    $ plait predict runs/pets photo.png

    $ plait predict runs/houses new.csv --interval 90% -o answers.csv

    $ plait predict runs/clip photos/ --classes cat,dog -o answers.csv
    """
    place, names = writable(out) if out else None, class_names(classes, template=template, none=none)

    import sys

    from plait.data.table import read_table
    from plait.evaluate.intervals import number
    from plait.runs.console import Console
    from plait.runs.devices import pick_device
    from plait.runs.saved import load
    from plait.runs.settings import share

    drawn: dict[str, Any] = {"guidance": guidance, "steps": steps, "seed": seed}
    drawn["interval"] = None if interval is None else share(interval)
    model, console = load(run, device=pick_device(device)), Console(sys.stdout, quiet=quiet)
    rows: Any = table
    if place is None:
        rows = read_table(table)
        if len(rows) > PRINTED:
            raise UsageError(f"{table} has {len(rows):,} rows: say where the answers go, with --out answers.csv")
    with console.progress("rows") as progress:
        if names:
            how: dict[str, Any] = {"allow_outside": allow_outside, "progress": progress}
            model = model.named(names, templates=template or (), none=none, **how)
        drawn |= {"allow_outside": allow_outside, "progress": progress}
        answers = model.predict(rows, out=place, show=show, beam=beam, **drawn)
    bad = model.last_bad
    for sentence in model.last_said:
        console.say("careful", sentence)
    if bad.count():
        console.say("careful", bad_cells(bad.by_reason()) + "; the column `unread` names them")
    shown = []
    if place is None:
        shown = [{n: "(file)" if isinstance(v, bytes) else v for n, v in row.items()} for row in answers.to_pylist()]
        if not json:
            told = [[number(v) if isinstance(v, float) else "" if v is None else v for v in r.values()] for r in shown]
            grid(answers.column_names, told)
    else:
        console.say("saved", f"{place}: {counted(len(answers), 'row')}, columns {', '.join(answers.column_names)}")
    data = {"run": run, "table": table, "out": place, "rows": len(answers), "columns": answers.column_names}
    data |= {"answers": shown} if place is None else {}
    return Answer(data | {"bad_cells": bad.count(), "bad": bad.by_reason()})
