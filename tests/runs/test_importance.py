"""What each column is worth: a column that the answer hangs on, one that says nothing, and none at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.runs import importance as module
from plait.runs.assess import Asked
from plait.runs.importance import Shuffled, importance
from tests.runs.test_assess import found, made

KINDS = ("image", "text", "number", "category", "vector")


@pytest.fixture(scope="module")
def whole():
    return made(KINDS, target="label")


@pytest.mark.parametrize("column", ["photo", "note", "size", "mark", "point"])
def test_only_the_cells_of_one_column_are_those_of_other_rows(whole, column):
    data, _ = whole
    partner = np.roll(np.arange(60), 7)
    index = np.arange(10, 30)
    mixed, own, other = (r.batch(i) for r, i in (
        (Shuffled(data.rows, column, partner), index), (data.rows, index), (data.rows, partner[index])))  # fmt: skip
    for slot in data.schema.slots:
        moved = column in slot.columns
        want = other if moved else own
        assert torch.equal(mixed[slot.name], want[slot.name])
        assert torch.equal(mixed["present"][slot.name], want["present"][slot.name])
        if slot.name in own["keep"]:
            assert torch.equal(mixed["keep"][slot.name], want["keep"][slot.name])
    assert torch.equal(mixed["row"], own["row"])


def test_two_columns_of_one_slot_are_told_apart():
    from tests.runs.tables import table

    source = table(("number",), 60).append_column("more", table(("number",), 60, 1).column("size"))
    data, _ = made(("number",), source, target="label", inputs=["size", "more"])
    partner, index = np.roll(np.arange(60), 7), np.arange(20)
    mixed, own = Shuffled(data.rows, "more", partner).batch(index), data.rows.batch(index)
    assert torch.equal(mixed["number"][:, 0], own["number"][:, 0])
    assert torch.equal(mixed["number"][:, 1], data.rows.batch(partner[index])["number"][:, 1])


def test_what_the_answer_hangs_on_is_worth_most(whole):
    data, model = whole
    told = found(data, model, parts=False)
    head = model.head
    with torch.no_grad():
        for layer in [head.fused, *head.parts.values()]:
            layer.weight.zero_(), layer.bias.zero_()
        for name, layer in head.linear.items():
            layer.bias.zero_()
            layer.weight.zero_()
            if name == "number":
                layer.weight[:] = torch.tensor([[3.0], [0.0], [-3.0]])
    result = importance(told.asked)
    values = dict(result.columns)
    assert result.columns[0][0] == "size" and values["size"].low > 0 and result.cost == "log loss" and not result.left
    for name in ("photo", "note", "mark", "point"):
        assert values[name].value == values[name].low == values[name].high == 0
    again = importance(told.asked)
    assert again.columns == result.columns


def test_time_is_limited_and_what_it_left_is_named(whole, monkeypatch):
    data, model = whole
    asked = [Asked(model, data.task, data.rows, np.arange(60), "fp32")]
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    result = importance(asked, seconds=5)
    assert len(result.columns) == 2 and len(result.left) == 3


def test_rows_are_sampled_from_all_models_that_answered(whole):
    data, model = whole
    asked = [Asked(model, data.task, data.rows, part, "fp32") for part in np.split(np.arange(60), [40])]
    assert importance(asked).rows == 60
    alone, _ = made(("number",), target="label")
    assert importance([Asked(model, alone.task, alone.rows, np.arange(60), "fp32")]) is None  # one column: no question
