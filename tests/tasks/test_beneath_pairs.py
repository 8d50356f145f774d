"""What no single column tells: trees have to be let grow until two of them together do, and among many columns too."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.runs.beneath import Beneath
from plait.tasks.beneath import learn
from plait.tasks.beneath.asked import Classes
from plait.tasks.beneath.design import MOST_COLUMNS, WIDE, Design, parts
from plait.tasks.beneath.folds import taken


def given(x: np.ndarray, y: np.ndarray, vector: bool) -> tuple[dict, Schema, np.ndarray]:
    columns = {"v": pa.array(x.tolist())} if vector else {f"x{i}": x[:, i] for i in range(x.shape[1])}
    read = read_table(pa.table(columns | {"y": np.where(y, "odd", "even")}))
    schema = Schema.guess(read, target="y", inputs=[*columns], kinds={"v": "vector"} if vector else {})
    schema.ask("category")
    schema.fit(read, np.arange(len(read)))
    batch = Rows(read, schema, asked=True).scan().batch(np.arange(len(read)))
    return parts(batch, schema), schema, batch["target"]["y"].numpy()


def odd(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether one of two columns is above nothing and the other is not; every tenth row says the opposite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    return x, (x[:, 0] > 0) ^ (x[:, 1] > 0) ^ (rng.random(rows) < 0.1)


@pytest.mark.parametrize("columns, vector", [(12, False), (60, True)])
def test_two_columns_that_say_nothing_alone_are_found(columns, vector):
    x, y = odd(3000, columns, 0)
    seen, schema, y = given(x, y, vector)
    some, others = np.arange(1500), np.arange(1500, 3000)
    ladder = learn.climb(partial(taken, taken(seen, some)), y[some], Classes(2), schema, 0)
    right = ladder.beneath(taken(seen, others), np.ones(1500, bool)).argmax(1) == y[others]
    assert "trees" in ladder.rungs and right.mean() > 0.6, (ladder.rungs, ladder.how, right.mean())


def test_trees_read_the_columns_of_a_vector_until_there_are_too_many():
    rng = np.random.default_rng(0)
    for width in (WIDE + 1, MOST_COLUMNS, MOST_COLUMNS + 1):
        x = rng.normal(size=(60, width)).astype(np.float32)
        seen, schema, _ = given(x, rng.random(60) > 0.5, True)
        dense = Design.fit(seen, schema, 0).dense(seen)
        assert dense.shape[1] == (width if width <= MOST_COLUMNS else WIDE)
        if width <= MOST_COLUMNS:
            np.testing.assert_array_equal(dense, seen["vector_0"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_that_may_be_lucky_has_no_say_whatever_it_reads(whole):
    """Of many epochs the best is looked at: what is 1.5 standard errors better is not yet better."""
    x, y = odd(400, 3, 0)
    seen, schema, y = given(x, y, False)
    beneath = object.__new__(Beneath)
    beneath.ladder = learn.climb(partial(taken, seen), y, Classes(2), schema, 0)
    beneath.whole, beneath.weight, beneath.y = whole, None, y[:200]
    beneath.answers = beneath.ladder.beneath(taken(seen, np.arange(200)), np.ones(200, bool)) * 0  # they say nothing
    rng = np.random.default_rng(0)
    lucky = rng.normal(size=(4000, 200, 2))
    for network in lucky:
        sure = beneath.ladder.join(beneath.answers, network, beneath.y, 0.0)
        if 1.4 < sure < 1.8:
            break
    else:
        pytest.fail("none of 4,000 was so lucky")
    assert beneath.settle(network).startswith("the simple models answer alone")
    right = np.where(rng.random(200) < 0.8, beneath.y, 1 - beneath.y)
    assert beneath.settle(np.eye(2)[right] * 2.0).startswith("the network answers with them")
