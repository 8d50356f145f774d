"""What no score counts stands beside the scores, and what cannot be right is wrong."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

import plait
from plait.data.rows import Rows
from plait.data.table import Table
from plait.errors import PlaitError
from plait.runs.assess import assess
from plait.runs.console import Console
from plait.tasks.published import KnownClasses
from tests.runs.tables import table
from tests.runs.test_assess import made


def other(source: pa.Table, name: str, change) -> pa.Table:
    """The table with each third cell of a column changed: 20 of 60."""
    cells = [change(cell) if i % 3 == 0 else cell for i, cell in enumerate(source.column(name).to_pylist())]
    return source.set_column(source.column_names.index(name), name, pa.array(cells))


def more(kinds) -> pa.Table:
    """The usual table, with a label and a target picture more."""
    found = table(kinds, 60).append_column("sure", pa.array([i % 2 == 0 for i in range(60)]))
    return found.append_column("clear", found.column("photo")) if "image" in kinds else found


def scored(kinds, name: str, change, **options):
    """What a model for the usual table says of one in which each third cell of a column is changed."""
    data, model = made(kinds, more(kinds), **options)
    rows = Rows(Table(other(more(kinds), name, change), None, "t"), data.schema, asked=data.task.asks is not None)
    data.task.derive(rows.scan())
    return assess(model, data.task, rows, data.schema, np.arange(60), "fp32", parts=False)


@pytest.mark.parametrize(
    "kinds, options, column, change, left_out",
    [
        (("number",), {"target": "label"}, "label", lambda _: None, {"no target": 20}),
        (("number",), {"target": "amount"}, "amount", lambda _: None, {"no target": 20}),
        (("number",), {"target": ["true", "sure"]}, "true", lambda _: None, {"label that is not known": 20}),
        (("image", "number"), {"task": "match", "target": "true", "system": "auto_toy"}, "true", lambda _: None,
         {"no target": 20}),
        (("image", "text"), {"task": "retrieve", "system": "clip_toy"}, "photo", lambda cell: cell[:20],
         {"pair of which a side cannot be read": 20}),
        (("image",), {"task": "detect", "target": "things", "system": "deformable_detr_toy"}, "things",
         lambda _: [{"label": "red", "box": [100, 100, 110, 110]}, {"label": "red", "box": [2, 2, 9, 9]}],
         {"thing outside what is read of its picture": 20}),
        (("image",), {"task": "detect", "target": "things", "system": "deformable_detr_toy"}, "things",
         lambda _: [{"label": "red"}],
         {"target: a thing without a box (box, bbox, xmin..., or x, y, width, height)": 20}),
        (("image",), {"task": "restore", "target": "clear", "system": "vit_toy"}, "clear", lambda cell: cell[:20],
         {"target: not a picture": 20}),
    ],
    ids=["class", "number", "labels", "match", "retrieve", "box", "no box", "restore"],
)  # fmt: skip
def test_what_no_score_counts_is_told(kinds, options, column, change, left_out):
    found = scored(kinds, column, change, **options)
    kept = {why: n for why, n in found.left_out.items() if why in left_out}
    assert kept == left_out == found.left_out
    for why in left_out:
        assert f"20 x {why}" in found.beside and found.to_json()["left_out"][why] == 20


def test_trajectories_without_an_action_are_told_and_an_error_is_not_left_out():
    from plait.tasks.act import Act

    task = object.__new__(Act)
    answers = {"error": np.array([1.0, np.nan, 3.0]), "usual": np.array([2.0, np.nan, 2.0])}
    assert task.scores({}, answers)[0].value == 2 and task.scores({}, answers)[0].n == 2
    (left,) = task.aside(None, np.arange(3), {}, answers).items()
    assert left == ("trajectory without a step that has both a state and an action", 1)
    with pytest.raises(PlaitError, match="1 NaN"):
        task.scores({}, answers | {"error": np.array([np.nan, np.nan, 3.0])})


def test_a_text_longer_than_any_learnt_is_compared_whole():
    long = "red and red and red and red and red and red and red"
    data, model = made(("image",), task="caption", target="said", system="git_toy")
    rows = Rows(Table(other(table(("image",), 60), "said", lambda _: long), None, "t"), data.schema, asked=True)
    data.task.derive(rows.scan())
    batch = rows.batch(np.arange(4))
    said = {"text": ["red"] * 4, "loss": np.zeros(4), "there": np.ones(4, bool)}
    truth, _ = data.task.record(batch, said)
    assert truth["text"][0] == truth["text"][3] == long and truth["text"][1] in ("red", "green", "blue")
    assert data.task.per_row(truth, said)[0] < 0.5


def test_a_token_that_cannot_be_written_is_never_right():
    data, _ = made(("image",), task="caption", target="said", system="git_toy")
    task = data.task
    red = np.asarray(data.rows.target(np.arange(1))["said"][0])
    red = red[red >= 0]
    odd = np.insert(red, 1, task.text["unk"])
    assert task.true(red, 0) == task.decode(red) and task.true(odd, 0) != task.decode(odd)


def test_a_row_that_cannot_be_read_is_wrong_whatever_its_class():
    task = KnownClasses(["a", "b"], "image")
    answers = task.finish(
        {"outputs": np.array([[3.0, 0], [0, 3], [0, 0], [0, 0]]), "there": np.array([1, 1, 0, 0]) > 0}
    )
    truth = {"label": np.array([0, 1, 0, 1])}
    found = {s.name: s.value for s in task.scores(truth, answers)}
    assert found["accuracy"] == 0.5 and task.per_row(truth, answers).tolist() == [1, 1, 0, 0]
    assert task.columns(answers)["label"] == ["a", "b", None, None]


def test_a_fit_says_beside_each_score_which_rows_have_none(tmp_path, capsys):
    split = ["test" if i % 4 == 0 else "val" if i % 4 == 1 else "train" for i in range(60)]
    label = [None if s == "test" and i % 8 == 0 else "ab"[i % 3 == 0] for i, s in enumerate(split)]
    cells = {"x": [float(i % 7) for i in range(60)], "y": label, "split": split}
    usual = {"target": "y", "split": "split", "system": "auto_toy", "epochs": 1, "precision": "fp32"}
    run = plait.fit(cells, out=tmp_path / "run", console=Console(sys.stdout), **usual)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
    assert "7 rows; not scored: 8 x no target" in line
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    head, body = page.split("</header>")
    assert head.count("not scored: 8 x no target") == len(run.assessments["test"].scores)
    assert body.count("not scored: 8 x no target") == 1
    cells["y"] = [None if s == "test" else c for c, s in zip(label, split)]
    run = plait.fit(cells, out=tmp_path / "none", console=Console(quiet=True), **usual)
    ((name, found),) = run.assessments.items()
    assert name == "val" and found.beside == (
        "these rows chose the best epoch; no test row can be scored: 15 x no target"
    )
