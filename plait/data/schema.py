"""The schema: which kind every column is and why, what it is used for, what was learnt of it, and which slot of the
model it feeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from plait.data.arrow import bytes_text, taken
from plait.data.columns import Column, Slot
from plait.data.drawn import places
from plait.data.guess import guess_columns, kinds_of, names_of
from plait.data.kinds import KINDS
from plait.data.kinds.base import FitOptions, Place
from plait.data.kinds.category import BLANK, column_text
from plait.data.table import Table
from plait.data.threads import each
from plait.data.words import without
from plait.errors import DataError, UsageError, nearest


class Schema:
    """Columns and slots. `guess` makes one, `fit` learns from the training rows, `to_json` and `from_json` keep it."""

    def __init__(self, columns: list[Column], slots: list[Slot] | None = None, allow_outside: bool = False):
        self.columns = columns
        self._at: dict[str, int] = {}  # where each is
        self.slots = _slots(columns) if slots is None else slots
        self.allow_outside = allow_outside  # not saved: whoever loads a schema decides anew
        self.said: list[str] = []  # what had to be decided to guess it, in sentences; not saved

    def column(self, name: str) -> Column:
        """The column of that name. Raises UsageError for an unknown one."""
        at = self._at.get(name, -1)
        if not (
            0 <= at < len(self.columns) and self.columns[at].name == name
        ):  # they are a list that anyone may change
            self._at = {column.name: i for i, column in reversed(list(enumerate(self.columns)))}
            at = self._at.get(name, -1)
        if at >= 0:
            return self.columns[at]
        raise UsageError(f"no column {name!r}. {nearest(name, [c.name for c in self.columns])}")

    def slot(self, name: str) -> Slot:
        """The slot of that name. Raises UsageError for an unknown one."""
        for slot in self.slots:
            if slot.name == name:
                return slot
        raise UsageError(f"no slot {name!r}. {nearest(name, [s.name for s in self.slots])}")

    def used(self, use: str) -> list[Column]:
        """The columns with that use, in order."""
        return [c for c in self.columns if c.use == use]

    @property
    def inputs(self) -> list[str]:
        """Names of the input columns."""
        return [c.name for c in self.used("input")]

    @property
    def targets(self) -> list[str]:
        """Names of the target columns."""
        return [c.name for c in self.used("target")]

    @property
    def asked(self) -> list[Slot]:
        """A slot for each target column."""
        return [Slot(f"target:{c.name}", c.kind, [c.name]) for c in self.used("target")]

    @property
    def negatives(self) -> list[Slot]:
        """A slot for the column of what does not answer its row, if there is one."""
        return [Slot(f"negative:{c.name}", c.kind, [c.name]) for c in self.used("negative")]

    def reject(self, like: str) -> None:
        """Read what does not answer a row as the input `like` is, which answers it."""
        for column in self.used("negative"):
            column.kind, column.why = self.column(like).kind, f"read as {like!r} is, which it is no answer beside"
            column.style = self.column(like).style | {"like": like}

    def ask(self, kind: str | None) -> None:
        """Take the target columns for that kind, whatever they look like; None leaves them."""
        for column in self.used("target") if kind is not None else ():
            if column.kind != kind:
                column.kind, column.why = kind, f"asked for as {kind}"

    def take_for(self, name: str, kind: str, why: str) -> None:
        """Take an input column for another kind; slots are laid out anew."""
        self.take({name: (kind, why)})

    def take(self, others: dict[str, tuple[str, str]]) -> None:
        """Take input columns for other kinds, {name: (kind, why)}; slots are laid out anew."""
        for name, (kind, why) in others.items():
            column = self.column(name)
            column.kind, column.why = kind, why
        self.slots = _slots(self.columns) if others else self.slots

    @classmethod
    def guess(
        cls,
        table: Table,
        *,
        kinds: dict[str, str] | None = None,
        inputs: list[str] | None = None,
        target: str | list[str] | None = None,
        group: str | None = None,
        split: str | None = None,
        weight: str | None = None,
        negative: str | None = None,
        allow_outside: bool = False,
    ) -> Schema:
        """Guess the kind and the use of every column, and how its cells are written.

        Columns without a single value, constant columns, and those that only tell rows apart (row numbers, uuids, what
        is named or formed like an identifier) are ignored, with the reason in `why`; the last are read where nothing
        else is left. `kinds` and `inputs` override that, except for a column without a single value.

        Args:
            kinds: {column: kind}, overriding the guess.
            inputs: the input columns; None means all that are not used otherwise.
            target: one or more target columns, or None.
            group, split, weight, negative: the columns that hold groups, ready-made splits, how much each row counts,
            and what does not answer it.
            A text names one column, or several by comma where no column is called so.

        Raises:
            UsageError: an unknown column or kind, or a column with two uses.
            DataError: a target without values or with a single one, or no usable input.
        """
        kinds, said = kinds_of(table, kinds or {}), [*table.said]
        targets = names_of(table, [target] if isinstance(target, str) else list(target or []))
        inputs = None if inputs is None else names_of(table, inputs)
        given = (None if name is None else names_of(table, [name])[0] for name in (group, split, weight, negative))
        group, split, weight, negative = given
        columns = guess_columns(table, kinds, inputs, targets, group, split, allow_outside, said, weight, negative)
        schema = cls(columns, allow_outside=allow_outside)
        schema.said = said
        if not schema.inputs:
            reasons = "; ".join(f"{c.name}: {c.why}" for c in columns if c.use == "ignored")
            raise DataError(f"{table.source} has no usable input column ({reasons or 'only targets'}).")
        return schema

    def read(self, table: Table) -> Table:
        """A table of the same sort as this schema's columns mean it: words that stand for nothing are null, blanks that
        say no are such, and cells are as the file has them where their types lost something."""
        if table.reader is self:
            return table
        known = {column.name: column for column in self.columns}
        cells = [_cells(table, known[n]) if n in known else table.data.column(n) for n in table.names]
        return replace(table, data=pa.Table.from_arrays(cells, names=table.names), written={}, reader=self)

    def fit(
        self,
        table: Table,
        rows: np.ndarray,
        *,
        image_size: int | list[int] | None = None,
        crop: dict | None = None,
        max_tokens: int | None = None,
        vocab: int = 8000,
        tokenizer_file: str | Path | None = None,
        tokenizer: str | None = None,
        longest: float = 0.99,
        pieces: int | None = None,
        one_vocabulary: bool = False,
        rate: int | None = None,
        prefixes: dict[str, str] | None = None,
        closed: bool = True,
    ) -> Schema:
        """Learn every input and target column's params from the training rows `rows` only. Returns itself.

        Args:
            image_size: pixels, one number for squares or [H, W]; None lets the pictures decide.
            crop: how pictures are resized and cropped, the arguments of `plait.data.kinds.crop.crop`; None letterboxes.
            max_tokens: the most tokens per text, special ones included. vocab: the size of a learnt vocabulary.
            tokenizer_file: a published tokenizer.json to use instead of learning one. tokenizer: the text of one.
            longest: the share of the sounds that are to be read whole.
            pieces: about how many pieces of words a spelled text is made of; None: characters.
            one_vocabulary: all texts, given or asked for, are of the same words.
            rate: samples a second of all sounds; None lets the sounds decide.
            prefixes: {column: what is put before each of its texts}. closed: whether an end is put after them.
        """
        size = (
            [image_size, image_size]
            if isinstance(image_size, int)
            else list(image_size)
            if image_size is not None
            else None
        )
        options = FitOptions(
            Place(table.root, self.allow_outside),
            size,
            max_tokens,
            vocab,
            str(tokenizer_file) if tokenizer_file else None,
            longest,
            crop,
            pieces,
            tokenizer,
            rate=rate,
            closed=closed,
        )
        table, rows = self.read(table), np.asarray(rows, dtype=np.int64)
        if len(rows) == 0:
            raise DataError("there are no training rows to learn the columns from.")
        texts = [c for c in self.used("input") + self.used("target") if c.kind == "text"]
        if one_vocabulary and not (tokenizer_file or tokenizer):
            chunks = [chunk for c in texts for chunk in table.column(c.name).take(pa.array(rows)).cast("string").chunks]
            options.tokenizer = KINDS["text"].fit(pa.chunked_array(chunks, "string"), options)["tokenizer"]

        def learn(column: Column) -> None:
            kind, cells = KINDS[column.kind], table.column(column.name)
            some = rows[places(len(rows), 4000)] if kind.media else rows
            fit = kind.fit if column.use == "input" else kind.fit_target
            told = replace(options, style=column.style, prefix=(prefixes or {}).get(column.name, ""))
            column.params = fit(taken(cells, some), told)

        each(learn, self.used("input") + self.used("target"), len(rows))
        for column in self.used("negative"):
            column.params = self.column(column.style["like"]).params
        return self

    def shape(self, slot: str) -> dict:
        """What a model must know of a slot.

        image: size [H, W]. text: vocab, max_tokens and the special ids. audio: rate, samples. vector: width.
        number: width and features (names). category: sizes (ids per column, 0 included).
        """
        found = self.slot(slot)
        columns = [self.column(name) for name in found.columns]
        return KINDS[found.kind].shape({feature: c.params for c in columns for feature in _feature_names(c)})

    def rename_slots(self, names: dict[str, str]) -> Schema:
        """Rename slots, for systems that call them differently: {"image_0": "image"}. Returns itself."""
        for old in names:
            self.slot(old)
        renamed = [names.get(s.name, s.name) for s in self.slots]
        if len(set(renamed)) < len(renamed):
            raise UsageError(f"two slots would be called the same: {renamed}.")
        for slot, name in zip(self.slots, renamed):
            slot.name = name
        return self

    def to_json(self) -> dict:
        """Plain data that json.dump takes."""
        return {"columns": [vars(c).copy() for c in self.columns], "slots": [vars(s).copy() for s in self.slots]}

    @classmethod
    def from_json(cls, data: dict) -> Schema:
        """The schema that `to_json` gave."""
        return cls([Column(**c) for c in data["columns"]], [Slot(**s) for s in data["slots"]])

    def describe(self) -> list[dict]:
        """One dict per column for printing: name, kind, use, slot, why."""
        slots = {name: s.name for s in self.slots for name in s.columns}
        return [
            {"name": c.name, "kind": c.kind, "use": c.use, "slot": slots.get(c.name, ""), "why": c.why}
            for c in self.columns
        ]


def _cells(table: Table, column: Column) -> pa.ChunkedArray:
    """The cells of a column as it means them."""
    cells, style = table.data.column(column.name), column.style
    number = style.get("number", {}) if column.kind == "number" else None
    if column.name in table.written and (number is None or number.get("decimal") == ","):
        cells = table.written[column.name]
    if _holds_bytes(cells.type) and not KINDS[column.kind].own_slot:
        texts_of = [None if c is None else bytes_text(c) for c in cells.to_pylist()]
        cells = pa.chunked_array([pa.array(texts_of, pa.string())])
    blanks, texts = style.get("blanks", []), pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)
    if texts and (blanks or not KINDS[column.kind].own_slot):
        cells = without(cells, blanks)
    if "one" in style:
        cells = column_text(cells).cast(pa.string()).fill_null(BLANK)
    return cells


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _slots(columns: Iterable[Column]) -> list[Slot]:
    """Media and vector columns get numbered slots of their own; the others share `number` and `category`."""
    own: list[Slot] = []
    shared: dict[str, Slot] = {}
    numbers: dict[str, int] = {}
    for column in columns:
        if column.use != "input":
            continue
        kind = KINDS[column.kind]
        if kind.own_slot:
            number = numbers.get(kind.slot, 0)
            numbers[kind.slot] = number + 1
            own.append(Slot(f"{kind.slot}_{number}", kind.slot, [column.name]))
        else:
            shared.setdefault(kind.slot, Slot(kind.slot, kind.slot, [])).columns.append(column.name)
    return own + [shared[name] for name in KINDS if name in shared]


def _feature_names(column: Column) -> list[str]:
    return [f"{column.name}.{part}" for part in KINDS[column.kind].features] or [column.name]
