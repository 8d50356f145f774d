"""`plait rocketqa`: an encoder of questions and passages, in four steps."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait.cli import INTERRUPTED
from plait.cli.options import Json, Quiet, given, names, option
from plait.cli.output import Answer


def rocketqa(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Pairs of a text that asks and one that answers it.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Where the steps go; the same command again goes on.")
    ],
    inputs: list[str] | None = option("inputs", help="The two columns, the one that asks first."),
    questions: Annotated[
        str | None, typer.Option(metavar="TABLE", help="More that ask, which the ranker labels: the fourth step.")
    ] = None,
    passages: Annotated[str | None, typer.Option(metavar="TABLE", help="More that might answer.")] = None,
    system: Annotated[str, typer.Option(help="The encoder, of `plait models --task retrieve`.")] = "sentence_encoder",
    judge: Annotated[str, typer.Option(help="The ranker, of `plait models --task match`.")] = "uni_encoder",
    top: Annotated[int, typer.Option(help="How many candidates a question has.")] = 50,
    negatives: Annotated[int, typer.Option(help="How many of them each of its answers stands beside.")] = 4,
    low: Annotated[float, typer.Option(help="Below this probability a candidate is surely wrong.")] = 0.1,
    high: Annotated[float, typer.Option(help="Above this one it is surely right.")] = 0.9,
    epochs: int | None = option("epochs"),
    split: str | None = option("split"),
    max_tokens: int | None = option("max_tokens"),
    seed: int = option("seed"),
    device: str = option("device"),
    json: Json = False,
    quiet: Quiet = False,
) -> Answer:
    """Train an encoder of questions and passages by wrong passages that it finds itself.

    A first encoder finds what may mislead it, a ranker that reads both sides together says which of that is surely
    wrong, and a new encoder learns from this; with --questions also from what the ranker labels. Each step is a run of
    its own.

    $ plait rocketqa faq.csv --inputs question,answer -o runs/faq

    $ plait rocketqa faq.csv --questions log.csv -o runs/faq
    """
    import sys

    from plait.runs.console import Console
    from plait.runs.rocketqa import rocketqa as train

    more: dict[str, Any] = given(epochs=epochs, split=split, max_tokens=max_tokens, inputs=names(inputs))
    run = train(
        table, out=out, questions=questions, passages=passages, system=system, judge=judge, top=top,
        negatives=negatives, low=low, high=high, seed=seed, device=device, console=Console(sys.stdout, quiet=quiet),
        **more,
    )  # fmt: skip
    if run.stopped == "interrupted":
        return Answer(
            {"run": run.folder, "stopped": "interrupted"}, INTERRUPTED, "interrupted; the same command goes on"
        )
    return Answer({"run": str(run.folder)})
