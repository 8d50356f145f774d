"""`plait methods`: which changes to models there are, read from their files without importing any."""

from __future__ import annotations

from typing import Annotated

import typer

from plait.cli.options import Json
from plait.cli.output import Answer, lines


def methods(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern such as '*former'.")
    ] = None,
    json: Json = False,
) -> Answer:
    """List methods: changes to any model, for `plait fit --method` and for Python.

    $ plait methods '*former'
    """
    from plait.core.methods import list_methods, method_info

    glob = pattern or "*"
    found = [method_info(name) for name in list_methods(glob if set("*?[") & set(glob) else f"*{glob}*")]
    if not found:
        return Answer({"methods": []}, 0, f"no method matches {pattern!r}: `plait methods` lists them all.")
    if not json:
        lines(("name", "options", "paper"), [(m.name, m.usage, m.title) for m in found])
    return Answer(
        {"methods": [{"name": m.name, "options": m.options, "wraps": m.wraps, "title": m.title} for m in found]}
    )
