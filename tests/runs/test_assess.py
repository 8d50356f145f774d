"""Scores of a model as a whole, by each modality alone and with each one absent, held to what is measured row by
row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from plait.data.rows import Rows
from plait.data.table import Table
from plait.runs.assemble import objective, recipe
from plait.runs.assess import assess, modalities
from plait.runs.console import Console
from plait.runs.predict import answered
from plait.runs.prepare import Prepared, prepare
from plait.runs.settings import Settings
from tests.runs.tables import COLUMNS, table


def made(kinds, source=None, **options) -> tuple[Prepared, torch.nn.Module]:
    """A table and a model whose head answers at random: each modality says something else."""
    settings = {
        "system": "auto_toy",
        "folds": 1,
        "image_size": 32,
        "max_tokens": 16,
        "inputs": [COLUMNS[k] for k in kinds],
    }
    source = table(kinds, 60) if source is None else source
    data = prepare(source, Settings(**settings | options), Console(quiet=True))
    own = recipe(data.info, data.schema, type(data.task), **data.task.needs)
    model = data.task.model(own.bind(own.build()), objective(data.info)).eval()
    if hasattr(model, "head"):
        g = torch.Generator().manual_seed(0)
        for layer in [model.head.fused, *model.head.parts.values(), *model.head.linear.values()]:
            torch.nn.init.normal_(layer.weight, generator=g)
    return data, model


def gaps(data: Prepared, gone: list[str]) -> Rows:
    """The rows, but the cells of these columns are null."""
    cells = data.table.data
    for name in gone:
        cells = cells.set_column(cells.column_names.index(name), name, pa.nulls(len(cells), cells.column(name).type))
    return Rows(
        Table(cells, data.table.root, "the same with gaps"), data.schema, asked=data.task.asks is not None
    ).scan()


def measured(data: Prepared, model, gone: list[str], index: np.ndarray) -> list[float]:
    return [s.value for s in data.task.scores(*answered(data.task, model, gaps(data, gone), index))]


def found(data: Prepared, model, **more):
    return assess(model, data.task, data.rows, data.schema, np.arange(len(data.table)), "fp32", **more)


@pytest.mark.parametrize("target", ["label", "amount"])
def test_each_modality_alone_is_the_table_without_the_others(target):
    data, model = made(("image", "text", "number", "category"), target=target)
    index = np.arange(len(data.table))
    told = found(data, model)
    assert [s.value for s in told.scores] == pytest.approx(measured(data, model, [], index))
    assert modalities(data.schema) == {"photo": ["image_0"], "note": ["text_0"], "table": ["number", "category"]}
    columns = {"photo": ["photo"], "note": ["note"], "table": ["size", "mark"]}
    assert told.alone.keys() == told.absent.keys() == columns.keys()
    for label, own in columns.items():
        others = [c for names in columns.values() for c in names if c not in own]
        assert told.alone[label].value == pytest.approx(measured(data, model, others, index)[0]), label
        assert told.absent[label].value == pytest.approx(measured(data, model, own, index)[0]), label
    values = {k: s.value for k, s in told.alone.items()}
    assert len(set(values.values())) > 1
    pick = min if told.scores[0].better == "lower" else max
    assert values[told.best_alone] == pick(values.values())
    others = [c for label, names in columns.items() if label != told.best_alone for c in names]
    whole, best = (
        data.task.per_row(*answered(data.task, model, rows, index)) for rows in (data.rows, gaps(data, others))
    )
    assert told.gain.value == pytest.approx(float(whole.mean() - best.mean()))


def test_without_one_of_two_is_the_other_alone():
    data, model = made(("image", "number"), target="label")
    told = found(data, model)
    assert told.absent == {"photo": told.alone["size"], "size": told.alone["photo"]}
    assert told.to_json()["gain_of_fusion"]["over"] == told.best_alone
    bare = found(data, model, parts=False)
    assert bare.scores == told.scores and not bare.alone and bare.gain is None


def test_rows_without_a_target_are_left_out():
    source = table(("image", "number"), 60)
    cells = [None if i % 3 == 0 else cell for i, cell in enumerate(source.column("label").to_pylist())]
    source = source.set_column(source.column_names.index("label"), "label", pa.array(cells))
    data, model = made(("image", "number"), source, target="label")
    told = found(data, model)
    known = np.flatnonzero(np.arange(60) % 3)
    assert told.index.tolist() == known.tolist() and told.scores[0].n == 40
    assert [s.value for s in told.scores] == pytest.approx(measured(data, model, [], known))


def test_retrieval_has_no_parts_and_only_queries_ask():
    data, model = made(("image", "text"), task="retrieve", system="clip_toy")
    told = found(data, model)
    assert not told.alone and not told.absent and told.gain is None
    queries = np.arange(len(data.table)) < 10
    asked = found(data, model, queries=queries)
    assert asked.scores[0].n < told.scores[0].n
    expected = data.task.scores(told.truth, told.answers, queries)
    assert [s.value for s in asked.scores] == [s.value for s in expected]
    assert [b.value for b in asked.baseline] == [b.value for b in data.task.baseline(told.truth, told.answers, queries)]
