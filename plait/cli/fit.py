"""`plait fit`: a table in, a trained, evaluated and reported model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli import INTERRUPTED
from plait.cli.options import Json, Quiet, from_settings, given, read_settings
from plait.cli.output import Answer
from plait.errors import UsageError


@from_settings
def fit(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE", help="A CSV, Parquet, JSON-lines, Excel or SQLite file, or a folder of class folders."
        ),
    ] = None,
    *,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the published weights (the hub is asked).")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start from the weights in this file, or at this URL.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The run folder; by default runs/NAME.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Go on with this run; `latest` is the newest unfinished one under runs/."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; train nothing and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> Answer:
    """Train a model on a table and report on it.

    Kinds of columns, sizes and epochs come from the data where they are not given. Ctrl-C saves, and --resume goes on.

    $ plait fit pets.csv --target speed --kind photo=image --minutes 10

    $ plait fit reviews.csv --target stars --kind stars=ordinal

    $ plait fit houses.csv --target price --seeds 5

    $ plait fit wine.csv --target cultivar --folds 10

    $ plait fit shop.parquet --task retrieve --inputs photo,title --system clip

    $ plait fit photos.csv --task caption --target text

    $ plait fit calls.csv --task transcribe --target said --system zipformer

    $ plait fit questions.csv --task answer --target answer --system llava --part vision=runs/tower

    $ plait fit claims.csv --target fraud --metric f1 --positive yes

    $ plait fit houses.csv --target price --trials 20 --metric mae

    $ plait fit sales.csv --target sold --time date --quantiles 0.1,0.9

    $ plait fit survey.csv --target vote --sample-weight weight

    $ plait fit photos/ --system deit_tiny_patch16_224 --scheme paper

    $ plait fit signs.csv -t is --tower text=gtr_base:folder --rungs 2

    $ plait fit --resume runs/pets
    """
    if pretrained and weights:
        raise UsageError("--pretrained fetches the published weights and --weights reads a file: give one of them")
    settings = read_settings(options) | given(pretrained=weights or pretrained or None)
    if resume is None and table is None:
        raise UsageError("no table: give a file or a folder, such as plait fit houses.csv --target price")
    if resume is not None:
        if out is not None or dry_run:
            raise UsageError(
                f"--resume goes on with a run in its own folder: leave out {'--out' if out else '--dry-run'}"
            )
        resume = _latest() if resume == "latest" else resume

    import sys

    from plait.runs.console import Console
    from plait.runs.fit import fit as train
    from plait.train.memory import keep_memory

    keep_memory()

    console = Console(sys.stdout, quiet=quiet)
    found = train(table, out=resume or out, resume=resume is not None, dry_run=dry_run, console=console, **settings)
    if isinstance(found, dict):
        console.say("dry run", "nothing was trained or written")
        return Answer(found)
    if found.stopped == "interrupted":
        # the console has said so, unless it is quiet
        again = f"interrupted; saved. To go on: plait fit --resume {found.folder}"
        return Answer({"run": found.folder, "stopped": "interrupted"}, INTERRUPTED, again if quiet else "")
    return Answer(_facts(found.folder) if json else {})


def _facts(folder: Path) -> dict:
    """What the run folder says of the finished run."""
    import json

    import pyarrow.parquet as pq

    from plait.runs.declared import read_config

    made = read_config(folder)
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    head = {"run": folder, "task": made["task"]["task"], "model": made["recipe"]["name"], "rows": made["splits"]}
    head["methods"] = made["recipe"]["changes"]
    return head | facts | {"bad_cells": pq.read_metadata(folder / "bad_rows.parquet").num_rows}


def _latest() -> str:
    """The newest unfinished run under runs/."""
    from plait.runs.folder import unfinished

    found = [p.parent for p in Path("runs").glob("*/config.json") if unfinished(p.parent)]
    if not found:
        raise UsageError("no unfinished run under runs/: name the run's folder, as in plait fit --resume runs/pets")
    return str(max(found, key=lambda p: (p / "config.json").stat().st_mtime))
