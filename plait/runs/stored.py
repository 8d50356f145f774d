"""What a run keeps of its table, so that it goes on without a guess: the row numbers of its splits, and digests of all
that it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plait.core.files import write_whole
from plait.data.digest import cell_digests, row_digests
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError
from plait.runs.declared import read_schema
from plait.runs.folder import CONFIG
from plait.runs.manifest import check

SPLITS = "splits.parquet"
Splits = dict[str, np.ndarray]
ROLES = {
    "split": "the split column ",
    "weight": "the weight column ",
    "negative": "the column of negatives ",
    "group": "the group column ",
    "target": "the target ",
}


@dataclass
class Stored:
    """What the folder of a run holds. drawn: the splits of the table's own rows; used: those that are trained on and
    scored, sorted row numbers; prints: what `fingerprints` gave."""

    folder: Path
    config: dict
    schema: Schema
    drawn: Splits
    used: Splits
    prints: dict

    def check(self, found: dict, source: str) -> None:
        """Raises DataError where a table with the fingerprints `found` is another than the run's, and says in what."""
        if why := self.changed(found):
            raise DataError(
                f"{source} is not the table that {self.folder} was trained on: {why}. Going on would mix two runs: "
                "give the table as it was, or start a new run"
            )

    def changed(self, found: dict) -> str:
        """In what a table with the fingerprints `found` is another, in words; "" where it is the run's."""
        before, named = self.prints, lambda part: "it" if part == "all" else f"the {part} table"
        for part in before["rows"].keys() | found["rows"].keys():
            was, now = before["rows"].get(part, 0), found["rows"].get(part, 0)
            if was != now:
                return f"{named(part)} has {now:,} rows and had {was:,}"
        for part, digest in before["content"].items():
            columns = [n for n in before["columns"] if before["columns"][n][part] != found["columns"][n][part]]
            if not columns:
                continue
            if found["content"][part] == digest:
                return f"the rows of {named(part)} stand in another order"
            told = [f"{ROLES.get(self.schema.column(n).use, '')}{n!r}" for n in columns[:5]]
            more = f" and {len(columns) - 5} more columns" if len(columns) > 5 else ""
            return f"in {named(part)} the cells of {', '.join(told)}{more} are not the same"
        return ""


def needed(schema: Schema, table: Table) -> list[str]:
    """The columns of a table that a run depends on, sorted."""
    return sorted(c.name for c in schema.columns if c.use != "ignored" and c.name in table.names)


def fingerprints(table: Table, schema: Schema, parts: Mapping[str, np.ndarray] | None) -> dict:
    """Plain JSON: how many rows, what in each column in that order (media by their bytes), and which rows in any order,
    for each of `parts`, {name: row numbers} of tables that were put end to end; None: there is one, "all"."""
    names = needed(schema, table)
    parts = {"all": np.arange(len(table))} if parts is None else parts
    rows = row_digests(table, schema, names)
    return {
        "rows": {part: len(index) for part, index in parts.items()},
        "columns": {
            name: {part: _one(_joined(cells[index], True)) for part, index in parts.items()}
            for name, cells in ((n, cell_digests(table, schema, n)) for n in names)
        },
        "content": {part: _one(_joined(np.sort(rows[index]), False)) for part, index in parts.items()},
    }


def whole(prints: dict) -> str:
    """One digest of all that `fingerprints` gave."""
    return _one(json.dumps(prints, sort_keys=True).encode())


def _one(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _joined(digests: np.ndarray, told: bool) -> bytes:
    """Digests (n,) S16 end to end without the zeros behind each; told: its length stands before each."""
    width = digests.dtype.itemsize
    data = np.ascontiguousarray(digests).view(np.uint8).reshape(-1, width)
    ends = np.where(data.any(1), width - (data[:, ::-1] != 0).argmax(1), 0).astype(np.uint8)
    if told:
        data, ends = np.concatenate([ends[:, None], data], 1), ends + 1
    return data[np.arange(data.shape[1], dtype=np.uint8) < ends[:, None]].tobytes()


def write_splits(folder: Path, rows: int, drawn: Splits, used: Splits) -> None:
    """splits.parquet: of each of `rows` rows in which split it is (null: in none, such as a row without a target), and
    in which it was drawn (null: a row that the task made of others)."""
    columns = {"row": pa.array(np.arange(rows))} | {
        name: _named(rows, splits) for name, splits in (("split", used), ("drawn", drawn))
    }
    table = pa.table(columns).replace_schema_metadata({"drawn": json.dumps(list(drawn)), "split": json.dumps([*used])})
    write_whole(folder / SPLITS, lambda path: pq.write_table(table, path))


def _named(rows: int, splits: Splits) -> pa.DictionaryArray:
    at = np.full(rows, -1, np.int32)
    for i, index in enumerate(splits.values()):
        at[index] = i
    return pa.DictionaryArray.from_arrays(pa.array(at, mask=at < 0), pa.array(list(splits), pa.string()))


def _read_splits(path: Path) -> tuple[Splits, Splits]:
    try:
        table = pq.read_table(path)
        told = {k.decode(): json.loads(v) for k, v in table.schema.metadata.items() if k in (b"drawn", b"split")}
        cells = {name: table.column(name).to_pylist() for name in told}
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    found = []
    for name in ("drawn", "split"):
        at = np.asarray(cells.get(name, []), dtype=object)
        if odd := {c for c in at if c is not None} - set(told.get(name, [])):
            raise DataError(f"{path} is damaged: {name} has {sorted(map(repr, odd))[0]}, which is no split of the run")
        found.append({split: np.flatnonzero(at == split) for split in told.get(name, [])})
    return found[0], found[1]


def read_stored(folder: Path, config: dict) -> Stored:
    """What the run in `folder` keeps. Raises DataError where that is damaged, or was never kept."""
    prints = config.get("table")
    if prints is None or not (folder / SPLITS).is_file():
        why = f"it has no {SPLITS}" if prints is not None else "it was begun by a plait that did not keep its splits"
        raise DataError(f"{folder} cannot go on: {why}, and drawn anew they could hold test rows. Start a new run")
    check(folder / SPLITS)
    drawn, used = _read_splits(folder / SPLITS)
    told = {name: len(rows) for name, rows in used.items()}
    if told != config["splits"] or not told.get("train"):
        raise DataError(f"{folder / SPLITS} is damaged: it has splits of {told} rows, {CONFIG} says {config['splits']}")
    return Stored(folder, config, read_schema(folder), drawn, used, prints)
