"""Files of a run folder: JSON and tables, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from plait.core.files import write_whole
from plait.data.arrow import bytes_text
from plait.errors import DataError, UsageError
from plait.runs.manifest import CONFIG, read_checked, rewriting

__all__ = ["CONFIG", "LADDER", "MISSES", "MODEL", "SCHEMA", "plain", "read_json", "write_json", "write_table"]

SCHEMA, MODEL, LADDER = "schema.json", "model.safetensors", "ladder.safetensors"
MISSES = "misses.json"  # how far off the answers to the validation rows were


def read_json(path: Path) -> dict:
    """A JSON file of a run, as it was written. Raises DataError for a damaged one."""
    data = read_checked(path)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds a {type(found).__name__}, expected an object")
    return found


def unfinished(folder: Path) -> bool:
    """Whether the run in `folder` has more to do: it has no model yet, or its towers were never weighed against none.
    One whose files are damaged cannot go on."""
    if not (folder / MODEL).is_file():
        return True
    try:
        config = read_json(folder / CONFIG)
        climbs = config.get("towers") and not {"rung", "changed_from"} & config.keys()
        return bool(climbs) and "rungs" not in read_json(folder / "report.json")
    except DataError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=plain)
    with rewriting(path):
        write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def plain(value: Any):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no plain JSON")


def _told(cell: Any) -> str:
    return bytes_text(cell) if isinstance(cell, bytes) else str(cell)


def write_table(table: pa.Table, path: str | Path) -> Path:
    """Write a table as Parquet, CSV or JSON lines by the path's ending, whole or not at all."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        write_whole(path, lambda p: pa.parquet.write_table(table, p))
    elif suffix == ".csv":
        from pyarrow import csv

        flat = table
        for i, field in enumerate(table.schema):  # CSV has neither lists nor bytes
            if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
                cells = [None if v is None else json.dumps(v) for v in table.column(i).to_pylist()]
                flat = flat.set_column(i, field.name, pa.array(cells, pa.string()))
            elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
                cells = [None if v is None else bytes_text(v) for v in table.column(i).to_pylist()]
                flat = flat.set_column(i, field.name, pa.array(cells, pa.string()))
        write_whole(path, lambda p: csv.write_csv(flat, p))
    elif suffix in (".jsonl", ".ndjson"):
        lines = "".join(json.dumps(row, ensure_ascii=False, default=_told) + "\n" for row in table.to_pylist())
        write_whole(path, lambda p: p.write_text(lines, encoding="utf-8"))
    else:
        raise UsageError(f"cannot write {path}: end its name in .parquet, .csv or .jsonl")
    return path
