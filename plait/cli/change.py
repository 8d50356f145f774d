"""`plait change`: a trained model pruned, quantised, merged: a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, RunFolder, option
from plait.cli.output import Answer


def change(
    run: RunFolder,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Where the changed run goes.")],
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="A method of `plait methods`, such as int8; several in order."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="First make weights of what lora put beside them.")] = False,
    sample: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Rows with the target, for methods that read gradients.")
    ] = None,
    device: str = option("device"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Prune, quantise or merge what was trained, as a run of its own.

    The given one stays as it is. The new run predicts at once, and trains on with plait fit --resume.

    $ plait change runs/pets -o runs/small --method int8
    """
    import sys

    from plait.runs.change import change as changed
    from plait.runs.console import Console
    from plait.runs.declared import read_config
    from plait.runs.devices import pick_device

    console = Console(sys.stdout, quiet=quiet)
    made = changed(run, method or (), out=out, merge=merge, sample=sample, device=pick_device(device))
    recipe = read_config(made.folder)["recipe"]
    before, after = ((Path(folder) / "model.safetensors").stat().st_size for folder in (run, made.folder))
    console.say("saved", f"{made.folder}: {after / 1e6:.1f} MB of weights, before {before / 1e6:.1f} MB")
    return Answer({"run": run, "out": str(made.folder), "changes": recipe["changes"], "bytes": after})
