"""`plait search`: the rows nearest to a text, a picture or a sound."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet, RunFolder, given, option, writable
from plait.cli.output import Answer, grid
from plait.errors import UsageError


def search(
    run: RunFolder,
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="Where to search: a table, a folder, or vectors of plait embed.")
    ],
    text: Annotated[str | None, typer.Option(help="Search by this text.")] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Search by this picture.")] = None,
    audio: Annotated[str | None, typer.Option(metavar="FILE", help="Search by this sound.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many hits.")] = 10,
    show: Annotated[str | None, typer.Option(metavar="PNG", help="Write a picture of the hits.")] = None,
    device: str = option("device"),
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Find the rows nearest to a query.

    For a run of --task retrieve, and a published model. The search is exact.

    $ plait search runs/shop photos/ --text "a red door" -k 10 --show hits.png
    """
    query = given(text=text, image=image, audio=audio)
    if len(query) != 1:
        raise UsageError(
            f"a query is one of --text, --image and --audio, got {' and '.join('--' + q for q in query) or 'none'}"
        )
    place = writable(show, (".png",), "--show") if show else None

    import sys

    from plait.runs.console import Console
    from plait.runs.devices import pick_device
    from plait.runs.saved import load

    model, console = load(run, device=pick_device(device)), Console(sys.stdout, quiet=quiet)
    with console.progress("rows") as progress:
        hits = model.search(table, k=top, show=place, allow_outside=allow_outside, progress=progress, **query)
    if not json and not quiet:
        cells = [(i, f"{h.score:.3f}", h.row, h.cell) for i, h in enumerate(hits, 1)]
        grid(("rank", "similarity", "row", "cell"), cells, right=("rank", "similarity", "row"))
    if place:
        console.say("saved", str(place))
    found = [{"rank": i, "similarity": h.score, "row": h.row, "cell": h.cell} for i, h in enumerate(hits, 1)]
    return Answer({"run": run, "table": table, "query": query, "hits": found, "show": place})
