"""Rows and classes that count differently: in the loss, in the linear answer, and in scores."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge

import plait
from plait.cli import main
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.evaluate.intervals import Score
from plait.runs.assemble import objective, recipe
from plait.runs.console import Console
from plait.runs.prepare import Prepared, prepare
from plait.runs.settings import Settings
from plait.tasks.base import TaskModel
from plait.tasks.linear import solve_straight

N = 240
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cells(seed: int = 0) -> dict:
    """Where w is large, y follows `a`; where it is small, `b`."""
    rng = np.random.default_rng(seed)
    a, b, first = rng.normal(size=N), rng.normal(size=N), rng.random(N) < 0.5
    number = np.where(first, 3 * a, 3 * b)
    split = np.where(np.arange(N) % 5 == 0, "test", np.where(np.arange(N) % 5 == 1, "val", "train"))
    return {
        "a": a,
        "b": b,
        "w": np.where(first, 3.0, 0.25),
        "y": number,
        "c": np.where(number > 1, "yes", "no"),
        "s": split,
    }


def ready(source: dict, **options) -> tuple[Prepared, TaskModel]:
    settings = Settings(**{"system": "auto_toy", "split": "s", "sample_weight": "w", "inputs": ["a", "b"]} | options)
    data = prepare(source, settings, QUIET)
    made = recipe(data.info, data.schema, type(data.task), **data.task.needs)
    return data, data.task.model(made.bind(made.build()), objective(data.info))


def scores(found: list[Score]) -> dict[str, float]:
    return {s.name: s.value for s in found}


def test_weights_have_the_mean_one_over_the_training_rows_and_are_no_input() -> None:
    data, _ = ready(cells(), target="y", inputs=None)
    assert data.schema.column("w").use == "weight" and data.schema.inputs == ["a", "b", "c"]
    train = data.splits["train"]
    assert data.weights[train].mean() == pytest.approx(1) and data.rows.batch(train)["weight"].mean() == pytest.approx(
        1
    )
    assert np.unique((data.weights / data.weights.min()).round(6)).tolist() == [1, 12]


def test_the_linear_answer_is_ridge_regression_with_these_weights() -> None:
    data, model = ready(cells(), target="y")
    train, everything = data.splits["train"], np.arange(N)
    penalty = solve_straight(model, data.rows, train, 0)
    raw = model.bound.raw(model.bound.prepared(data.rows.batch(everything)))["number"].numpy()
    y = data.rows.target(everything)["y"].numpy()
    theirs = Ridge(alpha=penalty / 2).fit(raw[train], y[train], sample_weight=data.weights[train])
    ours = model.straight(data.rows.batch(everything))["outputs"][:, 0].detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict(raw), atol=2e-3)
    plain = Ridge(alpha=penalty / 2).fit(raw[train], y[train])
    assert np.abs(plain.predict(raw) - ours).max() > 0.3


@pytest.mark.parametrize("classes", ["balanced", {"yes": 5.0}])
def test_the_linear_answer_is_logistic_regression_with_weights_of_rows_and_classes(classes) -> None:
    data, model = ready(cells(), target="c", class_weight=classes)
    train, everything = data.splits["train"], np.arange(N)
    penalty = solve_straight(model, data.rows, train, 0)
    raw = model.bound.raw(model.bound.prepared(data.rows.batch(everything)))["number"].numpy()
    y = data.rows.target(everything)["c"].numpy()
    assert data.weights[train].mean() == pytest.approx(1)
    if classes == "balanced":
        assert data.weights[train][y[train] == 1].sum() == pytest.approx(len(train) / 2)
    theirs = LogisticRegression(C=2 / penalty, max_iter=5000, tol=1e-8)  # of two classes half the difference of weights
    theirs.fit(raw[train], y[train], sample_weight=data.weights[train])
    ours = model.straight(data.rows.batch(everything))["outputs"].softmax(1).detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(raw), atol=5e-3)


@pytest.mark.parametrize("target", ["y", "c"])
def test_a_row_that_counts_twice_is_in_the_loss_two_rows(target: str) -> None:
    source = cells() | {"w": np.where(np.arange(N) % 3 == 0, 2.0, 1.0)}
    data, model = ready(source, target=target)
    index = data.splits["train"][:40]
    copies = np.repeat(index, source["w"][index].astype(int))
    once = data.rows.batch(index)
    twice = {k: v for k, v in data.rows.batch(copies).items() if k != "weight"}
    scale = float(data.rows.weights[index].sum()) / len(index)
    model.drop = 0.0
    with torch.no_grad():
        one, two = model(once, torch.Generator()), model(twice, torch.Generator())
    for name in two:
        assert one[name].item() == pytest.approx(scale * two[name].item(), rel=1e-4), name


def test_scores_and_baselines_are_weighted_where_the_table_says_how(tmp_path) -> None:
    source = cells()
    run = plait.fit(
        source, target="c", sample_weight="w", split="s", inputs=["a", "b"], system="auto_toy", epochs=1,
        precision="fp32", out=tmp_path / "r", console=QUIET,
    )  # fmt: skip
    test = np.asarray(source["s"]) == "test"
    rows = {k: np.asarray(v)[test] for k, v in source.items()}
    run = plait.load(run.folder)
    told = run.predict(rows).column("c").to_pylist()
    found, plain = run.evaluate(rows), run.evaluate({k: v for k, v in rows.items() if k != "w"})
    want = sk.accuracy_score(rows["c"], told, sample_weight=rows["w"])
    assert scores(found.scores)["accuracy"] == pytest.approx(want)
    assert scores(plain.scores)["accuracy"] == pytest.approx(sk.accuracy_score(rows["c"], told))
    assert want != pytest.approx(sk.accuracy_score(rows["c"], told))
    train = np.asarray(source["s"]) == "train"
    shares = [source["w"][train & (source["c"] == c)].sum() / source["w"][train].sum() for c in ("no", "yes")]
    loss = sk.log_loss(rows["c"], np.tile(shares, (test.sum(), 1)), sample_weight=rows["w"])
    assert scores(found.baseline)["log loss"] == pytest.approx(loss, rel=1e-4)


def test_what_cannot_be_a_weight_is_a_bad_cell_and_its_row_is_left_out(tmp_path) -> None:
    source = {k: np.asarray(v).tolist() for k, v in cells().items()}
    source["w"] = [str(w) for w in source["w"]]
    source["w"][2:6] = ["-1", "heavy", "", "inf"]
    run = plait.fit(
        source, target="y", sample_weight="w", inputs=["a", "b"], folds=1, system="auto_toy", epochs=1,
        out=tmp_path / "r",
        console=QUIET,
    )  # fmt: skip
    bad = pq.read_table(tmp_path / "r" / "bad_rows.parquet").to_pylist()
    assert {(b["row"], b["column"]) for b in bad} == {(2, "w"), (3, "w"), (5, "w")}
    assert "below 0" in bad[0]["reason"]
    data, _ = ready(source, target="y", split=None)
    assert sum(data.sizes().values()) == N - 4 and not {2, 3, 4, 5} & set(np.concatenate(list(data.splits.values())))
    said = " ".join(data.remarks())
    assert "1 rows: no weight in 'w'" in said and "1 rows: weight below 0" in said
    zero = plait.load(run.folder).evaluate(source)
    below = "weight: below 0, and a weight is 0 or more"
    assert zero.left_out == {"weight: not a number": 2, below: 1, "no weight": 1} and len(zero.index) == N - 4


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"sample_weight": "weight"}, UsageError, "weight column 'weight' is not in"),
        ({"sample_weight": "a", "inputs": ["a"]}, UsageError, "cannot be both"),
        ({"sample_weight": "none"}, DataError, "weight 'none' has no value"),
        ({"sample_weight": "zero"}, DataError, "all training rows weigh 0"),
        ({"class_weight": {"maybe": 2}}, UsageError, "no class 'maybe'"),
        ({"class_weight": "balanced", "target": "y"}, UsageError, "class weights are for classification"),
        ({"class_weight": "yes=-1"}, UsageError, "numbers from 0 on"),
        ({"class_weight": "heavy"}, UsageError, "expected balanced"),
        ({"class_weight": {"yes": 0, "no": 0}}, UsageError, "weigh 0"),
        ({"task": "match", "inputs": ["a", "b"], "target": None}, UsageError, "weights are for"),
    ],
)
def test_what_cannot_be_is_said(how: dict, error: type, words: str) -> None:
    source = cells() | {"none": [None] * N, "zero": np.zeros(N)}
    with pytest.raises(error, match=words):
        ready(source, **{"target": "c"} | how)


def test_labels_and_their_rates_are_weighted() -> None:
    source = cells()
    source |= {"p": source["a"] > 0, "q": source["b"] > 1}
    data, _ = ready(source, target=["p", "q"])
    train, w = data.splits["train"], data.weights
    want = [(w[train] @ source[n][train] + 1) / (w[train].sum() + 2) for n in "pq"]
    assert data.task.rates == pytest.approx(want)
    with pytest.raises(UsageError, match="one label a row"):
        ready(source, target=["p", "q"], class_weight="balanced")


def test_the_command_line_takes_both(tmp_path) -> None:
    import pandas as pd

    pd.DataFrame(cells()).to_csv(tmp_path / "t.csv", index=False)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(
            ["fit", str(tmp_path / "t.csv"), "--target", "c", "--sample-weight", "w", "--class-weight", "yes=3,no=1",
             "--system", "auto_toy", "--folds", "1", "--epochs", "1", "-o", str(tmp_path / "r")]
        )  # fmt: skip
    assert code == 0, out.getvalue()
    run = plait.load(tmp_path / "r")
    assert run.task.class_weight[1] == pytest.approx(3 * run.task.class_weight[0])
    with torch.no_grad():
        nothing = run.task.finish({"outputs": run.model.head.prior[None].numpy()})["probabilities"][0]
    assert nothing[1] == pytest.approx(run.task.frequencies[1] * run.task.class_weight[1], rel=1e-4)
    assert read_table(tmp_path / "t.csv").names[2] == "w"


def test_what_classes_count_is_in_the_loss_that_rungs_are_compared_by() -> None:
    data, _ = ready(cells(), target="c", class_weight={"yes": 9})
    truth = {"c": np.array([0, 1, 2])}  # the last was never learnt
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    loss = data.task.loss_rows(truth, {"probabilities": p})
    assert loss[1] == pytest.approx(9 * loss[0]) and loss[2] > 10
