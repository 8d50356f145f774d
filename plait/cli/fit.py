"""`plait fit`: a table in, a trained, evaluated and reported model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli import INTERRUPTED
from plait.cli.options import Json, Outside, Quiet, given, names, pairs, whole
from plait.cli.output import Answer
from plait.errors import UsageError

Names = list[str] | None


def fit(
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="A CSV, TSV, Parquet or JSON-lines file, or a folder of class folders."),
    ] = None,
    target: Annotated[
        Names, typer.Option("--target", "-t", metavar="COLUMN", help="What to predict; several for several labels.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classify, regress, retrieve, match, transcribe or caption; else by target.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A model of `plait models`; by default plait's own, which reads anything.")
    ] = None,
    kind: Annotated[
        Names, typer.Option(metavar="COLUMN=KIND", help="Take a column for this kind, such as photo=image.")
    ] = None,
    inputs: Annotated[Names, typer.Option(metavar="COLUMNS", help="Only these inputs, by comma or repetition.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The run folder; by default runs/NAME.")
    ] = None,
    val: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Rows that watch the training, instead of a tenth.")
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="TABLE", help="Rows for the report, instead of a tenth.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that says train, val or test.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows with the same value here stay on one side.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows; by default by their number.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Rows per step, or auto.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    minutes: Annotated[float | None, typer.Option(help="A time budget for training.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score before stopping.")] = None,
    ema: Annotated[float | None, typer.Option(help="Average the weights with this decay, such as 0.999.")] = None,
    augment: Annotated[float | None, typer.Option(help="Strength of augmentation; 0 is none, 1 the usual.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of splits, weights and batches.")] = None,
    max_bad: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Stop where more of the rows are bad, such as 1%.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of the pictures that the model reads.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens of a text that the model reads.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A published tokenizer.json; by default learnt, or that of the weights."),
    ] = None,
    pieces: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Spell transcripts in about so many pieces of words.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the published weights (the hub is asked).")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start from the weights in this file, or at this URL.")
    ] = None,
    allow_outside: Outside = False,
    workers: Annotated[int | None, typer.Option(help="Threads that decode pictures and sounds.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Go on with this run; `latest` is the newest unfinished one under runs/."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; train nothing and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Train a model on a table and report on it.

    Kinds of columns, sizes and epochs come from the data where they are not given. Ctrl-C saves, and --resume goes on.

    $ plait fit pets.csv --target speed --kind photo=image --minutes 10

    $ plait fit shop.parquet --task retrieve --inputs photo,title --system clip

    $ plait fit photos.csv --task caption --target text

    $ plait fit calls.csv --task transcribe --target said --system zipformer

    $ plait fit --resume runs/pets
    """
    if pretrained and weights:
        raise UsageError("--pretrained fetches the published weights and --weights reads a file: give one of them")
    targets = names(target)
    options = given(
        target=targets if len(targets) > 1 else targets[0] if targets else None,
        task=task,
        system=system,
        kinds=pairs(kind, "--kind"),
        inputs=names(inputs),
        val=val,
        test=test,
        split=split,
        group=group,
        epochs=epochs,
        batch_size=whole(batch_size, "--batch-size"),
        lr=lr,
        weight_decay=weight_decay,
        minutes=minutes,
        patience=patience,
        ema=ema,
        augment=augment,
        precision=precision,
        device=device,
        seed=seed,
        max_bad=max_bad,
        image_size=image_size,
        max_tokens=max_tokens,
        tokenizer=tokenizer,
        pieces=pieces,
        pretrained=weights or pretrained or None,
        allow_outside=allow_outside or None,
        workers=workers,
    )
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
    from plait.runs.settings import share
    from plait.train.memory import keep_memory

    keep_memory()

    if max_bad is not None:
        options["max_bad"] = share(max_bad)
    console = Console(sys.stdout, quiet=quiet)
    found = train(table, out=resume or out, resume=resume is not None, dry_run=dry_run, console=console, **options)
    if dry_run:
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

    from plait.runs.fit import read_config

    made = read_config(folder)
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    head = {"run": folder, "task": made["task"]["task"], "model": made["recipe"]["name"], "rows": made["splits"]}
    return head | facts | {"bad_cells": pq.read_metadata(folder / "bad_rows.parquet").num_rows}


def _latest() -> str:
    """The newest unfinished run under runs/."""
    unfinished = [p.parent for p in Path("runs").glob("*/config.json") if not (p.parent / "model.safetensors").exists()]
    if not unfinished:
        raise UsageError("no unfinished run under runs/: name the run's folder, as in plait fit --resume runs/pets")
    return str(max(unfinished, key=lambda p: (p / "config.json").stat().st_mtime))
