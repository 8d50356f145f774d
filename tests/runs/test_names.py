"""The columns of a table of predictions are called as no column of the table that is answered, nor alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.columns import Column
from plait.data.schema import Schema
from plait.runs.predict import answer_table
from plait.tasks.caption import Caption
from plait.tasks.classify import Classify, ClassifyMany
from plait.tasks.match import Match

WORDS = ["row", "unread", "probability", "p(a)", "p(a)_", "p(blank)", "labels", "a", "blank", "blank_", "similarity",
         "answer 2", "probability 2", "row_", "unread_", "probability_"]  # fmt: skip
names = st.lists(st.sampled_from(WORDS), unique=True, max_size=6)


def told(task, cells: dict, target: str, inputs: list[str], others: list[str]) -> dict:
    """The columns of the table of predictions, which all tasks share a promise of."""
    columns = [Column(target, "category", "", "target"), *(Column(n, "number", "", "input") for n in inputs)]
    found = answer_table(Schema(columns, []), cells, ["", ""], others)
    assert found.num_columns == len(cells) + 2 == len(set(found.column_names))
    assert not set(found.column_names) & ((set(inputs) | set(others)) - {target})
    return dict(zip(found.column_names, found.columns))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WORDS), names, names, st.sampled_from([["a", "blank", None], ["a", "b"], [None, "a", "blank_"]]))
def test_classes(target, inputs, others, classes):
    inputs = [n for n in inputs if n != target]
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])[:, : len(classes)]
    task = Classify(target, classes, [1] * len(classes))
    cells = task.columns({"probabilities": p})
    assert len(cells) == 2 + len(classes)
    found = told(task, cells, target, inputs, others)
    assert found[target].to_pylist() == [classes[i] for i in p.argmax(1)]
    values = [c.to_pylist() for c in found.values()]
    assert all(p[:, i].tolist() in values for i in range(len(classes)))


def test_of_many_classes_the_likeliest_are_told_and_that_is_said():
    many = Classify("answer 2", [f"c{i}" for i in range(51)], [1] * 51)
    p = np.random.default_rng(0).dirichlet(np.ones(51), 2)
    found = told(many, many.columns({"probabilities": p}), "answer 2", ["probability 3"], ["probability"])
    ranks = ["answer 2_", "probability 2", "answer 3", "probability 3_", "answer 4", "probability 4", "answer 5"]
    assert list(found) == ["row", "answer 2", "probability_", *ranks, "probability 5", "unread"]
    assert found["answer 2_"].to_pylist() == [f"c{i}" for i in np.argsort(-p, 1)[:, 1]]
    assert "51 classes" in many.untold() and Classify("y", ["a", "b"], [1, 1]).untold() == ""


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WORDS), names, names)
def test_other_answers(target, inputs, others):
    inputs = [n for n in inputs if n != target]
    said = {"text": ["x", "y"], "probability": np.array([0.5, 0.4])}
    text = Caption(target, {}).columns(said)
    assert told(None, text, target, inputs, others)[target].to_pylist() == ["x", "y"]
    pair = Match(target, 0.5).columns({"probability": np.array([0.2, 0.9])})
    assert told(None, pair, target, inputs, others)[target].to_pylist() == [False, True]
    several = ClassifyMany(["a", target], ["a", target], [0.5, 0.5]).columns({"probabilities": np.full((2, 2), 0.6)})
    told(None, several, target, [n for n in inputs if n != "a"], [*others, "a"]) if target != "a" else None
