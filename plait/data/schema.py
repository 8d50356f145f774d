"""The schema: which kind every column is and why, what it is used for, what was learnt of it, and which slot of the
model it feeds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.kinds import KINDS
from plait.data.kinds.base import FitOptions, Glance, Place, counted
from plait.data.table import Table
from plait.errors import DataError, UsageError, nearest

UUID = r"^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"
ID_NAME = re.compile(r"(^|[_ .-])(id|idx|index|uuid|guid|key|row|rownumber|nr)$|^unnamed|^column_1$|^$", re.IGNORECASE)
FEW = 20  # a whole-number target with at most this many values is taken for classes


@dataclass
class Column:
    """One column. `use` is "input", "target", "group", "split" or "ignored"; `params` is what its kind learnt."""

    name: str
    kind: str
    why: str
    use: str = "input"
    params: dict = field(default_factory=dict)


@dataclass
class Slot:
    """One input of the model and the columns that feed it, or one target. `kind`: a name in `KINDS`."""

    name: str
    kind: str
    columns: list[str]


class Schema:
    """Columns and slots. `guess` makes one, `fit` learns from the training rows, `to_json` and `from_json` keep it."""

    def __init__(self, columns: list[Column], slots: list[Slot] | None = None, allow_outside: bool = False):
        self.columns = columns
        self.slots = _slots(columns) if slots is None else slots
        self.allow_outside = allow_outside  # not saved: whoever loads a schema decides anew

    def column(self, name: str) -> Column:
        """The column of that name. Raises UsageError for an unknown one."""
        for column in self.columns:
            if column.name == name:
                return column
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

    def ask(self, kind: str | None) -> None:
        """Take the target columns for that kind, whatever they look like; None leaves them."""
        for column in self.used("target") if kind is not None else ():
            if column.kind != kind:
                column.kind, column.why = kind, f"asked for as {kind}"

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
        allow_outside: bool = False,
    ) -> Schema:
        """Guess the kind and the use of every column.

        Columns without a single value, constant columns, row numbers, uuids and all-different strings that are neither
        text nor media are ignored, with the reason in `why`. `kinds` and `inputs` override that, except for a column
        without a single value.

        Args:
            kinds: {column: kind}, overriding the guess.
            inputs: the input columns; None means all that are not used otherwise.
            target: one or more target columns, or None.
            group, split: the columns that hold groups and ready-made splits.

        Raises:
            UsageError: an unknown column or kind, or a column with two uses.
            DataError: a target without values or with a single one, or no usable input.
        """
        kinds, targets = dict(kinds or {}), [target] if isinstance(target, str) else list(target or [])
        uses = _uses(table, kinds, inputs, targets, group, split)
        columns = []
        for name in table.names:
            glance = Glance(name, table.column(name), Place(table.root, allow_outside))
            use = uses.get(name, "input")
            chosen = name in kinds or (inputs is not None and name in inputs)
            column = _column(glance, use, kinds.get(name), chosen)
            if inputs is not None and use == "input" and name not in inputs:
                column.use, column.why = "ignored", "not among the chosen inputs"
            columns.append(column)
        _second_names(columns, table, kinds, inputs, allow_outside)
        schema = cls(columns, allow_outside=allow_outside)
        if not schema.inputs:
            reasons = "; ".join(f"{c.name}: {c.why}" for c in columns if c.use == "ignored")
            raise DataError(f"{table.source} has no usable input column ({reasons or 'only targets'}).")
        return schema

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
            prefixes: {column: what is put before each of its texts}.
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
        )
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == 0:
            raise DataError("there are no training rows to learn the columns from.")
        texts = [c for c in self.used("input") + self.used("target") if c.kind == "text"]
        if one_vocabulary and not (tokenizer_file or tokenizer):
            chunks = [chunk for c in texts for chunk in table.column(c.name).take(pa.array(rows)).cast("string").chunks]
            options.tokenizer = KINDS["text"].fit(pa.chunked_array(chunks, "string"), options)["tokenizer"]
        for column in self.used("input") + self.used("target"):
            kind, cells = KINDS[column.kind], table.column(column.name)
            some = (
                rows[np.unique(np.linspace(0, len(rows) - 1, num=min(len(rows), 4000)).astype(np.int64))]
                if kind.media
                else rows
            )
            learn = kind.fit if column.use == "input" else kind.fit_target
            told = replace(options, prefix=(prefixes or {}).get(column.name, ""))
            column.params = learn(cells.take(pa.array(some)), told)
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


def _uses(
    table: Table, kinds: dict, inputs: list | None, targets: list, group: str | None, split: str | None
) -> dict[str, str]:
    asked = [("kind", n) for n in kinds] + [("input", n) for n in inputs or []] + [("target", n) for n in targets]
    asked += [("group", n) for n in [group] if n is not None] + [("split", n) for n in [split] if n is not None]
    for what, name in asked:
        if name not in table.names:
            raise UsageError(f"{what} column {name!r} is not in {table.source}. {nearest(name, table.names)}")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise UsageError(
                f"unknown kind {kind!r} for column {name!r}. {nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}."
            )
    uses: dict[str, str] = {}
    for what, name in asked:
        if what == "kind":
            continue
        if uses.get(name, what) != what or (what == "input" and (inputs or []).count(name) > 1):
            raise UsageError(
                f"column {name!r} cannot be both {uses.get(name)} and {what}."
                if uses[name] != what
                else f"input {name!r} is named twice."
            )
        uses[name] = what
    return uses


def _column(glance: Glance, use: str, forced: str | None, chosen: bool) -> Column:
    if glance.count == 0:
        if use == "target":
            raise DataError(f"the target {glance.name!r} has no value in any row.")
        return Column(glance.name, forced or "category", "no cell has a value", "ignored")
    if use == "target" and glance.distinct == 1:
        raise DataError(
            f"the target {glance.name!r} has the same value in every row ({str(glance.sample[0])[:80]!r}): there is "
            "nothing to learn."
        )
    kind, why = (forced, "chosen") if forced else _target_kind(glance) if use == "target" else _kind(glance)
    column = Column(glance.name, kind, why, use)
    if use == "input" and not chosen:
        reason = _useless(glance, kind)
        if reason:
            column.use, column.why = "ignored", reason
    return column


def _kind(glance: Glance) -> tuple[str, str]:
    for name, kind in KINDS.items():
        why = kind.guess(glance)
        if why is not None:
            return name, why
    return "category", f"type {glance.column.type}, which no kind recognises"


def _target_kind(glance: Glance) -> tuple[str, str]:
    """Kinds for a target: few whole numbers are classes, and so are strings that repeat."""
    kind, why = _kind(glance)
    if (
        kind == "number"
        and pa.types.is_integer(glance.column.type)
        and glance.distinct <= FEW
        and glance.distinct * 2 <= glance.count
    ):
        return "category", f"{glance.distinct} different whole numbers in {glance.count:,} cells: classes"
    if kind in ("text", "image", "audio") and glance.is_text and glance.distinct * 2 <= glance.count:
        return "category", f"{glance.distinct:,} different values in {glance.count:,} cells: classes"
    return kind, why


def _useless(glance: Glance, kind: str) -> str | None:
    """Why a column that was not asked for is not worth reading, or None."""
    if glance.distinct == 1:
        return (
            f"constant: every cell is {str(glance.sample[0])[:60]!r}"
            if not KINDS[kind].media
            else "constant: every cell is the same"
        )
    if pa.types.is_integer(glance.column.type) and glance.distinct == len(glance.column) and glance.count >= 5:
        low, high = (int(v) for v in pc.min_max(glance.column).as_py().values())
        steps = np.diff(glance.column.to_numpy().astype(np.int64)) if high < 2**62 and low > -(2**62) else np.zeros(1)
        if high - low + 1 == glance.count and ((steps == 1).all() or ID_NAME.search(glance.name)):
            return f"row numbers: every whole number from {low:,} to {high:,} once"
        if ID_NAME.search(glance.name):
            return f"an identifier: {glance.count:,} different whole numbers, named {glance.name!r}"
    if kind == "category" and pa.types.is_nested(glance.column.type) is False and not glance.is_text:
        return f"type {glance.column.type}, which no kind recognises" if not _categorical(glance.column.type) else None
    if kind in ("category", "text") and glance.is_text:
        if glance.matching(UUID) * 20 >= glance.count * 19:
            return counted(glance.matching(UUID), glance.count, "are uuids")
        if kind == "category" and glance.distinct * 20 >= glance.count * 19 and glance.count >= 5:
            return f"an identifier: {glance.distinct:,} different values in {glance.count:,} cells"
    return None


def _categorical(kind: pa.DataType) -> bool:
    return (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_temporal(kind)
    )


def _second_names(columns: list[Column], table: Table, kinds: dict, inputs: list | None, allow_outside: bool) -> None:
    """Ignore a column of file names that do not exist where another column holds the media's bytes: it is only their
    name."""
    with_bytes = [
        c
        for c in columns
        if c.use == "input" and KINDS[c.kind].media and not Glance(c.name, table.column(c.name), Place()).is_text
    ]
    for column in columns:
        if not with_bytes or column in with_bytes or column.use != "input" or not KINDS[column.kind].media:
            continue
        if column.name in kinds or column.name in (inputs or []):
            continue
        glance = Glance(column.name, table.column(column.name), Place(table.root, allow_outside))
        if not any(_exists(cell, glance.place) for cell in glance.sample[:50]):
            column.use, column.why = (
                "ignored",
                f"names files that are not there; {with_bytes[0].name!r} holds the bytes",
            )


def _exists(cell: object, place: Place) -> bool:
    try:
        return isinstance(place.source(cell), Path)
    except ValueError:
        return False


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
