"""Levels in order: how they are told, learnt, answered and judged."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

import plait
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError, PlaitError, UsageError
from plait.evaluate.ordinal import ordinal, rank_errors
from plait.runs.console import Console
from plait.tasks.linear import solve_straight
from plait.tasks.ordinal import cumulative, level_odds
from plait.tasks.registry import guess_task
from tests.tasks.test_linear import made, raw

LEVELS = ["poor", "fair", "good", "great"]
CUTS = [-1.5, 0.5, 2.0]


def frame(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Proportional odds: a score with logistic noise, cut in four."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    at = np.digitize(2 * x[:, 0] - x[:, 1] + rng.logistic(size=rows), CUTS)
    y = pd.Categorical([LEVELS[i] for i in at], categories=LEVELS, ordered=True)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y})


def fitted(table: pd.DataFrame, folder, **how) -> plait.Run:
    quiet = Console(io.StringIO(), quiet=True)
    return plait.fit(table, target="y", out=folder, epochs=2, folds=1, console=quiet, **how)


# ---- metrics


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_equal_scikit_learns(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    answer[:120] = truth[:120]
    w = rng.random(200) if weighted else None
    mae, kappa, accuracy = ordinal(truth, answer, 4, w)
    assert mae.value == pytest.approx(np.average(np.abs(truth - answer), weights=w))
    assert kappa.value == pytest.approx(cohen_kappa_score(truth, answer, weights="quadratic", sample_weight=w))
    assert accuracy.value == pytest.approx(np.average(truth == answer, weights=w))
    assert mae.better == "lower" and kappa.low < kappa.value < kappa.high


def test_a_level_that_nobody_knew_is_missed_by_the_most() -> None:
    assert rank_errors(np.array([4, 7, 1]), np.array([0, 2, 3]), 4).tolist() == [3, 2, 2]


def test_ignored_rows_and_wrong_shapes() -> None:
    assert ordinal(np.array([-100, 1, 2]), np.array([0, 1, 2]), 3)[0].n == 2
    for truth, answer in (([0, 1], [0]), ([0, 1], [0, 3]), ([-100], [0])):
        with pytest.raises(PlaitError, match="expected|nothing"):
            ordinal(np.array(truth), np.array(answer), 3)


# ---- the loss and what is answered


def test_log_odds_become_probabilities_of_levels() -> None:
    g = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, -1.0]], dtype=torch.float64)  # the second row's cuts have crossed
    p = level_odds(g).exp()
    above = torch.sigmoid(torch.tensor([[2.0, 0.5, -1.0], [3.0, 0.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(1 - p.cumsum(1)[:, :3], above)
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=torch.float64))


def test_the_loss_asks_whether_a_row_is_above_each_level() -> None:
    g, y = torch.tensor([[2.0, -1.0], [0.3, 0.1]]), torch.tensor([1, 2])
    p = torch.sigmoid(g)
    expected = torch.stack([-p[0, 0].log() - (1 - p[0, 1]).log(), -p[1, 0].log() - p[1, 1].log()])
    torch.testing.assert_close(cumulative(g, y), expected)
    torch.testing.assert_close(cumulative(g, y, torch.tensor([1.0, 1.0, 3.0])), expected * torch.tensor([1.0, 3.0]))


def test_one_score_is_solved_for_all_cuts() -> None:
    """What a linear model begins with has the weights that made the table, and its cuts."""
    table = frame(160)
    rows, model, _ = made([LEVELS.index(v) for v in table["y"]], "ordinal")
    assert model.head.linear["number"].weight.shape[0] == 1 and len(model.head.prior) == 3
    solve_straight(model, rows, np.arange(160), seed=0)
    z = raw(model, rows, np.arange(160))
    got = model.straight(rows.batch(np.arange(160)))["outputs"].exp()
    above = torch.logit(1 - got.cumsum(1)[:, :3].double())
    spread = (above[:, :1] - above).std(0)  # cuts lie equally far apart in every row
    assert z.shape[0] == 160 and float(spread.max()) < 1e-2 and float(above.std(0).min()) > 0


# ---- how levels are told


def guessed(table, **how) -> Schema:
    return Schema.guess(read_table(table), target="y", **how)


def test_an_ordered_category_that_is_asked_for_is_ordinal() -> None:
    schema = guessed(frame())
    assert schema.column("y").kind == "ordinal" and schema.column("y").style["order"] == LEVELS
    assert guess_task(schema) == "ordinal"
    table = frame()
    table["y"] = pd.Categorical(table["y"], ordered=False)
    assert guess_task(guessed(table)) == "classify"
    table["y"] = pd.Categorical(np.where(table["a"] > 0, "yes", "no"), categories=["no", "yes"], ordered=True)
    assert guess_task(guessed(table)) == "classify"  # of two, order says nothing


def test_levels_are_numbers_by_size_or_named() -> None:
    table = pd.DataFrame({"x": np.arange(40.0), "y": [10, 9, 1, 2] * 10})
    assert guessed(table, kinds={"y": "ordinal"}).column("y").style["order"] == ["1", "2", "9", "10"]
    table["y"] = ["low", "high", "Mid", "mid"] * 10
    order = guessed(table, kinds={"y": "ordinal:low < mid < high"}).column("y").style["order"]
    assert order == ["low", "mid", "high"]  # "Mid" is mid
    for kind, error, said in (
        ("ordinal", DataError, "in which order"),
        ("ordinal:low<mid", DataError, "none of low<mid"),
        ("ordinal:low<low<mid<high", DataError, "all different"),
        ("ordinal:low", DataError, "two or more"),
        ("category:low<mid<high", UsageError, "only ordinal"),
    ):
        with pytest.raises(error, match=said):
            guessed(table, kinds={"y": kind})


def test_a_level_without_a_training_row_keeps_its_rank() -> None:
    table = frame().query("y != 'fair'")
    schema = guessed(table).fit(read_table(table), np.arange(100))
    params = schema.column("y").params
    assert params["classes"] == LEVELS and params["counts"][1] == 0 and sum(params["counts"]) == 100


def test_an_input_may_be_ordinal() -> None:
    table = frame().rename(columns={"y": "c", "a": "y"})
    schema = guessed(table, kinds={"c": "ordinal"})
    schema.fit(read_table(table), np.arange(len(table)))
    assert schema.slot("category").columns == ["c"] and schema.column("c").params["values"] == LEVELS


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> plait.Run:
    return fitted(frame(), tmp_path_factory.mktemp("ordinal") / "run", no_ladder=True)


def test_a_run_answers_levels_in_the_tables_own_type_and_order(run) -> None:
    found = plait.load(run.folder).predict(frame(50, seed=1).drop(columns="y"))
    answers = found.to_pandas()
    assert answers["y"].cat.ordered and list(answers["y"].cat.categories) == LEVELS
    p = answers[[f"p({level})" for level in LEVELS]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    median = (p.cumsum(1) < 0.5).sum(1)
    assert (answers["y"].cat.codes == median).all() and (median != p.argmax(1)).any()
    np.testing.assert_array_equal(answers["probability"], p[np.arange(50), median])


def test_it_is_judged_by_ranks_and_learns(run) -> None:
    told = plait.load(run.folder).evaluate(frame(400, seed=2))
    assert [s.name for s in told.scores] == ["MAE in ranks", "quadratic weighted kappa", "accuracy"]
    assert told.scores[0].value < 0.75 * told.baseline[0].value and told.scores[1].value > 0.5
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "quadratic weighted kappa" in page and "Class by class" in page


def test_a_row_with_nothing_gets_the_prior(run) -> None:
    nothing = run.predict(pd.DataFrame({"a": [None], "b": [None]}, dtype=float)).to_pylist()[0]
    np.testing.assert_allclose([nothing[f"p({level})"] for level in LEVELS], run.task.frequencies, atol=1e-5)


def test_the_chosen_metric_says_which_level_is_answered(tmp_path) -> None:
    run = fitted(frame(120), tmp_path / "run", metric="qwk", class_weight="balanced")  # simple models beneath, too
    p = np.array([[0.4, 0.1, 0.1, 0.4], [0.45, 0.2, 0.2, 0.15]])
    assert run.task.metric == "quadratic_kappa" and run.task.answered(p).tolist() == [2, 1]
    run.task.metric = "accuracy"
    assert run.task.answered(p).tolist() == [0, 0]
    run.task.metric = "mae"
    assert run.task.answered(p).tolist() == [1, 1]


def test_whole_numbers_of_a_file_stay_such(tmp_path) -> None:
    table = frame(120)
    table["y"] = table["y"].cat.codes + 1
    table.to_csv(tmp_path / "stars.csv", index=False)
    how = dict(kinds={"y": "ordinal"}, sample_weight=None)
    run = fitted(str(tmp_path / "stars.csv"), tmp_path / "run", **how)
    found = run.predict(table.drop(columns="y"), out=tmp_path / "answers.csv")
    assert run.task.name == "ordinal" and str(found.schema.field("y").type) == "int64"
    assert set(pd.read_csv(tmp_path / "answers.csv")["y"]) <= {1, 2, 3, 4}
    with pytest.raises(UsageError, match="levels in order"):
        fitted(str(tmp_path / "stars.csv"), tmp_path / "other", positive="1", **how)


def test_folds_judge_all_rows_of_levels(tmp_path) -> None:
    quiet = Console(io.StringIO(), quiet=True)
    table = frame(60)
    run = plait.fit(table, target="y", out=tmp_path / "run", epochs=1, folds=2, no_ladder=True, console=quiet)
    assert run.assessments["folds"].scores[0].n == 60 and run.assessments["folds"].scores[0].name == "MAE in ranks"
