"""A trained model in its folder: load it, evaluate, predict, embed, search. Nothing in the folder is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from plait.core.files import refuse_unwritable, write_whole
from plait.data.check import unreadable
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table, read_table
from plait.data.unify import end_to_end, unify
from plait.errors import DataError, UsageError
from plait.parts.objectives.late import PLAIN, late
from plait.runs.assess import Assessment, assess
from plait.runs.columns import aligned, asking, like, one_row, safe, unread
from plait.runs.folder import write_table
from plait.runs.nearest import Block, Columns, Stored, blocks_of, nearest, stored
from plait.runs.predict import answer_table, asked_how, merge, outputs, stream
from plait.runs.towers import Towers
from plait.tasks.base import Task, TaskModel, beside
from plait.tasks.registry import TASKS, nouns
from plait.tasks.retrieve import late_scores
from plait.train.loop import History


@dataclass
class Hit:
    """One answer of a search: its row in the table, its similarity (cosine, -1 to 1), and its cell, if that is a
    path."""

    row: int
    score: float
    cell: str


class Run:
    """A model with its schema and task: trained by `plait.fit`, or as `plait.use` found it published.
    `plait.load(folder)` makes one of a folder."""

    def __init__(
        self, folder: Path, schema: Schema, task: Task, model: TaskModel, precision: str, *, stopped: str = "finished",
        used: dict | None = None, towers: Towers | None = None,
    ):  # fmt: skip
        self.folder, self.schema, self.task, self.model = Path(folder), schema, task, model
        self.precision, self.stopped = precision, stopped
        self.used = used  # of a model as it was published: where its weights came from, and their licence
        self.towers = towers or Towers({})
        self.last_said: list[str] = []  # what a careful reader would want to know of the rows that were read last
        self.assessments: dict[str, Assessment] = {}  # of a run just trained: by split
        self.history: History | None = None
        self.losses: np.ndarray | None = None  # of a run just trained: of the rows that watched, before it learnt them
        self.report: Callable | None = None  # of a run just trained: writes report.html anew, with more sections
        self.rows_read: Rows | None = None  # of a run just trained whose towers learnt: its table, as they read it
        self.learns: dict[str, Any] = {}  # how many parameters of the towers have learnt, and their share

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.task.name}, inputs: {', '.join(self.schema.inputs)})"

    def rows(
        self,
        source: Any,
        *,
        allow_outside: bool = False,
        asked: bool = False,
        progress=None,
        share: Rows | None = None,
    ) -> Rows:
        """The rows of any table that `fit` would read, decoded for this model. asked: with their targets. share: the
        same rows, decoded before. Raises DataError where no input column is there, or no target that is asked for."""
        table = self._table(source)
        asked = asked and self.task.asks is not None
        towers = self.towers.readers(self.schema)
        rows = Rows(table, self.schema, allow_outside=allow_outside, asked=asked, towers=towers, share=share)
        rows.scan(progress)
        self.last_said = [*unreadable(rows), *table.said]
        return rows

    def evaluate(
        self, source: Any, *, gallery: Any = None, allow_outside: bool = False, progress=None, **how: Any
    ) -> Assessment:
        """Scores with intervals on a table that has the target (for retrieval: both sides).

        gallery: for retrieval, a table of more items to choose from, which do not ask themselves. how: as for
        `predict`.
        """
        self._refuse_mute("evaluate")
        asked_how(self.task, self.model, **how)
        rows = self.rows(source, allow_outside=allow_outside, asked=True, progress=progress)
        table, queries = rows.table, None
        for name in self.task.targets:
            table.column(name)  # a DataError that names the nearest, where the target is not there
        if gallery is not None:
            if not _searches(type(self.task)):
                raise UsageError(f"a gallery is for {nouns(_searches)}: this run does {self.task.name}")
            more = self._table(gallery)
            names = [n for n in self.schema.inputs if n in table.names]
            both = {n: end_to_end(unify(n, [table.column(n), like(more, n)])) for n in names}
            queries = np.arange(len(table) + len(more)) < len(table)
            table = Table(pa.table(both), table.root, table.source, reader=self.schema)
            rows = Rows(table, self.schema, allow_outside=allow_outside).scan(progress)
        self.task.derive(rows)
        found = assess(self.model, self.task, rows, self.schema, np.arange(len(table)), self.precision, queries=queries)
        self.last_bad = rows.bad
        return found

    def predict(
        self, source: Any, *, out: str | Path | None = None, show: bool = False, allow_outside: bool = False,
        progress=None, **how: Any,
    ) -> pa.Table:  # fmt: skip
        """One answer per row, in the table's order: `row`, the answer's columns, and `unread` (columns that could not
        be read).

        source: any table that `fit` would read, one picture or sound, or a dict of cells, which is one row.
        out: also write it, as Parquet, CSV or JSON lines by its ending; answers that are pictures or sounds are then
        files in a folder beside it, which the table names, and without `out` the bytes of such files.
        show: a column `shown` more, of each row's picture with its answer drawn onto it, where the task is of boxes.
        how: for transcription and captions `beam`, how many beginnings of a text are followed at once; 0 takes the
        likeliest label or token each time. For generated pictures `guidance`, how many times what a row asks for is
        followed (1: as it was learnt), `steps` of sampling, and `seed`, another for other pictures. For numbers and
        classes `interval`, such as 0.9: columns `low` and `high`, or `one of`, hold the truth in such a share of rows.
        """
        self._refuse_mute("predict")
        asked_how(self.task, self.model, **how)
        _refuse_unwritable(out)
        if show and not self.task.shows:
            raise UsageError(f"to show answers is for {nouns(lambda t: t.shows)}: this run does {self.task.name}")
        rows = self.rows(source, allow_outside=allow_outside, progress=progress)
        told, done = [], 0
        if _searches(type(self.task)) and rows.absent:
            raise UsageError(
                f"{rows.table.source} has no column {rows.absent[0]!r}: this run tells how alike two columns are. With "
                "--classes it names rows, where it reads texts; plait embed and plait search need one column"
            )
        index = np.arange(len(rows))
        for batch, found in stream(self.model, rows, index, precision=self.precision, progress=progress):
            answers = self.task.finish(found)
            own = self.task.columns(answers)
            told.append(beside(own, {"shown": self.task.shown(batch, answers)}) if show else own)
            if out is not None:
                kinds = {n: self.schema.column(n).kind if n in self.task.targets else "image" for n in told[-1]}
                told[-1] = {n: self._filed(n, kinds[n], cells, Path(out), done) for n, cells in told[-1].items()}
            done += len(next(iter(told[-1].values())))
        table = answer_table(self.schema, merge(told), unread(rows), rows.table.names)
        self.last_said += [sentence] if (sentence := self.task.untold()) else []
        if out is not None:
            write_table(table, out)
        self.last_bad = rows.bad
        return table

    def embed(
        self, source: Any, *, out: str | Path | None = None, allow_outside: bool = False, progress=None
    ) -> pa.Table:
        """A unit vector per row and input that the table has: columns `row`, then `vector` (or `vector_NAME` for
        several inputs).

        A row whose cell is missing or unreadable gets a null. Paths in the table are kept, so that hits can be shown.
        """
        _refuse_unwritable(out)
        rows = self.rows(source, allow_outside=allow_outside, progress=progress)
        vectors, there = self.vectors(rows, progress), rows.presence()
        columns: dict[str, Any] = {"row": np.arange(len(rows))}
        for side, values in vectors.items():
            name = "vector" if len(vectors) == 1 else f"vector_{self._label(side)}"
            flat = pa.array(values.astype(np.float32).ravel())
            missing = ~there[side] if side in there else np.zeros(len(rows), bool)
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(missing))
        for slot in self.schema.slots:
            column = slot.columns[0]
            if column in rows.table.names and pa.types.is_string(rows.table.column(column).type):
                columns[column] = rows.table.column(column)
        table = pa.table(columns)
        if out is not None:
            write_table(table, out)
        self.last_bad = rows.bad
        return table

    def search(
        self, source: Any, *, k: int = 10, show: str | Path | None = None, allow_outside: bool = False, progress=None,
        **query: Any,
    ) -> list[Hit]:  # fmt: skip
        """The `k` nearest rows of `source` (a table, a folder, or a file of vectors that `embed` wrote) to one query,
        exactly.

        query: one input by its kind or column: text="a red door" or image="door.jpg". show: write a contact sheet (PNG)
        of the hits.
        """
        return self.search_many(source, [query], k=k, show=show, allow_outside=allow_outside, progress=progress)[0]

    def search_many(
        self,
        source: Any,
        queries: list[dict],
        *,
        k: int = 10,
        show: str | Path | None = None,
        allow_outside: bool = False,
        progress=None,
    ) -> list[list[Hit]]:
        """As `search`, for several queries at once; the contact sheet has a row for each."""
        if not self.task.sides:
            able = " or ".join(t.choice for t in TASKS.values() if _searches(t))
            raise UsageError(f"this run does {self.task.name}: only a run of --task {able} can search")
        _refuse_unwritable(show)
        asked = [self._query(q) for q in queries]
        sides = {slot for slot, _ in asked}
        if len(sides) != 1:
            raise UsageError(
                f"ask by one input at a time, got {' and '.join(sorted(map(self._label, sides))) or 'no query'}"
            )
        reply, blocks, cells, rows = self._offered(source, sides.pop(), allow_outside, progress)
        vectors = np.stack([vector for _, vector in asked])
        try:
            how = late(self.model.bound.system)
            found = nearest(blocks, vectors, k, None if how == PLAIN else partial(late_scores, how))
        except ValueError as error:
            raise DataError(
                f"{source} holds vectors of {error} numbers, expected {vectors.shape[1]}: embed it with this run"
            ) from error
        hits = [[Hit(row, score, _path(cells, row)) for row, score in best] for best in found]
        if show is not None:
            self._show(Path(show), queries, hits, rows, reply)
        return hits

    def _offered(
        self, source: Any, asking: str, allow_outside: bool, progress=None
    ) -> tuple[str, Iterable[Block], pa.ChunkedArray | None, Rows | None]:
        """What `source` offers: the slot, its vectors, its cells, and the rows unless it was a table of vectors. The
        other side than the asking one answers or, where only that is there, the asking one."""
        order = sorted(self.task.sides, key=lambda side: side == asking)
        table: Columns = stored(source) or read_table(source)
        kept, rows = self._kept(table.names, order), None
        if kept is None and isinstance(table, Stored):
            table = read_table(source)
        if kept is not None:
            reply, name = kept
            chunks = table.chunks(name) if isinstance(table, Stored) else table.column(name).chunks
            blocks: Iterable[Block] = blocks_of(chunks, f"{table.source}, column {name!r}")
        else:
            rows = self.rows(table, allow_outside=allow_outside, progress=progress)
            found, there, table = self.vectors(rows, progress), rows.presence(), rows.table
            readable = [s for s in order if s in found and there[s].any()]
            if not readable:
                raise DataError(
                    f"{table.source} has no readable {' or '.join(map(self._label, order))} to search among"
                )
            reply = readable[0]
            blocks = [(found[reply], there[reply])]
        label = self._label(reply)
        return reply, blocks, table.column(label) if label in table.names else None, rows

    def _kept(self, names: list[str], order: list[str]) -> tuple[str, str] | None:
        """The slot that a table of vectors offers, and the column that these lie in; None of another table."""
        if "row" not in names:
            return None
        for side in order:
            if f"vector_{self._label(side)}" in names:
                return side, f"vector_{self._label(side)}"
        return (next((s for s in order if self._label(s) in names), order[0]), "vector") if "vector" in names else None

    def _filed(self, name: str, kind: str, cells: Any, out: Path, first: int) -> Any:
        """Cells that are bytes, written as files of the rows from `first` on; their paths as seen from beside `out`."""
        if not isinstance(cells, list) or not any(isinstance(cell, bytes) for cell in cells):
            return cells
        folder, suffix = out.parent / f"{out.stem}_{safe(name)}", KINDS[kind].suffix
        paths = [f"{folder.name}/{row:06}{suffix}" for row in range(first, first + len(cells))]
        for path, cell in zip(paths, cells):
            write_whole(out.parent / path, partial(Path.write_bytes, data=cell))
        return paths

    def named(self, classes: Sequence[str], *, templates: Sequence[str] = (), none: Any = None, **how: Any) -> Run:
        """This run as one that tells which of `classes` a row is, by their names alone. See `plait.runs.naming`."""
        from plait.runs.naming import named

        return named(self, classes, templates=templates, none=none, **how)

    # -- the ways in

    def _table(self, source: Any) -> Table:
        """What `source` holds, as this run means it."""
        found = read_table(one_row(source, self.schema))
        return self.schema.read(aligned(found, self.schema, any_name=bool(self.used)))

    def _refuse_mute(self, what: str) -> None:
        if self.task.mute:
            raise UsageError(f"cannot {what}: {self.task.mute}")

    def vectors(self, rows: Rows, progress=None) -> dict[str, np.ndarray]:
        """{slot: (n, E) unit vectors} of the slots whose columns the table has; of the whole row for a model without an
        embedder."""
        if getattr(self.model, "twins", None):
            raise UsageError(f"{self.folder} answers by the mean of several seeds, which have no vectors in common")
        gone = {s.name for s in self.schema.slots if set(s.columns) <= set(rows.absent)}
        call = partial(_embed, gone=gone) if self.task.sides else _fused
        index = np.arange(len(rows))
        return outputs(self.model, rows, index, precision=self.precision, call=call, progress=progress)

    def _query(self, query: dict) -> tuple[str, np.ndarray]:
        if len(query) != 1:
            raise UsageError(f"a query has one input, got {', '.join(query) or 'none'}")
        ((name, value),) = query.items()
        slot = next((s for s in self.schema.slots if name in (s.kind, s.name, s.columns[0])), None)
        if slot is None or slot.name not in self.task.sides:
            known = ", ".join(f"{s.kind} ({s.columns[0]})" for s in self.schema.slots)
            raise UsageError(f"cannot search by {name!r}: this run knows {known}")
        value = str(value) if isinstance(value, Path) else value
        root = Path.cwd() if isinstance(value, str) and slot.kind != "text" else None
        table = Table(pa.table({slot.columns[0]: [value]}), root, "the query")
        rows = Rows(table, asking(self.schema), allow_outside=True).scan()
        if not rows.presence()[slot.name][0]:
            raise DataError(f"the query cannot be read: {', '.join(rows.bad.by_reason()) or 'it is empty'}")
        return slot.name, self.vectors(rows)[slot.name][0]

    def _label(self, slot: str) -> str:
        return self.schema.slot(slot).columns[0] if slot else "row"

    def _show(self, path: Path, queries: list[dict], hits: list[list[Hit]], rows: Rows | None, reply: str) -> None:
        from plait.evaluate.pictures import retrieval_sheet

        sheet = []
        shown = rows if self.schema.slot(reply).kind == "image" else None
        for query, found in zip(queries, hits):
            cells = [
                (
                    shown.batch(np.array([h.row]))[reply][0].numpy() if shown is not None else None,
                    f"{h.score:.2f} {h.cell}",
                    None,
                )
                for h in found
            ]
            sheet.append((" ".join(str(v) for v in query.values()), cells))
        write_whole(path, partial(Path.write_bytes, data=retrieval_sheet(sheet)))


def _refuse_unwritable(out: str | Path | None) -> None:
    if out is not None:
        refuse_unwritable(Path(out).parent)


def _path(cells: pa.ChunkedArray | None, row: int) -> str:
    cell = None if cells is None else cells[row].as_py()
    return cell if isinstance(cell, str) else ""


def _searches(task: type[Task]) -> bool:
    return task.verb == "search"


def _embed(model: TaskModel, batch: dict, gone: set[str]) -> dict[str, torch.Tensor]:
    """Of the slots that are not `gone`, whose towers then have little to do."""
    vectors = model.bound.vectors({name: value for name, value in batch.items() if name not in gone})
    return {slot: nn.functional.normalize(v.float(), dim=-1) for slot, v in vectors.items() if slot not in gone}


def _fused(model: TaskModel, batch: dict) -> dict[str, torch.Tensor]:
    return {"": nn.functional.normalize(model.bound.features(batch).fused.float(), dim=-1)}
