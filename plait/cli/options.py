"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from plait.errors import UsageError

WRITTEN = (".parquet", ".pq", ".csv", ".jsonl", ".ndjson")

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output, and everything else on standard error."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no lines and no progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="Let the table name media files outside its own folder.")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder that plait fit wrote, such as runs/pets.")]


def names(texts: Iterable[str] | None) -> list[str]:
    """Names by comma or repetition, without repeats; one that holds a comma stands in double quotes."""
    found = [part for text in texts or [] for part in next(csv.reader([text], skipinitialspace=True), [])]
    return list(dict.fromkeys(part.strip() for part in found if part.strip()))


def pairs(texts: Iterable[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE` by comma or repetition. Raises UsageError for anything else."""
    out = {}
    for text in names(texts):
        name, mark, value = text.rpartition("=")
        if not mark or not name or not value:
            raise UsageError(f"{option} got {text!r}, expected COLUMN=KIND, such as photo=image")
        out[name.strip()] = value.strip()
    return out


def whole(text: str | None, option: str) -> int | None:
    """A whole number, or None for nothing or `auto`."""
    if text is None or text.lower() == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} got {text!r}, expected a whole number or auto") from None


def given(**options: object) -> dict:
    """The options that were given: neither None nor empty."""
    return {k: v for k, v in options.items() if v is not None and v != [] and v != {}}


def writable(path: str, suffixes: tuple[str, ...] = WRITTEN, option: str = "--out") -> Path:
    """The path, if its ending is one that can be written: said before any work is done."""
    if Path(path).suffix.lower() not in suffixes:
        raise UsageError(f"{option} got {path!r}, expected a name that ends in {', '.join(suffixes)}")
    if Path(path).is_dir():
        raise UsageError(f"{option} got {path!r}, which is a folder")
    return Path(path)
