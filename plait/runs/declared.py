"""What the JSON of a run folder is declared to be, and how it is read: what does not fit is one DataError with file and
key."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from plait import __version__
from plait.core.declared import Misfit, Record, Within, check, each, named, of_class, one_of, some
from plait.core.roles import ROLES
from plait.data import moments, numerals
from plait.data.columns import Column, Slot
from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import COUNT
from plait.data.schema import Schema
from plait.errors import DataError, UsageError
from plait.runs.folder import CONFIG, SCHEMA, read_json
from plait.runs.manifest import verified
from plait.runs.settings import TABLES, Settings
from plait.tasks.published import USED
from plait.tasks.registry import TASKS
from plait.train.plan import Plan

FORMAT = 2  # of run folders; 1 had no manifest, and did not keep its splits
LARGEST = 1 << 24  # of whole numbers that a model is made of
SPREAD = Within(float, 5e-324)
STYLE = Record(
    {},
    {
        "blanks": each(str),
        "number": numerals.STYLE,
        "moment": moments.STYLE,
        "one": str,
        "order": list,
        "type": str,
        "ranked": bool,
        "like": str,
    },
)
COLUMN = of_class(
    Column,
    kind=one_of(KINDS),
    use=one_of(["input", "target", "group", "split", "weight", "negative", "ignored"]),
    style=STYLE,
)
FIELDS = Record({"columns": each(COLUMN), "slots": each(of_class(Slot, kind=one_of(KINDS)))})
RECIPE = Record(
    {"name": str, "arguments": dict, "changes": each(some(str, dict)), "role": one_of(ROLES)}
    | {
        "mean": some(float, float, float),
        "std": some(SPREAD, SPREAD, SPREAD),
        "slots": named(Record({"kind": one_of(KINDS)}, more=True)),
    }
)
PRINTS = Record(
    {"rows": named(COUNT), "columns": named(named(str)), "content": named(str)},
)
TRAINED = Record(
    {
        "settings": of_class(Settings, more=True, **dict.fromkeys(TABLES, Any)),
        "recipe": RECIPE,
        "task": Record({"task": one_of([*TASKS, *USED])}, more=True),
        "plan": of_class(Plan, precision=one_of(["fp32", "bf16"])),
        "splits": named(COUNT),
    },
    {
        "plait": str,
        "created": str,
        "source": Any,
        "fingerprint": str,
        "table": PRINTS,
        "towers": named(Record({"recipe": RECIPE, "digest": str}, {"adapter": str})),
        "rung": one_of(["adapters", "all_weights"]),
        "changed_from": str,
    },
    more=True,
)
PUBLISHED = Record(
    {k: TRAINED.keys[k] for k in ("settings", "recipe", "task")}
    | {
        "plan": Record({"precision": one_of(["fp32", "bf16"])}),
        "used": Record({"name": str, "weights": str, "licence": Any}),
    },
    TRAINED.optional,
    more=True,
)


def read_config(folder: str | Path | None) -> dict:
    """The config of a run. Raises UsageError where there is none, DataError for one that is damaged, not as declared,
    or of a newer plait."""
    path = Path(folder or "") / CONFIG
    if folder is None or not path.is_file():
        raise UsageError(f"{folder} is no run folder: it has no {CONFIG}")
    config = read_json(path)
    with of_file(path, "format"):
        check(config.get("format", 1), Within(int, 1), "format")
    if config.get("format", 1) > FORMAT:
        raise DataError(
            f"{path}: format is {config['format']}, and plait {__version__} knows runs up to {FORMAT}: a newer plait "
            "wrote it, and reads it"
        )
    with of_file(path, "it"):
        check(config, PUBLISHED if "used" in config else TRAINED)
        for key in ("recipe", *(f"towers.{kind}.recipe" for kind in config.get("towers", {}))):
            told = config["recipe"] if key == "recipe" else config["towers"][key.split(".")[1]]["recipe"]
            _refuse_huge(told["arguments"], f"{key}.arguments")
            _refuse_huge(told["changes"], f"{key}.changes")
            _refuse_huge(told["slots"], f"{key}.slots")
    return config


def read_schema(folder: Path) -> Schema:
    """The schema of a run. Raises DataError for one that is damaged or is not as declared."""
    path = folder / SCHEMA
    data = read_json(path)
    with of_file(path, "columns"):
        check(data, FIELDS)
        for i, column in enumerate(data["columns"]):
            params = column.get("params", {})
            if params or column.get("use", "input") in ("input", "target"):
                key = f"columns[{i}].params"
                check(params, KINDS[column["kind"]].learnt, key)
                if not verified(path) and (why := KINDS[column["kind"]].disagrees(params)):
                    raise Misfit(key, why)
        _refuse_apart(data)
        schema = Schema.from_json(data)
        if not verified(path):
            _rehearse(schema)
    return schema


@contextmanager
def of_file(path: Path, key: str) -> Iterator[None]:
    """What goes wrong within is said of that file, and of that key of it where it names none itself."""
    try:
        yield
    except Misfit as error:
        raise DataError(f"{path}: {error}. It is damaged or was changed: bring it back from a copy") from error
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: {key} cannot be read by plait {__version__}: {why[:500]}. It is damaged or was changed: bring it "
            "back from a copy"
        ) from error


@contextmanager
def no_more_modules(than: int = 20_000) -> Iterator[None]:
    """Raises DataError where more modules are made within: of too large numbers a model would be built without end."""
    here, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal made
        made += threading.get_ident() == here
        if made > than:
            raise DataError(f"it asks for more than {than:,} modules, which its weights are too few for")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _refuse_huge(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_huge(inner, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _refuse_huge(inner, f"{key}[{i}]")
    elif isinstance(value, int):
        check(value, Within(int | bool, -LARGEST, LARGEST), key)


def _refuse_apart(data: dict) -> None:
    """Columns and slots that do not go together."""
    columns = {c["name"]: c for c in data["columns"]}
    for name, count in Counter(c["name"] for c in data["columns"]).items():
        if count > 1:
            raise Misfit("columns", f"{name!r} is there {count} times")
    inputs = [c["name"] for c in data["columns"] if c.get("use", "input") == "input"]
    fed = [name for slot in data["slots"] for name in slot["columns"]]
    if sorted(fed) != sorted(inputs):
        odd = sorted(set(fed) ^ set(inputs)) or [n for n in fed if fed.count(n) > 1]
        raise Misfit("slots", f"{odd[0]!r} is an input column of no slot, of two, or no input column")
    if len({s["name"] for s in data["slots"]}) < len(data["slots"]):
        raise Misfit("slots", "two have the same name")
    for i, slot in enumerate(data["slots"]):
        for name in slot["columns"]:
            kind, params = KINDS[columns[name]["kind"]], columns[name].get("params", {})
            if slot["kind"] != kind.slot and not (slot["kind"] == "vector" and "width" in params):  # a tower's
                raise Misfit(f"slots[{i}].kind", f"is {slot['kind']}, and {name!r} is {kind.name}")
        if len(slot["columns"]) != 1 and KINDS[slot["kind"]].own_slot:
            raise Misfit(f"slots[{i}].columns", f"got {len(slot['columns'])}, expected one of a {slot['kind']}")


def _rehearse(schema: Schema) -> None:
    """Encode a few cells of each column, so that what nobody vouches for is found before a user's cells are."""
    for i, column in enumerate(schema.columns):
        if column.use not in ("input", "target", "negative"):
            continue
        kind, place = KINDS[column.kind], Place()
        try:
            if kind.own_slot:
                kind.store(1, column.params)
                if not kind.late:
                    kind.preprocess(column.params)
                kind.encode_some([None, "a 1", [1.0, 2.0], b"?"], column.params, place)
            else:
                for cells in (pa.array(["1", "a", None]), pa.array([1.5, np.nan, None])):
                    encode = kind.encode_column if column.use == "input" else kind.encode_target
                    encode(pa.chunked_array([cells]), column.params, place)
        except (Bad, Missing):
            pass
        except Exception as error:
            raise Misfit(f"columns[{i}].params", f"{type(error).__name__}: {error}") from error
