"""Two hundred damaged tables: each is read, or refused with a message that helps; never another error, never a wrong
row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from plait.data.check import check_table
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import split_rows
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from tests.data.damaged import COUNT, DAMAGE, damaged
from tests.data.maker import Maker, bomb

# damage that cannot be trained on: these must be refused
REFUSED = {"ragged csv", "NUL bytes", "wrong encoding", "one class", "0 rows", "empty file", "no such target",
           "unknown kind",
           "a column with two uses", "not a table"}  # fmt: skip
# damage that leaves a usable table for some seeds only
MAY_BE_REFUSED = {"csv cut off", "1 rows", "2 rows", "3 rows", "target mostly missing", "mixed and broken JSON lines",
                  "class folders",
                  "columns without a value"}  # fmt: skip


def run(source: object, arguments: dict) -> tuple[Rows, dict, dict]:
    table = read_table(source)
    schema = Schema.guess(table, **arguments)
    splits = split_rows(table, schema)
    schema.fit(table, splits["train"], vocab=300)
    schema = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    rows = Rows(table, schema).scan()
    everything = np.random.default_rng(0).permutation(len(table))
    return rows, rows.batch(everything), splits


@pytest.mark.parametrize("seed", range(COUNT))
def test_reads_or_refuses(seed: int, tmp_path) -> None:
    case = damaged(seed, tmp_path / "in")
    try:
        rows, batch, splits = run(case.source, case.arguments)
    except (DataError, UsageError) as error:
        assert case.name in REFUSED | MAY_BE_REFUSED, (case.name, error)
        assert len(str(error)) > 20 and "Traceback" not in str(error)
        return
    assert case.name not in REFUSED, case.name
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(len(rows)))
    for slot in rows.schema.slots:
        value, present = batch[slot.name], batch["present"][slot.name]
        assert len(value) == len(rows) == len(present) and present.dtype == torch.bool
        assert torch.isfinite(value.float()).all(), case.name
        blank = value[~present]
        pad = rows.schema.shape(slot.name).get("pad", 0)
        assert (blank == pad).all(), f"{case.name}: a missing cell is not blank"
        if slot.name in batch["keep"]:
            assert not batch["keep"][slot.name][~present].any() and batch["keep"][slot.name].shape == value.shape
    listed = rows.bad.write(tmp_path / "bad_rows.parquet")
    assert len(read_back(listed)) == rows.bad.count()
    json.dumps(check_table(rows.table, rows.schema, rows))


def read_back(path) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def content(seed: int, folder) -> tuple:
    case = damaged(seed, folder)
    source = case.source
    if isinstance(source, pa.Table):
        shown = str(source)
    else:
        shown = str(source.relative_to(folder)) if isinstance(source, Path) else repr(source)
    files = tuple((p.name, hash(p.read_bytes())) for p in sorted(folder.rglob("*")) if p.is_file())
    return case.name, repr(case.arguments), shown, files


def test_the_tables_differ_and_repeat(tmp_path) -> None:
    assert len({content(seed, tmp_path / str(seed)) for seed in range(COUNT)}) == COUNT
    assert len({damaged(seed, tmp_path / f"again{seed}").name for seed in range(len(DAMAGE))}) >= 40
    one, two = damaged(4, tmp_path / "a"), damaged(4, tmp_path / "b")
    assert one.source.read_bytes() == two.source.read_bytes()
    files = [sorted(p.read_bytes() for p in (tmp_path / folder).iterdir()) for folder in "ab"]
    assert files[0] == files[1]


def test_every_damaged_picture_is_listed(tmp_path) -> None:
    names = [f"{i}.png" for i in range(20)]
    maker = Maker(0, tmp_path)
    for i, name in enumerate(names):
        data = maker.png()
        (tmp_path / name).write_bytes({3: data[: len(data) // 2], 7: b"hello", 11: bomb()}.get(i, data))
    table = read_table({"photo": names, "label": ["a", "b"] * 10}, root=tmp_path)
    schema = Schema.guess(table, target="label").fit(table, np.arange(20))
    rows = Rows(table, schema).scan()
    assert set(rows.bad.rows().tolist()) == {3, 7, 11}
    assert (~rows.presence()["image_0"]).nonzero()[0].tolist() == [3, 7, 11]
    reasons = rows.bad.by_reason()
    assert "more than 100,000,000 pixels" in reasons and "not a picture" in reasons
