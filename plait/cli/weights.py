"""`plait weights`: the published files on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json, Quiet
from plait.cli.output import Answer, counted, lines
from plait.errors import UsageError

DO = ("fetch", "remove")


def weights(
    do: Annotated[str | None, typer.Argument(metavar="fetch|remove", help="By default all are listed.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A model, or an address of the list.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="With fetch: say whether all is here already.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """List the published weights on this machine; fetch or remove a model's.

    Only the cache is looked at, which other programs of the hub fill too; `fetch` alone uses the network.

    $ plait weights

    $ plait weights fetch clip_vit_b_32

    $ plait weights remove clip_vit_b_32
    """
    if do is not None and (do not in DO or name is None):
        raise UsageError(f"got {' '.join(filter(None, (do, name)))!r}, expected nothing, fetch NAME or remove NAME")
    if offline and do != "fetch":
        raise UsageError("--offline is for plait weights fetch NAME: nothing else uses the network")

    import sys

    from plait.core.cache import held
    from plait.core.catalog import sizes_called
    from plait.runs.console import Console

    console = Console(sys.stdout, quiet=quiet)
    if do == "fetch":
        from plait.runs.use import fetch

        files = fetch(name or "", offline=offline, console=console)
        for path in files:
            console.say("here", f"{_size(path.stat().st_size)}  {path}")
        return Answer({"files": [str(path) for path in files]})
    if do == "remove":
        asked = {name, *sizes_called(name or "")}
        gone = [h for h in held() if asked & {h.where, *h.names}]
        if not gone:
            raise UsageError(f"nothing of {name} lies in the cache: plait weights lists what does")
        for h in gone:
            h.remove()
            also = [n for n in h.names if n != name]
            console.say("removed", f"{_size(h.size)}  {h.where}" + (f" (also {', '.join(also)})" if also else ""))
        return Answer({"removed": [h.where for h in gone], "bytes": sum(h.size for h in gone)})
    found = held()
    rows = [{"names": h.names, "where": h.where, "licence": h.licence, "bytes": h.size} for h in found]
    if found and not json and not quiet:
        cells = [(", ".join(h.names) or "-", _size(h.size), h.licence or "-", h.where) for h in found]
        lines(("model", "size", "licence", "from"), cells)
    console.say("in all", f"{_size(sum(h.size for h in found))} in {counted(len(found), 'place')}")
    return Answer({"weights": rows})


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
