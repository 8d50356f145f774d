"""`plait evaluate`: a trained model's scores on a table, and whether they are good enough."""

from __future__ import annotations

import operator
import re
from typing import Annotated, Any

import typer

from plait.cli.options import Classes, Json, Quiet, RunFolder, Template, class_names, option, writable
from plait.cli.output import Answer, bad_cells, grid
from plait.errors import UsageError, nearest

UNMET = 4
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def evaluate(
    run: RunFolder,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Rows with the target.")],
    gallery: Annotated[
        str | None, typer.Option(metavar="TABLE", help="For retrieval: more items to choose from.")
    ] = None,
    classes: Classes = None,
    template: Template = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="SCORE", help="Exit with 4 where a score is worse: 'accuracy>=0.9'.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write every bad cell into this .parquet file.")
    ] = None,
    beam: Annotated[int, typer.Option(metavar="NUMBER", help="For written texts: beginnings followed at once.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="For generated pictures: how strongly a row is followed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="NUMBER", help="For generated pictures: of sampling.")] = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="For generated pictures: another for others.")] = 0,
    interval: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Also how many rows intervals of this share hold, such as 90%.")
    ] = None,
    device: str = option("device"),
    allow_outside: bool = option("allow_outside"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Score a trained model on a table.

    Every score comes with its 95% interval and what it would be without a model.

    $ plait evaluate runs/pets test.parquet --require 'accuracy>=0.9'
    """
    wanted, names = [parse(text) for text in require or []], class_names(classes, template=template)
    place = writable(out, (".parquet", ".pq")) if out else None

    import sys

    from plait.evaluate.intervals import number
    from plait.runs.console import Console
    from plait.runs.devices import pick_device
    from plait.runs.saved import load
    from plait.runs.settings import share
    from plait.runs.telling import tell

    drawn: dict[str, Any] = {"guidance": guidance, "steps": steps, "seed": seed}
    drawn["interval"] = None if interval is None else share(interval)
    model, console = load(run, device=pick_device(device)), Console(sys.stdout, quiet=quiet)
    with console.progress("rows") as progress:
        if names:
            model = model.named(names, templates=template or (), progress=progress)
        drawn |= {"allow_outside": allow_outside, "progress": progress}
        found = model.evaluate(table, gallery=gallery, beam=beam, **drawn)
    judged = [judge(w, found.scores) for w in wanted]
    bad = model.last_bad
    if place:
        bad.write(place)
    tell(console, found, "test", model.task)
    if not quiet and not json:
        chance = {s.name: s.value for s in found.baseline}
        without = {name: number(value) for name, value in chance.items()}
        cells = [
            (s.name, number(s.value), f"[{number(s.low)}, {number(s.high)}]", without.get(s.name, ""), f"{s.n:,}")
            for s in found.scores
        ]
        grid(
            ("score", "value", "95% interval", "without a model", "rows"),
            cells,
            right=("value", "without a model", "rows"),
        )
    for sentence in model.last_said:
        console.say("careful", sentence)
    if bad.count():
        console.say("careful", bad_cells(bad.by_reason()) + (f" ({place})" if place else ""))
    unmet = [f"{j['score']} is {number(j['value'])}, required {j['required']}" for j in judged if not j["met"]]
    data = {
        "run": run,
        "table": table,
        **found.to_json(),
        "bad_cells": bad.count(),
        "bad": bad.by_reason(),
        "required": judged,
    }
    return Answer(data, UNMET if unmet else 0, "; ".join(unmet))


def parse(text: str) -> tuple[str, str, float]:
    """ "accuracy>=0.9" or "accuracy >= 90%" -> ("accuracy", ">=", 0.9). Raises UsageError for anything else."""
    found = re.fullmatch(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(%?)\s*", text, re.IGNORECASE)
    try:
        if found is not None:
            return found[1], found[2], float(found[3]) / (100 if found[4] else 1)
    except ValueError:
        pass
    raise UsageError(f"--require got {text!r}, expected a score and a bound, such as 'accuracy>=0.9'")


def judge(wanted: tuple[str, str, float], scores: list) -> dict:
    """Whether a score keeps to its bound. Its name, or the only ending of one ("recall@1"), in any case."""
    name, sign, bound = wanted
    known = {s.name.casefold(): s for s in scores}
    alike = [s for k, s in known.items() if k.endswith(", " + name.casefold())]
    score = known.get(name.casefold())
    if score is None and not alike:
        raise UsageError(f"--require: no score {name!r}. {nearest(name, [s.name for s in scores])}")
    every = [score] if score is not None else alike
    worst = min(every, key=lambda s: s.value if sign in (">=", ">") else -s.value)  # of both directions of retrieval
    return {
        "score": worst.name,
        "value": worst.value,
        "required": f"{sign} {bound:g}",
        "met": bool(COMPARE[sign](worst.value, bound)),
    }
