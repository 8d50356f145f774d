"""From a table and settings to everything that training needs; whatever cannot work says so here, before any
training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from plait.core.catalog import ModelInfo, model_info
from plait.core.methods import method_info
from plait.data.check import check_table, unreadable
from plait.data.codes import settle_codes
from plait.data.digest import row_digests
from plait.data.guess import kinds_of
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.data.kinds.place import is_path
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import duplicates_across, split_rows
from plait.data.table import Table, read_table
from plait.data.unify import end_to_end, unify
from plait.errors import DataError, UsageError
from plait.runs.assemble import BoundRecipe, choose, cropped, one_reader, reads, recipe, role_for
from plait.runs.console import Console
from plait.runs.devices import pick_device
from plait.runs.parts import Parts, read_parts
from plait.runs.settings import Settings
from plait.runs.towers import Towers, choose_towers, offered
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from plait.tasks.base import Task
from plait.tasks.registry import TASKS, guess_task


@dataclass
class Prepared:
    """A table ready to train on, targets included. splits: sorted row numbers with a known target."""

    table: Table
    schema: Schema
    rows: Rows
    task: Task
    info: ModelInfo
    splits: dict[str, np.ndarray]
    fingerprint: str
    target_bad: Counter = field(default_factory=Counter)
    duplicates: list = field(default_factory=list)
    check: dict = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)
    towers: Towers = field(default_factory=lambda: Towers({}))
    offered: dict[str, str] = field(default_factory=dict)  # {kind: the tower that would read its columns}
    pretrained: bool | str = False  # what the system itself begins with

    def sizes(self) -> dict[str, int]:
        """Rows per split."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def recipe(self, settings: Settings) -> BoundRecipe:
        """How to build the system for these columns, with the methods that the settings name."""
        return _recipe(self.info, self.schema, self.task, settings, self.parts, self.pretrained)

    def remarks(self) -> list[str]:
        """What a careful reader would want to know of the table, in sentences."""
        said = [*unreadable(self.rows), *self.schema.said, *self.rows.said]
        said += [leak["sentence"] for leak in self.check["leaks"] if leak["read"]]
        across = Counter((d["what"], d["column"], ", ".join(d["splits"])) for d in self.duplicates)
        for (what, column, sides), count in across.items():
            said.append(
                f"{count:,} {f'{column!r} cells' if what == 'media' else 'rows of inputs'} are the same in {sides}"
            )
        return said + [f"{count:,} rows: {why}" for why, count in self.target_bad.items()]


def prepare(source, settings: Settings, console: Console, towers: Towers | None = None) -> Prepared:
    """Read, guess, split, learn, decode. towers: of a run that goes on; otherwise those that the settings ask for.
    Raises DataError or UsageError for what cannot work."""
    first = read_table(source)
    schema = guess(first, settings)
    table, given = _gather(first, schema, settings)
    splits = _split(table, schema, settings, given)
    kind = TASKS[settings.task or guess_task(schema)]
    table, splits = kind.extend(table, schema, splits, settings.seed)
    table = schema.read(table)
    if settings.system == "auto" or "category" in model_info(settings.system).takes:
        settle_codes(table, schema, splits["train"], kinds_of(first, settings.kinds))
    kind = kind.variant(schema, table)
    could = offered(settings, schema, kind)
    towers = choose_towers(settings, schema, kind) if towers is None else towers
    pretrained = settings.pretrained if not towers else False
    towers.on(pick_device(settings.device)).take(schema)
    info = choose(system_name(settings, schema, kind), schema, kind)
    role = role_for(kind, info)
    if (own := kind.by(role)) is not kind:
        kind = own
        schema.ask(kind.asks)
    fixed, published = reads(info), towers.reads() if towers else info.weights if pretrained else {}
    longest = published.get("max_tokens") or fixed.get("length") or 256
    length = settings.max_tokens or longest // (2 if kind.one_vocabulary else 1)
    tokenizer: str | Path | None = towers.tokenizer or settings.tokenizer
    parts = read_parts(info, settings.parts)
    texts = any(s.kind == "text" for s in schema.slots) or role == "generator"
    if texts and pretrained and not tokenizer:
        tokenizer = published_tokenizer(info, pretrained)
    schema.fit(
        table,
        splits["train"],
        image_size=settings.image_size or parts.image or fixed.get("image") or published.get("image"),
        crop=cropped(published),
        max_tokens=length,
        tokenizer_file=tokenizer or parts.tokenizer,
        tokenizer=None if tokenizer else parts.words,
        longest=kind.longest,
        pieces=settings.pieces,
        one_vocabulary=kind.one_vocabulary or one_reader(info),
        rate=fixed.get("rate"),
        prefixes=_prefixes(published.get("prefixes", {}), schema, kind),
    )
    towers.check(schema, length)
    task = kind.learn(schema)
    if texts and pretrained and tokenizer:
        read = [schema.shape(s.name) for s in schema.slots if s.kind == "text"]
        for words in [task.needs["words"]] if "words" in task.needs else read:  # a writer's are of one tokenizer
            check_vocabulary(info, words, tokenizer)
    made = _recipe(info, schema, task, settings, parts, pretrained)
    made.bind(made.build_on_meta())  # what cannot be built is said before the rows are read
    rows = Rows(
        table,
        schema,
        allow_outside=settings.allow_outside,
        workers=settings.workers,
        asked=kind.asks is not None,
        towers=towers.readers(schema, keep=True),
    )
    console.start("reading", rows.work)
    try:
        rows.scan(lambda done, _: console.step(done))
    finally:
        console.stop()
    task.derive(rows)
    splits = _known(splits, task.known(rows), task)
    _refuse_too_bad(rows, len(table), settings.max_bad)
    _refuse_empty(rows, schema, splits["train"])
    rows.standardise(splits["train"])
    splits, left_out = task.sift(splits, rows, made.build_on_meta)
    digest = row_digests(table, schema, sorted(schema.inputs + schema.targets))
    fingerprint = blake2b(b"".join(digest), digest_size=16).hexdigest()
    return Prepared(
        table,
        schema,
        rows,
        task,
        info,
        splits,
        fingerprint,
        target_bad=_unasked(rows) + Counter(left_out),
        duplicates=duplicates_across(table, schema, splits),
        check=check_table(table, schema, rows),
        parts=parts,
        towers=towers,
        offered={} if towers else could,
        pretrained=pretrained,
    )


def _recipe(
    info: ModelInfo, schema: Schema, task: Task, settings: Settings, parts: Parts, pretrained: bool | str
) -> BoundRecipe:
    for name, _ in settings.methods:
        if why := method_info(name).by_hand:
            raise UsageError(f"--method {name} is not for `plait fit`: {why}. Apply it from Python")
    given = bool(pretrained or parts.tokenizer)
    made = recipe(info, schema, type(task), pretrained=given, changes=settings.methods, **task.needs)
    return replace(made, arguments=made.arguments | parts.arguments, **parts.scale)


def _prefixes(told: dict[str, str], schema: Schema, task: type[Task]) -> dict[str, str]:
    """{column: what is put before its texts}, of what a weights row tells: where texts search among texts, the first
    column asks."""
    names = [c.name for c in schema.used("input") if c.kind == "text"]
    if task.verb == "search" and len(names) > 1:
        return {name: told.get("passage" if i else "query", "") for i, name in enumerate(names)}
    return dict.fromkeys(names, told.get("text", ""))


def guess(table: Table, settings: Settings) -> Schema:
    """The schema of `table` under the settings. What is searched by words is text, however often it repeats."""
    task = TASKS.get(settings.task or "")
    asks = task.asks if task else None
    said = {settings.target: asks} if isinstance(settings.target, str) and asks and KINDS[asks].own_slot else {}
    schema = Schema.guess(
        table,
        kinds=said | settings.kinds,
        inputs=settings.inputs,
        target=settings.target,
        group=settings.group,
        split=settings.split,
        allow_outside=settings.allow_outside,
    )
    if task and task.verb == "search" and not any(s.kind == "text" for s in schema.slots):
        for column in schema.used("input"):
            words = table.column(column.name).type in (pa.string(), pa.large_string())
            if column.kind == "category" and words and column.name not in kinds_of(table, settings.kinds):
                schema.take_for(column.name, "text", f"{column.why}; what is searched by words is text")
    return schema


def system_name(settings: Settings, schema: Schema, task: type[Task]) -> str:
    """`auto` grows with what there is to read: a table of numbers alone needs less than pictures do. It neither hears
    speech nor writes."""
    if settings.system != "auto":
        return settings.system
    if task.auto:
        return task.auto
    return "auto_tiny" if all(KINDS[s.kind].straight for s in schema.slots) else "auto_small"


def _gather(first: Table, schema: Schema, settings: Settings) -> tuple[Table, dict[str, np.ndarray] | None]:
    """One table, read as the training file is written, and the splits that files of their own give."""
    given = {name: path for name, path in (("val", settings.val), ("test", settings.test)) if path is not None}
    if not given:
        return schema.read(first), None
    tables = {"train": first} | {name: read_table(path) for name, path in given.items()}
    used = {c.name for c in schema.columns if c.use != "ignored"}
    for name, t in tables.items():
        lacking = [c for c in first.names if c in used and c not in t.names]
        if lacking:
            raise DataError(
                f"{t.source} lacks the column {lacking[0]!r} of {first.source}: give the {name} table the same columns"
            )
    read = {name: _rooted(schema.read(t), schema, first) for name, t in tables.items()}
    names = [n for n in first.names if n in used]
    columns = []
    for name in names:
        decimal = schema.column(name).style.get("number", {}).get("decimal", ".")
        columns.append(end_to_end(unify(name, [t.column(name) for t in read.values()], decimal)))
    ends = np.cumsum([len(t) for t in tables.values()])
    rows = {name: np.arange(end - len(t), end) for (name, t), end in zip(tables.items(), ends)}
    return Table(pa.Table.from_arrays(columns, names=names), first.root, first.source, reader=schema), rows


def _rooted(table: Table, schema: Schema, first: Table) -> Table:
    """A table with the media paths of another folder rewritten, so that they are found from the first table's."""
    if table.root == first.root or not table.root or not first.root:
        return table
    data = table.data
    for column in schema.columns:
        if (
            KINDS[column.kind].media
            and column.name in table.names
            and pa.types.is_string(data.column(column.name).type)
        ):
            cells = data.column(column.name).to_pylist()
            moved = [str((table.root / c).resolve()) if c and is_path(c) else c for c in cells]
            data = data.set_column(data.column_names.index(column.name), column.name, pa.array(moved, pa.string()))
    return replace(table, data=data)


def _split(
    table: Table, schema: Schema, settings: Settings, given: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    stratify, group = None, next((c.name for c in schema.used("group")), None)
    if len(schema.targets) == 1 and schema.used("target")[0].kind in ("category", "boolean"):
        column, labels = schema.used("target")[0], KINDS["category"]
        cells, place = table.column(column.name), Place()
        known = labels.fit(cells, FitOptions(place, style=column.style))
        stratify = [int(i) or None for i in labels.encode_column(cells, known, place).values[:, 0]]
    if given is None:
        return split_rows(
            table,
            schema,
            fractions=settings.fractions,
            seed=settings.seed,
            group=group,
            column=next((c.name for c in schema.used("split")), None),
            stratify=stratify,
        )
    if "val" not in given:  # a test table alone: a tenth of the training rows watches the training
        train = given["train"]
        part = split_rows(
            table.take(train),
            schema,
            fractions=(0.9, 0.1, 0.0),
            seed=settings.seed,
            group=group,
            stratify=None if stratify is None else [stratify[i] for i in train],
        )
        given = {**given, "train": train[part["train"]], "val": train[part["val"]]}
    return {"test": np.zeros(0, np.int64), **given}


def _unasked(rows: Rows) -> Counter:
    """Why how many cells of the target columns cannot be used, or only in part."""
    found: Counter = Counter()
    for slot in rows.asked:
        (name,) = slot.columns
        found["target missing"] += rows.table.column(name).null_count
        found.update(rows.bad.by_reason(name))
    return +found


def _known(splits: dict[str, np.ndarray], known: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """The splits without rows whose target is not known."""
    out = {name: rows[known[rows]] for name, rows in splits.items()}
    if not len(out["train"]):
        raise DataError(f"no training row has a usable target ({task.target!r}): there is nothing to learn from")
    return out


def _refuse_too_bad(rows: Rows, count: int, limit: float) -> None:
    bad = len(rows.bad.rows())
    if bad > limit * count:
        reasons = "; ".join(f"{n:,} x {why}" for why, n in list(rows.bad.by_reason().items())[:5])
        raise DataError(
            f"{bad:,} of {count:,} rows ({bad / count:.1%}) have a bad cell, more than --max-bad {limit:.1%} allows: "
            f"{reasons}"
        )


def _refuse_empty(rows: Rows, schema: Schema, train: np.ndarray) -> None:
    there = rows.presence()
    if not any(p[train].any() for p in there.values()):
        reasons = {name: ", ".join(rows.bad.by_reason(name)) or "all cells are empty" for name in schema.inputs}
        told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise DataError(". ".join([f"no training row has a readable input ({told})", *unreadable(rows)]))
