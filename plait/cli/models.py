"""`plait models`: which systems there are, read from their files without importing any."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait.cli.options import Json, names
from plait.cli.output import Answer, clean, lines
from plait.errors import UsageError, nearest
from plait.tasks import CHOICES


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern such as 'vit_*_224'.")
    ] = None,
    takes: Annotated[
        list[str] | None, typer.Option(metavar="KINDS", help="Only those that read all of these: image,text.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"Only those that can do it: {', '.join(CHOICES)}.")] = None,
    json: Json = False,
) -> Answer:
    """List models, what they read and can do.

    $ plait models 'vit_*' --takes image --task classify
    """
    from plait.core.catalog import model_info, systems
    from plait.tasks import list_models, tasks_of

    kinds = sorted({t for s in systems().values() for takes in (s.takes, *s.size_takes.values()) for t in takes})
    for wanted in names(takes):
        if wanted not in kinds:
            raise UsageError(f"no model takes {wanted!r}. {nearest(wanted, kinds)}")
    glob = pattern or "*"
    glob = glob if set("*?[") & set(glob) else f"*{glob}*"
    found = [model_info(name) for name in list_models(glob, takes=names(takes), task=task)]
    if not json and found:
        cells = [
            (i.name, ",".join(i.takes), ",".join(tasks_of(i)), "published" if i.weights.get("hub") else "", _short(i))
            for i in found
        ]
        lines(("name", "takes", "tasks", "weights", "paper"), cells)
    rows: list[dict[str, Any]] = [
        {"name": i.name, "system": i.system.name, "takes": i.takes, "tasks": tasks_of(i), "title": i.system.title}
        for i in found
    ]
    rows = [row | {"weights": i.weights.get("hub")} for row, i in zip(rows, found)]
    if not found:
        near = nearest(pattern or "", [*systems(), *list_models()]) if pattern else ""
        note = f"no model matches{f' {pattern!r}' if pattern else ''}." + (f" {near}" if near.startswith("Did") else "")
        return Answer({"models": []}, 0, note)
    return Answer({"models": rows})


def _short(info) -> str:
    """The paper's title without authors and number."""
    title = clean(info.system.title)
    return title if len(title) <= 72 else title[:71].rstrip() + "…"
