"""Rows: every cell decoded once, every bad cell listed, and batches of exactly the rows that were asked for. Over 400
lines, as what becomes of a cell on its way into a batch is told in one place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from plait.data.bad import BadCells
from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import Survey
from plait.data.kinds.image import no_pillow_warnings
from plait.data.schema import Column, Schema, Slot
from plait.data.table import Table
from plait.data.threads import each
from plait.data.weights import read_weights
from plait.errors import DataError, PlaitError, nearest

CHUNK, CELLS = 64, 1024  # rows per piece of work of a decoding thread, and of cells that are no files
LATE = 100_000  # rows above which cells that can be told to be readable are read batch by batch

Cells = Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor | None]]  # rows (B,) -> values (B, ...) and their keep
# What makes vectors (n, F) float32 of the cells of some rows (n,), and says of how many it just did.
Reader = Callable[[Cells, np.ndarray, Callable[[int], None]], np.ndarray]


class Rows:
    """The rows of a table as batches.

    `scan` decodes and encodes every input cell once and keeps the results, while they fit in `cache_bytes`; media that
    do not fit are decoded again when a batch wants them. Row i of a batch is always row index[i] of the table: a
    missing or bad cell gives a blank and `present` False, never another row's data.

    Input columns that the table lacks count as missing in every row and are named in `absent`; a table that lacks all
    of them is a DataError. `bad` lists the bad cells, `notes` counts remarks per column ("too long", "empty text",
    "never seen").

    asked: the target columns are decoded too, by the same kinds, and stand in batch["target"]; what is remarkable in a
    cell that is asked for is listed among the bad cells; and what does not answer, if the table has it, as a batch of
    its own in batch["negative"]. `derived` holds what is asked besides, {name: (n, ...)}, and
    `weights` (n,) float64 how much each row counts, where a column says so: NaN where its cell cannot be used.

    keep: whether values are kept; without them rows make no batches, and a scan only tells what can be read.
    towers: {slot: what reads its cells}: the slot then holds vectors, scaled as its column's params say.
    share: the same table by another schema: what that has decoded is not decoded again where the params are the same.
    """

    def __init__(
        self,
        table: Table,
        schema: Schema,
        *,
        allow_outside: bool = False,
        cache_bytes: int = 4 << 30,
        workers: int = 2,
        asked: bool = False,
        towers: Mapping[str, Reader] | None = None,
        keep: bool = True,
        share: Rows | None = None,
    ):
        self.keep = keep
        self.said: list[str] = []  # after a scan: what was estimated, in sentences
        self.table, self.schema = schema.read(table), schema
        self.cache_bytes, self.workers = cache_bytes, max(1, workers)
        self.allow_outside = allow_outside or schema.allow_outside
        self.towers, self.share = towers or {}, share
        self.bad = BadCells()
        self.absent = [name for name in schema.inputs if not table.has(name)]
        if len(self.absent) == len(schema.inputs):
            raise DataError(
                f"{table.source} has none of the input columns {', '.join(map(repr, self.absent))}. "
                f"{nearest(self.absent[0], table.names)}"
            )
        self.asked = schema.asked if asked else []
        self.negatives = [s for s in schema.negatives if asked and table.has(s.columns[0])]
        self.derived: dict[str, torch.Tensor] = {}
        self.weights: np.ndarray | None = None
        for slot in self.asked:
            table.column(slot.columns[0])  # a DataError that names the nearest, where the target is not there
        columns = schema.inputs + [slot.columns[0] for slot in self.asked + self.negatives]
        self.places = {name: Place(table.root, self.allow_outside) for name in columns}
        self._stores: dict[str, Any] = {}  # slot -> filled store, or None where cells are decoded on demand
        self._shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # slot -> values (n, F), real (n, F)
        self._present: dict[str, np.ndarray] = {}
        self._windows: dict[str, torch.Tensor] = {}  # slot -> (n, 4), of those that what is asked lies on
        self._surveys: dict[str, Survey | None] = {}  # of columns that are read without their values
        self._scanned = False

    def __len__(self) -> int:
        return len(self.table)

    @property
    def work(self) -> int:
        """The cells that a scan reads, those twice that a tower reads too."""
        return len(self) * (len(self.places) + len(self.towers))

    @property
    def notes(self) -> dict[str, dict[str, int]]:
        """{column: {remark: cells}} after a scan."""
        return {name: dict(place.notes) for name, place in self.places.items() if place.notes}

    def scan(self, progress: Callable[[int, int], None] | None = None) -> Rows:
        """Decode and encode every input cell once. `progress(done, total)` counts cells. Returns itself; a second scan
        does nothing."""
        if self._scanned:
            return self
        total, done = self.work, 0
        room = self.cache_bytes
        if not self.keep:
            names = [name for name in self.places if name not in self.absent]
            self._surveys = dict(zip(names, each(self._survey, names, len(self))))
        slots = self.schema.slots + self.asked + self.negatives
        for slot in sorted(slots, key=lambda s: KINDS[self.schema.column(s.columns[0]).kind].own_slot):
            if not KINDS[slot.kind].own_slot:
                self._encode_shared(slot.name, slot.columns)
                done += len(self) * len(slot.columns)
                if progress:
                    progress(done, total)
                continue
            step = None if progress is None else _Steps(progress, done, total)
            store = self._encode_own(slot.name, slot.columns[0], room, step)
            self._stores[slot.name] = store
            room -= store.nbytes if store is not None else 0
            done += len(self)
            if slot.name in self.towers:
                step = None if progress is None else _Steps(progress, done, total)
                self._stores[slot.name] = self._read_by_tower(slot, step)
                done += len(self)
        beneath = {kind for slot in self.schema.asked for kind in KINDS[slot.kind].lies_on}
        self._windows = {s.name: self._seen(s) for s in self.schema.slots if s.kind in beneath}
        self.weights = read_weights(self.table, self.schema, self.bad.add) if self.asked else None
        self._scanned = True
        return self

    def standardise(self, index: np.ndarray) -> None:
        """Learn from the rows `index` how the vectors of towers are scaled, and scale all of them."""
        self.scan()
        for slot in (s for s in self.schema.slots if s.name in self.towers):
            data, there = self._stores[slot.name].data, self._present[slot.name]
            some = data[index[there[index]]].astype(np.float64)
            mean, std = (some.mean(0), some.std(0)) if len(some) else (np.zeros(data.shape[1]), np.ones(data.shape[1]))
            params = self.schema.column(slot.columns[0]).params
            params |= {"mean": mean.tolist(), "std": np.where(std > 1e-12, std, 1.0).tolist()}
            data[there] = KINDS["vector"].preprocess(params)(torch.from_numpy(data[there]).double()).numpy()

    def presence(self) -> dict[str, np.ndarray]:
        """{slot: (n,) bool}: which rows have anything usable in the slot."""
        self.scan()
        return {slot.name: self._present[slot.name].copy() for slot in self.schema.slots}

    def plain(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column that shares its slot: its encoded cells (n, F), and which of them are real (n, F)."""
        self.scan()
        slot = next(s for s in self.schema.slots if name in s.columns)
        widths = [KINDS[c.kind].width(c.params) for c in map(self.schema.column, slot.columns)]
        end = int(np.cumsum(widths)[slot.columns.index(name)])
        part = slice(end - widths[slot.columns.index(name)], end)
        values, real = self._shared[slot.name]
        return values[:, part].numpy(), real[:, part].numpy()

    def batch(self, index: np.ndarray) -> dict:
        """The rows `index` (B,) as a dict of tensors (see docs/architecture.md), with "row" (B,) int64, "keep" and
        "present"."""
        self.scan()
        if not self.keep:
            raise PlaitError("rows that keep no values make no batches: Rows(..., keep=True)")
        index = np.asarray(index, dtype=np.int64)
        if index.ndim != 1 or (len(index) and (index.min() < 0 or index.max() >= len(self))):
            raise IndexError(
                f"row numbers must lie in 0..{len(self) - 1}, got {index.min()}..{index.max()}."
                if index.ndim == 1
                else "expected (B,)"
            )
        batch: dict = {"row": torch.from_numpy(index.copy())} | self._read(self.schema.slots, index)
        for slot in self.negatives:
            like = self.schema.column(slot.columns[0]).style["like"]
            name = next(s.name for s in self.schema.slots if like in s.columns)
            batch["negative"] = self._read([slot], index, name)
        if self._windows:
            batch["window"] = {slot: windows[index] for slot, windows in self._windows.items()}
        if self.asked or self.derived:
            batch["target"] = self.target(index)
        if self.weights is not None:
            batch["weight"] = torch.from_numpy(self.weights[index]).float()
        return batch

    def _read(self, slots: Sequence[Slot], index: np.ndarray, called: str = "") -> dict:
        """The slots' values by name, or as one is to be called, with "keep" and "present"."""
        found: dict = {"keep": {}, "present": {}}
        for slot in slots:
            name = called or slot.name
            found[name], keep, found["present"][name] = self._values(slot, index)
            if keep is not None:
                found["keep"][name] = keep
        return found

    def target(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """What is asked of the rows `index` (B,): {column: (B, ...)}, NaN or -100 where there is nothing."""
        self.scan()
        found = {}
        for slot in self.asked:
            kind = KINDS[slot.kind]
            found[slot.columns[0]] = asked = kind.target(*self._values(slot, index))
            if kind.lies_on:
                (window,) = (self._windows[s.name] for s in self.schema.slots if s.kind in kind.lies_on)
                found[slot.columns[0]] = kind.lay(asked, window[index])
        return found | {name: values[index] for name, values in self.derived.items()}

    def known(self) -> np.ndarray:
        """(n,) bool: the rows of which something is asked that is there, and that have a weight where a column holds
        them; of several targets one is enough."""
        known = self.targeted()
        return known if self.weights is None else known & np.isfinite(self.weights)

    def targeted(self) -> np.ndarray:
        """(n,) bool: the rows of which something is asked that is there."""
        self.scan()
        there = [self._present[slot.name] for slot in self.asked]
        return np.any(there, axis=0) if there else np.ones(len(self), bool)

    def _values(self, slot: Slot, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The slot's values (B, ...), keep or None, and present (B,)."""
        present = torch.from_numpy(self._present[slot.name][index])
        if slot.name in self._shared:
            values, real = self._shared[slot.name]
            return values[index], real[index], present
        store = self._stores[slot.name]
        if store is not None:
            return *store.batch(index), present
        return self._decode(slot.columns[0], index, present)

    def _encode_shared(self, slot: str, names: list[str]) -> None:
        widths = [KINDS[c.kind].width(c.params) for c in map(self.schema.column, names)]
        values = np.zeros((len(self) if self.keep else 0, sum(widths)), KINDS[self.schema.column(names[0]).kind].dtype)
        real, end = np.zeros(values.shape, bool), 0
        for name, width in zip(names, widths):
            column = self.schema.column(name)
            kind = KINDS[column.kind]
            start, end = end, end + width
            if not self.keep and self._surveyed(slot, name):
                continue
            if name in self.absent:
                continue
            cells = self.table.column(name)
            encode = kind.encode_target if column.use == "target" else kind.encode_column
            found = encode(cells, column.params, self.places[name])
            for row, reason in found.bad:
                self.bad.add(row, name, column.kind, reason, cells[row].as_py())
            if not self.keep:
                self._see(slot, found.real)
                continue
            values[:, start:end], real[:, start:end] = found.values, found.real[:, None]
        if self.keep:
            self._shared[slot] = torch.from_numpy(values), torch.from_numpy(real)
            self._present[slot] = real.any(1)

    def _encode_own(self, slot: str, name: str, room: int, step: Callable[[int], None] | None) -> Any:
        """Fill a store with a column's cells, or return None where it would not fit; every cell is decoded either
        way."""
        column = self.schema.column(name)
        kind, place = KINDS[column.kind], self.places[name]
        if (shared := self._shared_store(slot, column)) is not None:
            if step:
                step(len(self))
            return shared
        present = np.zeros(len(self), bool)
        self._present[slot] = present
        late = column.use != "target" and len(self) > LATE
        if (late or not self.keep) and self._surveyed(slot, name):
            return None  # cells are read when a batch asks for them
        store = kind.store(len(self), column.params)
        keep = threading.Event()
        if self.keep and store.nbytes <= room:
            keep.set()
        else:
            store = None
        if name not in self.absent:
            cells, chunk = self.table.column(name), CHUNK if kind.media else CELLS

            def work(start: int) -> int:
                some = cells.slice(start, chunk).to_pylist()
                for row, encoded in enumerate(self._encode(range(start, start + len(some)), some, name, place), start):
                    if encoded is None:
                        continue
                    present[row] = True
                    if keep.is_set():
                        store.replace(row, encoded)
                        if store.nbytes > room:
                            keep.clear()
                return start

            for start in self._map(work, range(0, len(self), chunk), kind.media):
                if step:
                    step(min(chunk, len(self) - start))
        if not keep.is_set():
            return None
        store.seal()
        return store

    def _surveyed(self, slot: str, name: str) -> bool:
        """Whether a column was read without its values."""
        column = self.schema.column(name)
        if name in self.absent:
            self._see(slot, np.zeros(len(self), bool))
            return True
        found = self._surveys.pop(name) if name in self._surveys else self._survey(name)
        if found is None:
            return False
        cells = self.table.column(name)
        for row, reason in found.bad:
            self.bad.add(row, name, column.kind, reason, cells[row].as_py())
        self.said += [f"{name!r}: {found.said}"] * bool(found.said)
        self._see(slot, found.real)
        return True

    def _survey(self, name: str) -> Survey | None:
        column = self.schema.column(name)
        if column.use == "target":
            return None
        return KINDS[column.kind].survey(self.table.column(name), column.params, self.places[name])

    def _see(self, slot: str, real: np.ndarray) -> None:
        self._present[slot] = self._present.get(slot, False) | real

    def _shared_store(self, slot: str, column: Column) -> Any:
        """The store of `share`, and what it says of the column's cells, where it read them as this schema does."""
        other = self.share
        if other is None or slot in self.towers or slot in other.towers or other._stores.get(slot) is None:
            return None
        theirs = other.schema.column(column.name)
        if (theirs.kind, theirs.use, theirs.params) != (column.kind, column.use, column.params):
            return None
        if (other.table.root, len(other), other.allow_outside) != (self.table.root, len(self), self.allow_outside):
            return None
        self._present[slot] = other._present[slot].copy()
        self.places[column.name].notes.update(other.places[column.name].notes)
        self.bad.take(other.bad, column.name)
        return other._stores[slot]

    def _read_by_tower(self, slot: Slot, step: Callable[[int], None] | None) -> Any:
        """A store of vectors in place of the cells, zeros where there is none."""
        params, there = self.schema.column(slot.columns[0]).params, np.flatnonzero(self._present[slot.name])
        found = self.towers[slot.name](lambda index: self._values(slot, index)[:2], there, step or (lambda _: None))
        if "mean" in params:
            found = KINDS["vector"].preprocess(params)(torch.from_numpy(found).double()).numpy()
        store = KINDS["vector"].store(len(self), params)
        store.data[there] = found
        return store

    def _seen(self, slot: Slot) -> torch.Tensor:
        """(n, 4): which part of each cell's plane is seen; of a cell that is none, all of a blank."""
        (name,) = slot.columns
        kind, params = KINDS[slot.kind], self.schema.column(name).params
        place = Place(self.table.root, self.allow_outside)
        windows = torch.tensor([0.0, 0.0, *map(float, params["size"][::-1])]).repeat(len(self), 1)
        there = np.flatnonzero(self._present[slot.name])
        cells = self.table.column(name) if len(there) else []
        for row in map(int, there):
            cell = cells[row].as_py()
            try:
                windows[row] = torch.tensor(kind.window(cell, params, place))
            except (Bad, Missing) as reason:  # it was read a moment ago
                self.bad.add(row, name, kind.name, str(reason), cell)
                self._present[slot.name][row] = False
        return windows

    def _encode(self, rows: Sequence[int], cells: list, name: str, place: Place) -> list[np.ndarray | None]:
        """The cells that can be used, None for others, of which the bad ones are listed."""
        column = self.schema.column(name)
        if column.use == "target":
            return [self._encode_asked(row, cell, column, place) for row, cell in zip(rows, cells)]
        found = KINDS[column.kind].encode_some(cells, column.params, place)
        for row, cell, result in zip(rows, cells, found):
            if isinstance(result, Missing):
                place.note(str(result))
            elif isinstance(result, Bad):
                self.bad.add(row, name, column.kind, str(result), cell)
        return [None if isinstance(result, (Bad, Missing)) else result for result in found]

    def _encode_asked(self, row: int, cell: Any, column: Column, place: Place) -> np.ndarray | None:
        """A cell that is asked for: what is remarkable in it is listed."""
        seen = Place(place.root, place.allow_outside, place.max_pixels)
        (value,) = KINDS[column.kind].encode_some([cell], column.params, seen)
        for remark in [*seen.notes, *([str(value)] if isinstance(value, ValueError) else [])]:
            self.bad.add(row, column.name, column.kind, remark, cell)
        return None if isinstance(value, ValueError) else value

    def _decode(
        self, name: str, index: np.ndarray, present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The cells of some rows, decoded now. A cell that has gone bad since the scan is listed and becomes a
        blank."""
        column = self.schema.column(name)
        kind, cells = KINDS[column.kind], self.table.column(name) if name not in self.absent else None
        place = Place(self.table.root, self.allow_outside)  # remarks were counted by the scan
        store = kind.store(len(index), column.params)
        wanted = np.flatnonzero(present.numpy())
        present = present.clone()

        def work(start: int) -> None:
            some = wanted[start : start + chunk]
            rows = index[some]
            for at, encoded in zip(some, self._encode(rows, cells.take(pa.array(rows)).to_pylist(), name, place)):
                if encoded is None:
                    present[at] = False
                else:
                    store.replace(int(at), encoded)

        chunk = 1 if kind.media else CELLS
        for _ in self._map(work, range(0, len(wanted), chunk), kind.media):
            pass
        store.seal()
        values, keep = store.batch(np.arange(len(index)))
        return values, keep, present

    def _map(self, work: Callable[[int], Any], items: Any, media: bool) -> Any:
        """The results of `work`, in order; media are decoded in threads."""
        if not media:
            yield from map(work, items)
            return
        with no_pillow_warnings():
            if self.workers == 1:
                yield from map(work, items)
                return
            with ThreadPoolExecutor(self.workers) as pool:
                yield from pool.map(work, items)


class _Steps:
    """Turns "so many more cells" into progress(done, total)."""

    def __init__(self, progress: Callable[[int, int], None], done: int, total: int):
        self.progress, self.done, self.total = progress, done, total

    def __call__(self, cells: int) -> None:
        self.done += cells
        self.progress(self.done, self.total)
