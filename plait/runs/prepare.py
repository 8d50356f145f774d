"""From a table and settings to everything that training needs; whatever cannot work says so here, before any
training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plait.core.catalog import ModelInfo, model_info
from plait.core.methods import method_info
from plait.data.check import check_table, unreadable
from plait.data.codes import settle_codes
from plait.data.colours import colours
from plait.data.guess import kinds_of
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import duplicates_across
from plait.data.table import Table, read_table
from plait.data.weights import levelled
from plait.errors import DataError, UsageError
from plait.runs.assemble import BoundRecipe, choose, cropped, depth, one_reader, prefixes, reads, recipe, role_for
from plait.runs.console import Console
from plait.runs.declared import of_file
from plait.runs.devices import pick_device
from plait.runs.folder import CONFIG
from plait.runs.folds import Folds, Within, draw_folds, learnt
from plait.runs.gather import gather, parted, split
from plait.runs.parts import Parts, read_parts
from plait.runs.settings import Settings
from plait.runs.stored import Stored, fingerprints, whole
from plait.runs.towers import Towers, choose_towers, offered
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from plait.tasks.base import Task
from plait.tasks.beneath.several import MOST
from plait.tasks.bind import LOOKS
from plait.tasks.registry import TASKS, guess_task, nouns
from plait.tasks.rowwise import AnswerTask


@dataclass
class Prepared:
    """A table ready to train on, targets included. splits: sorted row numbers with a known target; drawn: of the
    table's own rows, as they were drawn; prints: what `plait.runs.stored.fingerprints` says of the table; left_out: by
    split, {why: how many} of its rows that no score can count; folds: that judge all of them."""

    table: Table
    schema: Schema
    rows: Rows
    task: Task
    info: ModelInfo
    splits: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    prints: dict
    target_bad: Counter = field(default_factory=Counter)
    duplicates: list = field(default_factory=list)
    check: dict = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)
    towers: Towers = field(default_factory=lambda: Towers({}))
    offered: dict[str, str] = field(default_factory=dict)  # {kind: the tower that would read its columns}
    parted: str = ""  # how rows were split, where not at random
    pretrained: bool | str = False  # what the system itself begins with
    laddered: bool = False  # simple models stand beneath the network
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    folds: Folds = field(default_factory=Folds)

    @property
    def fingerprint(self) -> str:
        """Of the table, in one digest."""
        return whole(self.prints)

    @property
    def weights(self) -> np.ndarray | None:
        """(n,) float64: what each row counts in the loss, its sample weight times its class's; the mean over the
        training rows is 1. NaN where a row has no target or no weight. None: all count alike."""
        return self.task.row_weights(self.rows)

    def sizes(self) -> dict[str, int]:
        """Rows per split."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def recipe(self, settings: Settings) -> BoundRecipe:
        """How to build the system for these columns, with the methods that the settings name."""
        made = _recipe(self.info, self.schema, self.task, settings, self.parts, self.pretrained)
        own = made.role in LOOKS and not self.pretrained and not self.parts.scale
        seen: dict[str, Any] = colours(self.rows, self.splits["train"]) if own else {}
        return replace(made, **seen)

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


def prepare(
    source,
    settings: Settings,
    console: Console,
    towers: Towers | None = None,
    within: Within | None = None,
    folder: Callable[[], Path] | None = None,
) -> Prepared:
    """Read, guess, split, learn, decode. towers: of a run around this one; otherwise those that the settings ask for.
    within: the rows are split already. folder: gives that in which what towers read is written as it is read, if
    anywhere. Raises DataError or UsageError for what cannot work."""
    first = read_table(source)
    schema = guess(first, settings)
    table, given = gather(first, schema, settings)
    kind, gathered = TASKS[settings.task or guess_task(schema)], table
    folds = draw_folds(table, schema, settings, kind, given is not None) if within is None else Folds()
    if within is not None:
        drawn = within.splits
    elif folds:
        drawn = learnt(table, schema, settings, np.arange(len(table))) | {"test": np.zeros(0, np.int64)}
    else:
        drawn = split(table, schema, settings, given)
    parted_by = parted(schema, settings, drawn, table)
    if not kind.weighs and (settings.sample_weight or settings.class_weight):
        raise UsageError(f"weights are for {nouns(lambda t: t.weighs)}: this run does {kind.name}")
    if settings.negative and not kind.rejects:
        raise UsageError(f"negatives are for {nouns(lambda t: t.rejects)}: this run does {kind.name}")
    table, splits = kind.extend(table, schema, drawn, settings.seed)
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
        prefixes=prefixes(published.get("prefixes", {}), schema, kind),
        closed=published.get("closed", True),
    )
    towers.check(schema, length)
    task = kind.learn(schema)
    if settings.quantiles:
        task.ask_quantiles(settings.quantiles)
    if texts and pretrained and tokenizer:
        read = [schema.shape(s.name) for s in schema.slots if s.kind == "text"]
        for words in [task.needs["words"]] if "words" in task.needs else read:  # a writer's are of one tokenizer
            check_vocabulary(info, words, tokenizer)
    made = _recipe(info, schema, task, settings, parts, pretrained)
    made.bind(made.build_on_meta())  # what cannot be built is said before the rows are read
    if towers and folder and not towers.folder:
        towers.folder = folder()
    rows = _scanned(table, schema, task, settings, towers, console, within, keep=folder is not None)
    task.derive(rows)
    known = _known(splits, task.known(rows), task)
    _refuse_too_bad(rows, len(table), settings.max_bad)
    _refuse_empty(rows, schema, known["train"])
    rows.standardise(known["train"])
    splits, unfit, left_out = _sifted(task, rows, splits, known, made)
    _weigh(task, rows, splits, settings)
    return Prepared(
        table,
        schema,
        rows,
        task,
        info,
        splits,
        drawn,
        fingerprints(gathered, schema, given),
        target_bad=_unasked(rows) + unfit,
        duplicates=duplicates_across(table, schema, splits),
        check=check_table(table, schema, rows),
        parts=parts,
        towers=towers,
        offered={} if towers else could,
        parted=parted_by,
        pretrained=pretrained,
        left_out=left_out,
        laddered=_laddered(task, settings),
        folds=folds,
    )


def prepare_again(
    source,
    settings: Settings,
    console: Console,
    stored: Stored,
    towers: Towers,
    *,
    begun: bool,
    keep: bool,
    within: Within | None = None,
) -> Prepared:
    """The same for a run that goes on, by what it keeps: nothing is guessed, drawn or learnt anew. begun: it has
    weights, so that those it began with are not asked for. keep: write what towers read. Raises DataError where the
    table is not the run's."""
    first, schema = read_table(source), stored.schema
    schema.allow_outside = settings.allow_outside
    if lacking := [name for name in stored.prints["columns"] if name not in first.names]:
        raise DataError(f"{first.source} is not the table of {stored.folder}: it lacks the column {lacking[0]!r}")
    table, given = gather(first, schema, settings)
    prints = fingerprints(table, schema, given)
    stored.check(prints, first.source)
    kind = TASKS[stored.config["task"]["task"]]
    table, splits = kind.extend(table, schema, stored.drawn, settings.seed)
    table = schema.read(table)
    info = model_info(stored.config["recipe"]["name"])
    with of_file(stored.folder / CONFIG, "task"):
        task = kind.from_json(stored.config["task"], schema)
    towers.on(pick_device(settings.device))
    rows = _scanned(table, schema, task, settings, towers, console, within, keep=keep)
    task.derive(rows)
    _weigh(task, rows, stored.used, settings)
    made = BoundRecipe(**stored.config["recipe"])
    known = _known(splits, task.known(rows), task)
    _, unfit, left_out = _sifted(task, rows, splits, known, made)  # to tell of these again
    return Prepared(
        table,
        schema,
        rows,
        task,
        info,
        stored.used,
        stored.drawn,
        prints,
        target_bad=_unasked(rows) + unfit,
        duplicates=duplicates_across(table, schema, stored.used),
        check=check_table(table, schema, rows),
        parts=Parts() if begun else read_parts(info, settings.parts),
        towers=towers,
        parted=parted(schema, settings, stored.drawn, table),
        pretrained=False if towers else settings.pretrained,
        left_out=left_out,
        laddered=_laddered(task, settings),
        folds=Folds.read(stored.folder),
    )


def _laddered(task: Task, settings: Settings) -> bool:
    wanted = settings.system == "auto" and not settings.no_ladder
    return wanted and isinstance(task, AnswerTask) and len(task.simple()) <= MOST


def _sifted(
    task: Task, rows: Rows, splits: dict[str, np.ndarray], known: dict[str, np.ndarray], made: BoundRecipe
) -> tuple[dict[str, np.ndarray], Counter, dict[str, dict[str, int]]]:
    """The splits without what cannot be used, why how many rows that leaves out, and the same by split with those that
    have no target."""
    used, unfit = task.sift(known, rows, made.build_on_meta)
    left_out = {}
    for name, index in splits.items():
        why = Counter(task.unknown(rows, np.setdiff1d(index, known[name])))
        left_out[name] = why + Counter({", ".join(unfit): len(known[name]) - len(used[name])})
    return used, Counter(unfit), {name: dict(why.most_common()) for name, why in left_out.items()}


def _weigh(task: Task, rows: Rows, splits: dict[str, np.ndarray], settings: Settings) -> None:
    """What rows and classes count, and what the watched rows are judged by."""
    rows.weights = levelled(rows.weights, splits["train"])
    task.weigh(rows, splits["train"], settings.class_weight)
    watch = splits["val"] if len(splits["val"]) else splits["train"]
    task.judge(settings.metric, settings.positive, rows, watch)


def _scanned(
    table: Table, schema: Schema, task: Task, settings: Settings, towers: Towers, console: Console,
    within: Within | None, *, keep: bool,
) -> Rows:  # fmt: skip
    rows = Rows(
        table,
        schema,
        allow_outside=settings.allow_outside,
        workers=settings.workers,
        asked=task.asks is not None or bool(schema.negatives),
        towers=towers.readers(schema, keep=keep),
        share=within.rows if within else None,
    )
    console.start("reading", rows.work)
    try:
        rows.scan(lambda done, _: console.step(done))
    finally:
        console.stop()
    return rows


def _recipe(
    info: ModelInfo, schema: Schema, task: Task, settings: Settings, parts: Parts, pretrained: bool | str
) -> BoundRecipe:
    for name, _ in settings.methods:
        if why := method_info(name).by_hand:
            raise UsageError(f"--method {name} is not for `plait fit`: {why}. Apply it from Python")
    given = bool(pretrained or parts.tokenizer)
    made = recipe(info, schema, type(task), pretrained=given, changes=settings.methods, **task.needs)
    return replace(made, arguments=depth(info, settings) | made.arguments | parts.arguments, **parts.scale)


def guess(table: Table, settings: Settings) -> Schema:
    """The schema of `table` under the settings. What is searched by words is text, however often it repeats."""
    task = TASKS.get(settings.task or "")
    asks = task.asks if task else None
    told = asks and (KINDS[asks].own_slot or KINDS[asks].of_file)
    said = {settings.target: asks} if isinstance(settings.target, str) and asks and told else {}
    schema = Schema.guess(
        table,
        kinds=said | settings.kinds,
        inputs=settings.inputs,
        target=settings.target,
        group=settings.group,
        split=settings.split,
        weight=settings.sample_weight,
        negative=settings.negative,
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


def _unasked(rows: Rows) -> Counter:
    """Why how many cells of the target columns cannot be used, or only in part."""
    found: Counter = Counter()
    for slot in rows.asked:
        (name,) = slot.columns
        found["target missing"] += rows.table.column(name).null_count
        found.update(rows.bad.by_reason(name))
    for column in rows.schema.used("weight"):
        found[f"no weight in {column.name!r}"] += rows.table.column(column.name).null_count
        found.update({f"weight {why}": n for why, n in rows.bad.by_reason(column.name).items()})
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
