"""`plait check`: what a table holds, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, option, read_settings, writable
from plait.cli.output import Answer, clean, counted, grid

LONG = "too long"


def check(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="A CSV, Parquet, JSON-lines, Excel or SQLite file, or a folder of media."),
    ],
    target: list[str] | None = option("target", help="Also look for columns that give it away."),
    kind: list[str] | None = option("kind"),
    inputs: list[str] | None = option("inputs"),
    max_tokens: Annotated[int, typer.Option(min=4, help="Texts with more tokens count as too long.")] = 256,
    allow_outside: bool = option("allow_outside"),
    workers: int = option("workers", min=1),
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write every bad cell into this .parquet file.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Look at a table before training.

    Prints kinds of columns, missing, broken and repeated cells, and columns that give the answer away.
    Trains nothing, and writes nothing unless --out is given.

    $ plait check pets.csv --target speed --kind photo=image
    """
    place = writable(out, (".parquet", ".pq")) if out else None
    given = read_settings({"kind": kind, "inputs": inputs, "target": target})

    import sys

    import numpy as np

    from plait.data.check import check_table, unreadable
    from plait.data.codes import settle_codes
    from plait.data.guess import kinds_of
    from plait.data.rows import Rows
    from plait.data.schema import Schema
    from plait.data.table import read_table
    from plait.runs.console import Console
    from plait.tasks.registry import TASKS, guess_task
    from plait.train.memory import return_memory

    return_memory()
    data = read_table(table)
    schema = Schema.guess(data, allow_outside=allow_outside, **given)
    everything = np.arange(len(data))
    task = TASKS[guess_task(schema)].variant(schema, data) if schema.targets else None
    data = schema.read(data)
    settle_codes(data, schema, everything, kinds_of(data, given.get("kinds", {})))
    schema.fit(data, everything, max_tokens=max_tokens)
    if task is not None:
        task.learn(schema)  # raises where there is nothing to learn
    rows = Rows(data, schema, allow_outside=allow_outside, workers=workers, asked=task is not None, keep=False)
    console = Console(sys.stderr, quiet=quiet)
    console.start("reading", len(data) * len(rows.places))
    try:
        rows.scan(lambda done, _: console.step(done))
    finally:
        console.stop()
    found = check_table(data, schema, rows) | {"said": [*unreadable(rows), *schema.said, *rows.said]}
    if place:
        rows.bad.write(place)
    if not json and not quiet:
        _print(found, data.source)
        if place:
            print(clean(f"bad cells are listed in {place}"))
    return Answer({"table": str(data.source), **found, "bad_rows": str(place) if place else None})


def _print(found: dict, source: str) -> None:
    print(f"{clean(source)}: {counted(found['rows'], 'row')}, {counted(len(found['columns']), 'column')}")
    cells = []
    for c in found["columns"]:
        kind = c["kind"] if c["use"] == "input" else "left out" if c["use"] == "ignored" else f"{c['kind']}, {c['use']}"
        notes = [
            f"{n:,} {remark}" for remark, n in c["notes"].items() if remark != LONG and not remark.startswith("empty")
        ]
        bad = "; ".join(f"{n:,} {why}" for why, n in c["bad"].items())
        counts = [f"{n:,}" if n else "" for n in (c["missing"], c["repeated"], c["notes"].get(LONG, 0))]
        examples = " | ".join(clean(e)[:24] for e in c["examples"])
        cells.append((c["name"], kind, c["why"], examples, counts[0], bad, counts[1], counts[2], "; ".join(notes)))
    head = ("name", "kind", "why", "examples", "missing", "broken", "duplicates", "too long", "notes")
    grid(head, cells, right=("missing", "duplicates", "too long"))
    for sentence in found["said"]:
        print(clean(f"careful: {sentence}"))
    for leak in found["leaks"]:
        print(clean(("careful: " if leak["read"] else "note: ") + leak["sentence"]))
    if found["repeated_rows"]:
        print(f"{counted(found['repeated_rows'], 'row')} with the same inputs as an earlier row")
    print(counted(found["bad_cells"], "bad cell") if found["bad_cells"] else "every cell could be read")
