"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from plait.core.files import refuse_unwritable
from plait.errors import PlaitError, UsageError
from plait.runs.settings import Settings

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
WRITTEN = (".parquet", ".pq", ".csv", ".jsonl", ".ndjson")

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output, and everything else on standard error."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no lines and no progress.")]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder that plait fit or plait use wrote, such as runs/pets.")
]

TYPES = get_type_hints(Settings)
FIELDS = {f.metadata.get("option", f.name): f for f in fields(Settings) if not f.metadata.get("hidden")}


def option(name: str, **more: Any) -> Any:
    """The option of a setting, as a command's parameter: its name, its help and its default. more: what is told
    otherwise there."""
    field = FIELDS[name]
    flags = [f"--{name.replace('_', '-')}", *(f"-{s}" for s in field.metadata.get("short", ""))]
    default = None if field.default is MISSING else field.default
    told = {"default": default, "help": field.metadata["help"], "metavar": field.metadata.get("metavar")} | more
    return typer.Option(told.pop("default"), *flags, **told)


def from_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose `**options` are the settings: an option for each, None (a flag: False) where it was not given."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    made = []
    for name, field in FIELDS.items():
        kind = list[str] if _repeated(field) else str if "read" in field.metadata else TYPES[field.name]
        kind, default = (bool, False) if kind is bool else (kind | None, None)
        made.append(inspect.Parameter(name, KEYWORD_ONLY, annotation=kind, default=option(name, default=default)))
    first = [p for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    parameters = [*first, *made, *(p for p in own if p.kind is KEYWORD_ONLY)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def read_settings(texts: dict[str, Any]) -> dict[str, Any]:
    """{field: value} of the options that were given, from what the parser made of each."""
    out = {}
    for name, text in texts.items():
        field = FIELDS[name]
        if text is None or text is False or text == []:
            continue
        try:
            out[field.name] = _value(field, text)
        except PlaitError as error:
            raise UsageError(f"--{name.replace('_', '-')} {error}") from None
    return given(**out)  # auto is as good as nothing


def _value(field: Field, text: Any) -> Any:
    if "read" in field.metadata:
        read = field.metadata["read"]
        found = [read(t) for t in text] if isinstance(text, list) else read(text)
        return dict(found) if get_origin(TYPES[field.name]) is dict else found
    if get_origin(TYPES[field.name]) is dict:
        return pairs(text)
    if not _repeated(field):
        return text
    found = list(dict.fromkeys(text))  # columns: what a comma in them means is up to the table
    return found[0] if len(found) == 1 and str in get_args(TYPES[field.name]) else found


def _repeated(field: Field) -> bool:
    kind = TYPES[field.name]
    return any(get_origin(k) in (list, dict) for k in (kind, *get_args(kind)))


def names(texts: Iterable[str] | None) -> list[str]:
    """Names by comma or repetition, without repeats; one that holds a comma stands in double quotes."""
    found = [part for text in texts or [] for part in next(csv.reader([text], skipinitialspace=True), [])]
    return list(dict.fromkeys(part.strip() for part in found if part.strip()))


Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Tell which of these a row is, by their names, or write the likeliest of them: by comma, or a file, one a "
        "line.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="What stands around a class's name, such as 'a photo of a {}'; several count alike."
    ),
]


def class_names(given: str | None, **others: object) -> list[str]:
    """The names that --classes gives. others: options that are for these alone."""
    if given is None:
        if said := [name for name, value in others.items() if value]:
            raise UsageError(f"--{said[0]} is for --classes: give the names of two or more classes")
        return []
    if Path(given).is_file():
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    return names([given])


def pairs(texts: Iterable[str] | None) -> dict[str, str]:
    """`COLUMN=KIND` by repetition; several in one text stay together until the table's columns are known. Raises
    UsageError for anything else."""
    out = {}
    for text in texts or []:
        name, mark, value = text.rpartition("=")
        if not mark or not name or not value:
            raise UsageError(f"got {text!r}, expected COLUMN=KIND, such as photo=image")
        out[name] = value.strip()
    return out


def given(**options: object) -> dict:
    """The options that were given: neither None nor empty."""
    return {k: v for k, v in options.items() if v is not None and v != [] and v != {}}


def writable(path: str, suffixes: tuple[str, ...] = WRITTEN, option: str = "--out") -> Path:
    """The path, if its ending is one that can be written: said before any work is done."""
    if Path(path).suffix.lower() not in suffixes:
        raise UsageError(f"{option} got {path!r}, expected a name that ends in {', '.join(suffixes)}")
    if Path(path).is_dir():
        raise UsageError(f"{option} got {path!r}, which is a folder")
    refuse_unwritable(Path(path).parent)
    return Path(path)
