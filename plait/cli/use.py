"""`plait use`: a published model as a run, without training."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, pairs
from plait.cli.output import Answer


def use(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of `plait models`, or what its publisher says.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The run folder; by default runs/NAME.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file or folder with its weights, instead of fetching them.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its tokenizer.json, where that does not lie beside the weights.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=KIND", help="Read this column of tables, such as title=text; by default any."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Names of a classifier's classes, one a line, in its own order.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take its files from the cache alone.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Make a run of a published model, without training.

    Its name, size and licence are said before its files are fetched, each once. The run embeds and searches, names
    classes by texts, tells those it was trained for, captions, answers or transcribes, as far as it can.

    $ plait use clip_vit_b_32 -o runs/clip

    $ plait use vit_base_patch16_224 --weights model.safetensors
    """
    import sys

    from plait.runs.console import Console
    from plait.runs.telling import usable
    from plait.runs.use import use as used

    console = Console(sys.stdout, quiet=quiet)
    made = used(
        name, weights=weights, folder=out, kinds=pairs(kind), classes=classes, tokenizer=tokenizer,
        offline=offline, console=console,
    )  # fmt: skip
    commands = usable(made)
    console.say("saved", str(made.folder))
    for command in commands:
        console.say("next", command)
    return Answer({"run": str(made.folder), "task": made.task.name, **(made.used or {}), "next": commands})
