"""Which kind every column is, what it is used for, and how its cells are written, as a whole file tells."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data import moments, numerals
from plait.data.columns import Column
from plait.data.identifiers import codes, identifier, useless
from plait.data.kinds import KINDS
from plait.data.kinds.base import FileStyle, Glance, Place
from plait.data.kinds.ordinal import levels
from plait.data.table import Table
from plait.data.threads import each
from plait.data.words import NAMED, NOTHING, length, without
from plait.errors import DataError, UsageError, nearest

FEW = 20  # a whole-number target with at most this many values is taken for classes
WAY_OUT = "(--kind {}={} reads it)"


def names_of(table: Table, given: Iterable[str]) -> list[str]:
    """The columns that texts name: each is one name, or several by comma where no column is called so."""

    def known(text: str) -> str | None:
        alike = [n for n in table.names if n.strip() == text.strip()]
        return text if text in table.names else alike[0] if len(alike) == 1 else None

    out: list[str] = []
    for text in given:
        name = known(text)
        parts = (
            [] if name is not None else [p for p in next(csv.reader([text], skipinitialspace=True), []) if p.strip()]
        )
        found = [known(part) or part.strip() for part in parts]
        if name is None and any(part in table.names for part in found):
            out += [part for part in dict.fromkeys(found) if part not in out]
        else:
            out.append(text if name is None else name)
    return out


def kinds_of(table: Table, given: dict[str, str]) -> dict[str, str]:
    """{column: kind} of {text: kind}, where a text may be `a=image,b`: what the command line has before its last =."""
    out: dict[str, str] = {}
    for text, kind in given.items():
        parts = next(csv.reader([f"{text}={kind}"], skipinitialspace=True), [])
        pairs = [part.rpartition("=") for part in parts if part.strip()]
        if text.strip() in table.names or len(pairs) < 2 or not all(name and mark for name, mark, _ in pairs):
            pairs = [(text, "=", kind)]
        out |= {names_of(table, [name])[0]: value.strip() for name, _, value in pairs}
    return out


def _orders(kinds: dict[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """{column: kind}, and {column: levels} of those that are told as ordinal:poor<fair<good."""
    plain, orders = {}, {}
    for name, told in kinds.items():
        plain[name], mark, order = told.partition(":")
        if mark and plain[name] != "ordinal":
            raise UsageError(f"kind of {name!r}: got {told!r}; only ordinal takes levels, as in ordinal:poor<fair<good")
        if mark:
            orders[name] = [level.strip() for level in order.split("<")]
    return plain, orders


def file_style(table: Table) -> FileStyle:
    """What the columns of a table tell of each other."""
    cells = [table.written.get(name, table.data.column(name)) for name in table.names]
    texts = [c for c in cells if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
    points = sum(len(c) - c.null_count for c in cells if table.textual and pa.types.is_floating(c.type))
    return FileStyle(numerals.decimal_mark(texts, table.separator, points), moments.first_of(texts), table.textual)


def guess_columns(
    table: Table,
    kinds: dict[str, str],
    inputs: list[str] | None,
    targets: list[str],
    group: str | None,
    split: str | None,
    allow_outside: bool,
    said: list[str],
    weight: str | None = None,
    negative: str | None = None,
) -> list[Column]:
    """A column for each of the table's; `said` gets what had to be decided. See `Schema.guess`."""
    kinds, orders = _orders(kinds)
    others = {"group": group, "split": split, "weight": weight, "negative": negative}
    uses, file = _uses(table, kinds, inputs, targets, others), file_style(table)
    spare: dict[str, str] = {}

    def read(name: str) -> tuple[Column, list[str]]:
        cells, written, told = table.data.column(name), table.written.get(name), []
        if written is not None and file.decimal == "," and pa.types.is_floating(cells.type):
            cells = without(written, NOTHING)  # 1.234 may be thousands here
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
            cells = without(cells, [])
        glance = Glance(name, cells, Place(table.root, allow_outside), file, table.declared.get(name), written)
        use, chosen = uses.get(name, "input"), name in kinds or (inputs is not None and name in inputs)
        if name in table.unread:
            if chosen or use != "input":
                raise DataError(f"column {name!r} of {table.source} cannot be read: {table.unread[name]}.")
            return Column(name, "category", table.unread[name], "ignored"), told
        column = _column(glance, use, kinds.get(name), told, orders.get(name))
        if use == "input" and not chosen:
            _leave_out(column, glance, spare)
        if inputs is not None and use == "input" and name not in inputs:
            column.use, column.why = "ignored", "not among the chosen inputs"
        return column, told

    columns = []
    for column, told in each(read, table.names, len(table)):
        columns.append(column)
        said += told
    _second_names(columns, table, kinds, inputs, allow_outside)
    if inputs is None and not any(c.use == "input" for c in columns):
        _take_back(columns, spare, said)
    return columns


def _leave_out(column: Column, glance: Glance, spare: dict[str, str]) -> None:
    """Ignore a column that holds nothing; or that only tells rows apart, whose kind, were it read, goes to `spare`."""
    if column.use == "ignored":
        return
    if why := useless(glance, column.kind):
        column.use, column.why = "ignored", why
    elif why := identifier(glance, column.kind):
        kind = "text" if glance.is_text else "category" if column.kind == "category" else "number"
        spare[column.name] = kind
        column.use, column.why = "ignored", f"{why} {WAY_OUT.format(column.name, kind)}"


def _take_back(columns: list[Column], spare: dict[str, str], said: list[str]) -> None:
    """No table is left without an input while it has columns that hold something: texts before numbers."""
    left = [c for c in columns if c.name in spare and c.use == "ignored"]
    for column in [c for c in left if spare[c.name] == "text"] or left:
        evidence = column.why.partition(" (--kind")[0]
        said.append(f"{column.name!r} is read, as nothing else is left, though it seems to be {evidence}")
        column.use, column.kind, column.why = "input", spare[column.name], f"{evidence}: read, as nothing else is left"


def _uses(
    table: Table,
    kinds: dict,
    inputs: list | None,
    targets: list,
    others: dict[str, str | None],
) -> dict[str, str]:
    asked = [("kind", n) for n in kinds] + [("input", n) for n in inputs or []] + [("target", n) for n in targets]
    asked += [(use, n) for use, n in others.items() if n is not None]
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


def _column(glance: Glance, use: str, forced: str | None, said: list[str], order: list[str] | None = None) -> Column:
    if glance.count == 0:
        if use in ("target", "weight", "negative"):
            raise DataError(f"the {use} {glance.name!r} has no value in any row.")
        return Column(glance.name, forced or "category", "no cell has a value", "ignored")
    words: list[str] = []
    if use == "target":
        glance, words = _own_words(glance, said)
    if use == "target" and glance.constant and not glance.one_or_blank:
        raise DataError(
            f"the target {glance.name!r} has the same value in every row ({str(glance.sample[0])[:80]!r}): there is "
            "nothing to learn."
        )
    if use == "weight":
        kind, why = "number", "weighs the rows"
    else:
        kind, why = (forced, "chosen") if forced else _target_kind(glance) if use == "target" else _kind(glance)
    column = Column(glance.name, kind, why, use)
    column.style = _style(glance, kind, use, words)
    if kind == "ordinal":
        cells = without(glance.column, column.style.get("blanks", [])) if glance.is_text else glance.column
        column.style["order"] = levels(cells, order or glance.declared or None, glance.name)
        column.style["ranked"] = bool(glance.declared)
    if use == "target" and "one" in column.style:
        said.append(f"blank cells of {glance.name!r} are taken for an answer of their own: no other value is there")
    return column


def _own_words(glance: Glance, said: list[str]) -> tuple[Glance, list[str]]:
    """A target whose classes may be called None or NA: they are classes where no cell is empty."""
    cells = glance.written
    if cells is None or not glance.is_text or not pa.types.is_string(cells.type):
        return glance, []
    if _kind(glance)[0] not in ("category", "boolean"):
        return glance, []
    counts = {w: int(pc.sum(pc.equal(pc.utf8_trim_whitespace(cells), w)).as_py() or 0) for w in NAMED}
    there = {word: count for word, count in counts.items() if count}
    if not there:
        return glance, []
    told = " and ".join(f"{count:,} cells of {glance.name!r} say {word!r}" for word, count in there.items())
    machine = [word for word in NOTHING if word not in there]
    full = without(cells, machine)
    if full.null_count:
        said.append(f"{told}: taken for no value, as other cells are empty")
        return glance, []
    said.append(f"{told}: taken for a class, as no cell is empty")
    return Glance(glance.name, full, glance.place, glance.file, glance.declared, cells), list(there)


def _style(glance: Glance, kind: str, use: str, words: list[str]) -> dict:
    """How the column is written, for all tables that come later."""
    style: dict = {}
    if kind in ("number", "datetime") or glance.file.textual:
        style["blanks"] = [word for word in NOTHING if word not in words]
    if use == "target":
        style["type"] = str(glance.column.type)
    if kind == "number" or (use == "target" and glance.is_text):
        style["number"] = glance.numeral
        if kind == "category" and KINDS["number"].guess(glance) is not None:  # classes by number: other words are none
            odd = {v.strip() for v in glance.sample if isinstance(numerals.number(v, glance.numeral), str)}
            style["blanks"] = [*style.get("blanks", []), *sorted(odd)]
    if kind == "datetime":
        style["moment"] = glance.moment[0]
    if glance.declared and kind == "category":
        style["order"] = glance.declared
    if glance.one_or_blank and kind in ("boolean", "category"):
        style["one"] = str(glance.sample[0])
    return style


def _kind(glance: Glance) -> tuple[str, str]:
    if glance.declared is not None and 2 * glance.distinct <= glance.count:
        order = ", in order" if glance.declared else ""
        return "category", f"declared as a category of {glance.distinct:,} values{order}"
    for name, kind in KINDS.items():
        why = kind.guess(glance)
        if why is not None and name == "number" and (coded := codes(glance)) is not None:
            return "category", coded
        if why is not None:
            return name, why
    return "category", f"type {glance.column.type}, which no kind recognises"


def _target_kind(glance: Glance) -> tuple[str, str]:
    """Kinds for a target: few whole numbers are classes, and so are strings that repeat, and lists of texts labels."""
    if (why := KINDS["labels"].guess(glance, asked=True)) is not None:
        return "labels", why
    if len(glance.declared or ()) > 2 and 2 * glance.distinct <= glance.count:
        return "ordinal", f"declared as {len(glance.declared or ()):,} levels in order"
    kind, why = _kind(glance)
    numbers = glance.numbers if kind == "number" else np.zeros(0)
    different = np.unique(numbers)
    if kind == "number" and glance.is_text and "interval" in glance.numeral and 2 * glance.distinct <= glance.count:
        return "category", f"{glance.distinct:,} different intervals in {glance.count:,} cells: classes"
    parts = (
        any("." in v or "," in v for v in glance.sample) if glance.is_text else pa.types.is_floating(glance.column.type)
    )
    few = 2 if parts else FEW  # 1.0 to 10.0 are amounts, 0.0 and 1.0 are none
    if 0 < len(different) <= few and 2 * len(different) <= len(numbers) and (different % 1 == 0).all():
        return "category", f"{len(different)} different whole numbers in {glance.count:,} cells: classes"
    if kind in ("text", "image", "audio") and glance.is_text and glance.distinct * 2 <= glance.count:
        return "category", f"{glance.distinct:,} different values in {glance.count:,} cells: classes"
    if kind == "datetime" and 2 * glance.distinct <= glance.count:
        return "category", f"{glance.distinct:,} different dates in {glance.count:,} cells: classes"
    if kind == "text" and np.mean([length(v) for v in glance.sample]) < 1.7:
        return "category", f"{glance.distinct:,} different words in {glance.count:,} cells"
    return kind, why


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
